"""Records on their way to files: held in memory while a disk takes none, so that a run outlives a full disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gmpo.errors import BackendError
from gmpo.records.durable import sync

MOST = 256 * 2**20
"""Bytes held in memory at most; beyond them the run ends."""
PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.ETIMEDOUT})
"""Errors that space, a quota or a file system that comes back undo. Others (no permission, no folder) do not pass."""


class HeldRecords:
    """Writes what a run records. What cannot be written for want of space waits in memory, and is tried again before
    every later record and at the close; a file gets all of its records in order, or none beyond one that is missing.

    Args:
        say: receives a line for the user when records begin to wait, and when none does any more.
    """

    def __init__(self, say: Callable[[str], object] = print, most: int = MOST) -> None:
        self._say = say
        self._most = most
        self._held: dict[Path, bytes] = {}
        self._whole: set[Path] = set()
        self._unsynced: set[Path] = set()
        self._said = False

    def append(self, file: Path, data: bytes) -> None:
        """Put `data` at the end of a file.

        Raises:
            OSError: it cannot be written, and waiting would not help, or too much waits.
        """
        self._held[file] = self._held.get(file, b"") + data
        self._settle(file)

    def write(self, file: Path, data: bytes) -> None:
        """Make a file of `data` alone; raises as `append`."""
        self._held[file] = data
        self._whole.add(file)
        self._settle(file)

    def sync(self) -> None:
        """Have the disk hold all that is written. What waits in memory for space is not waited for.

        Raises:
            OSError: the disk cannot.
        """
        for file in sorted(self._unsynced):
            if file.exists():
                sync(file)
        for folder in sorted({file.parent for file in self._unsynced}):
            sync(folder)
        self._unsynced.clear()

    def close(self, *, failing: bool = False) -> None:
        """The last try.

        Args:
            failing: another error ends the run, and is not to be replaced by one of this.

        Raises:
            BackendError: records are lost; it names their files.
        """
        error = self._flush()
        if not self._held:
            return
        files = [str(file) for file in self._held]
        named = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        lost = f"cannot write {named}: {error}. {sum(map(len, self._held.values())):,} bytes of records are lost"
        if not failing:
            raise BackendError(f"{lost}; the steps were made, and checkpoints and the model are not concerned.")
        self._say(f"warning: {lost}")

    def _settle(self, file: Path) -> None:
        error = self._flush()
        if error is None:
            if self._said:
                self._say("records are written again, those that waited in memory too")
            self._said = False
            return
        if error.errno not in PASSING:
            self._held.pop(file, None)
            raise error
        if sum(map(len, self._held.values())) > self._most:
            raise error
        if not self._said:
            self._said = True
            self._say(
                f"warning: cannot write {next(iter(self._held))}: {error}. The run goes on; its records wait in memory "
                f"(up to {self._most // 2**20} MiB) and are tried again with each further one. Free some space."
            )

    def _flush(self) -> OSError | None:
        """Write all that can be; the error of the last file that cannot, one that will not pass before others."""
        failed: OSError | None = None
        for file in list(self._held):
            try:
                _store(file, self._held[file], whole=file in self._whole)
            except OSError as error:
                if failed is None or failed.errno in PASSING:
                    failed = error
                continue
            del self._held[file]
            self._unsynced.add(file)
            self._whole.discard(file)
        return failed


def _store(file: Path, data: bytes, *, whole: bool) -> None:
    """Write it all, or leave the file as it was: half a line would spoil the one that follows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    there = os.path.lexists(file)
    before = file.stat().st_size if there and not whole else 0
    try:
        with file.open("wb" if whole else "ab", buffering=0) as out:
            rest = memoryview(data)
            while rest:
                rest = rest[out.write(rest) :]
    except OSError:
        with suppress(OSError):
            os.truncate(file, before) if there else file.unlink()
        raise
