"""Where metrics go: JSON lines, TensorBoard, Weights & Biases, Trackio. The console has a module of its own."""

from __future__ import annotations

import importlib
import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

from gmpo.errors import ConfigError
from gmpo.records.durable import write_atomically
from gmpo.records.run_folder import set_aside_unreadable
from gmpo.tracking.held import HeldRecords


class Sink(Protocol):
    """Receives the metrics of a step."""

    def start(self, step: int) -> None:
        """The run starts, or resumes, after `step` training steps."""
        ...

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record `metrics` of training step `step` (0: before training)."""
        ...

    def close(self) -> None:
        """Flush and release."""
        ...


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The run, for sinks that need more than metrics."""

    folder: Path
    project: str
    experiment: str
    config: Mapping[str, Any]
    say: Callable[[str], object] = print
    """Receives a line for the user."""
    held: HeldRecords = field(default_factory=HeldRecords)
    """Writes files."""


class JsonLines:
    """One object a line: `{"step": 3, "data": {"critic/score/mean": 0.5, ..}}`, as verl's file logger writes.

    A resumed run drops the lines after the step it resumes from, because it runs those steps again, and puts damaged
    ones aside.
    """

    def __init__(self, file: Path, say: Callable[[str], object] = print, held: HeldRecords | None = None) -> None:
        self.file = file
        self.say = say
        self.held = held or HeldRecords(say)

    def start(self, step: int) -> None:
        if not self.file.is_file():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.touch()
            return
        set_aside_unreadable(self.file, "data", self.say)
        kept = [line for line in self.file.read_text(errors="replace").splitlines() if _step_of(line, step) <= step]
        if step == 0:
            kept = []  # lines of step 0 are the validation before training, which runs again
        write_atomically(self.file, "".join(f"{line}\n" for line in kept))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.held.append(self.file, (json.dumps({"step": step, "data": dict(metrics)}) + "\n").encode())

    def close(self) -> None:
        pass


def _step_of(line: str, limit: int) -> int:
    """Step of a line; a line that a crash cut short counts as after the limit, so it is dropped."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return limit + 1


class TensorBoard:
    """Scalars for `tensorboard --logdir <run folder>`; `$TENSORBOARD_DIR` overrides the folder, as in verl.

    One event a step, on disk when `write` returns. Not through the library's own writer, because it writes in a
    background thread, where a full disk is a traceback on the terminal and no error for the run.
    """

    def __init__(self, info: RunInfo) -> None:
        self.folder = Path(os.environ.get("TENSORBOARD_DIR") or info.folder / "tensorboard")
        self.held = info.held

    def start(self, step: int) -> None:
        # Imported late: it takes longer than everything else in this module.
        self._proto: Any = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._summary: Any = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
        records = importlib.import_module("tensorboard.summary.writer.record_writer")
        self.folder.mkdir(parents=True, exist_ok=True)
        earlier = any(self.folder.glob("events.out.tfevents.*"))
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self.file = self.folder / name
        self._framed: Any = records.RecordWriter
        self._event(file_version="brain.Event:2")
        if earlier:
            # Tells the readers to forget what an earlier process wrote beyond this step.
            self._event(
                step=step + 1 if step else 0, session_log=self._proto.SessionLog(status=self._proto.SessionLog.START)
            )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._event(step=step, summary=self._summary(value=values))

    def _event(self, **fields: Any) -> None:
        framed = BytesIO()
        self._framed(framed).write(self._proto.Event(wall_time=time.time(), **fields).SerializeToString())
        self.held.append(self.file, framed.getvalue())

    def close(self) -> None:
        """Nothing is open."""


class WandbLike:
    """Weights & Biases, or Trackio, whose interface is the same."""

    def __init__(self, info: RunInfo, package: str) -> None:
        try:
            self.library: Any = importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"trainer.logger names {package!r}, which is not installed: pip install 'gmpo[{package}]'"
            ) from error
        self.info = info

    def start(self, step: int) -> None:
        self.library.init(project=self.info.project, name=self.info.experiment, config=dict(self.info.config))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.library.log(dict(metrics), step=step)

    def close(self) -> None:
        self.library.finish()


def _logger_file(info: RunInfo, variables: Mapping[str, str]) -> Path | None:
    """Where verl's environment variables put the `file` logger; None leaves it in the run folder."""
    exact, root = variables.get("VERL_FILE_LOGGER_PATH"), variables.get("VERL_FILE_LOGGER_ROOT")
    if exact is None and root is None:
        return None
    return Path(exact) if exact else Path(root or ".") / info.project / f"{info.experiment}.jsonl"


def _file_logger(info: RunInfo) -> JsonLines:
    """verl's `file` logger."""
    return JsonLines(_logger_file(info, os.environ) or info.folder / f"{info.experiment}.jsonl", info.say, info.held)


def logger_places(info: RunInfo, loggers: Sequence[str], variables: Mapping[str, str]) -> dict[str, Path]:
    """Where the environment's variables have these loggers record outside of the run folder, by what names it."""
    places: dict[str, Path] = {}
    if "tensorboard" in loggers and (folder := variables.get("TENSORBOARD_DIR")):
        places["$TENSORBOARD_DIR"] = Path(folder)
    if "file" in loggers and (file := _logger_file(info, variables)) is not None:
        places["$VERL_FILE_LOGGER_PATH" if "VERL_FILE_LOGGER_PATH" in variables else "$VERL_FILE_LOGGER_ROOT"] = file
    return places


SINKS: Mapping[str, Callable[[RunInfo], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": lambda info: WandbLike(info, "wandb"),
    "trackio": lambda info: WandbLike(info, "trackio"),
    "file": _file_logger,
}
"""`trainer.logger` -> sink; `console` is made where the terminal is known."""
