"""Files of rows: parquet, JSON lines and JSON arrays in, parquet out."""

from __future__ import annotations

import contextlib
import difflib
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gmpo.errors import DataError

Row = dict[str, Any]

COLUMNS = ("data_source", "prompt", "ability", "reward_model", "extra_info")
"""The columns of verl's schema, in the order in which they are written."""

_GLOB = re.compile(r"[*?\[]")
_LISTED = 12
"""Most names of a folder that an error message lists."""


@dataclass(frozen=True, slots=True)
class _Format:
    rows: Callable[[Path], Iterator[tuple[int, Any]]]
    count: Callable[[Path], int]


def find_files(names: str | Path | Sequence[str | Path]) -> list[Path]:
    """Paths of data files, in the order given: of a folder or a pattern (`train-*.parquet`) those that are in it, by
    their names with numbers as numbers.

    Raises: DataError as `find_file`, for a pattern or folder without data files, and for a folder that holds training
        and test files.
    """
    found: list[Path] = []
    for name in [names] if isinstance(names, str | Path) else names:
        if not str(name).strip():
            raise DataError("the name of a data file is empty: a variable of the shell that is not set?")
        path = Path(str(name)).expanduser()
        if "://" not in str(name) and _GLOB.search(str(name)) and not path.exists():
            found += _matching(path)
        elif path.is_dir():
            found += _inside(path)
        else:
            found.append(find_file(name))
    return found


def _matching(pattern: Path) -> list[Path]:
    fixed = next(parent for parent in pattern.parents if not _GLOB.search(str(parent)))
    files = [file for file in fixed.glob(str(pattern.relative_to(fixed))) if file.is_file()]
    if not files:
        raise DataError(f"nothing matches {pattern}. {_what_is_there(fixed / 'x') if fixed.is_dir() else ''}".rstrip())
    return [find_file(file) for file in sorted(files, key=_natural)]


def _inside(folder: Path) -> list[Path]:
    files = [file for file in folder.iterdir() if _kind(file) in FORMATS and not file.name.startswith(".")]
    if not files:
        raise DataError(f"{folder} holds no data files ({', '.join(FORMATS)}); it holds {_listing(folder)}.")
    held_out = [file for file in files if file.name.startswith(("test", "val"))]
    if held_out and len(held_out) < len(files):
        raise DataError(
            f"{folder} holds training and test files: {_listing(folder)}. Name the files, or a pattern such as "
            f"{folder / 'train*'}."
        )
    return sorted(files, key=_natural)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """`part-2` before `part-10`."""
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _kind(path: Path) -> str:
    """The suffix that says how to read a file: `.jsonl` of `rows.jsonl.gz`."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def find_file(name: str | Path) -> Path:
    """Path of an existing data file; a leading `~` is the home folder.

    Raises: DataError for a missing file (listing the folder), for a folder, and for an unknown suffix.
    """
    text = str(name)
    if "://" in text:
        raise DataError(f"{text}: only local files are read. Copy the file to this machine and give its path.")
    try:
        path = Path(text).expanduser()
        if path.is_dir():
            raise DataError(f"{path} is a folder, not a file; it holds {_listing(path)}. Name the file itself.")
        if not path.is_file():
            raise DataError(f"there is no file {path}. {_what_is_there(path)} `gmpo data` writes the known data sets.")
    except (OSError, RuntimeError) as error:  # no permission, a name that is too long, `~` of an unknown user
        raise DataError(f"{text} cannot be reached: {error}") from error
    if _kind(path) not in FORMATS or (path.suffix == ".gz" and _kind(path) == ".parquet"):
        raise DataError(
            f"{path}: unknown kind of file {path.suffix or '(no suffix)'!r}. Known: {', '.join(FORMATS)}, and JSON in "
            ".gz. Convert the file, or rename it when only its suffix is wrong."
        )
    return path


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows of a file with their 1-based numbers (for JSON lines: the number of the line).

    Raises: DataError for a file that cannot be read and for a row that is not an object, naming the row.
    """
    for number, row in FORMATS[_kind(path)].rows(path):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, row {number}: a row must be an object with named columns, found {type(row).__name__}"
            )
        yield number, row


def row_count(name: str | Path) -> int:
    """Number of rows of a data file, a folder or a pattern: from the metadata of a parquet file, by counting lines
    otherwise."""
    return sum(FORMATS[_kind(path)].count(path) for path in find_files(name))


def write_parquet(rows: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Write rows as one zstd parquet file, nested columns as structs, the columns of verl's schema first.

    Written atomically: under another name, then renamed. Equal rows give equal bytes.
    Raises: DataError for no rows, for a column of mixed types and when the file cannot be written.
    """
    path = Path(path).expanduser()
    if not rows:
        raise DataError(f"{path}: there are no rows to write")
    table = _table(rows, path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, unfinished, compression="zstd")
        os.replace(unfinished, path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):  # gone after the rename; on failure the first error matters
            unfinished.unlink()
    return path


def _table(rows: Sequence[Mapping[str, Any]], path: Path) -> pa.Table:
    """Rows -> table. Column by column, because pyarrow takes the column names of a list of rows from its first row."""
    present = dict.fromkeys(name for row in rows for name in row)
    names = [name for name in COLUMNS if name in present] + [name for name in present if name not in COLUMNS]
    columns: dict[str, pa.Array] = {}
    for name in names:
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, OverflowError) as error:
            raise DataError(f"{path}: column `{name}` holds values of different types: {error}") from error
    return pa.table(columns)


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet after {number} rows: {error}") from error


def _parquet_count(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from error


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Rows of JSON lines, or of one JSON array when the file starts with `[`."""
    text = _text(path)
    if _is_array(text):
        yield from enumerate(_json(text, str(path)), start=1)
        return
    # Not `splitlines`, which also splits at characters such as U+2028 that JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _json(line, f"{path}, row {number}")


def _json_count(path: Path) -> int:
    text = _text(path)
    if _is_array(text):
        return len(_json(text, str(path)))
    return sum(1 for line in text.split("\n") if line.strip())


def _is_array(text: str) -> bool:
    return text.lstrip().startswith("[")


def _text(path: Path) -> str:
    try:
        if path.suffix == ".gz":
            return gzip.decompress(path.read_bytes()).decode("utf-8-sig")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: invalid JSON: {error}. Each line must be one whole JSON object.") from error


FORMATS: Mapping[str, _Format] = {
    ".parquet": _Format(_parquet_rows, _parquet_count),
    ".jsonl": _Format(_json_rows, _json_count),
    ".json": _Format(_json_rows, _json_count),
}
"""Suffix -> how its rows are read and counted."""


def _what_is_there(path: Path) -> str:
    """For a missing file: the nearest name in its folder, and what the folder holds."""
    if not path.parent.is_dir():
        existing = next(folder for folder in path.absolute().parents if folder.is_dir())
        return f"Its folder does not exist either; {existing} does, and holds {_listing(existing)}."
    nearest = difflib.get_close_matches(path.name, _names(path.parent), n=1)
    hint = f"Did you mean {nearest[0]}? " if nearest else ""
    return f"{hint}The folder holds {_listing(path.parent)}."


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))


def _listing(folder: Path) -> str:
    names = _names(folder)
    if not names:
        return "nothing"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
