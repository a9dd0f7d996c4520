r"""Limits on the size of an answer: beyond them it is wrong at once and never reaches computer algebra.

An answer such as `9^{9^{9^{9}}}` would otherwise keep a grading process busy until it is killed, and enough of them
stop the run. Without limits the verdict would be `timeout`; with them it is `wrong`, as a human grader would say.
All checks take time linear in the length of the answer.
"""

from __future__ import annotations

import math
import re

MAX_CHARS = 2_000
MAX_DIGITS = 1_000
"""Digits in a row."""
MAX_DEPTH = 50
"""Brackets inside brackets."""
MAX_TOWER = 2
"""Powers inside an exponent, itself included: `e^{x^2}` has two."""
MAX_EXPONENT = 100_000
MAX_FACTORIAL_DIGITS = 4
"""Digits of a number before `!`: 9999! is still computed in milliseconds."""

_DIGITS = re.compile(r"[0-9]+")
_BRACKET = re.compile(r"[{}()\[\]^]")
_EXPONENT = re.compile(r"\^\s*\{?\s*-?\s*([0-9]+)")
_POWER_IN_EXPONENT = re.compile(r"\^\s*\{?\s*-?\s*([0-9]+)\s*\^\s*\{?\s*([0-9]+)")
_POWER_OF_BRACKET = re.compile(r"[)}\]]\s*\^\s*\{?\s*([0-9]+)")
_E_NOTATION = re.compile(r"[0-9.][eE][+-]?([0-9]+)")
_FACTORIAL = re.compile(r"([0-9]+)\s*!|!\s*!")


def beyond_reason(answer: str) -> bool:
    """Whether an answer is longer, more deeply nested or larger than any real result."""
    return (
        len(answer) > MAX_CHARS
        or any(len(run) > MAX_DIGITS for run in _DIGITS.findall(answer))
        or _too_deep(answer)
        or _too_large(answer)
    )


def _too_large(answer: str) -> bool:
    largest = max((int(e) for e in (*_EXPONENT.findall(answer), *_E_NOTATION.findall(answer))), default=0)
    nested = max((_log_power(int(b), int(e)) for b, e in _POWER_IN_EXPONENT.findall(answer)), default=0.0)
    # Powers of brackets may be powers of powers: their exponents multiply.
    stacked = sum(math.log(max(1, int(e))) for e in _POWER_OF_BRACKET.findall(answer))
    factorial = any(len(n) > MAX_FACTORIAL_DIGITS or not n for n in _FACTORIAL.findall(answer))
    limit = math.log(MAX_EXPONENT)
    return largest > MAX_EXPONENT or nested > limit or stacked > limit or factorial


def _log_power(base: int, exponent: int) -> float:
    """log(base ^ exponent)."""
    return exponent * math.log(base) if base > 1 else 0.0


def _too_deep(answer: str) -> bool:
    """One pass over the brackets and powers, counting the nesting of both."""
    open_: list[bool] = []  # for each open bracket, whether it is an exponent
    exponent = False  # the last symbol was `^`
    tower = 0
    for match in _BRACKET.finditer(answer):
        sign = match.group()
        if sign == "^":
            tower = sum(open_) + 1
            exponent = True
            if tower > MAX_TOWER:
                return True
            continue
        if sign in "{([":
            open_.append(exponent and sign == "{")
            if len(open_) > MAX_DEPTH:
                return True
        elif open_:
            open_.pop()
        exponent = False
    return False
