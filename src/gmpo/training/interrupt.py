"""Ctrl-C: the first press ends the run after its step, the second stops it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


class StepAbandonedError(Exception):
    """The user asked for the end while a step was still looking for problems to learn from."""


class StoppedAtOnce(KeyboardInterrupt):
    """A second signal: `code` is the exit status that the shell expects of it."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


class Stop:
    """Whether the user asked for the end. As a context manager it listens to SIGINT and SIGTERM.

    Args:
        announce: called once, with a line for the user, at the first signal.
    """

    def __init__(self, announce: Callable[[str], None] = lambda line: None) -> None:
        self.requested = False
        self.code = 0
        """Exit status of a program that ends by the first signal: 130 by SIGINT, 143 by SIGTERM; 0 before any."""
        self._announce = announce
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Stop:
        # Python delivers signals to the main thread alone; elsewhere (a notebook's worker) there is nothing to catch.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise StoppedAtOnce(128 + number)
        self.requested, self.code = True, 128 + number
        self._announce("Stopping after this step. Ctrl-C again stops at once.")
