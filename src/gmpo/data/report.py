"""The report of `gmpo data` on what it wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gmpo.data.prepare import Contamination, Written


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
