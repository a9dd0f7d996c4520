"""Rows of verl's schema -> `Problem` records, and the order in which a run samples them."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from gmpo.data.files import find_files, read_rows
from gmpo.errors import ConfigError, DataError
from gmpo.streams import permutation

Message = Mapping[str, str]
"""One chat message, for example `{"role": "user", "content": "2 + 2 = ?"}`."""

_SURROGATE = re.compile("[\ud800-\udfff]")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem with a checkable answer."""

    id: str
    """Unique within its data set and stable between runs, for example `"train.parquet:17"`."""
    prompt: Sequence[Message]
    """The chat messages that the policy answers."""
    data_source: str
    """Name that selects the scorer, for example `"openai/gsm8k"`."""
    ground_truth: str
    """Reference answer as the scorer expects it, for example `"42"`."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """The row's `extra_info`, handed to reward functions unchanged, and under it the row's other columns."""


def load_problems(
    files: str | Path | Sequence[str | Path],
    *,
    prompt_key: str = "prompt",
    data_source_key: str = "data_source",
    limit: int = -1,
    seed: int | None = None,
) -> list[Problem]:
    """Problems of one or several parquet, JSON lines or JSON files in verl's schema, concatenated in order. A folder or
    a pattern stands for the files in it.

    `limit`: how many to keep, -1 for all; see `sample` for which. An id is the name of the file and the number of the
    row, `"train.parquet:17"`; files of the same name are distinguished by their folders (`"math/train.parquet:17"`).
    Raises: DataError for a missing or empty file and for a malformed row, naming file and row.
    """
    names = [files] if isinstance(files, str | Path) else list(files)
    if not names:
        raise DataError("no data files are given: set data.train_files (data.val_files) to a parquet or JSONL file")
    paths = find_files(names)
    problems: list[Problem] = []
    for path, label in zip(paths, _labels(paths), strict=True):
        loaded = [
            _problem(row, f"{label}:{number}", f"{path}, row {number}", prompt_key, data_source_key)
            for number, row in read_rows(path)
        ]
        if not loaded:
            raise DataError(f"{path} has no rows: leave it out or write it again")
        problems += loaded
    return sample(problems, limit, seed)


def problems_from_rows(
    rows: Iterable[Mapping[str, Any]],
    origin: str = "rows",
    *,
    prompt_key: str = "prompt",
    data_source_key: str = "data_source",
) -> list[Problem]:
    """Problems of rows in memory (dicts, records of a data frame); their ids are `"rows:1"`, `"rows:2"`, ...

    Raises: DataError for no rows and for a malformed row, naming its 1-based number.
    """
    problems: list[Problem] = []
    for number, row in enumerate(rows, start=1):
        place = f"{origin}, row {number}"
        if not isinstance(row, Mapping):
            raise DataError(f"{place}: a row must be a mapping with named columns, found {_shown(row)}")
        problems.append(_problem(_plain(row), f"{origin}:{number}", place, prompt_key, data_source_key))
    if not problems:
        raise DataError(f"{origin}: the data set is empty")
    return problems


def sample(items: Sequence[T], limit: int, seed: int | None) -> list[T]:
    """At most `limit` of the items, in their order: the first ones, or with a seed a random choice. -1 keeps all."""
    if limit < -1 or limit == 0:
        raise ConfigError(f"a number of samples must be -1 (all) or at least 1, found {limit}")
    _check_seed(seed)
    if limit == -1 or limit >= len(items):
        return list(items)
    chosen = range(limit) if seed is None else sorted(permutation(len(items), seed, 0)[:limit].tolist())
    return [items[i] for i in chosen]


@dataclass(frozen=True, slots=True)
class Draw(Generic[T]):
    """A batch of a stream."""

    items: list[T]
    positions: list[int]
    """Of the items in the stream."""
    end: int
    """Position behind the last one."""


class ProblemStream(Generic[T]):
    """The problems of a run in the order in which they are sampled: a function of the seed and the position alone.

    Epoch e visits the items in a permutation drawn from (seed, e), or in their own order without `shuffle`. Items that
    fill no batch at the end of an epoch are left out; with `shuffle` they are others in each epoch. Positions and steps
    count from 0, over all epochs.
    """

    def __init__(
        self, problems: Sequence[T], batch_size: int, *, shuffle: bool, seed: int, key: str = "data.train_batch_size"
    ) -> None:
        """`key` is the setting that gave the batch size.

        Raises: ConfigError for a batch size below 1 or a negative seed, DataError for too few problems.
        """
        if batch_size < 1:
            raise ConfigError(f"{key}={batch_size}: a batch needs at least 1 problem")
        _check_seed(seed)
        if batch_size > len(problems):
            raise DataError(
                f"a batch of {batch_size} problems is larger than the data set of {len(problems)}: "
                f"lower {key} to {len(problems)} or less, or add rows to data.train_files"
            )
        self.problems = problems
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the data."""
        return len(self.problems) // self._batch_size

    @property
    def epoch_length(self) -> int:
        """Positions in one pass over the data."""
        return self.steps_per_epoch * self._batch_size

    def epoch_of(self, position: int) -> int:
        """Number of the epoch that a position belongs to, from 0."""
        return position // self.epoch_length

    def at(self, position: int) -> T:
        """The item at a position."""
        return self.problems[self._index(position)]

    def take(self, step: int) -> list[T]:
        """The batch of a step, where every step takes the next one."""
        return self.draw(step * self._batch_size).items

    def draw(self, position: int, wanted: Callable[[T], bool] = lambda item: True) -> Draw[T]:
        """The next batch of wanted items from `position` on.

        Raises:
            DataError: a whole pass over the data holds too few wanted items.
        """
        if position < 0:
            raise ValueError(f"position {position}: positions count from 0")
        chosen: dict[int, int] = {}  # by index: at a seam of two epochs a batch must not ask one problem twice
        for here in range(position, position + 2 * self.epoch_length):
            index = self._index(here)
            if wanted(self.problems[index]):
                chosen.setdefault(index, here)
            if len(chosen) == self._batch_size:
                return Draw([self.problems[i] for i in chosen], list(chosen.values()), here + 1)
        raise DataError(
            f"only {len(chosen)} of {len(self.problems)} problems are wanted, fewer than a batch of "
            f"{self._batch_size}: widen data.pass_rate_range, add problems, or lower the batch size"
        )

    def _index(self, position: int) -> int:
        offset = position % self.epoch_length
        if not self._shuffle:
            return offset
        return int(permutation(len(self.problems), self._seed, self.epoch_of(position))[offset])


