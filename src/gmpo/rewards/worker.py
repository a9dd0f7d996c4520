"""The program of a grading worker process: it reads tasks from its socket and grades them one after the other.

The parent sends pickled objects: first a `Setup`, then lists of `Task`. The worker replies in JSON lines, one per task
and in order, because the parent must not unpickle what a process that runs a user's code has written. Standard output
is not used, because user functions print to it.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import resource
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gmpo.errors import ConfigError, GmpoError
from gmpo.rewards.custom import Answer, RewardFunction, describe, failed, load_function, reward_function
from gmpo.rewards.reading.limits import TooLarge
from gmpo.rewards.scorers import Scoring, refused
from gmpo.rewards.verdict import Grade

MAX_REPLY_BYTES = 4 * 2**20
_PR_SET_PDEATHSIG = 1
_SCORER_CPU_S = 1.0
"""Seconds of CPU time that a built-in scorer gets for one answer: a thousand times what answers need."""


@dataclass(frozen=True, slots=True)
class PortableFunction:
    """A serialised reward function."""

    source: tuple[str, str] | bytes
    """Path and name in a file, or the pickled function."""
    kwargs: bytes
    """The pickled fixed keyword arguments."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Sent to a worker once, at its start."""

    function: PortableFunction | None
    """A user's function, None for the built-in scorers."""
    options: Mapping[str, Mapping[str, Any]]
    """Data source -> options of its scorer."""
    scoring: Scoring
    """Which scorers grade, and what is set for all of them."""
    memory_mb: int
    """Address space it may take beyond its imports, in MiB."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker grades at once: if the worker dies or runs out of time, this is what failed."""

    payload: bytes
    """A pickled list of `Answer`; pickled separately, so that an error in unpickling fails this task alone."""


@dataclass(frozen=True, slots=True)
class Prepare:
    """Import what the scorers of these data sources need. Answered by one reply, like a task."""

    data_sources: tuple[str, ...]


class Worker:
    """The state of a worker process."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._function: RewardFunction | None = None

    def prepare(self, request: Prepare) -> dict[str, Any]:
        """Import what grading needs, then limit the memory; an error of the user's code is sent back as a string."""
        try:
            _limit_memory(None)
            if self._setup.function is not None and self._function is None:
                self._function = _rebuilt(self._setup.function)
            if self._function is None:
                for data_source in request.data_sources:
                    load = self._setup.scoring.scorer_for(data_source).load
                    if load is not None:
                        load()
            _limit_memory(self._setup.memory_mb)
        except GmpoError as error:
            return {"error": str(error)}
        except (Exception, SystemExit) as error:
            return {"error": f"a grading worker cannot start: {describe(error)}"}
        return {"ready": self._function.signature if self._function else "scorers"}

    def run(self, task: Task) -> dict[str, Any]:
        """Grade one task. After a MemoryError the state of the process is unknown, so it asks to be replaced."""
        count = 1
        try:
            group: list[Answer] = pickle.loads(task.payload)
            count = len(group)
            return {"grades": [_plain(grade) for grade in self._grade(group)]}
        except MemoryError:
            reason = f"out of memory: the grader needs more than its {self._setup.memory_mb} MiB"
            return {"grades": [_plain(failed(reason))] * count, "retire": True}
        except (Exception, SystemExit) as error:
            return {"grades": [_plain(failed(describe(error)))] * count}

    def _grade(self, group: Sequence[Answer]) -> list[Grade]:
        if self._function is not None:
            return self._function.grade(group)
        return [self._scored(answer) for answer in group]

    def _scored(self, answer: Answer) -> Grade:
        """The grade of a built-in scorer. Its own limit is one of CPU time, which a busy machine does not use up."""
        source, scoring = answer.data_source, self._setup.scoring
        options = {**scoring.options_for(source), **self._setup.options.get(source, {})}
        score = scoring.scorer_for(source).score
        signal.setitimer(signal.ITIMER_PROF, _SCORER_CPU_S)
        try:
            return score(answer.text, answer.ground_truth, answer.extra_info, **options)
        except TooLarge as error:
            return refused(str(error), None)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)


def _rebuilt(function: PortableFunction) -> RewardFunction:
    """Load or unpickle the user's function. Raises ConfigError."""
    try:
        call = load_function(*function.source) if isinstance(function.source, tuple) else pickle.loads(function.source)
        return reward_function(call, pickle.loads(function.kwargs))
    except GmpoError:
        raise
    except Exception as error:
        raise ConfigError(
            f"The reward function cannot be rebuilt in a grading worker: {describe(error)}. Define it in a file and "
            f"set custom_reward_function.path and custom_reward_function.name."
        ) from error


def _used_up(signum: int, frame: object) -> None:
    raise TooLarge(f"more than {_SCORER_CPU_S:g} s of computing")


def _limit_memory(extra_mb: int | None) -> None:
    """Limit the address space to what is in use now and `extra_mb`; None lifts the limit. Linux only, else no limit."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if extra_mb is None:
        soft = hard
    else:
        soft = int(statm.read_text().split()[0]) * resource.getpagesize() + extra_mb * 2**20
        soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _die_with_parent(parent: int) -> None:
    """Have Linux kill this process when its parent dies, however it dies; elsewhere the closed socket ends it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _plain(grade: Grade) -> dict[str, Any]:
    return {
        "verdict": grade.verdict,
        "score": grade.score,
        "pred": grade.pred,
        "extra": grade.extra,
        "reason": grade.reason,
        "refused": grade.refused,
    }


def _encode(reply: Mapping[str, Any]) -> bytes:
    line = json.dumps(reply).encode()
    if len(line) > MAX_REPLY_BYTES and "grades" in reply:
        reason = f"the reward function returned {len(line)} bytes; at most {MAX_REPLY_BYTES} are kept"
        line = json.dumps({"grades": [_plain(failed(reason))] * len(reply["grades"])}).encode()
    return line + b"\n"


def serve(requests: BinaryIO, replies: socket.socket) -> None:
    """Answer requests until the parent closes its end."""
    own = os.getpid()
    try:
        worker = Worker(pickle.load(requests))
        while True:
            for request in pickle.load(requests):
                reply = worker.prepare(request) if isinstance(request, Prepare) else worker.run(request)
                if os.getpid() != own:  # A child process that a user's function forked and that returned here.
                    os._exit(0)
                replies.sendall(_encode(reply))
                if reply.get("retire"):
                    return
    except (EOFError, ConnectionError):
        return


def main(descriptor: int, parent: int) -> None:
    """Run a worker on an inherited socket."""
    _die_with_parent(parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, _used_up)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    connection = socket.socket(fileno=descriptor)
    serve(connection.makefile("rb"), connection)
