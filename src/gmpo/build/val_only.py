"""A validation on its own (`trainer.val_only`): which run's checkpoint it takes, and where its records go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from gmpo.build.identity import CONTENT_OF, LENGTH, Changes, compare
from gmpo.build.notes import extent
from gmpo.build.old_folder import run_in
from gmpo.build.origin import run_of
from gmpo.build.start import FOLDER, Start, asked_checkpoint, candidates, check_writable
from gmpo.config import Resolved
from gmpo.errors import CheckpointError, ConfigError
from gmpo.records.run_folder import (
    VAL_ONLY,
    Difference,
    RunRecord,
    checkpoints,
    ended,
    holds_run,
    is_open,
    remove_empty,
)


@contextmanager
def validated(resolved: Resolved[Any], now: RunRecord) -> Iterator[tuple[Start, Path]]:
    """Find the run whose checkpoint a validation on its own would validate, and a folder for what it records: nothing
    of the run is changed. Without a run there it is the base model that is validated.

    Raises: as `belonging`.
    """
    mode, asked = resolved.config.trainer.resume_mode, asked_checkpoint(resolved)
    folder, then = _run_to_validate(resolved, now)
    check_writable(folder)
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
    notes = [_what(resolved, folder, checkpoint)]
    if asked is not None:
        then = run_of(asked)
        notes += [] if then is not None else [f"{asked.parent} holds no record of a run to compare with."]
    if then is not None and (changes := _other_than_validation(compare(then, now, resolved))):
        notes += ["its settings are not those of the run, then -> now:", *(f"  {d}" for d in changes)]
    with _numbered(folder) as place:
        yield Start(folder, now, checkpoint, notes=tuple(notes)), place


def _what(resolved: Resolved[Any], folder: Path, checkpoint: Path | None) -> str:
    if checkpoint is not None:
        return f"validating {checkpoint}"
    if resolved.config.trainer.resume_mode != "auto":
        return "validating the base model: no checkpoint is asked for"
    base = resolved.config.actor_rollout_ref.model.source
    return (
        f"warning: {folder} holds no checkpoint and nothing else of a run: {base} itself is validated. "
        f"{FOLDER} names the folder of a run, whose newest checkpoint is validated then."
    )


@contextmanager
def _numbered(folder: Path) -> Iterator[Path]:
    """A new folder below `val_only/`. The run may be written to meanwhile, and other validations made: whoever makes a
    folder has its number. Where nothing is recorded, nothing is left behind."""
    root = folder / VAL_ONLY
    new = [place for place in (root, folder, *folder.parents) if not place.exists()]
    root.mkdir(parents=True, exist_ok=True)
    made = [int(place.name) for place in root.glob("*") if place.name.isdecimal()]
    for number in count(1 + max(made, default=0)):
        place = root / str(number)
        with suppress(FileExistsError):
            place.mkdir()
            break
    try:
        yield place
    finally:
        remove_empty([place, *new])


def _run_to_validate(resolved: Resolved[Any], now: RunRecord) -> tuple[Path, RunRecord | None]:
    """The folder, and the run in it. Of several derived folders the one that holds the run of these settings."""
    for folder in candidates(resolved):
        then = _run_in(folder)
        if FOLDER in resolved.given or resolved.config.trainer.resume_mode != "auto":
            return folder, then
        if then is None:
            break
        if then.program == now.program and not _other_than_validation(compare(then, now, resolved)):
            return folder, then
    base = next(candidates(resolved))
    if _run_in(base) is None:
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


def _run_in(folder: Path) -> RunRecord | None:
    """The run in a folder: of one that is not written to, and that was killed, as it was left."""
    then = run_in(folder) if holds_run(folder) or is_open(folder) else None
    return then if then is None or is_open(folder) else ended(then)
