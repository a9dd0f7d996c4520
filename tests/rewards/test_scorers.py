"""Which scorer a data source gets, and the exact grades."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from gmpo.errors import ConfigError, DataError
from gmpo.rewards.scorers import NAMED, SCORERS, Scoring, check_options, scorer_for
from gmpo.rewards.verdict import Verdict

CORRECT, WRONG, UNPARSED = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSED


@pytest.mark.parametrize(
    ("data_source", "text", "gold", "options", "verdict", "score", "pred"),
    [
        ("openai/gsm8k", "#### 1,000", "1000", {}, CORRECT, 1.0, "1000"),
        ("openai/gsm8k", "#### 42.", "42", {}, WRONG, 0.0, "42."),
        ("openai/gsm8k", "#### 4", "4.00", {}, CORRECT, 1.0, "4"),
        ("openai/gsm8k", "#### 4.00", "4", {}, CORRECT, 1.0, "4.00"),
        ("openai/gsm8k", "#### 1,000.50", "1000.5", {}, CORRECT, 1.0, "1000.50"),
        ("openai/gsm8k", "it is 4.00", "4", {"method": "flexible"}, CORRECT, 1.0, "4.00"),
        ("openai/gsm8k", "it is 4.00.", "4", {"method": "flexible_no_commas"}, CORRECT, 1.0, "4.00"),
        ("openai/gsm8k", "it is 42", "42", {}, UNPARSED, 0.0, None),
        ("openai/gsm8k", "it is 1,000", "1000", {"method": "flexible"}, WRONG, 0.0, "1,000"),
        ("openai/gsm8k", "it is 1,000.", "1000", {"method": "flexible_no_commas"}, CORRECT, 1.0, "1000"),
        ("lighteval/MATH", r"\boxed{\dfrac12}", r"\frac{1}{2}", {}, CORRECT, 1.0, r"\dfrac12"),
        ("HuggingFaceH4/MATH-500", r"\boxed{2}", "3", {}, WRONG, 0.0, "2"),
        ("DigitalLearningGmbH/MATH-lighteval", "2", "2", {}, UNPARSED, 0.0, None),
        ("math_dapo", "Answer: $34$", "34", {}, CORRECT, 1.0, "$34$"),
        ("math", "Answer: 35", "34", {}, WRONG, -1.0, "35"),
        ("math_dapo_reasoning", r"\boxed{34}", "34", {}, UNPARSED, -1.0, None),
        ("aime24", "Answer: 204", "204", {}, CORRECT, 1.0, "204"),
        ("aime_1983_2023", r"\boxed{34}", "34", {"strict_box_verify": True}, CORRECT, 1.0, "34"),
        ("gmpo/stories", "3 5 + 7 = 4 2 ; #### 4 2", "42", {}, CORRECT, 1.0, "42"),
        ("gmpo/stories", "#### 4 3", "42", {}, WRONG, 0.0, "43"),
        ("gmpo/stories", "4 2", "42", {}, UNPARSED, 0.0, None),
        ("math_verify", r"\boxed{\frac{2}{4}}", "0.5", {}, CORRECT, 1.0, r"\frac{2}{4}"),
        ("math_verify", r"\boxed{1} and \boxed{2}", "\\{1, 2\\}", {}, CORRECT, 1.0, "1, 2"),
        ("math_verify", "<answer>1e6</answer>", "1000000", {}, CORRECT, 1.0, "1e6"),
        ("minerva_math", "The answer is $3$.", "4", {}, WRONG, 0.0, "3"),
        ("olympiadbench", "x^2 + 1", "1 + x^2", {}, CORRECT, 1.0, "x^2 + 1"),
        ("amc23", "no idea", "27", {}, UNPARSED, 0.0, None),
    ],
)
def test_a_scorer_gives_exactly_this_grade(
    data_source: str, text: str, gold: str, options: Mapping[str, Any], verdict: Verdict, score: float, pred: str | None
) -> None:
    grade = scorer_for(data_source).score(text, gold, {}, **options)
    assert (grade.verdict, grade.score, grade.pred) == (verdict, score, pred)
    assert grade.extra == {"acc": int(verdict is CORRECT)}


def test_an_exact_name_goes_before_a_beginning_and_case_matters() -> None:
    assert scorer_for("math") is not scorer_for("math_verify")
    assert scorer_for("aime25") is SCORERS["aime*"]
    assert scorer_for("AIME2024") is SCORERS["AIME*"]
    assert scorer_for("numina_olympiads") is scorer_for("math_verify")


def test_an_unknown_data_source_is_an_error_that_lists_the_known_and_names_the_remedy() -> None:
    with pytest.raises(DataError) as caught:
        scorer_for("openai/gsm8")
    message = str(caught.value)
    assert "'openai/gsm8'" in message
    assert "Did you mean 'openai/gsm8k'?" in message
    assert "lighteval/MATH" in message
    assert "custom_reward_function.path" in message
    with pytest.raises(DataError):
        scorer_for("aime*"[:-2])


def test_an_option_that_a_scorer_does_not_have_is_refused() -> None:
    check_options("openai/gsm8k", {"method": "flexible"})
    with pytest.raises(ConfigError, match="allowed: 'strict', 'flexible'"):
        check_options("openai/gsm8k", {"method": "loose"})
    with pytest.raises(ConfigError, match="no option 'method'; its options: thinking"):
        check_options("lighteval/MATH", {"method": "strict"})


@pytest.mark.parametrize("data_source", ["openai/gsm8k", "lighteval/MATH", "math_dapo", "gmpo/stories", "math_verify"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\\boxed{" * 2000,
        "\\boxed{42",
        "####",
        "Answer:",
        "\\boxed{４２} #### ４２",
        "Answer: ٤٢",
        "\\boxed{}",
        "x" * 100_000,
        "\x00\ud800",
    ],
)
def test_no_malformed_answer_is_correct(data_source: str, text: str) -> None:
    grade = scorer_for(data_source).score(text, "42", {})
    other_digits = any(char.isdecimal() and not char.isascii() for char in text)
    if data_source == "math_verify" and other_digits:
        assert grade.verdict is CORRECT  # The general scorer reads the digits of all scripts; verl's read ASCII.
    else:
        assert grade.verdict in (WRONG, UNPARSED)


@pytest.mark.parametrize(
    ("scoring", "source", "name"),
    [
        (Scoring(), "openai/gsm8k", "gsm8k"),
        (Scoring(scorer="math_verify"), "openai/gsm8k", "math_verify"),
        (Scoring(scorer="math_verify", scorers={"a": "math"}), "a", "math"),
        (Scoring(scorers={"a": "lighteval/MATH"}), "a", "math"),
        (Scoring(scorers={"a": "math"}), "openai/gsm8k", "gsm8k"),
    ],
)
def test_a_run_may_name_the_scorer_of_all_or_of_single_data_sources(scoring: Scoring, source: str, name: str) -> None:
    assert scoring.scorer_for(source) is NAMED[name]


def test_a_scorer_that_does_not_exist_and_tags_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no scorer 'math_verfy'\. Did you mean 'math_verify'"):
        Scoring(scorers={"a": "math_verfy"}).check()
    with pytest.raises(ConfigError, match="thinking_tags"):
        Scoring(thinking_tags=("", "</t>")).check()


def test_settings_reach_the_scorers_that_know_them() -> None:
    scoring = Scoring(thinking="require", thinking_tags=("[T]", "[/T]"), require="boxed")
    both = {"thinking": "require", "thinking_tags": ("[T]", "[/T]")}
    assert scoring.options_for("openai/gsm8k") == both
    assert scoring.options_for("amc23") == {**both, "require": "boxed"}


def test_the_zeros_before_an_answer_of_aime_do_not_count() -> None:
    score = scorer_for("aime24").score
    assert score("Answer: 33", "033", {}).verdict is CORRECT
    assert score("Answer: 33", "33", {}).verdict is CORRECT
    assert score("Answer: 3", "033", {}).verdict is WRONG
