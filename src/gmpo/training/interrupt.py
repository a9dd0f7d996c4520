"""What ends a run early: Ctrl-C, of which the first press ends it after its step and the second at once; a scheduler's
signal; and the end of the time that a scheduler grants."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from types import FrameType, TracebackType


class StepAbandonedError(Exception):
    """The user asked for the end while a step was still looking for problems to learn from."""


class StoppedAtOnce(KeyboardInterrupt):
    """A second signal: `code` is the exit status that the shell expects of it."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


AGAIN = 75
"""Exit status of a run that a scheduler ended: the same command goes on (EX_TEMPFAIL of sysexits.h)."""
ALARMED = 70
"""Exit status of a run that an alarm ended (EX_SOFTWARE)."""
EXPIRIES = (
    "SLURM_JOB_END_TIME",
    "MLP_CURRENT_CAPACITY_BLOCK_EXPIRATION_TIMESTAMP",
    "SAGEMAKER_CURRENT_CAPACITY_BLOCK_EXPIRATION_TIMESTAMP",
)
"""Environment variables in which schedulers tell when a job will be ended, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Expiry:
    """When the machine is taken away."""

    moment: float
    """Seconds since 1970."""
    source: str
    """The environment variable that says so."""
    reserve: float
    """Seconds to be left when the last checkpoint is written."""

    @classmethod
    def of(cls, environment: Mapping[str, str], reserve: float) -> Expiry | None:
        """What the scheduler says, None where none does."""
        for name in EXPIRIES:
            with suppress(ValueError):
                if (moment := float(environment.get(name, "nan"))) > 0:
                    return cls(moment, name, reserve)
        return None

    def __str__(self) -> str:
        return f"the job ends at {datetime.fromtimestamp(self.moment):%Y-%m-%d %H:%M:%S} ({self.source})"


class Stop:
    """Whether the run shall end after its step. As a context manager it listens to SIGINT, SIGTERM and SIGUSR1.

    Args:
        announce: called with a line for the user, at the first signal or when the time is up.
        expiry: when the job will be ended: the run ends before.
        clock: seconds since 1970.
        within: seconds after a first SIGINT or SIGTERM at which a step gives up what `abandonable` surrounds; None
            waits for the end of the step, however long it takes.
    """

    def __init__(
        self,
        announce: Callable[[str], None] = lambda line: None,
        expiry: Expiry | None = None,
        clock: Callable[[], float] = time.time,
        within: float | None = None,
    ) -> None:
        self.requested = False
        self.code = 0
        """Exit status of a program that ends by it: 130 by SIGINT, 143 by SIGTERM, `AGAIN` by SIGUSR1 or an expiry,
        `ALARMED` by an alarm; 0 before any."""
        self._announce = announce
        self._expiry = expiry
        self._clock = clock
        self._last = clock()
        self._longest: float | None = None
        self._previous: dict[signal.Signals, signal._HANDLER] = {}
        self._within = within
        self._late = self._abandonable = False

    @contextmanager
    def abandonable(self) -> Iterator[None]:
        """What a step may give up without losing anything but time: it is done again when the run goes on.

        Raises:
            StepAbandonedError: in its midst or at its begin, where a signal asked for the end `within` seconds ago.
        """
        self._abandonable = True
        try:
            if self._late:
                raise StepAbandonedError
            yield
        finally:
            self._abandonable = False

    def end(self) -> None:
        """The run shall end now, with a checkpoint of the steps that are done."""
        self.requested = self._late = True
        self.code = ALARMED

    def step_ended(self) -> bool:
        """Whether the step that was just completed is the last one. Between two calls lie a step, a validation and a
        checkpoint, if due; there must be time for another such stretch before the job is ended."""
        now = self._clock()
        # The first stretch began with loading the model, and counts for no other.
        stretch = now - self._last if self._longest is None else max(self._longest, now - self._last)
        self._longest, self._last = (0.0 if self._longest is None else stretch), now
        if self._expiry is not None and not self.requested:
            left = self._expiry.moment - self._expiry.reserve - now
            if left < stretch:
                self.requested, self.code = True, AGAIN
                self._announce(f"{self._expiry}, and a step takes up to {stretch:.0f} s. {_SCHEDULED}")
        return self.requested

    def __enter__(self) -> Stop:
        # Python delivers signals to the main thread alone; elsewhere (a notebook's worker) there is nothing to catch.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                self._previous[number] = signal.signal(number, self._on_signal)
            if self._within is not None:
                self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_alarm)
        if self._expiry is not None:
            self._announce(f"{self._expiry}: the run ends before, with a checkpoint and exit status {AGAIN}.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if signal.SIGALRM in self._previous:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            # A scheduler may repeat it, and sends SIGTERM when the time is up.
            if not self.requested:
                self.requested, self.code = True, AGAIN
                self._announce(f"SIGUSR1: {_SCHEDULED}")
            return
        if self.requested and self.code != AGAIN:
            raise StoppedAtOnce(128 + number)
        if not self.requested:
            self._announce("Stopping after this step. Ctrl-C again stops at once.")
        self.requested, self.code = True, 128 + number
        if self._within is not None and signal.SIGALRM in self._previous:
            signal.setitimer(signal.ITIMER_REAL, self._within)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        self._late = True
        if self._abandonable:
            self._abandonable = False
            self._announce(
                f"{self._within:g} s have passed (trainer.stop_within_s): this step is given up while it samples; the "
                "same command does it again."
            )
            raise StepAbandonedError


_SCHEDULED = f"Stopping after this step, with a checkpoint and exit status {AGAIN}: the same command goes on."
