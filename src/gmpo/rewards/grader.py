"""Grade answers in bounded worker processes: no answer and no user function can stop, crash or fill the trainer.

Each answer has its own time limit, and each worker a memory limit. A worker that is over one of them, or dies, is
killed with everything it started and replaced; the answer it was busy with gets the verdict `timeout` or
`grader_error`, every other answer is graded as if nothing had happened.
"""

from __future__ import annotations

import pickle
import selectors
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self
import sys

import cloudpickle

from gmpo.errors import BackendError, ConfigError, DataError
from gmpo.rewards.custom import Answer, Signature, failed, reward_function
from gmpo.rewards.process import Assignment, BrokenReply, WorkerProcess
from gmpo.rewards.scorers import check_options, scorer_for
from gmpo.rewards.verdict import Grade, Verdict
from gmpo.rewards.worker import Prepare, Setup, Task

_MAX_OWED = 16
"""Tasks a worker may hold: enough to hide the way to it, few enough that the workers end together."""
_POLL_S = 0.2
"""How often a dead worker whose socket a child of it holds open is looked for."""


@dataclass(frozen=True, slots=True)
class FunctionFile:
    """Where a user's reward function is: `custom_reward_function.path` and `.name`."""

    path: str
    name: str = "compute_score"


@dataclass(frozen=True, slots=True)
class GraderSpec:
    """How to grade."""

    function: FunctionFile | Callable[..., Any] | None = None
    """A user's reward function, in verl's or TRL's signature; None for the scorers chosen by data source."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """`custom_reward_function.reward_kwargs`: fixed keyword arguments of the user's function."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Data source -> options of its scorer, for example `{"openai/gsm8k": {"method": "flexible"}}`."""
    workers: int = 2
    """Processes that grade at the same time."""
    timeout_s: float = 10.0
    """Seconds one answer may take."""
    memory_mb: int = 1024
    """Memory a worker may take beyond its imports, in MiB of address space. Enforced on Linux."""
    start_timeout_s: float = 120.0
    """Seconds a worker may take to start: to import the user's file and what that imports."""

    def __post_init__(self) -> None:
        for name in ("workers", "timeout_s", "memory_mb", "start_timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"The grader's {name} is {getattr(self, name)}; it must be greater than 0.")
        if self.kwargs and self.function is None:
            raise ConfigError(
                f"custom_reward_function.reward_kwargs ({', '.join(self.kwargs)}) has no effect without "
                f"custom_reward_function.path. Set the path or remove reward_kwargs."
            )
        for data_source, options in self.options.items():
            check_options(data_source, options)


@dataclass(frozen=True, slots=True)
class GradeRequest:
    """One answer to grade."""

    data_source: str
    prompt: Sequence[Mapping[str, str]] | str
    text: str
    """The decoded answer."""
    ground_truth: str
    extra_info: Mapping[str, Any]
    group: int
    """Number of its problem within the call: a function in TRL's signature gets all answers of a group at once."""


class Grader:
    """A pool of workers. They start at the first call, or at `start`, and live until `close`. Not for several threads."""

    def __init__(self, spec: GraderSpec) -> None:
        """Raises ConfigError for a function that is of neither signature or cannot be sent to another process."""
        self._spec = spec
        self._setup = Setup(_portable(spec), dict(spec.kwargs), dict(spec.options), spec.memory_mb)
        self._selector = selectors.DefaultSelector()
        self._workers: list[WorkerProcess] = []
        self._sources: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all workers and what they started. The grader can be used again: it starts new ones."""
        for worker in list(self._workers):
            self._drop(worker)

    def start(self, data_sources: Sequence[str] = ()) -> None:
        """Start the workers and wait until they are ready, so that a wrong setting is known before any sampling.

        Raises DataError for a data source without scorer, and ConfigError or BackendError, with the user's own
        traceback lines, when a worker does not start.
        """
        try:
            self._prepare(data_sources)
            while any(worker.ready is None or worker.owed for worker in self._workers):
                self._step(_Call((), deque(), []))
        except BaseException:
            self.close()
            raise

    def grade(self, requests: Sequence[GradeRequest]) -> list[Grade]:
        """The grades of the requests, in their order.

        Raises what `start` raises, and DataError when an `extra_info` cannot be sent to a worker.
        """
        if not requests:
            return []
        self.start(list(dict.fromkeys(request.data_source for request in requests)))
        units = self._units(requests)
        call = _Call(units, deque(range(len(units))), [None] * len(requests))
        try:
            while call.open:
                self._staff(len(call.pending))
                self._feed(call)
                self._step(call)
        except BaseException:
            self.close()  # What the workers still owe belongs to a call that is over.
            raise
        return [grade for grade in call.grades if grade is not None]
