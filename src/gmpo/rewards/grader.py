"""Grade answers in bounded worker processes: no answer and no user function can stop, crash or fill the trainer.

Each answer has its own time limit, and each worker a memory limit. A worker that is over one of them, or dies, is
killed with everything it started and replaced; the answer it was busy with gets the verdict `timeout` or
`grader_error`, and every other answer is graded as if nothing had happened.
"""

from __future__ import annotations

import math
import pickle
import selectors
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from gmpo.errors import BackendError, ConfigError, DataError
from gmpo.rewards.custom import Answer, Signature, failed
from gmpo.rewards.portable import FunctionFile, portable
from gmpo.rewards.process import Assignment, BrokenReply, WorkerProcess, decode
from gmpo.rewards.scorers import Scoring, check_options
from gmpo.rewards.verdict import Grade, Verdict
from gmpo.rewards.worker import Prepare, Setup, Task

_MAX_OWED = 16
"""Tasks a worker may hold: enough to hide the way to it, few enough that all workers end at about the same time."""
_POLL_S = 0.2
"""How often to look for a dead worker whose socket is held open by a child that it forked."""
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gmpo-grader")
"""Starts the workers. Linux kills them when the *thread* that started them ends, so that must be one which lives as
long as the process, and not whichever thread of the trainer grades first."""


@dataclass(frozen=True, slots=True)
class GraderSpec:
    """How to grade."""

    function: FunctionFile | Callable[..., Any] | None = None
    """A user's reward function, in verl's or TRL's signature; None for the scorers chosen by data source."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """`custom_reward_function.reward_kwargs`: fixed keyword arguments of the user's function."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Data source -> options of its scorer, for example `{"openai/gsm8k": {"method": "flexible"}}`."""
    scoring: Scoring = field(default_factory=Scoring)
    """Which scorers grade, and what is set for all of them. Without effect on a user's function."""
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
        self.scoring.check()
        for data_source, options in self.options.items():
            check_options(data_source, options, self.scoring.scorer_for(data_source))


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


@dataclass(slots=True)
class _Call:
    """The state of one batch of gradings."""

    units: list[Sequence[int]] = field(default_factory=list)
    """What a worker grades in one go: positions of requests, several only for TRL's signature."""
    tasks: list[Task] = field(default_factory=list)
    pending: deque[int] = field(default_factory=deque)
    """Units that no worker holds and that have no grades."""
    grades: dict[int, Grade] = field(default_factory=dict)
    """Position of the request -> its grade."""
    asked: int = 0
    """Requests so far."""


