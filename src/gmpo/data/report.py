"""The report of `gmpo data` on what it wrote."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

from gmpo.data.prepare import Contamination, Written


class Pace:
    """Says from time to time how many rows there are, and how long the rest takes.

    Args:
        every: seconds between two lines.
    """

    def __init__(self, say: Callable[[str], object], every: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._every, self._clock = say, every, clock
        self._name, self._begun, self._said = "", 0.0, 0.0

    def __call__(self, name: str, done: int, total: int | None) -> None:
        """There are `done` rows of `total`, where that is known, of the file `name`."""
        now = self._clock()
        if name != self._name:
            self._name, self._begun, self._said = name, now, now
        if now - self._said < self._every or done == total:
            return
        self._said = now
        if total is None:
            self._say(f"{name}: {done:,} rows so far")
            return
        left = timedelta(seconds=round((now - self._begun) / done * (total - done)))
        self._say(f"{name}: {done:,} of {total:,} rows, about {left} to go")


def prepared(files: Sequence[Written]) -> Iterator[str]:
    """Lines: files, rows and published counts; repetitions, contradictions, notes, and overlap with evaluation sets."""
    for file in files:
        yield f"{file.path}: {file.rows} rows{_published(file)}"
        if file.repeats:
            yield f"    {file.repeats:,} repetitions of the same problems were left out"
        if file.duplicates:
            yield f"    {file.duplicates:,} rows repeat an earlier question word for word; they stay"
        yield from (f"    {line}" for line in file.contradictions)
        for found in file.against:
            yield from _shared(found)
    for note in dict.fromkeys(file.note for file in files if file.note):
        yield f"note: {note}"


def _published(file: Written) -> str:
    if file.published is None:
        return ""
    differs = "" if file.as_published else ", which differs"
    return f" ({file.source_rows} of {file.published} published{differs})"


def _shared(found: Contamination) -> Iterator[str]:
    shared = found.exact + found.near
    dropped = f"; {found.dropped:,} rows were left out for them" if found.dropped else ""
    yield (
        f"    holds {shared:,} of the {found.problems:,} problems of {found.evaluation}: "
        f"{found.exact:,} word for word, {found.near:,} nearly{dropped}"
    )
    for example in found.examples:
        yield f"        {example[:100]!r}"
