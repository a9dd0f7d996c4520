"""Where the general scorer finds an answer, what it does with thinking, and where it finds none."""

from __future__ import annotations

import pytest

from gmpo.rewards.finding import candidates, without_thinking
from gmpo.rewards.scorers import NAMED
from gmpo.rewards.verdict import Verdict


@pytest.mark.parametrize(
    ("text", "strip", "require"),
    [
        ("7", "7", None),
        ("<think>1</think>7", "7", "7"),
        ("<think>1</think>7<think>2</think>", "7", "7"),
        ("<think>1", None, None),
        ("1</think>7", "7", "7"),
        ("<think>1</think>7<think>2", None, None),
        ("so <think>1</think>7", "so 7", "so 7"),
    ],
)
def test_thinking_is_no_answer_and_must_end(text: str, strip: str | None, require: str | None) -> None:
    assert without_thinking(text, "strip") == strip
    assert without_thinking(text, "require") == require
    assert without_thinking(text, "ignore") == text


def test_tags_of_thinking_are_free_and_no_patterns() -> None:
    assert without_thinking("[T]1[/T]7", "strip", ("[T]", "[/T]")) == "7"
    assert without_thinking("<think>7", "strip", ("[T]", "[/T]")) == "<think>7"


FORM = {
    "gsm8k": "#### 42",
    "math": r"\boxed{42}",
    "math_dapo": "Answer: 42",
    "aime": "Answer: 42",
    "math_verify": r"\boxed{42}",
    "stories": "#### 42",
    "countdown": "<answer>6*7</answer>",
}


@pytest.mark.parametrize("name", NAMED)
def test_every_scorer_leaves_thinking_out_unless_it_is_told_to_ignore_the_tags(name: str) -> None:
    truth = '{"numbers": [6, 7], "target": 42}' if name == "countdown" else "42"
    score = NAMED[name].score
    thought = f"<think>{FORM[name]}</think> I do not know."
    assert score(FORM[name], truth, {}).verdict is Verdict.CORRECT
    assert score(thought, truth, {}).verdict is Verdict.UNPARSED
    assert score(f"<think>{FORM[name]}", truth, {}).verdict is Verdict.UNPARSED
    assert score(FORM[name], truth, {}, thinking="require").verdict is Verdict.UNPARSED
    assert score(f"<think>hm</think>{FORM[name]}", truth, {}, thinking="require").verdict is Verdict.CORRECT
    if name != "stories":  # Its answer is the end of the text.
        assert score(f"<think>\n{FORM[name]}\n</think>", truth, {}, thinking="ignore").verdict is Verdict.CORRECT


@pytest.mark.parametrize(
    ("text", "boxed", "phrase", "any_"),
    [
        (r"\boxed{7}", "7", "7", "7"),
        (r"The answer is 8, so \boxed{7}.", "7", "7", "7"),
        ("<answer>7</answer>", None, "7", "7"),
        ("#### 7", None, "7", "7"),
        ("The answer is 7.", None, "7", "7"),
        ("There are **7** ways.", None, "7", "7"),
        ("So it is $7$.", None, None, "7"),
        ("7", None, None, "7"),
        (r"\boxed{7", None, None, None),
        ("The answer is not 7.", None, None, None),
        ("The answer is 7. Wait, no.", None, None, None),
        ("Suppose the answer is 7.", None, None, None),
        ("$5$, $6$, $7$ are left.", None, None, None),
    ],
)
def test_what_is_required_decides_where_an_answer_is_looked_for(
    text: str, boxed: str | None, phrase: str | None, any_: str | None
) -> None:
    def first(require: str) -> str | None:
        found = [c for c in candidates(text, require) if c.strip(" .") == "7"]  # type: ignore[arg-type]
        return "7" if found else None

    assert [first(require) for require in ("boxed", "phrase", "any")] == [boxed, phrase, any_]
