"""User functions: how they are recognised, called, and what becomes of what they return."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gmpo.errors import ConfigError
from gmpo.rewards.custom import Answer, Signature, grade_of, load_function, reward_function
from gmpo.rewards.verdict import Verdict

CHAT = [{"role": "user", "content": "6 * 7?"}]


def answer(text: str, **extra: Any) -> Answer:
    return Answer("src", CHAT, text, "42", extra)


def test_a_function_in_verls_signature_gets_each_answer_by_name() -> None:
    seen = []

    def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any, bonus: float) -> float:
        seen.append((data_source, solution_str, ground_truth, extra_info))
        return float(solution_str == ground_truth) + bonus

    function = reward_function(compute_score, {"bonus": 0.25})
    grades = function.grade([answer("42", index=3), answer("41", index=3)])
    assert function.signature is Signature.VERL
    assert seen == [("src", "42", "42", {"index": 3}), ("src", "41", "42", {"index": 3})]
    assert [(g.verdict, g.score) for g in grades] == [(Verdict.CORRECT, 1.25), (Verdict.WRONG, 0.25)]


def test_a_function_in_trls_signature_gets_all_answers_of_a_problem_in_one_call() -> None:
    calls = []

    def reward(prompts: Any, completions: Any, solution: Any, **columns: Any) -> list[float | None]:
        calls.append((prompts, completions, solution, columns))
        return [1.0, None, 0.25]

    function = reward_function(reward, {})
    grades = function.grade([answer("a", solution="s", index=1) for _ in range(3)])
    assert function.signature is Signature.TRL
    [(prompts, completions, solution, columns)] = calls
    assert prompts == [CHAT] * 3
    assert completions == [[{"role": "assistant", "content": "a"}]] * 3
    assert solution == ["s"] * 3
    assert columns == {"data_source": ["src"] * 3, "ground_truth": ["42"] * 3, "index": [1] * 3}
    assert [g.verdict for g in grades] == [Verdict.CORRECT, Verdict.GRADER_ERROR, Verdict.WRONG]


def test_a_column_that_a_trl_function_needs_and_the_rows_lack_is_named() -> None:
    def reward(completions: Any, solution: Any) -> list[float]:
        return [1.0]

    [grade] = reward_function(reward, {}).grade([answer("a", index=1)])
    assert grade.verdict is Verdict.GRADER_ERROR
    assert grade.reason == (
        "the reward function requires the column solution; "
        "the rows have completions, data_source, ground_truth, index, prompts"
    )


def test_trl_completions_are_plain_strings_when_the_prompt_is_one() -> None:
    def reward(completions: list[str], **columns: Any) -> list[float]:
        return [float(completion == "a") for completion in completions]

    [grade] = reward_function(reward, {}).grade([Answer("src", "6 * 7?", "a", "42", {})])
    assert grade.score == 1.0


def test_async_functions_of_both_signatures_are_awaited() -> None:
    async def per_answer(solution_str: str, ground_truth: str) -> float:
        return float(solution_str == ground_truth)

    async def per_problem(completions: Any, **columns: Any) -> list[float]:
        return [0.5] * len(completions)

    assert reward_function(per_answer, {}).grade([answer("42")])[0].score == 1.0
    assert reward_function(per_problem, {}).grade([answer("42")])[0].score == 0.5


@pytest.mark.parametrize(
    "returned",
    [math.nan, math.inf, None, "1", [1.0], {}, {"acc": 1}, {"score": None}, {"score": 1, "acc": "yes"}, 10**400],
)
def test_what_is_not_a_finite_number_is_a_grader_error_with_its_reason(returned: Any) -> None:
    grade = grade_of(returned)
    assert (grade.verdict, grade.score) == (Verdict.GRADER_ERROR, 0.0)
    assert grade.reason is not None
    assert grade.reason.startswith("the reward function returned")


@pytest.mark.parametrize("returned", [True, 1, 1.0, np.float32(1), np.int64(1), np.bool_(True), np.array(1.0)])
def test_every_kind_of_number_is_a_score(returned: Any) -> None:
    grade = grade_of(returned)
    assert (grade.verdict, grade.score, type(grade.score)) == (Verdict.CORRECT, 1.0, float)


def test_acc_decides_the_verdict_and_without_it_one_half_does() -> None:
    assert grade_of({"score": -0.5, "acc": True}).verdict is Verdict.CORRECT
    assert grade_of({"score": 5.0, "acc": 0}).verdict is Verdict.WRONG
    assert grade_of(0.5).verdict is Verdict.CORRECT
    assert grade_of(0.4999).verdict is Verdict.WRONG


def test_the_other_keys_of_a_dict_are_kept_when_json_can_hold_them() -> None:
    returned = {"score": 1, "pred": 42, "length": np.int64(7), "note": "ok", "bad": object(), "nan": math.nan, 3: 4}
    grade = grade_of(returned)
    assert grade.pred == "42"
    assert grade.extra == {"acc": 1, "length": 7, "note": "ok"}


def test_an_exception_becomes_the_reason_with_its_place() -> None:
    def compute_score(solution_str: str) -> float:
        return float(solution_str)

    [grade] = reward_function(compute_score, {}).grade([answer("forty")])
    assert grade.verdict is Verdict.GRADER_ERROR
    assert "ValueError" in (grade.reason or "")
    assert "test_custom.py, line" in (grade.reason or "")


def test_a_wrong_number_of_scores_judges_nobody() -> None:
    grades = reward_function(lambda completions: [1.0], {}).grade([answer("a"), answer("b")])
    assert [g.verdict for g in grades] == [Verdict.GRADER_ERROR] * 2
    assert "returned 1 scores for 2 completions" in (grades[0].reason or "")


@pytest.mark.parametrize("returned", [0.5, None, True, np.float64(0.5), np.array(0.5), "ab", {"a": 1, "b": 2}])
def test_one_value_in_the_place_of_a_list_is_answered_with_what_to_return(returned: Any) -> None:
    def my_reward(completions: Any) -> Any:
        return returned

    for grade in reward_function(my_reward, {}).grade([answer("a"), answer("b")]):
        assert grade.verdict is Verdict.GRADER_ERROR
        assert grade.reason == (
            f"the reward function my_reward returned {returned!r} ({type(returned).__name__}) for 2 completions; it "
            "takes a list of completions, and must return a list with one number for each"
        )


@pytest.mark.parametrize("returned", [[0.0, 1.0], (0.0, 1.0), np.array([0.0, 1.0]), iter([0.0, 1.0])])
def test_every_row_of_numbers_is_a_list_of_scores(returned: Any) -> None:
    grades = reward_function(lambda completions: returned, {}).grade([answer("a"), answer("b")])
    assert [grade.score for grade in grades] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("function", "kwargs", "message"),
    [
        (lambda text, gold: 1.0, {}, "must have a parameter solution_str"),
        (lambda **kwargs: 1.0, {}, "must have a parameter solution_str"),
        (lambda solution_str, completions: 1.0, {}, "and not both"),
        (lambda solution_str, tokenizer: 1.0, {}, "requires tokenizer"),
        (lambda solution_str, /: 1.0, {}, "requires solution_str"),
        (lambda solution_str: 1.0, {"bonus": 1}, "sets bonus"),
        (42, {}, "is a int, not a function"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_before_any_answer(
    function: Callable[..., Any], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        reward_function(function, kwargs)


def test_a_function_file_is_loaded_and_its_faults_are_told_in_its_own_lines(tmp_path: Path) -> None:
    file = tmp_path / "reward.py"
    file.write_text("def compute_score(solution_str):\n    return 1.0\n")
    assert load_function(str(file), "compute_score")("x") == 1.0
    with pytest.raises(ConfigError, match=r"has no function 'score' .* It has: compute_score"):
        load_function(str(file), "score")
    with pytest.raises(ConfigError, match="there is no file"):
        load_function(str(tmp_path / "none.py"), "compute_score")
    text = tmp_path / "reward.txt"
    text.write_text("")
    with pytest.raises(ConfigError, match=r"must end in \.py"):
        load_function(str(text), "compute_score")
    with pytest.raises(ConfigError, match="module no_such_module cannot be imported"):
        load_function("pkg://no_such_module", "f")
    assert load_function("pkg://math", "sqrt")(4.0) == 2.0
    file.write_text("limit = 1\nlimit / 0\n")
    with pytest.raises(ConfigError) as caught:
        load_function(str(file), "compute_score")
    assert f'File "{file}", line 2' in str(caught.value)
    assert "ZeroDivisionError: division by zero" in str(caught.value)
    assert "importlib" not in str(caught.value)
    file.write_text("def f(:\n")
    with pytest.raises(ConfigError, match="SyntaxError"):
        load_function(str(file), "f")