class Grader:
    """A pool of workers. They start at `start` or the first call and live until `close`. Not for several threads."""

    def __init__(self, spec: GraderSpec) -> None:
        """Raises ConfigError for a function of neither signature, or one that cannot be sent to another process."""
        self._spec = spec
        setup = Setup(portable(spec.function, spec.kwargs), dict(spec.options), spec.scoring, spec.memory_mb)
        self._setup = pickle.dumps(setup)
        self._selector = selectors.PollSelector()  # Unlike epoll it holds no descriptor that would have to be closed.
        self._workers: list[WorkerProcess] = []
        self._sources: tuple[str, ...] = ()
        self._unfinished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all workers and what they started. The grader stays usable: a later call starts new ones."""
        self._unfinished = False
        for worker in list(self._workers):
            self._drop(worker)

    def start(self, data_sources: Sequence[str] = ()) -> None:
        """Start the workers and wait until they are ready, so that a wrong setting is known before any sampling.

        Raises DataError for a data source without scorer, and ConfigError or BackendError, with the user's own
        traceback lines, when a worker does not start.
        """
        nothing = _Call()
        try:
            self._drop_dead()
            self._prepare(data_sources)
            self._staff()
            while any(worker.owed for worker in self._workers):
                self._step(nothing)
        except BaseException:
            self.close()
            raise

    def grade(self, requests: Sequence[GradeRequest]) -> list[Grade]:
        """The grades of the requests, in their order.

        Raises what `start` raises, and DataError when an `extra_info` cannot be sent to a worker.
        """
        grading = self.begin()
        grading.add(requests)
        return grading.finish()

    def begin(self) -> Grading:
        """Gradings that go on while the caller does something else. What an earlier batch still owed is given up."""
        if self._unfinished:
            self.close()
        return Grading(self)

    @property
    def scoring(self) -> Scoring | None:
        """How the scorers are chosen; None where a user's function grades."""
        return self._spec.scoring if self._spec.function is None else None

    @property
    def by_group(self) -> bool:
        """The function gets all answers of a group at once. Known when the workers have started."""
        return self._workers[0].runs == Signature.TRL

    def _prepare(self, data_sources: Sequence[str]) -> None:
        """Have the workers load the scorers of new data sources. Raises DataError for one without scorer."""
        if self._spec.function is not None:
            return
        new = tuple(source for source in dict.fromkeys(data_sources) if source not in self._sources)
        for source in new:
            self._spec.scoring.scorer_for(source)
        self._sources += new
        if new:
            for worker in self._workers:
                worker.assign([self._preparation(new)])

    def _preparation(self, data_sources: tuple[str, ...]) -> Assignment:
        return Assignment(Prepare(data_sources), -1, self._spec.start_timeout_s)

    def _staff(self) -> None:
        """Start the workers that are missing. Returns at once; they say when they are ready."""
        while len(self._workers) < self._spec.workers:
            worker = _SPAWNER.submit(WorkerProcess, self._setup).result()
            self._workers.append(worker)
            self._selector.register(worker.socket, selectors.EVENT_READ, worker)
            worker.assign([self._preparation(self._sources)])

    def _feed(self, call: _Call, *, ahead: bool = False) -> None:
        """Keep every ready worker busy, with less and less in hand as the end of the call comes near.

        Args:
            ahead: nobody will be here for a while, so all is handed out.
        """
        for position, worker in enumerate(self._workers):
            others = len(self._workers) - position if ahead else 2 * len(self._workers)
            share = min(_MAX_OWED, math.ceil(len(call.pending) / others))
            if worker.runs is None or len(worker.owed) > share // 2:
                continue
            taken = [call.pending.popleft() for _ in range(min(share - len(worker.owed), len(call.pending)))]
            allowances = [self._spec.timeout_s * len(call.units[unit]) for unit in taken]
            if taken:
                worker.assign([Assignment(call.tasks[u], u, s) for u, s in zip(taken, allowances, strict=True)])

    def _step(self, call: _Call, *, wait: bool = True) -> bool:
        """Wait until a worker can be read or written or is over its time, and act on it. Returns whether one could."""
        for worker in self._workers:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.has_unsent else 0)
            if self._selector.get_key(worker.socket).events != wanted:
                self._selector.modify(worker.socket, wanted, worker)
        soonest = min(worker.deadline for worker in self._workers) - time.monotonic()
        events = self._selector.select(max(0.0, min(soonest, _POLL_S)) if wait else 0.0)
        for key, mask in events:
            if mask & selectors.EVENT_WRITE:
                key.data.flush()
            if mask & selectors.EVENT_READ:
                self._read(key.data, call)
        # A reply that has come is read before the clock is looked at: a busy trainer times nobody out.
        for worker in list(self._workers):
            ending = None if events else worker.ending()
            if ending is not None or worker.deadline <= time.monotonic():
                self._lose(worker, call, ending)
        return bool(events)

    def _read(self, worker: WorkerProcess, call: _Call) -> None:
        try:
            lines = worker.receive()
            if lines is None:
                self._lose(worker, call, worker.ending(wait_s=1.0) or "it closed its connection")
                return
            for line in lines:
                reply = decode(line)
                self._accept(worker, reply, call)
                if reply.get("retire"):
                    self._replace(worker, call)
                    return
        except BrokenReply as error:
            self._lose(worker, call, str(error))

    def _accept(self, worker: WorkerProcess, reply: Mapping[str, Any], call: _Call) -> None:
        """Take one reply. Raises ConfigError with the worker's own words when it cannot start."""
        if not worker.owed:
            raise BrokenReply("the worker wrote a reply that nobody asked for")
        assignment = worker.owed[0]
        if isinstance(assignment.request, Prepare):
            if "error" in reply:
                raise ConfigError(str(reply["error"]))
            worker.runs = str(reply.get("ready"))
        else:
            unit = call.units[assignment.unit]
            grades = _grades(reply)
            if len(grades) != len(unit):
                raise BrokenReply(f"the worker gave {len(grades)} grades for {len(unit)} answers")
            call.grades.update(zip(unit, grades, strict=True))
        worker.settle()

    def _lose(self, worker: WorkerProcess, call: _Call, cause: str | None) -> None:
        """A worker died of `cause`, or is over its time (None): its first request is to blame, the rest is redone."""
        blamed = worker.owed.popleft() if worker.owed else None
        self._replace(worker, call)
        if blamed is None:
            return
        limit = f"no result within {blamed.allowance_s:g} s"
        if isinstance(blamed.request, Prepare):
            raise BackendError(
                f"A grading worker did not start: {cause or limit}. What it printed is on standard error; check what "
                f"custom_reward_function.path imports, or raise the grader's start_timeout_s."
            )
        if cause is None:
            grade = Grade(Verdict.TIMEOUT, 0.0, extra={"acc": 0}, reason=limit)
        else:
            grade = failed(f"the grading worker died: {cause}")
        call.grades.update(dict.fromkeys(call.units[blamed.unit], grade))

    def _replace(self, worker: WorkerProcess, call: _Call) -> None:
        """Drop a worker and put what it still owes back; the next step of the call starts another."""
        call.pending.extendleft(assignment.unit for assignment in reversed(worker.owed) if assignment.unit >= 0)
        self._drop(worker)

    def _drop(self, worker: WorkerProcess) -> None:
        self._workers.remove(worker)
        self._selector.unregister(worker.socket)
        worker.kill()

    def _drop_dead(self) -> None:
        for worker in [worker for worker in self._workers if worker.ending() is not None]:
            self._drop(worker)


