"""References that no answer can meet are found before anything is sampled."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gmpo.errors import DataError
from gmpo.rewards.grader import Grader, GraderSpec
from gmpo.rewards.references import PlacedReference, check_references, unmet_references
from gmpo.rewards.scorers import Scoring


def placed(source: str, *truths: str) -> list[PlacedReference]:
    return [PlacedReference(f"train.parquet:{row}", source, truth) for row, truth in enumerate(truths, start=1)]


@pytest.mark.parametrize(
    ("source", "met", "unmet"),
    [
        ("openai/gsm8k", ["42", "1,000", "-3"], ["3/4", "forty"]),
        ("aime24", ["33", "033"], []),
        (
            "math_verify",
            [r"\frac12", r"x \in (0,1)", "$69$,$84$", '["4"]', r"\mho(a)", "B", "10^{10^{10}}"],
            ["None", "nan"],
        ),
        ("lighteval/MATH", [r"\frac12", r"12\text{ and }13"], []),
        ("countdown", ['{"numbers": [1], "target": 1}'], []),
    ],
)
def test_a_reference_is_unmet_when_its_own_scorer_does_not_call_it_correct(
    source: str, met: list[str], unmet: list[str]
) -> None:
    rows = placed(source, *met, *unmet, *unmet)
    with Grader(GraderSpec()) as grader:
        found = unmet_references(grader, rows)
    assert [u.reference.ground_truth for u in found] == [*unmet, *unmet]
    assert [u.reference.place for u in found] == [row.place for row in rows[len(met) :]]


@pytest.mark.parametrize("thinking", ["strip", "require", "ignore"])
def test_references_are_met_whatever_becomes_of_thinking(thinking: str) -> None:
    with Grader(GraderSpec(scoring=Scoring(thinking=thinking))) as grader:  # type: ignore[arg-type]
        assert unmet_references(grader, placed("math_verify", "1", "2")) == []


def test_unmet_references_are_listed_and_stop_the_run_above_a_share() -> None:
    rows = placed("math_verify", "1", "2", "3", "None")
    with Grader(GraderSpec()) as grader:
        note = check_references(grader, rows, 0.25)
        assert note is not None
        assert "1 of 4 reference answers (25.00%)" in note
        assert "train.parquet:4 (math_verify): 'None'" in note
        with pytest.raises(DataError, match=r"train\.parquet:4.*\n.*max_unmet_references"):
            check_references(grader, rows, 0.24)
        assert check_references(grader, rows[:3], 0.0) is None


def test_a_function_of_the_users_own_has_no_such_check() -> None:
    def never(solution_str: str, ground_truth: str) -> float:
        return 0.0

    function: Callable[..., float] = never
    with Grader(GraderSpec(function=function)) as grader:
        assert unmet_references(grader, placed("any", "1")) == []
