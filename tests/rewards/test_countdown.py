"""The countdown game's scorer: each number exactly once, exact arithmetic, and nothing is ever run as code."""

from __future__ import annotations

import json
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmpo.rewards.countdown import evaluate, score_countdown
from gmpo.rewards.verdict import Verdict

TRUTH = json.dumps({"numbers": [44, 19, 35], "target": 98})


def verdict(answer: str, truth: str = TRUTH) -> Verdict:
    return score_countdown(f"<think>hm</think> <answer>{answer}</answer>", truth, {}).verdict


@pytest.mark.parametrize(
    "answer", ["44 + 19 + 35", "(44+35)+19", "35 - -44 + 19", "44 + (19 + 35) = 98", " 19+44\n+35 ", "-(-44)+19+35"]
)
def test_every_way_to_the_target_is_right(answer: str) -> None:
    assert verdict(answer) == Verdict.CORRECT
    assert score_countdown(f"so \\boxed{{{answer}}}", TRUTH, {}).score == 1.0


@pytest.mark.parametrize(
    "answer", ["44 + 54", "98", "44 + 19 + 35 + 0", "44 + 19", "44 + 44 + 10", "44 * 19 - 35", "44 + 19 + 35 / 1"]
)
def test_other_numbers_and_other_values_are_wrong(answer: str) -> None:
    assert verdict(answer) == Verdict.WRONG


@pytest.mark.parametrize(
    "answer",
    [
        *("", "44 + ", "(44 + 19 + 35", "44 19 35", "__import__('os').system('x')", "44 + 19 + 35 = 97", "44 ** 19"),
        *("4e1", "44 + 19 + x", "44 // 19", "+" * 150, "(" * 150, "9" * 150, "1" + "+1" * 5000, "44 + ٣٥", "= 98"),
    ],
)
def test_what_is_no_expression_is_unparsed(answer: str) -> None:
    assert verdict(answer) == Verdict.UNPARSED


def test_division_is_exact_and_by_zero_is_wrong() -> None:
    assert verdict("8 / (3 - 8 / 3)", json.dumps({"numbers": [8, 3, 8, 3], "target": 24})) == Verdict.CORRECT
    assert verdict("5 / (3 - 3)", json.dumps({"numbers": [5, 3, 3], "target": 5})) == Verdict.WRONG
    assert verdict("7 \\times 3 \\div 3", json.dumps({"numbers": [7, 3, 3], "target": 7})) == Verdict.CORRECT


def test_the_last_answer_counts_and_a_form_may_earn_a_tenth() -> None:
    text = "<answer>44 + 19 + 35</answer> no: <answer>44 + 19</answer>"
    assert score_countdown(text, TRUTH, {}).verdict == Verdict.WRONG
    assert score_countdown(text, TRUTH, {}, format_score=0.1).score == 0.1
    assert score_countdown("44 + 19 + 35", TRUTH, {}, format_score=0.1).score == 0.0


EXPRESSIONS = st.recursive(
    st.integers(1, 99).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
    max_leaves=6,
)


@given(EXPRESSIONS)
def test_the_value_is_that_of_exact_arithmetic(expression: str) -> None:
    exact = "".join(f"Fraction({word})" if word.isdigit() else word for word in _words(expression))
    try:
        expected = eval(exact, {"Fraction": Fraction})  # the test's own arithmetic, on the test's own text
    except ZeroDivisionError:
        expected = None
    assert evaluate(expression)[0] == expected


def _words(expression: str) -> list[str]:
    return expression.replace("(", " ( ").replace(")", " ) ").split()


@pytest.mark.parametrize(
    "text", [("(", 100_000), ("<answer>", 50_000), ("<answer>9*", 50_000), ("-", 100_000)], ids=lambda t: t[0]
)
def test_hostile_expressions_are_read_in_a_time_that_grows_with_their_length(text: tuple[str, int]) -> None:
    """Four times the length costs about four times as much, and not sixteen times: the best of five tries each."""

    def cost(times: int) -> float:
        hostile, tries = text[0] * times, []
        for _ in range(5):
            start = time.process_time()
            verdict(hostile)
            score_countdown(hostile, TRUTH, {})
            tries.append(time.process_time() - start)
        return min(tries)

    assert cost(text[1]) <= 9 * cost(text[1] // 4) + 0.01
