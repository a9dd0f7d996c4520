"""Factorials, binomials and their like, whose size is known before they are computed."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import mpmath

from gmpo.rewards.reading.limits import MAX_BITS, Steps, TooLarge, Unread

Value = Any
"""A Fraction where it is exact, else a number of mpmath's."""
_LARGEST_FACTORIAL, _LARGEST_GAMMA_BITS = 3_000, 10


class NoValue(Unread):
    """The expression has no value there: a division by 0, an infinity."""


def natural(value: Value, name: str) -> int:
    if not isinstance(value, Fraction) or value.denominator != 1 or value < 0:
        raise NoValue(f"{name} of what is no natural number")
    return int(value)


def factorial(value: Value, steps: Steps) -> Value:
    if not isinstance(value, Fraction):
        if mpmath.mag(value) > 10:
            raise TooLarge("the factorial of a large number")
        return mpmath.gamma(value + 1)
    count = natural(value, "a factorial")
    if count > _LARGEST_FACTORIAL:
        raise TooLarge(f"the factorial of a number above {_LARGEST_FACTORIAL:,}")
    steps.take(count // 20)
    return Fraction(math.factorial(count))


def double_factorial(value: Value, steps: Steps) -> Value:
    if not isinstance(value, Fraction):
        raise NoValue("a double factorial of what is no natural number")
    count = natural(value, "a double factorial")
    if count > _LARGEST_FACTORIAL:
        raise TooLarge(f"the double factorial of a number above {_LARGEST_FACTORIAL:,}")
    steps.take(count // 20)
    return Fraction(math.prod(range(count, 0, -2)))


def binomial(arguments: list[Value]) -> Value:
    above, below = arguments
    if not all(isinstance(part, Fraction) and part.denominator == 1 for part in arguments):
        upper, lower = inexact(above), inexact(below)
        if max(size(upper), size(lower)) > 12:
            raise TooLarge("a binomial of large numbers")
        try:
            return mpmath.binomial(upper, lower)
        except (ValueError, ZeroDivisionError) as error:
            raise NoValue(str(error)) from error
    n, k = int(above), int(below)
    if n < 0 or k < 0:
        raise NoValue("a binomial of negative numbers")
    if k > n:
        return Fraction(0)
    if min(k, n - k) * n.bit_length() > MAX_BITS:
        raise TooLarge(f"a binomial of more than {MAX_BITS} bits")
    return Fraction(math.comb(n, k))


def size(value: Value) -> int:
    magnitude = mpmath.mag(value)
    return magnitude if isinstance(magnitude, int) else 0


def permutations(arguments: list[Value]) -> Value:
    n, k = (natural(part, "a number of permutations") for part in arguments)
    if n > 3_000 and k * n.bit_length() > MAX_BITS:
        raise TooLarge("a number of permutations")
    return Fraction(math.perm(n, k)) if k * n.bit_length() <= MAX_BITS else too_large()


def too_large() -> Value:
    raise TooLarge("a number of permutations")


def integers(arguments: list[Value]) -> list[int]:
    if not all(isinstance(part, Fraction) and part.denominator == 1 for part in arguments):
        raise NoValue("a divisor of what is no integer")
    return [int(part) for part in arguments]


def gamma(value: Value) -> Value:
    if isinstance(value, Fraction) and value.denominator == 1 and value > 0:
        if value > _LARGEST_FACTORIAL:
            raise TooLarge(f"Gamma of a number above {_LARGEST_FACTORIAL:,}")
        return Fraction(math.factorial(int(value) - 1))
    if size(inexact(value)) > _LARGEST_GAMMA_BITS:
        raise TooLarge("Gamma of a large number")
    try:
        return mpmath.gamma(inexact(value))
    except ValueError as error:
        raise NoValue(str(error)) from error


def inexact(value: Value) -> Value:
    return mpmath.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value
