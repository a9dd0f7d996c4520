"""The countdown game: reach a target with each of a few numbers exactly once, by + - * / and brackets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from gmpo.data.files import Row
from gmpo.data.instructions import INSTRUCTIONS, TAG
from gmpo.data.rows import math_row
from gmpo.errors import DataError
from gmpo.streams import uniform

DATA_SOURCE = "countdown"
LARGEST_NUMBER, LARGEST_TARGET = 99, 99
DISTINCT = 580_640 + 44_487_956
"""Tasks with 3 and with 4 numbers that there are: what `key_of` tells apart of all that `_task` can draw."""
_SPLITS = {"train": 0, "test": 1}


def question(numbers: Sequence[int], target: int) -> str:
    """The task in words, without an instruction."""
    return (
        f"Using the numbers {list(numbers)}, create an equation that equals {target}. You can use basic arithmetic "
        "operations (+, -, *, /) and each number can only be used once."
    )


def convert(row: Mapping[str, Any], split: str, index: int) -> Row:
    """A row of the game's own format (`nums` or `numbers`, `target`) -> a row of verl's schema.

    Raises: DataError for anything but a list of integers and an integer.
    """
    numbers, target = row.get("nums", row.get("numbers")), row.get("target")
    if not isinstance(numbers, Sequence) or isinstance(numbers, str) or not all(type(n) is int for n in numbers):
        raise DataError(f"`nums` must be a list of integers, found {numbers!r}")
    if type(target) is not int:
        raise DataError(f"`target` must be an integer, found {target!r}")
    return _row(numbers, target, None, split, index)


def _row(numbers: Sequence[int], target: int, solution: str | None, split: str, index: int) -> Row:
    return math_row(
        DATA_SOURCE,
        INSTRUCTIONS[TAG].ask(question(numbers, target)),
        json.dumps({"numbers": list(numbers), "target": target}),
        {"split": split, "index": index, "answer": solution, "question": question(numbers, target)},
    )


def make_rows(
    count: int,
    *,
    seed: int,
    split: str,
    exclude: frozenset[tuple[int, ...]] = frozenset(),
    progress: Callable[[int], object] = lambda done: None,
) -> list[Row]:
    """`count` solvable tasks with 3 or 4 numbers, each with a solution in `extra_info.answer`; no two are alike, and
    none is in `exclude`.

    Args:
        progress: told how many there are, after each.
    """
    rows: list[Row] = []
    seen: set[tuple[int, ...]] = set(exclude)
    attempt = 0
    while len(rows) < count:
        draws = uniform(16, seed, _SPLITS[split], attempt)
        attempt += 1
        task = _task([float(draw) for draw in draws])
        if task is None:
            continue
        numbers, target, solution = task
        if (key := key_of(numbers, target)) not in seen:
            seen.add(key)
            rows.append(_row(numbers, target, solution, split, len(rows)))
            progress(len(rows))
    return rows


def key_of(numbers: Sequence[int], target: int) -> tuple[int, ...]:
    """Identifies a task, whatever the order of its numbers."""
    return (*sorted(numbers), target)


def keys_of(rows: Sequence[Row]) -> frozenset[tuple[int, ...]]:
    """The keys of rows of verl's schema."""
    truths = [json.loads(row["reward_model"]["ground_truth"]) for row in rows]
    return frozenset(key_of(truth["numbers"], truth["target"]) for truth in truths)


def _task(draws: Sequence[float]) -> tuple[list[int], int, str] | None:
    """Numbers, a target and a solution; None where the drawn operations give no allowed target."""
    # Draw 0 is the count, 1 to 4 the numbers, 6 to 8 the operations, 10 to 13 the order in which the task lists them.
    count = 3 + int(draws[0] * 2)
    numbers = [1 + int(draw * LARGEST_NUMBER) for draw in draws[1 : 1 + count]]
    value, text = Fraction(numbers[0]), str(numbers[0])
    for number, draw in zip(numbers[1:], draws[6:], strict=False):
        sign = "+-*/"[int(draw * 4)]
        value = {"+": value + number, "-": value - number, "*": value * number, "/": value / number}[sign]
        text = f"({text}) {sign} {number}" if " " in text else f"{text} {sign} {number}"
    if value.denominator != 1 or not 1 <= value <= LARGEST_TARGET:
        return None
    order = sorted(range(count), key=lambda i: draws[10 + i])
    return [numbers[i] for i in order], int(value), text
