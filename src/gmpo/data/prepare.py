"""`gmpo data NAME --out DIR`: known data sets as parquet files in verl's schema."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from gmpo.data import countdown, stories
from gmpo.data.catalogue import PUBLISHED, Published
from gmpo.data.files import FORMATS, Row, find_file, find_files, read_rows, write_parquet
from gmpo.data.instructions import bare_question
from gmpo.data.overlap import Overlap, duplicates, most_alike, overlaps
from gmpo.data.problems import contradictions, problems_from_rows, sample
from gmpo.errors import DataError

EXAMPLES = 3
"""Overlapping problems that the report shows."""
CONTRADICTIONS = 20
"""Pairs of contradictory rows that the report shows."""
ROW_BYTES = 2000
"""Memory of a row that is made, at least: all rows of a file are held until it is written."""

Progress = Callable[[str, int, int | None], object]
"""Told the file's name, the rows that there are, and how many there will be; None where that is not known."""


def _silent(name: str, done: int, total: int | None) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Contamination:
    """Overlap of a written file with an evaluation set."""

    evaluation: str
    """The evaluation set's file."""
    problems: int
    """Problems of that set."""
    exact: int
    """Of these, in the written file word for word."""
    near: int
    """Of these, nearly."""
    examples: tuple[str, ...]
    """Some of the shared questions."""
    dropped: int
    """Rows left out of the written file for it."""


@dataclass(frozen=True, slots=True)
class Written:
    """One file that was written."""

    path: Path
    rows: int
    source: str
    """Where the rows come from: a file, a split of the hub, or `generated`."""
    source_rows: int
    """Problems of the source, of which `rows` were kept."""
    published: int | None = None
    """Problems in this split as published; None where no count was published."""
    repeats: int = 0
    """Rows of the source that repeat a problem by its number, and were left out."""
    duplicates: int = 0
    """Rows that repeat an earlier question word for word. They stay."""
    contradictions: tuple[str, ...] = ()
    """What to say of rows with one question and different answers, see `problems.contradictions`. They stay."""
    note: str = ""
    """What to know before using it."""
    against: tuple[Contamination, ...] = ()

    @property
    def as_published(self) -> bool:
        """Whether the source holds as many problems as published, or no count was published."""
        return self.published is None or self.source_rows == self.published


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of one file to write."""

    name: str
    """Name of the file without suffix."""
    rows: list[Row]
    source: str
    source_rows: int
    published: int | None = None
    repeats: int = 0
    note: str = ""


class DataSet(Protocol):
    """An entry of `DATASETS`."""

    @property
    def about(self) -> str:
        """One line for the help text."""

    def tables(self, source: Path | None, seed: int, size: int | None, progress: Progress) -> list[Table]:
        """All files of the data set, converted and checked, before any of them is written."""


@dataclass(frozen=True, slots=True)
class PublishedSet:
    """A data set from the Hugging Face hub or from local copies of its files."""

    published: Published

    @property
    def about(self) -> str:
        return self.published.about

    @property
    def splits(self) -> Mapping[str, int]:
        return self.published.splits

    def tables(self, source: Path | None, seed: int, size: int | None, progress: Progress) -> list[Table]:
        """With `size`: that many rows of each split, chosen by the seed."""
        if source is None:
            origins = {split: self._hub_rows(split) for split in self.splits}
        else:
            origins = {split: (str(path), read_rows(path)) for split, path in self._local_files(source).items()}
        return [self._table(split, place, rows, seed, size, progress) for split, (place, rows) in origins.items()]

    def _table(
        self,
        split: str,
        place: str,
        rows: Iterable[tuple[int, Row]],
        seed: int,
        size: int | None,
        progress: Progress,
    ) -> Table:
        converted: list[Row] = []
        seen: set[Any] = set()
        repeats = 0
        for number, row in rows:
            if self.published.repeats and (key := _number_of(row)) is not None:
                if key in seen:
                    repeats += 1
                    continue
                seen.add(key)
            try:
                converted.append(self.published.convert(row, split, len(converted)))
                progress(split, len(converted), None)
            except DataError as error:
                raise DataError(f"{place}, row {number}: {error}") from error
        if not converted:
            raise DataError(f"{place} has no rows")
        if size is not None and size > len(converted):
            raise DataError(f"{place} has {len(converted)} rows, fewer than the size of {size} asked for")
        kept = converted if size is None else sample(converted, size, seed)
        return Table(split, kept, place, len(converted), self.splits[split], repeats, self.published.note)

    def _local_files(self, source: Path) -> dict[str, Path]:
        """Split -> file. A file named after no split is the first split; of a folder, each split's file is taken."""
        if not source.is_dir():
            path = find_file(source)
            return {self._split_of(path) or next(iter(self.splits)): path}
        found: dict[str, Path] = {}
        for path in sorted(source.iterdir()):
            split = self._split_of(path)
            if path.suffix not in FORMATS or split is None:
                continue
            if split in found:
                names = f"{found[split].name} and {path.name}"
                raise DataError(f"{source} holds two files of split {split}, {names}: name the one to read")
            found[split] = path
        if not found:
            raise DataError(f"{source} holds no {' or '.join(self.splits)} file ({', '.join(FORMATS)})")
        return {split: found[split] for split in self.splits if split in found}

    def _split_of(self, path: Path) -> str | None:
        return next((split for split in self.splits if path.stem.startswith(split)), None)

    def _hub_rows(self, split: str) -> tuple[str, Iterable[tuple[int, Row]]]:
        p = self.published
        if p.hub_id is None:
            raise DataError("this data set is not known to be on the Hugging Face hub: give a local file with --from")
        place = f"{p.hub_id} ({split}) on the Hugging Face hub"
        try:
            hub = importlib.import_module("datasets")
        except ImportError as error:
            raise DataError(
                f"{place} is read through the package `datasets`, which is not installed: pip install 'gmpo[hub]', "
                "or give local files of the data set with --from"
            ) from error
        try:
            there = (p.hub_splits or {}).get(split, split)
            rows = [dict(row) for row in hub.load_dataset(p.hub_id, p.hub_config, split=there)]
        except Exception as error:  # network, rights, formats: whatever the hub's client raises
            raise DataError(f"{place} cannot be loaded: {error}. Or give local files with --from") from error
        return place, enumerate(rows, start=1)


