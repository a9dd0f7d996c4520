"""What grading workers print, in a file of bounded size."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

LIMIT = 10 * 2**20
"""Bytes that the file may hold: many thousand answers' worth of messages, and no disk's."""
_CHUNK = 1 << 16
_DRAIN_S = 2.0
"""Seconds that the close waits for a process that outlived its worker and may print still."""


class PrintedLog:
    """The end of a file that workers, and what they start, print to through a pipe.

    Beyond `limit` bytes of the file, those of earlier processes included, what is printed is read and dropped: printing
    neither fails nor waits. The file says where that begins, and at the close how many bytes it were.
    """

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        """Raises OSError for a file that cannot be opened."""
        self.path = path
        self.dropped = 0
        """Bytes that were printed and are not in the file."""
        self._limit = limit
        self._file = path.open("ab", buffering=0)
        self._room = max(0, limit - os.fstat(self._file.fileno()).st_size)
        self._end, self.descriptor = os.pipe()
        """`descriptor`: what a worker gets for its standard error."""
        self._reader = threading.Thread(target=self._copy, name="gmpo-graders-log", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """After the workers have ended. A file that nothing was printed to does not stay."""
        os.close(self.descriptor)
        self._reader.join(_DRAIN_S)
        self._room = 0
        if dropped := self.dropped:
            self._say(f"{dropped:,} bytes that graders printed were dropped")
        with suppress(OSError):
            if os.fstat(self._file.fileno()).st_size == 0:
                self.path.unlink()
        if not self._reader.is_alive():
            self._file.close()

    def _copy(self) -> None:
        while chunk := os.read(self._end, _CHUNK):
            kept = 0
            with suppress(OSError):  # a full disk
                kept = self._file.write(chunk[: self._room]) if self._room else 0
            self._room -= kept
            if kept < len(chunk) and not self.dropped and not self._room:
                self._say(f"the file holds {self._limit:,} bytes: what graders print from here on is dropped")
            self.dropped += len(chunk) - kept
        os.close(self._end)

    def _say(self, line: str) -> None:
        with suppress(OSError):
            self._file.write(f"\n[gmpo] {line}\n".encode())
