"""The run that a checkpoint belongs to, where another run begins with it (`trainer.resume_mode=resume_path`).

Such a fork may have other settings, that is what forks are for, and nobody is asked for a permission. It says what
differs from the run that it begins with, its first leg records it, and it is not called exact. The weights are those of
the checkpoint whatever the settings' path leads to, so the fork's base model (`base model` among the content) is the
one of the run it begins with; of another model that the path names, configuration, tokenizer and end tokens are taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from gmpo.build.identity import BASE, CONTENT_OF, MODEL_PATH, OLD, Changes, compare
from gmpo.build.old_folder import run_in
from gmpo.config import Resolved
from gmpo.errors import CheckpointError, ConfigError, DataError
from gmpo.records.run_folder import CHECKPOINT, RunRecord

PARTS = ("identity", "execution", "bookkeeping", "idle", "content")


def run_of(checkpoint: Path) -> RunRecord | None:
    """The run in the folder around a checkpoint, as it was when the checkpoint was written; None where no record of it
    can be read."""
    try:
        run = run_in(checkpoint.parent)
    except (CheckpointError, ConfigError, DataError):
        return None
    step = checkpoint.name.removeprefix(CHECKPOINT)
    return as_of(run, int(step)) if step.isdecimal() else run


def as_of(run: RunRecord, step: int) -> RunRecord:
    """The run with the settings of the leg that wrote the checkpoint of a step: the newest that began before it."""
    parts: dict[str, Any] = {name: dict(getattr(run, name)) for name in PARTS}
    for leg in reversed(run.legs[1:]):
        if leg.start < step:
            break
        for difference in leg.differences:
            for part in parts.values():
                if difference.key in part:
                    part[difference.key] = difference.then
    parts["content"] = {key: value for key, value in parts["content"].items() if value is not None or key == BASE}
    return replace(run, **parts)


def continued(now: RunRecord, then: RunRecord | None) -> RunRecord:
    """The record of a run whose weights come from a checkpoint of the run `then`: their base model is that one's."""
    base = None if then is None else then.content.get(BASE, then.content.get(MODEL_PATH))
    return replace(now, content={**now.content, BASE: base})


def compared(
    checkpoint: Path, then: RunRecord | None, now: RunRecord, resolved: Resolved[Any]
) -> tuple[Changes, bool, list[str]]:
    """What differs from the run that the checkpoint belongs to, whether the fork is exact, and lines for the user."""
    if then is None:
        line = (
            f"warning: {checkpoint.parent} holds no record of a run that can be read, so nothing could be compared "
            f"with the run that {checkpoint.name} belongs to, and its base model is not known."
        )
        return Changes((), (), ()), False, [line]
    changes = compare(then, now, resolved)
    exact = not changes.identity and not changes.inexact and then.format != OLD
    return changes, exact, list(_lines(checkpoint, changes))


def _lines(checkpoint: Path, changes: Changes) -> Iterator[str]:
    if changes.identity:
        yield f"warning: what is learned differs from the run that this one begins with ({checkpoint}), then -> now:"
        yield from (f"  {difference}" for difference in changes.identity)
    if any(difference.key == MODEL_PATH for difference in changes.identity):
        yield (
            f"  The weights are those of the checkpoint: of what {MODEL_PATH.removeprefix(CONTENT_OF)} names, only "
            "configuration, tokenizer and end tokens are taken."
        )
    if changes.inexact:
        yield "it goes on like that run but for rounding, not bit for bit; then -> now:"
        yield from (f"  {difference}" for difference in changes.inexact)
