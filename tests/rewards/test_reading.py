r"""Answers that the general scorer must and must not equate with a reference, by kind: `graded_answers.jsonl`.

Each line was written by hand; whether it is right follows from what both sides mean.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gmpo.rewards.reading.judge import Judgement, judge, reference_text
from gmpo.rewards.reading.limits import TooLarge, Unread
from gmpo.rewards.reading.values import read
from gmpo.rewards.scorers import scorer_for
from gmpo.rewards.verdict import Verdict

CASES = [json.loads(line) for line in (Path(__file__).parent / "graded_answers.jsonl").read_text("utf-8").splitlines()]
KINDS = list(dict.fromkeys(case["kind"] for case in CASES))


def is_right(case: dict[str, Any]) -> bool:
    return scorer_for("math_verify").score(case["answer"], case["reference"], {}).verdict is Verdict.CORRECT


@pytest.mark.parametrize("kind", KINDS)
def test_each_answer_of_a_kind_is_right_or_wrong_by_its_meaning(kind: str) -> None:
    cases = [case for case in CASES if case["kind"] == kind]
    wrong = [(case["answer"], case["reference"]) for case in cases if is_right(case) is not case["right"]]
    assert wrong == []


@pytest.mark.parametrize(
    "text", [r"7 \star 42", r"\foo{5}", "1 2 3", r"\neg 42", "4 10/3", "f(", "(1,2", r"5\%5", r"3\circ5", "x^", "", "*"]
)
def test_what_cannot_be_read_as_a_whole_has_no_reading(text: str) -> None:
    with pytest.raises(Unread):
        read(text)


def test_an_unread_answer_is_unparsed_and_equals_only_what_is_written_like_it() -> None:
    score = scorer_for("math_verify").score
    assert score(r"\boxed{3 \star 5}", "5", {}).verdict is Verdict.UNPARSED
    assert score(r"\boxed{3 \star 5}", r"3\star 5", {}).verdict is Verdict.CORRECT
    assert judge(r"7\star 5", r"3\star 5") is Judgement.UNREAD


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ('["4"]', "4"),
        ('["4", "5"]', "4, 5"),
        ("9 * 2 = 18\n#### 18", "18"),
        (r"so $\boxed{9}$ and then $\boxed{18}$", "18"),
        (r"\boxed{1} and \boxed{2}", "1, 2"),
        ("[1, 2]", "[1, 2]"),
    ],
)
def test_a_reference_is_its_answer(reference: str, answer: str) -> None:
    assert reference_text(reference) == answer


@pytest.mark.parametrize(
    "text",
    [
        *(
            "2^{(1000000000)}",
            "(10^{8})!",
            r"\Gamma(10^{8})",
            "9^{9^{9^{9}}}",
            r"\binom{10^{9}}{5\cdot 10^{8}}",
            "1e999999999",
        ),
        *(
            r"\sum_{n=1}^{10^{12}} n",
            r"\prod_{n=1}^{400} n^{n}",
            r"\sin(10^{100000})",
            "2**(10**9)",
            r"\pi^{\pi^{\pi^{\pi^{\pi}}}}",
        ),
        *(
            "(10^6)!!",
            r"\lfloor \pi^{100000} \rfloor",
            r"\exp(\exp(\exp(100)))",
            "1" + "!" * 400,
            r"\log_{2}(2^{10^{9}})",
        ),
        *("(" * 60 + "1" + ")" * 60, "+".join(["x"] * 140), r"\sum_{a=1}^{200}\sum_{b=1}^{200} ab", "9" * 400),
    ],
)
def test_what_would_be_too_large_to_compute_is_refused(text: str) -> None:
    with pytest.raises(TooLarge):
        judge("42", text)
    grade = scorer_for("math_verify").score(f"\\boxed{{{text}}}", "42", {})
    assert (grade.verdict, grade.score, grade.refused) == (Verdict.TIMEOUT, 0.0, True)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "2^{100}",
            "10^{100}-1",
            "e^{-x^{2}}",
            "2^{2^{3}}",
            "(1+\\sqrt{2})^{50}",
            "100!",
            "1e-30",
            "1" * 250,
            "x^{y^{z}}",
        ),
        *("\\frac{1}{1+\\frac{1}{1+x}}", "(x+1)^{10}(x-1)^{20}", "\\binom{2024}{1012}", "f(g(h(x)))", "(x+y+z)^{300}"),
    ],
)
def test_what_people_write_is_computed(text: str) -> None:
    assert judge("42", text) is Judgement.DIFFERENT
    assert judge(text, f"{text} + 0") is Judgement.EQUAL


def test_a_reference_that_is_too_large_is_met_by_itself_alone() -> None:
    truth = "10^{1000000}"
    assert judge(truth, "10^{1000000}") is Judgement.EQUAL
    assert judge(truth, "10^{1000001}") is Judgement.DIFFERENT
    assert judge(truth, "42") is Judgement.DIFFERENT
