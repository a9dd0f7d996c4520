"""Expression -> value, within bounds: exact as long as it is rational, else to 400 bits.

Every operation is counted, and every result's size is known before it is computed: what would have more digits than a
result may have raises TooLarge at once. Variables get numbers from outside.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from fractions import Fraction

import mpmath

from gmpo.rewards.reading.counting import (
    NoValue,
    Value,
    binomial,
    double_factorial,
    factorial,
    gamma,
    inexact,
    integers,
    permutations,
    size,
)
from gmpo.rewards.reading.cursor import Node
from gmpo.rewards.reading.limits import MAX_BITS, MAX_MAGNITUDE, MAX_TERMS, Steps, TooLarge, Unread

PRECISION = 400
"""Bits of an approximate value."""

_LARGEST_ARGUMENT = 2_000
"""Binary exponent of the largest argument of a trigonometric function."""


class Evaluator:
    """Values of expressions for one choice of the variables.

    Args:
        steps: counts what is computed; shared by all evaluations of one comparison.
        decimal_log: `log` without a base is the decimal one.
    """

    def __init__(
        self, steps: Steps, variables: Mapping[str, Value] | None = None, *, decimal_log: bool = False
    ) -> None:
        self.steps = steps
        self.variables = dict(variables or {})
        self.decimal_log = decimal_log
        self.scale = 0
        """Largest binary exponent met."""

    def value(self, node: Node) -> Value:
        """The value of an expression. Raises NoValue, TooLarge."""
        self.steps.take()
        operator = node[0]
        if operator == "num":
            result = node[1]
        elif operator == "var":
            result = self._variable(node[1])
        elif operator == "const":
            result = _constant(node[1])
        elif operator == "neg":
            result = -self.value(node[1])
        elif operator in "+-*/":
            result = _arithmetic(operator, self.value(node[1]), self.value(node[2]))
        elif operator == "^":
            result = _power(self.value(node[1]), self.value(node[2]))
        elif operator == "%":
            result = self.value(node[1]) / 100
        elif operator == "deg":
            result = inexact(self.value(node[1])) * mpmath.pi / 180
        elif operator == "!":
            result = factorial(self.value(node[1]), self.steps)
        elif operator == "!!":
            result = double_factorial(self.value(node[1]), self.steps)
        elif operator in ("sum", "prod"):
            result = self._repeated(*node)
        elif operator == "fn":
            result = self._function(node[1], [self.value(part) for part in node[2:]])
        elif operator == "call":
            result = _pseudo(node[1], [self.value(part) for part in node[2:]])
        else:
            raise Unread(f"{operator} has no value")
        return self._bounded(result)

    def _bounded(self, result: Value) -> Value:
        if isinstance(result, Fraction):
            bits = max(result.numerator.bit_length(), result.denominator.bit_length())
            if bits > MAX_BITS:
                raise TooLarge(f"an exact number of more than {MAX_BITS} bits")
            if bits > 400:
                self.steps.take(bits // 400)
            return result
        magnitude = mpmath.mag(result)
        if not isinstance(magnitude, int):
            if mpmath.isnan(result) or mpmath.isinf(result):
                raise NoValue("no finite value")
            return result
        if abs(magnitude) > MAX_MAGNITUDE:
            raise TooLarge(f"a number of more than {MAX_MAGNITUDE} bits")
        self.scale = max(self.scale, magnitude)
        return result

    def _variable(self, name: str) -> Value:
        if name not in self.variables:
            raise NoValue(f"{name} has no value")
        return self.variables[name]

    def _repeated(self, kind: str, variable: str, first: Node, last: Node, body: Node) -> Value:
        low, high = self.value(first), self.value(last)
        if not all(isinstance(end, Fraction) and end.denominator == 1 for end in (low, high)):
            raise NoValue("a sum without integer limits")
        if high - low > MAX_TERMS:
            raise TooLarge(f"a sum of more than {MAX_TERMS} terms")
        total: Value = Fraction(kind == "prod")
        outer = self.variables.get(variable)
        for term in range(int(low), int(high) + 1):
            self.variables[variable] = Fraction(term)
            value = self.value(body)
            total = self._bounded(_arithmetic("+" if kind == "sum" else "*", total, value))
        if outer is None:
            self.variables.pop(variable, None)
        else:
            self.variables[variable] = outer
        return total

    def _function(self, name: str, arguments: list[Value]) -> Value:
        self.steps.take(5)
        if name == "log":
            if len(arguments) == 2:
                return _logarithm(arguments[0]) / _logarithm(arguments[1])
            return _logarithm(arguments[0]) / (mpmath.log(10) if self.decimal_log else 1)
        if name in _SEVERAL:
            result: Value = _SEVERAL[name](arguments)
            return result
        if len(arguments) != 1:
            raise Unread(f"{name} of {len(arguments)} arguments")
        if name.startswith("mark "):
            return _pseudo(name, arguments)
        argument = arguments[0]
        if name in _EXACT:
            return _EXACT[name](argument)
        if name not in _FUNCTIONS:
            raise Unread(f"{name} has no value")
        x = inexact(argument)
        magnitude = mpmath.mag(x)
        if isinstance(magnitude, int) and magnitude > _LARGEST_ARGUMENT:
            raise TooLarge(f"{name} of a number of more than {_LARGEST_ARGUMENT} bits")
        if name in ("exp", "sinh", "cosh") and isinstance(magnitude, int) and magnitude > 18:
            raise TooLarge(f"{name} of a large number")
        try:
            return _FUNCTIONS[name](x)
        except (ZeroDivisionError, ValueError, OverflowError) as error:
            raise NoValue(f"{name}: {error}") from error


def _constant(name: str) -> Value:
    if name == "pi":
        return +mpmath.pi
    if name == "e":
        return +mpmath.e
    if name == "i":
        return mpmath.mpc(0, 1)
    raise NoValue("infinity is no number")


def _arithmetic(operator: str, left: Value, right: Value) -> Value:
    if isinstance(left, Fraction) != isinstance(right, Fraction):
        if operator == "*" and (left == 0 or right == 0):
            return Fraction(0)
        left, right = inexact(left), inexact(right)
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    if right == 0:
        raise NoValue("a division by 0")
    return left / right


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(exponent, Fraction) and isinstance(base, Fraction):
        if base == 0:
            if exponent <= 0:
                raise NoValue("0 to a power that is not positive")
            return Fraction(0)
        if base == 1:
            return base
        if exponent.denominator == 1:
            bits = max(abs(base.numerator).bit_length(), base.denominator.bit_length()) - 1
            if max(bits, 1) * abs(exponent) > MAX_BITS and abs(base) != 1:
                raise TooLarge(f"a power of more than {MAX_BITS} bits")
            if abs(base) == 1:
                return base if exponent % 2 else Fraction(1)
            return Fraction(base ** int(exponent))
        root = _exact_root(base, exponent.denominator)
        if root is not None and base > 0:
            return _power(root, Fraction(exponent.numerator))
    if base == 0:
        if isinstance(exponent, Fraction) and exponent > 0:
            return Fraction(0)
        raise NoValue("0 to a power that is not positive")
    return _inexact_power(inexact(base), exponent)


def _inexact_power(base: Value, exponent: Value) -> Value:
    size = abs(mpmath.log(abs(base), 2)) if abs(base) != 1 else mpmath.mpf(0)
    power = mpmath.mag(inexact(exponent)) if exponent != 0 else 0
    if isinstance(power, int) and (power > 60 or abs(inexact(exponent)) * (size + 5) > MAX_MAGNITUDE):
        raise TooLarge(f"a power of more than {MAX_MAGNITUDE} bits")
    if isinstance(exponent, Fraction) and exponent.denominator == 1:
        return base ** int(exponent)
    return mpmath.power(base, inexact(exponent))


def _exact_root(value: Fraction, degree: int) -> Fraction | None:
    """The rational root of a rational number, where there is one."""
    if degree > 64 or value < 0:
        return None
    parts = []
    for part in (value.numerator, value.denominator):
        if part.bit_length() > 4_000:
            return None
        root = math.isqrt(part) if degree == 2 else _integer_root(part, degree)
        if root**degree != part:
            return None
        parts.append(root)
    return Fraction(parts[0], parts[1])


def _integer_root(value: int, degree: int) -> int:
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= value else (low, middle - 1)
    return low


def _root(arguments: list[Value]) -> Value:
    value, degree = arguments
    if not isinstance(degree, Fraction) or degree.denominator != 1 or not 0 < degree <= 1_000:
        return _power(value, 1 / degree)
    if isinstance(value, Fraction):
        exact = _exact_root(abs(value), int(degree))
        if exact is not None and value >= 0:
            return exact
        if value < 0 and degree % 2:
            return -exact if exact is not None else -mpmath.root(inexact(-value), int(degree))
    elif degree % 2 and isinstance(value, mpmath.mpf) and value < 0:
        return -mpmath.root(-value, int(degree))
    return mpmath.root(inexact(value), int(degree))


def _ordered(arguments: list[Value]) -> list[Value]:
    if any(isinstance(part, mpmath.mpc) for part in arguments):
        raise NoValue("complex numbers have no order")
    return sorted(arguments, key=inexact)


def _absolute(value: Value) -> Value:
    return abs(value)


def _floor(value: Value) -> Value:
    if isinstance(value, Fraction):
        return Fraction(math.floor(value))
    if isinstance(value, mpmath.mpc):
        raise NoValue("the floor of a complex number")
    if size(value) > PRECISION - 60:
        raise TooLarge("the floor of a large number")
    return Fraction(int(mpmath.floor(value)))


def _ceiling(value: Value) -> Value:
    return -_floor(-value)


def _logarithm(value: Value) -> Value:
    if value == 0:
        raise NoValue("the logarithm of 0")
    return mpmath.log(inexact(value))


def _pseudo(name: str, arguments: list[Value]) -> Value:
    """A value for a function that is not known: the same for the same arguments, another one for others."""
    seed = zlib.crc32(name.encode()) % 997 + 3
    total = mpmath.mpf(seed) / 991
    for position, argument in enumerate(arguments, start=1):
        x = inexact(argument)
        if size(x) > 60:
            raise TooLarge("a function of a large number")
        total += mpmath.sin(x * (position + mpmath.sqrt(seed)) + position) + x / (position + 1)
    return total


_EXACT = {"abs": _absolute, "floor": _floor, "Gamma": gamma, "ceil": _ceiling}
_SEVERAL: dict[str, Callable[[list[Value]], Value]] = {
    "root": _root,
    "binom": binomial,
    "perm": permutations,
    "gcd": lambda a: Fraction(math.gcd(*integers(a))),
    "lcm": lambda a: Fraction(math.lcm(*integers(a))),
    "max": lambda a: _ordered(a)[-1],
    "min": lambda a: _ordered(a)[0],
}
_FUNCTIONS: dict[str, Callable[[Value], Value]] = {
    **{name: getattr(mpmath, name) for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")},
    **{name: getattr(mpmath, name) for name in ("coth", "sech", "csch", "exp", "re", "im", "arg")},
    **{
        f"arc{name}": getattr(mpmath, f"a{name}") for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh")
    },
    **{f"a{name}": getattr(mpmath, f"a{name}") for name in ("sin", "cos", "tan")},
    "arctanh": mpmath.atanh,
    "ln": lambda x: _logarithm(x),
    "lg": lambda x: _logarithm(x) / mpmath.log(10),
    "Re": mpmath.re,
    "Im": mpmath.im,
    "cis": lambda x: mpmath.exp(mpmath.mpc(0, 1) * x),
    "sgn": mpmath.sign,
}