class Grading:
    """A batch of gradings: `add` hands requests to the workers and returns, `finish` waits for the grades."""

    def __init__(self, grader: Grader) -> None:
        self._grader = grader
        self._call = _Call()

    def add(self, requests: Sequence[GradeRequest]) -> None:
        """Ask for more grades. A group of requests with the same number must come in one call.

        Raises what `Grader.grade` raises.
        """
        if not requests:
            return
        grader, call = self._grader, self._call
        sources = [request.data_source for request in requests]
        if not grader._unfinished:
            grader.start(sources)
            grader._unfinished = True
        try:
            grader._prepare(sources)
            units = _by_group(requests) if grader.by_group else [[i] for i in range(len(requests))]
            tasks = [_task([requests[i] for i in unit], unit[0]) for unit in units]
            call.pending.extend(range(len(call.units), len(call.units) + len(units)))
            call.units += [[call.asked + i for i in unit] for unit in units]
            call.tasks += tasks
            call.asked += len(requests)
            self._advance()
        except BaseException:
            grader.close()
            raise

    def finish(self) -> list[Grade]:
        """The grades of all requests, in the order in which they were asked for."""
        grader, call = self._grader, self._call
        try:
            while len(call.grades) < call.asked:
                grader._staff()
                grader._feed(call)
                grader._step(call)
        except BaseException:
            grader.close()  # What the workers still owe belongs to a batch that is over.
            raise
        grader._unfinished = False
        return [call.grades[i] for i in range(call.asked)]

    def _advance(self) -> None:
        """Take what has come and keep the workers busy, without waiting."""
        grader, call = self._grader, self._call
        grader._staff()
        grader._feed(call, ahead=True)
        while grader._step(call, wait=False) and len(call.grades) < call.asked:
            grader._staff()
            grader._feed(call, ahead=True)


def _by_group(requests: Sequence[GradeRequest]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for position, request in enumerate(requests):
        groups.setdefault(request.group, []).append(position)
    return list(groups.values())


def _task(requests: Sequence[GradeRequest], position: int) -> Task:
    answers = [Answer(r.data_source, r.prompt, r.text, r.ground_truth, r.extra_info) for r in requests]
    try:
        return Task(pickle.dumps(answers))
    except Exception as error:
        raise DataError(
            f"The prompt or extra_info of answer {position} ({requests[0].data_source}) cannot be sent to a grading "
            f"worker: {error}. Keep to plain values there: numbers, strings, lists and dicts."
        ) from error


def _grades(reply: Mapping[str, Any]) -> list[Grade]:
    """The grades of a reply, checked field by field: what ran a user's code is not trusted."""
    try:
        return [
            Grade(
                Verdict(g["verdict"]), _finite(g["score"]), g["pred"], dict(g["extra"]), g["reason"], bool(g["refused"])
            )
            for g in reply["grades"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenReply(f"the worker wrote a reply without a grade: {error}") from error


def _finite(score: float) -> float:
    if not math.isfinite(score):
        raise ValueError(f"score {score}")
    return float(score)
