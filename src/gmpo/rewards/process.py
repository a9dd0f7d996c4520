"""The parent's end of one worker process: start it, send without blocking, receive, kill it."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gmpo.rewards.worker import MAX_REPLY_BYTES, Prepare, Task

# sys.path is set before anything is imported, so that the worker finds this package and the user's modules exactly as
# the parent does.
_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from gmpo.rewards.worker import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)
_RECEIVE_BYTES = 1 << 16


WALL = 4.0
"""So many times the seconds of the processor that a task may take, it may take by the clock."""
TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
"""In which the system counts the processor's time."""


@dataclass(frozen=True, slots=True)
class Overdue:
    """A request that took too long."""

    seconds: float
    """What it had."""
    waited: bool
    """By the clock, while it hardly computed: it waits for something, or the machine has no time for it."""


class BrokenReply(Exception):
    """The worker wrote something that is not a reply."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A request that was sent to a worker and has no reply yet."""

    request: Prepare | Task
    allowance_s: float
    """Seconds it may take, from the reply before it: a task of the processor, else by the clock."""
    batch: int = -1
    """Number of the batch of gradings that a task belongs to; -1 for a preparation."""
    unit: int = -1
    """Number of the task within its batch."""


class WorkerProcess:
    """One worker, which prints to the descriptor `printed`, or to standard error. It works through `owed` in order; the
    first entry is the one in progress."""

    def __init__(self, setup: bytes, printed: int | None = None) -> None:
        self.owed: deque[Assignment] = deque()
        self.runs: str | None = None
        """What the worker said it runs (`scorers`, `verl`, `trl`) once it has started."""
        self._since = self._look = time.monotonic()
        self._outbox = bytearray(setup)
        self._inbox = bytearray()
        self.socket, theirs = socket.socketpair()
        with theirs:
            # A session of its own: Ctrl-C in the terminal does not reach it, and its children die with its group.
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, json.dumps(sys.path), str(theirs.fileno()), str(os.getpid())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=printed,
                start_new_session=True,
            )
        self.socket.setblocking(False)
        self._used = 0.0

    @property
    def pid(self) -> int:
        """Its process id, which is also that of its process group."""
        return self._process.pid

    @property
    def deadline(self) -> float:
        """When to see whether the request in progress exceeds its time, on `time.monotonic`; infinite when there is
        none."""
        return max(self._look, self._since + self.owed[0].allowance_s) if self.owed else float("inf")

    def overdue(self) -> Overdue | None:
        """What the request in progress has exceeded. A task has its allowance of the processor's time, which a busy
        machine does not use up, and `WALL` times as much by the clock, within which one that waits must have an end."""
        now = time.monotonic()
        if now < self.deadline:
            return None
        owed = self.owed[0]
        used = None if isinstance(owed.request, Prepare) else _cpu_seconds(self.pid)
        if used is None:
            return Overdue(owed.allowance_s, waited=False)
        used, last = used - self._used, self._since + WALL * owed.allowance_s
        if used >= owed.allowance_s - TICK_S:
            return Overdue(owed.allowance_s, waited=False)
        if now >= last:
            return Overdue(WALL * owed.allowance_s, waited=True)
        self._look = min(last, now + max(owed.allowance_s - used, TICK_S))
        return None

    @property
    def has_unsent(self) -> bool:
        """Whether there are bytes that the socket has not taken yet."""
        return bool(self._outbox)

    def assign(self, assignments: Sequence[Assignment]) -> None:
        """Send requests. Returns at once: what the socket does not take now is sent by later `flush` calls."""
        if not self.owed:
            self._start_clock()
        self.owed.extend(assignments)
        self._outbox += pickle.dumps([assignment.request for assignment in assignments])
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes."""
        try:
            while self._outbox:
                del self._outbox[: self.socket.send(self._outbox)]
        except BlockingIOError:
            return
        except ConnectionError:
            self._outbox.clear()  # The worker is dead; the next read will notice.

    def receive(self) -> list[bytearray] | None:
        """The replies that have arrived, not decoded, in the order of `owed`; None when the worker is gone."""
        gone = self._fill_inbox()
        *lines, rest = self._inbox.split(b"\n")
        self._inbox = bytearray(rest)
        if len(rest) > MAX_REPLY_BYTES:
            lines.append(self._inbox)  # Too long for a reply: do not wait for its end.
        return None if gone and not lines else lines

    def _fill_inbox(self) -> bool:
        """Read what has arrived, at most a little more than the longest reply; True when the other end is closed."""
        try:
            while len(self._inbox) <= MAX_REPLY_BYTES + 1:
                received = self.socket.recv(_RECEIVE_BYTES)
                if not received:
                    return True
                self._inbox += received
        except BlockingIOError:
            return False
        except ConnectionError:
            return True
        return False

    def settle(self) -> None:
        """The first request has its reply: the clock of the next one starts."""
        self.owed.popleft()
        self._start_clock()

    def _start_clock(self) -> None:
        self._since = self._look = time.monotonic()
        self._used = _cpu_seconds(self.pid) or 0.0

    def ending(self, wait_s: float = 0.0) -> str | None:
        """How the process ended, None while it runs. Works also when a child of it keeps the socket open."""
        try:
            code = self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            return None
        if code >= 0:
            return f"exit code {code}"
        return f"signal {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"signal {-code}"

    def kill(self) -> None:
        """Kill the worker and everything it has started."""
        with contextlib.suppress(ProcessLookupError):  # Nothing of the group is left.
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self.socket.close()


def _cpu_seconds(pid: int) -> float | None:
    """Of the processor, that a process and the children it has waited for used; None where the system does not say."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return sum(map(int, fields[11:15])) * TICK_S
    except (OSError, ValueError):
        return None


def decode(line: bytearray) -> dict[str, Any]:
    """A reply. Raises BrokenReply when it is none."""
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        reply = None
    if not isinstance(reply, dict):
        raise BrokenReply("the worker wrote something that is not a reply")
    return reply
