"""References that no answer can meet: each is graded against itself before anything is sampled.

A reference that its own scorer does not call correct gives every answer to its problem the reward of a wrong one, and
nothing else says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gmpo.errors import DataError
from gmpo.rewards.grader import Grader, GradeRequest
from gmpo.rewards.verdict import Grade, Verdict

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class PlacedReference:
    """A reference and the row that it is from."""

    place: str
    """File and row, for example `train.parquet:17`."""
    data_source: str
    ground_truth: str


@dataclass(frozen=True, slots=True)
class Unmet:
    """A reference that its own scorer does not call correct."""

    reference: PlacedReference
    grade: Grade


def unmet_references(grader: Grader, references: Sequence[PlacedReference]) -> list[Unmet]:
    """The references that fail against themselves, in their order; none where a user's function grades.

    Each distinct reference is graded once, in the grader's workers.
    """
    scoring = grader.scoring
    if scoring is None:
        return []
    requests: dict[tuple[str, str], GradeRequest] = {}
    for reference in references:
        key = (reference.data_source, reference.ground_truth)
        present = scoring.scorer_for(reference.data_source).present
        if present is not None and key not in requests:
            text = _thought(scoring.thinking, scoring.thinking_tags) + present(reference.ground_truth)
            requests[key] = GradeRequest(*key[:1], "", text, reference.ground_truth, {}, len(requests))
    grades = dict(zip(requests, grader.grade(list(requests.values())), strict=True))
    failed = {key: grade for key, grade in grades.items() if grade.verdict is not Verdict.CORRECT}
    keys = ((reference, (reference.data_source, reference.ground_truth)) for reference in references)
    return [Unmet(reference, failed[key]) for reference, key in keys if key in failed]


def _thought(thinking: str | None, tags: tuple[str, str]) -> str:
    return "".join(tags) if thinking == "require" else ""


def check_references(grader: Grader, references: Iterable[PlacedReference], limit: float) -> str | None:
    """What to say about references that cannot be met; None where there are none.

    Args:
        limit: largest share of the rows that may have such a reference.

    Raises:
        DataError: more than that share has one.
    """
    rows = list(references)
    unmet = unmet_references(grader, rows)
    if not unmet:
        return None
    listed = "".join(
        f"\n  {u.reference.place} ({u.reference.data_source}): {u.reference.ground_truth[:100]!r} is {u.grade.verdict}"
        for u in unmet[:_SHOWN]
    )
    more = f"\n  and {len(unmet) - _SHOWN} more" if len(unmet) > _SHOWN else ""
    message = (
        f"{len(unmet)} of {len(rows)} reference answers ({len(unmet) / len(rows):.2%}) cannot be met: given as an "
        f"answer, each of them is not correct for its own scorer.{listed}{more}"
    )
    if len(unmet) <= limit * len(rows):
        return message
    raise DataError(
        f"{message}\nThe limit is {limit:.0%} (reward_model.max_unmet_references). Mend the rows, leave them out, or "
        "name another scorer with reward_model.scorer or reward_model.scorers."
    )
