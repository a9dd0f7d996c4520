"""How numbers are written: thousands in groups, decimals that repeat, powers of ten."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from gmpo.rewards.reading.limits import TooLarge, Unread

_THIN = r"(?:\\[,!;: ~]\s*|~)"
_GROUPED = rf"[1-9][0-9]{{0,2}}(?:(?:\{{\\?[,;: ]\}}|,\s*\\!\s*|,?{_THIN}|PLAIN)[0-9]{{3}})+(?![0-9]|,[0-9])"
_TAIL = r"(?:\.[0-9]+)?"
_SEPARATOR = re.compile(r"[^0-9.]+")
_REPEATING = re.compile(
    r"(?:\(([0-9]+)\))|\s*\\(?:overline|bar|dot)\s*\{?\s*([0-9]+)\s*\}?(?:\s*\\dot\s*\{?([0-9])\}?)?"
)
_DOTS = re.compile(r"\s*(?:\\[lc]?dots(?![a-zA-Z])|\.\.\.+)")


def _number(separators: str) -> re.Pattern[str]:
    return re.compile(
        rf"(?:(?P<grouped>{_GROUPED.replace('PLAIN', separators)})(?P<groupedtail>{_TAIL})"
        r"|(?P<whole>[0-9]+(?:\.(?![.\s]|$)[0-9]*)?|\.[0-9]+))"
        r"(?P<power>[eE][+-]?[0-9]+(?![0-9A-Za-z.]))?"
    )


_NUMBER_OUTSIDE = _number("[, ]")
_NUMBER_INSIDE = _number(" ")
"""Inside brackets a comma separates: `(1,234)` is a pair."""


@dataclass(frozen=True, slots=True)
class Numeral:
    """A number that was read, and where it ends."""

    text: str
    value: Fraction
    decimals: int
    """Digits after the point of a decimal; -1 for integers and exact values."""
    end: int


def numeral(text: str, at: int, *, in_brackets: bool) -> Numeral:
    """The number that begins at a position. Raises Unread, TooLarge."""
    match = (_NUMBER_INSIDE if in_brackets else _NUMBER_OUTSIDE).match(text, at)
    if match is None:
        raise Unread(f"{text[at : at + 10]!r} is no number")
    grouped = match["grouped"]
    digits = _SEPARATOR.sub("", grouped) + match["groupedtail"] if grouped else match["whole"]
    end = match.end()
    whole, point, after = digits.partition(".")
    if not match["power"]:
        repeating = _endless(text, digits, end)
        if repeating is not None:
            return repeating
    value = Fraction(int((whole or "0") + after), 10 ** len(after))
    decimals = len(after) if point and after else -1
    if match["power"]:
        exponent = int(match["power"][1:]) if len(match["power"]) < _EXPONENT_CHARS else 10**9
        if abs(exponent) > _MAX_EXPONENT:
            raise TooLarge(f"a power of ten of {exponent}")
        value *= Fraction(10) ** exponent
        decimals = max(0, len(after) - exponent) if after else -1
    return Numeral(digits + (match["power"] or ""), value, decimals, end)


def _endless(text: str, digits: str, end: int) -> Numeral | None:
    """A decimal whose digits repeat: under a bar or dots, or written three times before dots."""
    whole, point, after = digits.partition(".")
    repeating = _REPEATING.match(text, end) if point else None
    if not point and text[end : end + 1] == ".":
        repeating = _REPEATING.match(text, end + 1)
    if repeating is not None:
        period = repeating[1] or repeating[2] + (repeating[3] or "")
        return Numeral(f"{digits}({period})", _repeated(whole, after, period), -1, repeating.end())
    dots = _DOTS.match(text, end) if after else None
    found = _period(after) if dots is not None else None
    if dots is None or found is None:
        return None
    return Numeral(digits + "...", _repeated(whole, after[: found[0]], found[1]), -1, dots.end())


_REPEATS = 2
_EXPONENT_CHARS, _MAX_EXPONENT = 12, 5_000


def _repeated(whole: str, before: str, period: str) -> Fraction:
    """0.12(34): the digits before the period, and the period."""
    head = int((whole or "0") + before)
    cycle = Fraction(int(period), 10 ** len(period) - 1)
    return (head + cycle) / Fraction(10) ** len(before)


def _period(after: str) -> tuple[int, str] | None:
    """Where the shortest period of `333` or `1666` begins, and it; None where the last digits do not repeat."""
    for length in range(1, len(after) // 2 + 1):
        cycle = after[-length:]
        start = len(after)
        while start >= length and after[start - length : start] == cycle:
            start -= length
        if (len(after) - start) // length >= _REPEATS:
            return start, cycle
    return None