def _number_of(row: Mapping[str, Any]) -> Any:
    """The number of a row's problem, in files that repeat their problems."""
    extra = row.get("extra_info")
    return extra.get("index") if isinstance(extra, Mapping) else None


@dataclass(frozen=True, slots=True)
class StorySet:
    """The built-in stories: problems to train on, problems held out, and demonstrations to imitate first."""

    about: str
    train: int = 4096
    test: int = 512
    demonstrations: int = 32_000
    data_source: str = field(default=stories.DATA_SOURCE)

    def tables(self, source: Path | None, seed: int, size: int | None, progress: Progress) -> list[Table]:
        """With `size`: that many training problems. No held-out problem shares its numbers with another split."""
        if source is not None:
            raise DataError(f"the stories are made, not read: leave out --from ({source})")
        test = stories.story_rows(self.test, seed=seed, split="test")
        held_out = stories.keys_of(test)
        count = size or self.train
        _require_possible(count, stories.DISTINCT - len(held_out), "stories")
        told = partial(_told, progress, count)
        train = stories.story_rows(count, seed=seed, split="train", exclude=held_out, progress=told)
        demonstrations = stories.demonstration_rows(self.demonstrations, seed=seed, exclude=held_out)
        files = {"train": train, "test": test, "demonstrations": demonstrations}
        return [Table(name, rows, "generated", len(rows)) for name, rows in files.items()]


@dataclass(frozen=True, slots=True)
class CountdownSet:
    """The countdown game: generated, or from files."""

    published: PublishedSet

    @property
    def about(self) -> str:
        return self.published.about

    def tables(self, source: Path | None, seed: int, size: int | None, progress: Progress) -> list[Table]:
        """With `size` and no source: that many tasks to train on."""
        if source is not None:
            return self.published.tables(source, seed, size, progress)
        splits = self.published.splits
        test = countdown.make_rows(splits["test"], seed=seed, split="test")
        count, held_out = size or splits["train"], countdown.keys_of(test)
        _require_possible(count, countdown.DISTINCT - len(held_out), "countdown tasks")
        told = partial(_told, progress, count)
        train = countdown.make_rows(count, seed=seed, split="train", exclude=held_out, progress=told)
        return [Table(name, rows, "generated", len(rows)) for name, rows in (("train", train), ("test", test))]


def _told(progress: Progress, total: int, done: int) -> None:
    progress("train", done, total)


def _require_possible(count: int, there: int, what: str) -> None:
    if count > there:
        raise DataError(f"--size {count}: there are {there:,} {what} that differ and are not held out. Ask for fewer")
    require_memory(count)


