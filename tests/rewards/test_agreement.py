"""A run whose prompts and scorer plainly disagree is refused, with an example."""

from __future__ import annotations

import pytest

from gmpo.errors import DataError
from gmpo.rewards.agreement import asked_for, check_agreement

BOXED = "1+1? Let's think step by step and output the final answer within \\boxed{}."
LINE = "1+1? The last line should be of the form Answer: $Answer."


def test_the_form_that_a_prompt_names_is_recognised() -> None:
    assert asked_for(BOXED) == {"boxed"}
    assert asked_for(LINE) == {"answer_line"}
    assert asked_for('.. the final answer after "####".') == {"hash"}
    assert asked_for("put it in <answer> </answer> tags or \\boxed{}") == {"tag", "boxed"}
    assert asked_for("How many?") == frozenset()


def test_boxed_prompts_under_the_dapo_scorer_are_refused_with_an_example_and_a_remedy() -> None:
    with pytest.raises(DataError) as raised:
        check_agreement([("math_dapo", BOXED)] * 3 + [("math_dapo", LINE)] + [("openai/gsm8k", "How many?")])
    message = str(raised.value)
    assert "3 of 4 prompts of data_source 'math_dapo' that ask for an answer format ask for \\boxed{}" in message
    assert "its scorer reads a line `Answer: ..`" in message
    assert repr(BOXED) in message
    assert "gmpo data NAME --from FILE" in message


def test_prompts_that_agree_or_leave_the_form_open_pass() -> None:
    check_agreement([("math_dapo", LINE), ("lighteval/MATH", BOXED), ("openai/gsm8k", "How many?")])
    check_agreement([("math_verify", BOXED), ("math_verify", LINE)])  # it reads any form
    check_agreement([("math_dapo", BOXED), ("math_dapo", LINE)])  # half of them is not most
    check_agreement([("openai/gsm8k", BOXED)], lenient=frozenset({"openai/gsm8k"}))