def _check_seed(seed: int | None) -> None:
    if seed is not None and seed < 0:
        raise ConfigError(f"data.seed={seed}: a seed must be 0 or more")


def _labels(paths: Sequence[Path]) -> list[str]:
    """The shortest path suffixes that distinguish the files; a file that is given again gets `#2`, `#3`."""
    absolute = [Path(os.path.abspath(path)) for path in paths]
    depth = 1
    while len({path.parts[-depth:] for path in absolute}) < len(set(absolute)):
        depth += 1
    seen: Counter[str] = Counter()
    labels = []
    for path in absolute:
        label = "/".join(path.parts[-depth:])
        seen[label] += 1
        labels.append(label if seen[label] == 1 else f"{label}#{seen[label]}")
    return labels


def _problem(row: Mapping[str, Any], id_: str, place: str, prompt_key: str, data_source_key: str) -> Problem:
    settings = {prompt_key: "data.prompt_key", data_source_key: "data.reward_fn_key", "reward_model": None}
    for key, setting in settings.items():
        if key not in row:
            remedy = f"; name the right one with {setting}" if setting else ""
            raise DataError(f"{place}: there is no column `{key}`. Columns present: {', '.join(map(str, row))}{remedy}")
    data_source, extra_info = row[data_source_key], _from_json(row.get("extra_info"))
    named = isinstance(data_source, str) and bool(data_source.strip())
    _expect(named, f"{place}: `{data_source_key}`", "a name", data_source)
    absent = extra_info is None
    _expect(
        absent or isinstance(extra_info, Mapping), f"{place}: `extra_info`", "an object with named fields", extra_info
    )
    consumed = {prompt_key, data_source_key, "reward_model", "extra_info"}
    others = {key: value for key, value in row.items() if key not in consumed}
    return Problem(
        id=id_,
        prompt=prompt_messages(row[prompt_key], f"{place}: `{prompt_key}`"),
        data_source=data_source,
        ground_truth=_ground_truth(row["reward_model"], f"{place}: `reward_model`"),
        extra={**others, **(extra_info or {})},
    )


