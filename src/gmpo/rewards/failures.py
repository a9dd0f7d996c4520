"""Stop a run whose grader fails too often, instead of training on answers without a judgement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gmpo.errors import GradingError
from gmpo.rewards.verdict import Grade, Verdict

_FAILURES = (Verdict.TIMEOUT, Verdict.GRADER_ERROR)
_REASONS_SHOWN = 3
_TEXT_SHOWN = 200


def failed_share(grades: Sequence[Grade]) -> float:
    """Share of answers, 0 to 1, on which the grader failed: verdict timeout or grader_error. 0 for no answers.

    An answer that a scorer refused because it is too large to compute is no failure of the grader.
    """
    return sum(_is_failure(grade) for grade in grades) / len(grades) if grades else 0.0


def _is_failure(grade: Grade) -> bool:
    return grade.verdict in _FAILURES and not grade.refused


def check_failed_share(grades: Sequence[Grade], limit: float, texts: Sequence[str] = ()) -> None:
    """Raise GradingError when more than the share `limit` of the answers has no judgement.

    `texts` are the decoded answers, for an example in the message.
    """
    if failed_share(grades) <= limit:
        return
    failures = [(i, grade) for i, grade in enumerate(grades) if _is_failure(grade)]
    counts = Counter(grade.verdict.value for _, grade in failures)
    reasons = Counter(f"{grade.verdict.value}: {grade.reason}" for _, grade in failures).most_common(_REASONS_SHOWN)
    listed = "".join(f"\n  {count} x {reason}" for reason, count in reasons)
    first, _ = failures[0]
    example = f"\nFor example answer {first}, which ends in {texts[first][-_TEXT_SHOWN:]!r}." if texts else ""
    raise GradingError(
        f"{len(failures)} of {len(grades)} answers ({len(failures) / len(grades):.0%}, limit {limit:.0%}) could not be "
        f"graded ({', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}):{listed}{example}\n"
        f"Correct the reward function; if it is right but slow or large, raise "
        f"reward_model.grader_timeout_s or reward_model.grader_memory_mb.",
        [{"verdict": str(grade.verdict), "pred": grade.pred, "reason": grade.reason} for grade in grades],
    )
