"""Points, sets, intervals, and their unions."""

from __future__ import annotations

from collections.abc import Sequence

from gmpo.rewards.reading.cursor import PAIRS, matching, outside_brackets, split
from gmpo.rewards.reading.grammar import parse
from gmpo.rewards.reading.limits import MAX_ITEMS, TooLarge, Unread
from gmpo.rewards.reading.meanings import (
    Interval,
    Item,
    Items,
    Meaning,
    Region,
)
from gmpo.rewards.reading.tokens import CLOSE, OPEN, SIGN, Token


def region(tokens: Sequence[Token], item: Item) -> list[Meaning]:
    """Unions, intersections and differences of sets, from the left."""
    parts = split(tokens, "cup", "cap", "minus")
    if len(parts) < 2:
        raise Unread("no union")
    if len(parts) > MAX_ITEMS:
        raise TooLarge("a union of many sets")
    operators = [t.text for t in outside_brackets(tokens) if t.kind == SIGN and t.text in ("cup", "cap", "minus")]
    if len(set(operators)) > 1:
        raise Unread("unions and intersections without brackets")
    return [Region(operators[0], tuple(item(part) for part in parts))]


def bracketed(tokens: Sequence[Token], item: Item, whole: Item) -> list[Meaning]:
    """Points, sets, intervals."""
    first, last = tokens[0], tokens[-1]
    if first.kind == CLOSE and first.text == "]" and last.kind == OPEN and last.text == "[":
        parts = split(tokens[1:-1], ",", ";")
        if len(parts) != 2:
            raise Unread("no interval")
        return [Interval(parse(parts[0]), parse(parts[1]), (False, False))]
    if first.kind != OPEN:
        raise Unread("no bracket")
    if matching(tokens, 0) != len(tokens) - 1:
        raise Unread("no bracket around all")
    inside = tokens[1:-1]
    if not inside:
        raise Unread("empty brackets")
    if first.text == "\\{":
        return _set(inside, item, whole)
    if PAIRS[first.text] != last.text:
        parts = split(inside, ",", ";")
        if len(parts) != 2:
            raise Unread("no interval")
        return [Interval(parse(parts[0]), parse(parts[1]), (first.text == "[", last.text == "]"))]
    if first.text == "{" and len(split(inside, ",", ";", "and", "or")) == 1:
        return list(item(inside))
    parts = split(inside, ",", ";")
    if len(parts) == 1:
        if first.text == "(":
            return list(item(inside))
        raise Unread("a single value in square brackets")
    if len(parts) > MAX_ITEMS:
        raise TooLarge(f"more than {MAX_ITEMS} values")
    kind = {"(": "tuple", "<": "tuple", "[": "square", "{": "set"}[first.text]
    return [Items(tuple(item(part) for part in parts), kind)]


def _set(inside: Sequence[Token], item: Item, whole: Item) -> list[Meaning]:
    for bar in ("|", ":"):
        parts = split(inside, bar)
        if len(parts) == 2 and not any(t.text == "," for t in outside_brackets(parts[0])):
            return list(whole(parts[1]))
    parts = split(inside, ",", ";")
    if len(parts) > MAX_ITEMS:
        raise TooLarge(f"more than {MAX_ITEMS} values")
    return [Items(tuple(item(part) for part in parts), "set")]