def prompt_messages(value: Any, place: str) -> tuple[Message, ...]:
    """A list of chat messages, also as JSON text, or one string, which becomes one user message."""
    value = _from_json(value) if isinstance(value, str) and value.lstrip().startswith("[{") else value
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    some = isinstance(value, list | tuple) and bool(value)
    _expect(some, place, "a string or a list of messages with role and content", value)
    messages = tuple(_message(message, f"{place}, message {i}") for i, message in enumerate(value, start=1))
    if not any(message["content"].strip() for message in messages):
        raise DataError(f"{place} is empty: there is nothing to answer")
    return messages


def _from_json(value: Any) -> Any:
    """Files whose tables cannot hold what differs from row to row keep it as JSON text; other text is left as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def contradictory(problems: Sequence[Problem]) -> list[tuple[Problem, Problem]]:
    """Of each question that stands there with different answers, the first row and the first that differs from it."""
    first: dict[tuple[str, ...], Problem] = {}
    found: dict[tuple[str, ...], tuple[Problem, Problem]] = {}
    for problem in problems:
        question = tuple(" ".join(message["content"].split()) for message in problem.prompt)
        earlier = first.setdefault(question, problem)
        if earlier.ground_truth != problem.ground_truth:
            found.setdefault(question, (earlier, problem))
    return list(found.values())


def contradictions(problems: Sequence[Problem], where: str, shown: int) -> list[str]:
    """What there is to say of the contradictory rows: a sentence, and a line for each of the first `shown` pairs.

    Args:
        where: names the rows, for example `the training rows`.
    """
    found = contradictory(problems)
    if not found:
        return []
    count = "1 question stands" if len(found) == 1 else f"{len(found):,} questions stand"
    lines = [f"{count} in {where} with different answers: whichever is wrong is rewarded"]
    lines += [
        f"    {one.id} ({_short(one.ground_truth)}) and {other.id} ({_short(other.ground_truth)})"
        for one, other in found[:shown]
    ]
    return [*lines, f"    and {len(found) - shown:,} more"] if len(found) > shown else lines


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:77] + "..."


def _message(value: Any, place: str) -> Message:
    """A message whose fields are strings. Null fields are what parquet fills gaps with, and are left out."""
    _expect(isinstance(value, Mapping), place, "an object with role and content", value)
    message = {key: text for key, text in value.items() if text is not None}
    for key in ("role", "content", *message):
        text = message.get(key)
        _expect(isinstance(text, str), f"{place}: `{key}`", "a string", text)
        if _SURROGATE.search(message[key]):
            raise DataError(f"{place}: `{key}` holds half of a surrogate pair, which is no character")
    if not message["role"]:
        raise DataError(f"{place}: `role` is empty; give user, assistant or system")
    return message


def _ground_truth(reward_model: Any, place: str) -> str:
    """Reference answer as a string: numbers as written (a whole float without its `.0`), a list of one as what is in
    it, other lists and objects as JSON."""
    there = isinstance(reward_model, Mapping) and "ground_truth" in reward_model
    _expect(there, place, "an object with a field `ground_truth`", reward_model)
    value, place = reward_model["ground_truth"], f"{place}: `ground_truth`"
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping | list):
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DataError(f"{place} cannot be written as JSON: {error}") from error
    number = isinstance(value, int) or (isinstance(value, float | Decimal) and math.isfinite(value))
    number = number and not isinstance(value, bool)
    # A table turns a column of integers into floats as soon as one is missing.
    whole = number and isinstance(value, float) and value.is_integer()
    try:
        text = str(int(value) if whole else value) if number else value
    except ValueError as error:  # Python's bound of 4,300 digits
        raise DataError(f"{place} cannot be written out: {error}") from error
    _expect(isinstance(text, str) and bool(text.strip()), place, "a string, a number, a list or an object", value)
    return text


def _expect(fits: bool, place: str, expected: str, value: Any) -> None:
    if not fits:
        raise DataError(f"{place} must be {expected}, found {_shown(value)}")


def _plain(value: Any) -> Any:
    """NumPy arrays and numbers, as data frames hold them, -> lists and Python numbers."""
    if isinstance(value, np.ndarray | np.generic):
        plain = value.tolist()
        return plain if isinstance(plain, np.generic) else _plain(plain)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"
