"""A run folder as it is found: of a run that goes on, crashed, never began, or was written by another version.

Nothing here is refused but what is no run folder at all. What cannot be read is left out, and said in `notices`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gmpo.errors import DataError
from gmpo.records.run_folder import (
    CONFIG,
    ENVIRONMENT,
    METRICS,
    RUN,
    SAMPLES,
    VALIDATION,
    RunRecord,
    ended,
    is_open,
    read_run,
)

Answer = Mapping[str, Any]
INSIDE = "run"
"""Where `gmpo quickstart` keeps its run: its own folder may be named too."""


@dataclass(slots=True)
class RunData:
    """What one run left behind."""

    folder: Path
    record: RunRecord | None
    status: str
    """`running`, `finished`, `interrupted`, `failed`, or `unknown` without a record."""
    reason: str = ""
    history: list[dict[str, float]] = field(default_factory=list)
    """Metrics of every step and validation in order; `training/global_step` is always there."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Every setting of the newest leg, by path."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Of these, what was set."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    """What could not be read, in words."""

    @property
    def steps(self) -> list[dict[str, float]]:
        """The metrics of training steps."""
        return [m for m in self.history if "critic/score/mean" in m or "train/loss" in m]

    @property
    def validations(self) -> list[dict[str, float]]:
        return [m for m in self.history if "val/pass@1" in m]

    @property
    def step(self) -> int:
        """Training steps done, as far as is recorded."""
        known = self.record.steps if self.record is not None else 0
        return int(max([known, *(m["training/global_step"] for m in self.history)]))

    @property
    def total_steps(self) -> int:
        return self.record.total_steps if self.record is not None else self.step


def read_data(folder: Path) -> RunData:
    """The records of a run, without its answers.

    Raises:
        DataError: there is no run folder.
    """
    folder = _run_folder(folder)
    notices: list[str] = []
    record = _record(folder, notices)
    status, reason = "unknown", ""
    if record is not None:
        # Only where it is needed: the look takes the lock for a moment, which a starting run would meet.
        record = ended(record) if record.status == "running" and not _open(folder) else record
        status, reason = record.status, record.reason
    saved = _saved(folder / CONFIG, notices)
    given = saved.pop("given", {})
    settings = dict(_flat(saved))
    if record is not None:
        for part in (record.identity, record.execution, record.bookkeeping, record.idle):
            settings |= part
    return RunData(
        folder=folder,
        record=record,
        status=status,
        reason=reason,
        history=list(_history(folder / METRICS, notices)),
        settings=settings,
        given=given if isinstance(given, dict) else {},
        environment=_object(folder / ENVIRONMENT, notices),
        notices=notices,
    )


def read_answers(data: RunData, kind: str, *, only: int | None = None) -> Iterator[tuple[int, list[Answer]]]:
    """Step and answers of every file of `samples` or `validation`, or of one step, in rising order of the steps."""
    files = sorted((int(p.stem), p) for p in (data.folder / kind).glob("*.jsonl") if p.stem.isdecimal())
    for step, file in files:
        if only is not None and step != only:
            continue
        yield step, [row for row in _lines(file, data.notices) if isinstance(row.get("output"), str)]


def modified(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of what a report is made of: equal as long as nothing was recorded."""
    files = [folder / name for name in (RUN, METRICS)]
    for kind in (SAMPLES, VALIDATION):
        files += sorted((folder / kind).glob("*.jsonl"))
    found = ((file, file.stat()) for file in files if file.is_file())
    return tuple((file.name, state.st_size, state.st_mtime_ns) for file, state in found)


def _run_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: name the run folder (trainer.default_local_dir).")
    for place in (folder, folder / INSIDE):
        if any((place / name).exists() for name in (RUN, METRICS, CONFIG)):
            return place
    if any(folder.iterdir()):
        raise DataError(f"{folder} is no run folder: none of {RUN}, {METRICS} and {CONFIG} is there.")
    return folder


def _open(folder: Path) -> bool:
    try:
        return is_open(folder)
    except OSError:  # a folder of somebody else's, where no lock can be tried: as the record says
        return True


def _record(folder: Path, notices: list[str]) -> RunRecord | None:
    try:
        record = read_run(folder)
    except DataError as error:
        notices.append(str(error))
        return None
    if record is None:
        notices.append(f"there is no {RUN}: how the run ended is not known")
    return record


def _saved(file: Path, notices: list[str]) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8", errors="replace"))
    except (OSError, yaml.YAMLError) as error:
        notices.append(f"{file.name} cannot be read: {str(error).splitlines()[0]}")
        return {}
    return tree if isinstance(tree, dict) else {}


def _object(file: Path, notices: list[str]) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        notices.append(f"{file.name} cannot be read: {error}")
        return {}
    return found if isinstance(found, dict) else {}


def _flat(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _history(file: Path, notices: list[str]) -> Iterator[dict[str, float]]:
    for line in _lines(file, notices):
        values, step = line.get("data"), line.get("step")
        if isinstance(values, dict) and isinstance(step, int):
            yield {**{k: v for k, v in values.items() if isinstance(v, int | float)}, "training/global_step": step}


def _lines(file: Path, notices: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines. The last line may be one that is just being written."""
    try:
        lines = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    except OSError as error:
        notices.append(f"{file.name} cannot be read: {error.strerror}")
        return
    damaged = 0
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line) if line.strip() else None
        except ValueError:
            damaged += number < len(lines)
            continue
        if isinstance(value, dict):
            yield value
    if damaged:
        notices.append(f"{file.name}: lines that are no JSON are left out, {damaged} of {len(lines)}")
