"""What a start of the program says of the folder that it goes on in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from gmpo.build.identity import OLD, UNSEEN, Changes
from gmpo.build.old_folder import LOST, OLD_VERSION
from gmpo.records.run_folder import (
    CHECKPOINT,
    CONFIG,
    KILLED,
    LATEST,
    LEGS,
    METRICS,
    RUN,
    RunRecord,
    checkpoints,
    has_model,
)
from gmpo.training.checkpoint import DAMAGED


def change_notes(changes: Changes, then: RunRecord) -> Iterator[str]:
    if changes.identity:
        yield "warning: going on under settings that make it another run (trainer.allow_changed_config), then -> now:"
        yield from (f"  {difference}" for difference in changes.identity)
    if changes.inexact:
        yield "from here on it is the same run but for rounding, not bit for bit; then -> now:"
        yield from (f"  {difference}" for difference in changes.inexact)


def old_notes(folder: Path, then: RunRecord | None) -> Iterator[str]:
    """Of a folder without run.json."""
    if then is None or then.format != OLD:
        return
    if then.legs[-1].reason != LOST:
        yield f"{folder} was written by gmpo {OLD_VERSION} or earlier, which drew other random numbers: not bit-exact."
    else:
        yield (
            f"warning: {folder / RUN} is lost. The settings are taken from {CONFIG}, the number of steps from "
            f"{METRICS} and checkpoints, the starts from {LEGS}/; how each of them ended, and what the settings' "
            "paths led to, is not known, so that nobody can say whether it goes on bit for bit."
        )


def elsewhere(then: RunRecord) -> str:
    """The places outside of the folder in which answers are replaced, too."""
    places = [place for place in then.outside if Path(place).is_dir()]
    return f", also those in {', '.join(places)}" if places else ""


def unseen_notes(now: RunRecord) -> Iterator[str]:
    if unseen := now.content.get(UNSEEN):
        yield f"not compared: what these reward functions hold, which may be other than it was: {', '.join(unseen)}"


def damage_notes(damaged: Mapping[Path, str], whole: Path) -> Iterator[str]:
    for checkpoint, wrong in damaged.items():
        yield (
            f"warning: {wrong}. The checkpoint {checkpoint} is damaged, and stays as {checkpoint.name}{DAMAGED}: the "
            f"run goes on from the newest before it that is whole, {whole.name}."
        )


def latest(folder: Path) -> str | None:
    file = folder / LATEST
    return file.read_text(errors="replace").strip() if file.is_file() else None


def latest_notes(folder: Path, newest: int) -> Iterator[str]:
    named = latest(folder)
    if named != str(newest):
        found = f"{folder / LATEST} is missing" if named is None else f"{folder / LATEST} names step {named}"
        yield f"{found}; the newest complete checkpoint is {CHECKPOINT}{newest}."


def extent(folder: Path, then: RunRecord) -> str:
    """How much there is of a run: `finished, 80 steps, its model`."""
    saved = checkpoints(folder)
    parts = [f"killed after {then.steps} steps"] if then.reason == KILLED else [then.status, f"{then.steps} steps"]
    parts += [f"checkpoints up to {CHECKPOINT}{max(saved)}"] if saved else []
    return ", ".join([*parts, *(["its model"] if has_model(folder) else [])])
