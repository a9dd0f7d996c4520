"""`gmpo.grade`: values, the same grades as a run's workers give, and errors that name the remedy."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import gmpo
from gmpo.errors import ConfigError
from gmpo.rewards.grader import Grader, GradeRequest, GraderSpec

TARGET = '{"target": 24, "numbers": [4, 6]}'
CASES: tuple[tuple[str, str, str, str, float, str | None], ...] = (
    (r"So it is \boxed{0.5}.", "1/2", "math_verify", "correct", 1.0, "0.5"),
    (r"So it is \boxed{0.6}.", "1/2", "math_verify", "wrong", 0.0, "0.6"),
    ("I do not know, and say so at length. Perhaps another day.", "1/2", "math_verify", "unparsed", 0.0, None),
    (r"\boxed{2^{(1000000000)}}", "3", "math_verify", "timeout", 0.0, "2^{(1000000000)}"),
    ("2 + 2 = 4 #### 4.00", "4", "gsm8k", "correct", 1.0, "4.00"),
    ("2 + 2 = 4 #### 4.00", "4", "openai/gsm8k", "correct", 1.0, "4.00"),
    ("Answer: 33", "033", "aime", "correct", 1.0, "33"),
    ("Answer: 34", "033", "aime", "wrong", -1.0, "34"),
    (r"\boxed{33}", "33", "AIME2024", "correct", 1.0, "33"),
    ("<answer>4 * 6</answer>", TARGET, "countdown", "correct", 1.0, "4 * 6"),
    ("<answer>4 * 6</answer>", "24", "countdown", "grader_error", 0.0, None),
)


@pytest.mark.parametrize(("answer", "reference", "scorer", "verdict", "score", "pred"), CASES)
def test_an_answer_has_verdict_score_and_what_was_read(
    answer: str, reference: str, scorer: str, verdict: str, score: float, pred: str | None
) -> None:
    grade = gmpo.grade(answer, reference, scorer)
    assert (grade.verdict, grade.score, grade.pred) == (verdict, score, pred)
    assert (grade.reason is not None) == (verdict in ("timeout", "grader_error"))


def test_it_is_the_grade_of_a_run() -> None:
    """By data source, in workers, with their limits."""
    sources = {"gsm8k": "openai/gsm8k", "aime": "aime2024"}
    requests = [
        GradeRequest(sources.get(scorer, scorer), "", answer, reference, {}, number)
        for number, (answer, reference, scorer, *_) in enumerate(CASES)
    ]
    with Grader(GraderSpec(workers=1)) as grader:
        assert grader.grade(requests) == [gmpo.grade(*case[:3]) for case in CASES]


def test_options_are_those_of_the_scorer() -> None:
    assert gmpo.grade("5 apples, 4 pears", "4", "gsm8k").verdict == "unparsed"
    assert gmpo.grade("5 apples, 4 pears", "4", "gsm8k", method="flexible").verdict == "correct"
    assert gmpo.grade("<think>#### 3</think> #### 4", "3", "gsm8k").verdict == "wrong"
    assert gmpo.grade("<think>#### 3</think> 4", "3", "gsm8k", thinking="ignore").verdict == "correct"
    assert gmpo.grade("The answer is 4.", "4", require="boxed").verdict == "unparsed"


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        (("4", "4", "gsm9k"), {}, ConfigError, "Did you mean 'gsm8k'"),
        (("4", "4"), {"method": "strict"}, ConfigError, "has no option 'method'; its options: require, thinking"),
        (("4", "4", "gsm8k"), {"method": "loose"}, ConfigError, "allowed: 'strict', 'flexible'"),
        (("4", 4), {}, TypeError, "takes the reference as text, not as int: write '4'"),
        ((4, "4"), {}, TypeError, "takes the answer as text, not as int: write '4'"),
    ],
)
def test_a_wrong_call_names_what_is_wrong(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        gmpo.grade(*arguments, **options)


def test_what_is_public_is_listed_and_grading_loads_no_torch() -> None:
    """A process of its own, whose modules are its own."""
    program = (
        "import sys, gmpo\n"
        "assert set(gmpo.__all__) <= set(dir(gmpo)), dir(gmpo)\n"
        "assert 'importlib' not in dir(gmpo)\n"
        "assert gmpo.grade('#### 4', '4', 'gsm8k').score == 1.0\n"
        "print('torch' in sys.modules or 'transformers' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert all(getattr(gmpo, name) is not None for name in gmpo.__all__)
