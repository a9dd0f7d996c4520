"""`gmpo data NAME --out DIR`: known data sets as parquet files in verl's schema."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gmpo.data import gsm8k, math, stories
from gmpo.data.files import FORMATS, Row, find_file, read_rows, write_parquet
from gmpo.data.problems import sample
from gmpo.errors import DataError


@dataclass(frozen=True, slots=True)
class Written:
    """One file that was written."""

    path: Path
    rows: int
    source: str
    """Where the rows come from: a file, a split of the hub, or `generated`."""
    source_rows: int
    """Rows of the source, of which `rows` were kept."""
    published: int | None = None
    """Rows that the data set's publication counts in this split; None where there is no such count."""

    @property
    def as_published(self) -> bool:
        """Whether the source holds as many rows as its publication says, or there is no such count."""
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


class DataSet(Protocol):
    """An entry of `DATASETS`."""

    @property
    def about(self) -> str:
        """One line for the help text."""

    def tables(self, source: Path | None, seed: int, size: int | None) -> list[Table]:
        """All files of the data set, converted and checked, before any of them is written."""


@dataclass(frozen=True, slots=True)
class PublishedDataSet:
    """A data set with a format of its own, from the Hugging Face hub or from local copies of its files."""

    about: str
    data_source: str
    """The name in the rows' `data_source`, which selects the scorer."""
    instruction: str
    """What is put behind each question."""
    hub_id: str
    hub_config: str | None
    splits: Mapping[str, int]
    """Split -> rows by the data set's publication."""
    convert: Callable[[Mapping[str, Any], str, int], Row]
    """Row of the own format, split, 0-based index -> row of verl's schema. Raises DataError for a malformed row."""

    def tables(self, source: Path | None, seed: int, size: int | None) -> list[Table]:
        """With `size`: that many rows of each split, chosen by the seed."""
        if source is None:
            origins = {split: self._hub_rows(split) for split in self.splits}
        else:
            origins = {split: (str(path), read_rows(path)) for split, path in self._local_files(source).items()}
        return [self._table(split, place, rows, seed, size) for split, (place, rows) in origins.items()]

    def _table(self, split: str, place: str, rows: Iterable[tuple[int, Row]], seed: int, size: int | None) -> Table:
        converted = []
        for index, (number, row) in enumerate(rows):
            try:
                converted.append(self.convert(row, split, index))
            except DataError as error:
                hint = ""
                if "prompt" in row and "reward_model" in row:
                    hint = ". The rows are in verl's schema already: give this file to data.train_files as it is"
                raise DataError(f"{place}, row {number}: {error}{hint}") from error
        if not converted:
            raise DataError(f"{place} has no rows")
        if size is not None and size > len(converted):
            raise DataError(f"{place} has {len(converted)} rows, fewer than the size of {size} asked for")
        kept = converted if size is None else sample(converted, size, seed)
        return Table(split, kept, place, len(converted), self.splits[split])

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
        place = f"{self.hub_id} ({split}) on the Hugging Face hub"
        try:
            hub = importlib.import_module("datasets")
        except ImportError as error:
            raise DataError(
                f"{place} is read through the package `datasets`, which is not installed: pip install 'gmpo[hub]', "
                "or give local files of the data set with --from"
            ) from error
        try:
            rows = [dict(row) for row in hub.load_dataset(self.hub_id, self.hub_config, split=split)]
        except Exception as error:  # network, rights, formats: whatever the hub's client raises
            raise DataError(f"{place} cannot be loaded: {error}. Or give local files with --from") from error
        return place, enumerate(rows, start=1)


@dataclass(frozen=True, slots=True)
class StorySet:
    """The built-in stories: problems to train on, problems held out, and demonstrations to imitate first."""

    about: str
    train: int = 4096
    test: int = 512
    demonstrations: int = 32_000
    data_source: str = field(default=stories.DATA_SOURCE)

    def tables(self, source: Path | None, seed: int, size: int | None) -> list[Table]:
        """With `size`: that many training problems. No held-out problem shares its numbers with another split."""
        if source is not None:
            raise DataError(f"the stories are made, not read: leave out --from ({source})")
        test = stories.story_rows(self.test, seed=seed, split="test")
        held_out = stories.keys_of(test)
        train = stories.story_rows(size or self.train, seed=seed, split="train", exclude=held_out)
        demonstrations = stories.demonstration_rows(self.demonstrations, seed=seed, exclude=held_out)
        files = {"train": train, "test": test, "demonstrations": demonstrations}
        return [Table(name, rows, "generated", len(rows)) for name, rows in files.items()]


DATASETS: Mapping[str, DataSet] = {
    "gsm8k": PublishedDataSet(
        about="word problems of primary school with integer answers",
        data_source=gsm8k.DATA_SOURCE,
        instruction=gsm8k.INSTRUCTION,
        hub_id="openai/gsm8k",
        hub_config="main",
        splits={"train": 7473, "test": 1319},
        convert=gsm8k.convert,
    ),
    "math": PublishedDataSet(
        about="competition problems with answers in LaTeX",
        data_source=math.DATA_SOURCE,
        instruction=math.INSTRUCTION,
        hub_id="DigitalLearningGmbH/MATH-lighteval",
        hub_config=None,
        splits={"train": 7500, "test": 5000},
        convert=math.convert,
    ),
    "stories": StorySet(about="the built-in arithmetic stories of the quickstart"),
}


def prepare(
    name: str, out: str | Path, source: str | Path | None = None, *, seed: int = 0, size: int | None = None
) -> list[Written]:
    """Write a data set's files into the folder `out` and say what was written.

    `source`: a JSON lines or parquet file of the data set's own format, or a folder with one per split; the hub when
    None. `size`: rows to keep of each split (stories: rows to train on), chosen by `seed`. All rows are converted
    before the first file is written. Raises: DataError for an unknown name and for every malformed input.
    """
    if name not in DATASETS:
        nearest = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f" Did you mean {nearest[0]}?" if nearest else ""
        raise DataError(f"there is no data set {name!r}.{hint} Known: {', '.join(DATASETS)}")
    if size is not None and size < 1:
        raise DataError(f"--size {size}: ask for at least 1 row")
    tables = DATASETS[name].tables(None if source is None else Path(source).expanduser(), seed, size)
    return [
        Written(
            write_parquet(table.rows, Path(out).expanduser() / f"{table.name}.parquet"),
            len(table.rows),
            table.source,
            table.source_rows,
            table.published,
        )
        for table in tables
    ]
