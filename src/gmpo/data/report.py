"""What `gmpo data` wrote, as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gmpo.data.prepare import Contamination, Written


def prepared(files: Sequence[Written]) -> RenderableType:
    """Files, rows and published counts; below it repetitions, notes, and what is shared with evaluation sets."""
    table = Table(box=None)
    for column, justify in (("file", "left"), ("rows", "right"), ("problems", "right"), ("published", "left")):
        table.add_column(column, justify=justify, no_wrap=column != "file", overflow="fold")  # type: ignore[arg-type]
    lines: list[RenderableType] = [table]
    for file in files:
        table.add_row(Text(str(file.path)), f"{file.rows:,}", f"{file.source_rows:,}", _published(file))
        if file.repeats:
            lines.append(Text(f"{file.path.name}: {file.repeats:,} repetitions of the same problems were left out"))
        if file.duplicates:
            lines.append(Text(f"{file.path.name}: {file.duplicates:,} rows repeat an earlier question word for word"))
        lines += [_shared(file, contamination) for contamination in file.against]
    lines += [Text(f"note: {note}") for note in dict.fromkeys(file.note for file in files if file.note)]
    return Group(*lines)


def _published(file: Written) -> str:
    if file.published is None:
        return "made here"
    return f"{file.published:,}, as here" if file.as_published else f"{file.published:,}: differs"


def _shared(file: Written, found: Contamination) -> RenderableType:
    shared = found.exact + found.near
    dropped = f"; {found.dropped:,} rows were left out" if found.dropped else ""
    said = (
        f"{file.path.name} holds {shared:,} of the {found.problems:,} problems of {found.evaluation}: "
        f"{found.exact:,} word for word, {found.near:,} nearly{dropped}"
    )
    examples = "".join(f"\n    {example[:100]!r}" for example in found.examples)
    return Text(said + examples, style="yellow" if shared else "")
