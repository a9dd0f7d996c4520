"""Values: how they are compared, and when a written decimal is the rounding of a number."""

from __future__ import annotations

from fractions import Fraction

import mpmath

from gmpo.rewards.reading.counting import Value
from gmpo.rewards.reading.cursor import Node, number

_FLOAT_DIGITS = 15
"""Significant digits of a decimal that a computer's floating-point arithmetic wrote."""
_DIGITS, _DECIMALS = 7, 6
"""Significant digits, or digits after the point, that make a decimal the rounding of an irrational number."""
AGREE = 300
"""Bits to which two values must agree."""


def mp(value: Value) -> Value:
    return mpmath.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def real(value: Value) -> Value:
    found = mp(value)
    return found.real if isinstance(found, mpmath.mpc) else found


def close(a: Value, b: Value) -> bool:
    x, y = mp(a), mp(b)
    return bool(abs(x - y) <= mpmath.mpf(2) ** -AGREE * max(abs(x), abs(y)))


def _literal(node: Node) -> tuple[Fraction, Fraction, int, int] | None:
    """A written decimal: value, size of its last digit, significant digits, digits after the point."""
    sign = 1
    while node[0] == "neg":
        node, sign = node[1], -sign
    power = Fraction(1)
    if node[0] == "*" and node[2][0] == "^" and node[2][1] == number(10) and node[1][0] == "num":
        exponent = node[2][2]
        value = exponent[1][1] * -1 if exponent[0] == "neg" and exponent[1][0] == "num" else exponent[1]
        if not isinstance(value, Fraction) or abs(value) > 300 or value.denominator != 1:
            return None
        power, node = Fraction(10) ** int(value), node[1]
    if node[0] != "num" or node[2] < 0:
        return None
    last = Fraction(1, 10 ** node[2])
    digits = len(str(abs(node[1] / last)))
    return sign * node[1] * power, last * power, digits, node[2]


def rounded(gold: Node, pred: Node, a: Value, b: Value) -> bool:
    """Whether one side is a written decimal with enough digits, and the other side's value rounds to it.

    The last digit may be cut off instead of rounded; of two decimals the shorter one must be the rounding of the other.
    """
    for node, other_node, other in ((gold, pred, b), (pred, gold, a)):
        found, second = _literal(node), _literal(other_node)
        if found is None or isinstance(other, mpmath.mpc) or _is_integer(other):
            continue
        value, last, digits, decimals = found
        difference = abs(mp(value) - mp(other))
        if digits >= _FLOAT_DIGITS and difference <= abs(mp(other)) * mpmath.mpf(2) ** -50:
            return True
        if digits < _DIGITS and not (digits >= _DECIMALS and decimals >= _DECIMALS):
            continue
        if second is not None and (second[1] >= last or difference > mp(last) / 2):
            continue
        if difference < mp(last):
            return True
    return False


def _is_integer(value: Value) -> bool:
    return isinstance(value, Fraction) and value.denominator == 1
