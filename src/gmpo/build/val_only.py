"""A validation on its own (`trainer.val_only`): which run's checkpoint it takes, and where its records go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gmpo.build.identity import CONTENT_OF, LENGTH, Changes, compare
from gmpo.build.old_folder import run_in
from gmpo.build.origin import run_of
from gmpo.build.start import FOLDER, Start, asked_checkpoint, candidates, check_writable, extent
from gmpo.config import Resolved
from gmpo.errors import CheckpointError, ConfigError
from gmpo.records.run_folder import VAL_ONLY, Difference, RunRecord, checkpoints, claimed, holds_run


@contextmanager
def validated(resolved: Resolved[Any], now: RunRecord) -> Iterator[tuple[Start, Path]]:
    """Find the run whose checkpoint a validation on its own would validate, and a folder for what it records: nothing
    of the run is changed. Without a run there it is the base model that is validated.

    Raises: as `belonging`.
    """
    mode, asked = resolved.config.trainer.resume_mode, asked_checkpoint(resolved)
    folder, then = _run_to_validate(resolved, now)
    check_writable(folder)
    with claimed(folder):
        if mode != "auto" or then is None:
            checkpoint = asked
        elif saved := checkpoints(folder):
            checkpoint = saved[max(saved)]
        else:
            raise CheckpointError(
                f"{folder} holds a run ({extent(folder, then)}) without a checkpoint to validate. Its model can be "
                f"the model.path of a validation in another {FOLDER}; trainer.resume_mode=disable "
                "validates the base model."
            )
        notes = [f"validating {checkpoint if checkpoint is not None else 'the base model: no checkpoint is asked for'}"]
        if asked is not None:
            then = run_of(asked)
            notes += [] if then is not None else [f"{asked.parent} holds no record of a run to compare with."]
        if then is not None and (changes := _other_than_validation(compare(then, now, resolved))):
            notes += ["its settings are not those of the run, then -> now:", *(f"  {d}" for d in changes)]
        made = [int(place.name) for place in (folder / VAL_ONLY).glob("*") if place.name.isdecimal()]
        place = folder / VAL_ONLY / str(1 + max(made, default=0))
        yield Start(folder, now, checkpoint, notes=tuple(notes)), place


def _run_to_validate(resolved: Resolved[Any], now: RunRecord) -> tuple[Path, RunRecord | None]:
    """The folder, and the run in it. Of several derived folders the one that holds the run of these settings."""
    for folder in candidates(resolved):
        then = (run_in(folder)) if holds_run(folder) else None
        if FOLDER in resolved.given or resolved.config.trainer.resume_mode != "auto":
            return folder, then
        if then is None:
            break
        if then.program == now.program and not _other_than_validation(compare(then, now, resolved)):
            return folder, then
    base = next(candidates(resolved))
    if not holds_run(base):
        return base, None
    raise ConfigError(
        f"{base} and the folders beside it hold runs of other settings, and which of them to validate is not said. "
        f"Name it with {FOLDER}."
    )


def _other_than_validation(changes: Changes) -> list[Difference]:
    """What makes it another run, apart from what is validated and how answers are drawn then."""
    # Training data are not even read.
    ignored = (f"{CONTENT_OF}data.", "data.val_", "actor_rollout_ref.rollout.val_kwargs.", LENGTH)
    return [difference for difference in changes.identity if not difference.key.startswith(ignored)]
