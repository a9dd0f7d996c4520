"""Grade answers in bounded worker processes: no answer and no user function can stop, crash or fill the trainer.

Each answer has its own limit of the processor's time, which a busy machine does not use up, a wider one by the clock,
and each worker a memory limit. A worker that is over one of them, or dies, is killed with everything it started and
replaced; the answer it was busy with gets the verdict `timeout` (of computing) or `grader_error` (anything else), and
every other answer is graded as if nothing had happened.
"""

from __future__ import annotations

import itertools
import math
import pickle
import selectors
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from gmpo.errors import BackendError, ConfigError
from gmpo.rewards.custom import Signature, failed
from gmpo.rewards.open_batch import GradeRequest, OpenBatch
from gmpo.rewards.portable import FunctionFile, portable
from gmpo.rewards.printed import PrintedLog
from gmpo.rewards.process import Assignment, BrokenReply, Overdue, WorkerProcess, decode
from gmpo.rewards.scorers import Scoring, check_options
from gmpo.rewards.verdict import Grade, Verdict
from gmpo.rewards.worker import Prepare, Setup

__all__ = ["GradeRequest", "Grader", "GraderSpec"]

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
    """Seconds of the processor that one answer may take; four times as many by the clock."""
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


class Grader:
    """A pool of workers. They start at `start` or the first call and live until `close`.

    Any number of batches may be open at the same time; the workers take from them in turn. Not for several threads.
    """

    def __init__(self, spec: GraderSpec) -> None:
        """Raises ConfigError for a function of neither signature, or one that cannot be sent to another process."""
        self._spec = spec
        setup = Setup(portable(spec.function, spec.kwargs), dict(spec.options), spec.scoring, spec.memory_mb)
        self._setup = pickle.dumps(setup)
        self._selector = selectors.PollSelector()  # Unlike epoll it holds no descriptor that would have to be closed.
        self._workers: list[WorkerProcess] = []
        self._sources: tuple[str, ...] = ()
        self._runs: str | None = None
        self.log: PrintedLog | None = None
        """What workers started from now on print to; None for standard error."""
        self._open: dict[int, OpenBatch] = {}
        """Number -> batch, the one whose turn it is first."""
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all workers and what they started. The grader stays usable: a later call starts new ones, and what an
        open batch still waits for is then graded anew."""
        for worker in list(self._workers):
            self._drop(worker)

    def start(self, data_sources: Sequence[str] = ()) -> None:
        """Start the workers and wait until they are ready, so that a wrong setting is known before any sampling.

        Raises DataError for a data source without scorer, and ConfigError or BackendError, with the user's own
        traceback lines, when a worker does not start.
        """
        try:
            self._drop_dead()
            self._prepare(data_sources)
            self._staff()
            while any(isinstance(owed.request, Prepare) for worker in self._workers for owed in worker.owed):
                self._step()
        except BaseException:
            self.close()
            raise

    def grade(self, requests: Sequence[GradeRequest]) -> list[Grade]:
        """The grades of the requests, in their order.

        Raises what `start` raises, and DataError when an `extra_info` cannot be sent to a worker.
        """
        with self.begin() as grading:
            grading.add(requests)
            return grading.finish()

    def begin(self) -> Grading:
        """A batch of gradings that go on while the caller does something else, other batches among it."""
        return Grading(self)

    @property
    def scoring(self) -> Scoring | None:
        """How the scorers are chosen; None where a user's function grades."""
        return self._spec.scoring if self._spec.function is None else None

    @property
    def by_group(self) -> bool:
        """The function gets all answers of a group at once. Known when a worker has started."""
        return self._runs == Signature.TRL

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
        return Assignment(Prepare(data_sources), self._spec.start_timeout_s)

    def _staff(self) -> None:
        """Start the workers that are missing. Returns at once; they say when they are ready."""
        while len(self._workers) < self._spec.workers:
            printed = None if self.log is None else self.log.descriptor
            worker = _SPAWNER.submit(WorkerProcess, self._setup, printed).result()
            self._workers.append(worker)
            self._selector.register(worker.socket, selectors.EVENT_READ, worker)
            worker.assign([self._preparation(self._sources)])

    def _feed(self, *, ahead: bool = False) -> None:
        """Keep every ready worker busy, with less and less in hand as the end of all batches comes near.

        Args:
            ahead: nobody will be here for a while, so all is handed out.
        """
        for position, worker in enumerate(self._workers):
            pending = sum(len(batch.pending) for batch in self._open.values())
            others = len(self._workers) - position if ahead else 2 * len(self._workers)
            share = min(_MAX_OWED, math.ceil(pending / others))
            if worker.runs is None or len(worker.owed) > share // 2:
                continue
            taken = [self._next() for _ in range(min(share - len(worker.owed), pending))]
            if taken:
                worker.assign(taken)

    def _next(self) -> Assignment:
        """The next unit of the batch whose turn it is. Batches take turns, so that a short one need not wait for the
        whole of a long one that was there before."""
        number = next(number for number, batch in self._open.items() if batch.pending)
        batch = self._open.pop(number)
        self._open[number] = batch
        unit = batch.pending.popleft()
        return Assignment(batch.tasks[unit], self._spec.timeout_s * len(batch.units[unit]), number, unit)

    def _step(self, *, wait: bool = True) -> bool:
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
                self._read(key.data)
        # A reply that has come is read before the clock is looked at: a busy trainer times nobody out.
        for worker in list(self._workers):
            ending = None if events else worker.ending()
            over = worker.overdue() if ending is None else None
            if ending is not None or over is not None:
                self._lose(worker, ending, over)
        return bool(events)

    def _read(self, worker: WorkerProcess) -> None:
        try:
            lines = worker.receive()
            if lines is None:
                self._lose(worker, worker.ending(wait_s=1.0) or "it closed its connection")
                return
            for line in lines:
                reply = decode(line)
                self._accept(worker, reply)
                if reply.get("retire"):
                    self._drop(worker)
                    return
        except BrokenReply as error:
            self._lose(worker, str(error))

    def _accept(self, worker: WorkerProcess, reply: Mapping[str, Any]) -> None:
        """Take one reply. Raises ConfigError with the worker's own words when it cannot start."""
        if not worker.owed:
            raise BrokenReply("the worker wrote a reply that nobody asked for")
        assignment = worker.owed[0]
        if isinstance(assignment.request, Prepare):
            if "error" in reply:
                raise ConfigError(str(reply["error"]))
            self._runs = worker.runs = str(reply.get("ready"))
        elif assignment.batch in self._open:  # else nobody waits for it any more
            self._open[assignment.batch].accept(assignment.unit, reply)
        worker.settle()

    def _lose(self, worker: WorkerProcess, cause: str | None, over: Overdue | None = None) -> None:
        """A worker died of `cause`, or is `over` its time: its first request is to blame, the rest is redone."""
        blamed = worker.owed.popleft() if worker.owed else None
        self._drop(worker)
        if blamed is None:
            return
        limit = f"no result within {over.seconds if over else blamed.allowance_s:g} s"
        if isinstance(blamed.request, Prepare):
            where = "standard error" if self.log is None else self.log.path
            raise BackendError(
                f"A grading worker did not start: {cause or limit}. What it printed is in {where}; check what "
                f"custom_reward_function.path imports, or raise the grader's start_timeout_s."
            )
        if over is not None and over.waited:
            grade = failed(f"{limit}, in which it hardly computed: it waits for something, or the machine is too busy")
        elif cause is None:
            grade = Grade(Verdict.TIMEOUT, 0.0, extra={"acc": 0}, reason=f"{limit} of computing")
        else:
            grade = failed(f"the grading worker died: {cause}")
        if (batch := self._open.get(blamed.batch)) is not None:
            batch.blame(blamed.unit, grade)

    def _drop(self, worker: WorkerProcess) -> None:
        """End a worker and put what it still owes to open batches back; a later step starts another."""
        for owed in reversed(worker.owed):
            if owed.batch in self._open:
                self._open[owed.batch].pending.appendleft(owed.unit)
        self._workers.remove(worker)
        self._selector.unregister(worker.socket)
        worker.kill()

    def _forget(self, number: int) -> None:
        """Give up a batch. Workers that are busy with it end, because their answer may take long."""
        if self._open.pop(number, None) is not None:
            for worker in [w for w in self._workers if any(owed.batch == number for owed in w.owed)]:
                self._drop(worker)

    def _drop_dead(self) -> None:
        for worker in [worker for worker in self._workers if worker.ending() is not None]:
            self._drop(worker)


