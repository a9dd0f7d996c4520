"""What a folder holds of runs: status, steps, sizes, last metrics and health of each. Nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gmpo.errors import DataError
from gmpo.records.run_folder import RUN, checkpoints, ended, is_open, read_metrics, read_run

SHOWN = ("critic/score/mean", "val/pass@1", "train/loss", "val/loss", "response_length/mean", "actor/entropy")
"""Metrics whose last value is listed, where a run has them."""
DEEPEST = 6
"""Folders below the one that is asked, in which runs are looked for."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run, in a line."""

    folder: str
    program: str
    status: str
    """`running`, `finished`, `interrupted`, `failed`, `killed`, or `unreadable`."""
    steps: int
    total_steps: int
    checkpoints: tuple[int, ...]
    bytes: int
    """Of all files in the folder."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last value of each of `SHOWN`."""
    health: tuple[str, ...] = ()
    """What is wrong with it, in sentences without full stops."""


def runs_in(root: Path) -> Iterator[RunSummary]:
    """The runs in a folder, or in folders below it, in the order of their paths.

    Raises:
        DataError: there is no such folder, or it cannot be read.
    """
    try:
        if not root.is_dir():
            raise DataError(f"{root} is no folder")
        for folder in _folders(root, DEEPEST):
            yield summary(folder)
    except OSError as error:
        raise DataError(f"{root}: cannot be read: {error}") from error


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / RUN).is_file():
        yield folder
        return  # what lies inside of a run is part of it
    if depth:
        for place in sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink()):
            yield from _folders(place, depth - 1)


def summary(folder: Path) -> RunSummary:
    """One run, also of a folder whose record cannot be read."""
    size = sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    saved = tuple(checkpoints(folder))
    try:
        record = read_run(folder)
    except DataError as error:
        return RunSummary(str(folder), "unknown", "unreadable", 0, 0, saved, size, health=(str(error).rstrip("."),))
    assert record is not None, "there is a run.json"
    health = []
    status: str = record.status
    if status == "running" and not _is_open(folder):
        record, status = ended(record), "killed"
        health.append("it was killed; the same command goes on" + (f" after step {max(saved)}" if saved else ""))
    elif status in ("failed", "interrupted") and record.reason:
        health.append(record.reason.partition("\n")[0].rstrip("."))
    health += [f"alarm in step {alarm['step']} ({alarm['name']})" for alarm in record.alarms]
    health += [f"{place.name} is damaged" for place in sorted(folder.glob("global_step_*.damaged*"))]
    last: dict[str, float] = {}
    try:
        for line in read_metrics(folder):
            last |= {name: line.values[name] for name in SHOWN if name in line.values}
    except (DataError, OSError) as error:
        health.append(str(error).rstrip("."))
    return RunSummary(
        str(folder), record.program, status, record.steps, record.total_steps, saved, size, last, tuple(health)
    )


def _is_open(folder: Path) -> bool:
    """Whether a process writes there; taken for granted where nobody can lock (a folder that is read only)."""
    try:
        return is_open(folder)
    except OSError:
        return True


def as_json(found: RunSummary) -> dict[str, Any]:
    """One run for programs; a number that is not finite is null, which JSON has no other word for."""
    values = {name: getattr(found, name) for name in RunSummary.__slots__}
    finite = {name: value if abs(value) < float("inf") else None for name, value in found.metrics.items()}
    whole: dict[str, Any] = json.loads(json.dumps({**values, "metrics": finite}))
    return whole