def require_memory(count: int) -> None:
    """Refuse what cannot be held before hours go into it."""
    needed, here = count * ROW_BYTES, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > here:
        raise DataError(
            f"--size {count}: so many rows take {needed / 1e9:,.0f} GB of memory or more, and this machine has "
            f"{here / 1e9:,.0f}. Ask for fewer, or make files with several seeds"
        )


def _entry(name: str, published: Published) -> DataSet:
    entry = PublishedSet(published)
    return CountdownSet(entry) if name == "countdown" else entry


DATASETS: Mapping[str, DataSet] = {
    **{name: _entry(name, published) for name, published in PUBLISHED.items()},
    "stories": StorySet(about="the built-in arithmetic stories of the quickstart"),
}


def prepare(
    name: str,
    out: str | Path,
    source: str | Path | None = None,
    *,
    seed: int = 0,
    size: int | None = None,
    against: Sequence[str | Path] = (),
    drop: bool = False,
    progress: Progress = _silent,
) -> list[Written]:
    """Write a data set's files into the folder `out` and return what was written.

    Args:
        source: a JSON lines or parquet file in the data set's own format or in verl's, or a folder with one per split;
            the hub when None.
        size: rows to keep of each split (stories, countdown: rows to train on), chosen by `seed`.
        against: evaluation files whose problems are searched for in the `train` file.
        drop: leave the rows that were found out of the file.
        progress: told of each row.

    All rows are converted before the first file is written. Raises: DataError for an unknown name and for every
    malformed input.
    """
    if name not in DATASETS:
        nearest = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f" Did you mean {nearest[0]}?" if nearest else ""
        raise DataError(f"there is no data set {name!r}.{hint} Known: {', '.join(DATASETS)}")
    if drop and not against:
        raise DataError("--drop-contaminated leaves out the rows that --against FILE finds; give such a file")
    if size is not None and size < 1:
        raise DataError(f"--size {size}: ask for at least 1 row")
    if seed < 0:
        raise DataError(f"--seed {seed}: a seed is 0 or more")
    evaluation = {str(file): _questions(file) for file in against}
    tables = DATASETS[name].tables(None if source is None else Path(source).expanduser(), seed, size, progress)
    if evaluation and not any(table.name == "train" for table in tables):
        raise DataError(f"--against looks into the train file, and there is none: {', '.join(t.name for t in tables)}")
    return [
        _write(table, Path(out).expanduser(), evaluation if table.name == "train" else {}, drop) for table in tables
    ]


def _write(table: Table, out: Path, evaluation: Mapping[str, Sequence[str]], drop: bool) -> Written:
    rows = table.rows
    questions = [_question(row) for row in rows]
    against: list[Contamination] = []
    tainted: set[int] = set()
    for file, asked in evaluation.items():
        found = overlaps(questions, asked)
        mine = {overlap.train for overlap in found} if drop else set()
        tainted |= mine
        against.append(_contamination(file, asked, most_alike(found), len(mine)))
    kept = [row for i, row in enumerate(rows) if i not in tainted]
    if rows and not kept:
        raise DataError(
            f"--drop-contaminated leaves no row of {table.name}: all {len(rows)} are in what --against names"
        )
    path = out / f"{table.name}.parquet"
    read = table.source != "generated"
    problems = problems_from_rows(kept, path.name) if read and kept else []
    return Written(
        write_parquet(kept, path),
        len(kept),
        table.source,
        table.source_rows,
        table.published,
        table.repeats,
        duplicates(questions) if read else 0,
        tuple(contradictions(problems, "this file", CONTRADICTIONS)),
        table.note,
        tuple(against),
    )


def _contamination(file: str, asked: Sequence[str], found: Sequence[Overlap], dropped: int) -> Contamination:
    exact = sum(overlap.exact for overlap in found)
    examples = tuple(asked[overlap.evaluation] for overlap in found[:EXAMPLES])
    return Contamination(file, len(asked), exact, len(found) - exact, examples, dropped)


def _questions(file: str | Path) -> list[str]:
    rows = [row for path in find_files(file) for _, row in read_rows(path)]
    if any("prompt" not in row for row in rows):
        raise DataError(f"{file}: --against takes files in verl's schema, with a column `prompt`")
    return [_question(row) for row in rows]


def _question(row: Mapping[str, Any]) -> str:
    prompt = row["prompt"]
    return bare_question(prompt if isinstance(prompt, str) else str(prompt[-1]["content"]))[0]
