"""Sets of real numbers as intervals in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mpmath

from gmpo.rewards.reading.counting import Value
from gmpo.rewards.reading.limits import MAX_ITEMS, TooLarge
from gmpo.rewards.reading.magnitudes import close

Piece = tuple[Any, bool, Any, bool]
"""Low end, whether it belongs, high end, whether it belongs."""
LOW, HIGH = mpmath.mpf("-inf"), mpmath.mpf("inf")
ORDER: dict[str, Callable[[Value], bool]] = {
    "<": lambda v: v < 0,
    "<=": lambda v: v <= 0,
    ">": lambda v: v > 0,
    ">=": lambda v: v >= 0,
    "!=": lambda v: v != 0,
    "=": lambda v: v == 0,
    "~": lambda v: v == 0,
}


def same_end(a: Value, b: Value) -> bool:
    return bool(a == b) or (mpmath.isfinite(a) and mpmath.isfinite(b) and close(a, b))


def contains(piece: Piece, x: Value) -> bool:
    low, low_closed, high, high_closed = piece
    above = x > low or (low_closed and same_end(x, low))
    below = x < high or (high_closed and same_end(x, high))
    at_open_end = (same_end(x, low) and not low_closed) or (same_end(x, high) and not high_closed)
    return bool(above and below and not at_open_end)


def union(pieces: Sequence[Piece]) -> list[Piece]:
    """Intervals in order, those that touch put together."""
    result: list[Piece] = []
    for piece in sorted(pieces, key=lambda p: (p[0], not p[1])):
        if result:
            low, low_closed, high, high_closed = result[-1]
            touches = piece[0] < high or (same_end(piece[0], high) and (piece[1] or high_closed))
            if touches:
                if same_end(piece[2], high):
                    result[-1] = (low, low_closed, high, high_closed or piece[3])
                elif piece[2] > high:
                    result[-1] = (low, low_closed, piece[2], piece[3])
                continue
        result.append(piece)
    return result


def intersection(first: Sequence[Piece], second: Sequence[Piece]) -> list[Piece]:
    result = []
    for a in first:
        for b in second:
            low, low_closed = (a[0], a[1]) if a[0] > b[0] else (b[0], b[1])
            if same_end(a[0], b[0]):
                low_closed = a[1] and b[1]
            high, high_closed = (a[2], a[3]) if a[2] < b[2] else (b[2], b[3])
            if same_end(a[2], b[2]):
                high_closed = a[3] and b[3]
            if low < high or (same_end(low, high) and low_closed and high_closed):
                result.append((low, low_closed, high, high_closed))
    if len(result) > MAX_ITEMS:
        raise TooLarge("an intersection of many intervals")
    return union(result)


def subtraction(first: Sequence[Piece], second: Sequence[Piece]) -> list[Piece]:
    outside: list[Piece] = []
    low, low_closed = LOW, False
    for piece in union(second):
        if piece[0] > low or (piece[0] == low and low_closed and not piece[1]):
            outside.append((low, low_closed, piece[0], not piece[1]))
        low, low_closed = piece[2], not piece[3]
    if low < HIGH:
        outside.append((low, low_closed, HIGH, False))
    return intersection(first, outside)


COMBINED = {"cup": lambda a, b: union([*a, *b]), "cap": intersection, "minus": subtraction}