class Grading:
    """A batch of gradings: `add` hands requests to the workers and returns, `finish` waits for the grades.

    A context manager: a batch that is left without `finish` is given up, and the other open ones go on.
    """

    def __init__(self, grader: Grader) -> None:
        self._grader = grader
        self._batch = OpenBatch()
        self._number = next(grader._numbers)
        grader._open[self._number] = self._batch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def graded(self) -> int:
        """Requests that have their grade."""
        return len(self._batch.grades)

    def close(self) -> None:
        """Give up what is not graded yet; nothing happens after `finish`."""
        self._grader._forget(self._number)

    def add(self, requests: Sequence[GradeRequest]) -> None:
        """Ask for more grades. A group of requests with the same number must come in one call.

        Raises what `Grader.grade` raises; this batch is then given up.
        """
        self._check_open()
        if not requests:
            return
        grader, batch = self._grader, self._batch
        sources = [request.data_source for request in requests]
        try:
            if all(other.complete for other in grader._open.values()):
                grader.start(sources)  # waits until all are ready, and finds out who died since the last batch
            grader._prepare(sources)
            batch.add(requests, by_group=grader.by_group)
            self._advance()
        except BaseException:
            self._abandon()
            raise

    def finish(self) -> list[Grade]:
        """The grades of all requests, in the order in which they were asked for. The batch is closed then.

        Raises what `Grader.grade` raises; this batch is then given up.
        """
        grader, batch = self._grader, self._batch
        self._check_open()
        try:
            while not batch.complete:
                grader._staff()
                grader._feed()
                grader._step()
        except BaseException:
            self._abandon()
            raise
        self.close()
        return [batch.grades[i] for i in range(batch.asked)]

    def _check_open(self) -> None:
        if self._number not in self._grader._open:
            raise ValueError("this batch of gradings is closed; `Grader.begin` opens another")

    def _abandon(self) -> None:
        """After an error no worker is to be trusted: all are ended, and what other batches wait for is asked again."""
        self.close()
        self._grader.close()

    def _advance(self) -> None:
        """Take what has come and keep the workers busy, without waiting."""
        grader, batch = self._grader, self._batch
        grader._staff()
        grader._feed(ahead=True)
        while grader._step(wait=False) and not batch.complete:
            grader._staff()
            grader._feed(ahead=True)
