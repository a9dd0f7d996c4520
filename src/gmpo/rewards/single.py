"""One answer graded in this process, without a run: what `gmpo.grade` is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from gmpo.errors import DataError
from gmpo.rewards.custom import describe, failed
from gmpo.rewards.reading.limits import TooLarge
from gmpo.rewards.scorers import NAMED, Scorer, check_options, named_scorer, refused, scorer_for
from gmpo.rewards.verdict import Grade


def grade(
    answer: str,
    reference: str,
    scorer: str = "math_verify",
    *,
    extra_info: Mapping[str, Any] | None = None,
    **options: Any,
) -> Grade:
    r"""Grade one answer by a built-in scorer, as a run would, but in this process.

    Example: `gmpo.grade("so it is \\boxed{0.5}", "1/2").verdict` is `"correct"`.

    Args:
        answer: the whole response as text, its thinking included.
        reference: the right answer, as `reward_model.ground_truth` of a row holds it.
        scorer: a name that `reward_model.scorer` takes (`math_verify`, `gsm8k`, `math`, ..), or the `data_source` of a
            row, as in the table of docs/rewards.md. A name that is both is that of the scorer.
        extra_info: the row's field of that name.
        options: options of the scorer: `thinking` of all (`strip`, `require`, `ignore`), `require` of `math_verify`,
            `method` of `gsm8k`, `strict_box_verify` of `math_dapo`, `format_score` of `countdown`.

    Returns:
        `.verdict` (`correct`, `wrong`, `unparsed`; `timeout` where the answer would cost too much to compute, and
        `grader_error` where the scorer cannot take the reference, both with `.reason`), `.score` (before any shaping),
        `.pred` (the answer that was read, None where none was found) and `.extra` (what else the scorer says).

    Raises:
        ConfigError: no scorer has that name, or it has no such option or value.
        TypeError: answer or reference is no text.

    The scorers bound what they compute, but a run's limits of time and memory hold in its workers alone:
    `gmpo.rewards.grader.Grader` grades many answers of strangers.
    """
    for name, value in (("answer", answer), ("reference", reference)):
        if not isinstance(value, str):
            raise TypeError(f"gmpo.grade takes the {name} as text, not as {type(value).__name__}: write {str(value)!r}")
    found = _found(scorer)
    check_options(scorer, options, found)
    try:
        return found.score(answer, reference, dict(extra_info or {}), **options)
    except TooLarge as error:
        return refused(str(error), None)
    except Exception as error:
        return failed(describe(error))


def _found(name: str) -> Scorer:
    """By name, else by a data source that is known by how it begins (`AIME2024`)."""
    if name not in NAMED:
        with suppress(DataError):
            return scorer_for(name)
    return named_scorer(name)
