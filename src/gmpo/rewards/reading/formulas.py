"""Whether two expressions have one value: exactly, to 400 bits, or at points drawn from their variables' names."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import mpmath

from gmpo.rewards.reading.compute import PRECISION, Evaluator
from gmpo.rewards.reading.counting import NoValue, Value
from gmpo.rewards.reading.cursor import Node, number
from gmpo.rewards.reading.limits import Steps, TooLarge, Unread
from gmpo.rewards.reading.magnitudes import AGREE, close, mp, real, rounded
from gmpo.rewards.reading.trees import functions, is_percent, operators, variables

_COUNT_OF_HUNDREDTHS = 5
"""A decimal reference from here on may be a percentage without its sign: 17.5, not 1.5."""
_ENOUGH = 2
"""Points with a value that two formulas must have."""
_OF_INTEGERS = frozenset(("!", "!!", "binom", "perm", "gcd", "lcm"))
POINTS = 4
"""Points at which two formulas are compared."""


class Formulas:
    """Compares expressions, with the budget of one comparison of two answers."""

    def __init__(self) -> None:
        self.steps = Steps()
        self.values: dict[tuple[Any, ...], Value | None] = {}

    def nodes(self, gold: Node, pred: Node) -> bool:
        """Whether two expressions have one value, at all points if they have variables."""
        if gold == pred:
            return True
        names = variables(gold) | variables(pred)
        if not names:
            return self.numbers(gold, pred)
        if is_percent(gold) != is_percent(pred):
            return False
        return any(self.formulas(gold, pred, names, decimal_log) for decimal_log in self._logs(gold, pred))

    def _logs(self, gold: Node, pred: Node) -> Iterator[bool]:
        yield False
        if "log" in functions(gold) | functions(pred):
            yield True

    def formulas(self, gold: Node, pred: Node, names: frozenset[str], decimal_log: bool) -> bool:
        stepwise = {"floor", "ceil"} & (functions(gold) | functions(pred))
        of_integers = _OF_INTEGERS & (operators(gold) | operators(pred) | functions(gold) | functions(pred))
        if of_integers or stepwise:
            found = [self._agree_at(gold, pred, point, decimal_log) for point in self.integers(names)]
            if False in found or of_integers:
                return False not in found and found.count(True) >= _ENOUGH
        agreed = 0
        for point in self.points(names):
            a, b = self.at(gold, point, decimal_log), self.at(pred, point, decimal_log)
            if a is None and b is None:
                continue
            if a is None or b is None:
                # One has a hole there: at a random point that means another formula.
                return False
            if not self.same_value(gold, pred, a, b, point, decimal_log):
                return False
            agreed += 1
            if agreed == POINTS:
                break
        return agreed >= _ENOUGH

    def _agree_at(self, gold: Node, pred: Node, point: dict[str, Value], decimal_log: bool) -> bool | None:
        """Whether two formulas agree at a point; None where one has no value there, or is too large."""
        try:
            a, b = self.at(gold, point, decimal_log), self.at(pred, point, decimal_log)
        except TooLarge:
            if self.steps.left < 0:
                raise
            return None
        if a is None or b is None:
            return None
        return self.same_value(gold, pred, a, b, point, decimal_log)

    def integers(self, names: frozenset[str]) -> Iterator[dict[str, Value]]:
        """Integers for variables, for functions that are made for them; in both orders of the names."""
        for turn, step in enumerate((1, 2, 3, 5, 7, 4)):
            ordered = sorted(names, reverse=turn % 2 == 0)
            largest = 6 + 9 * turn + step * len(ordered)
            yield {name: Fraction(largest - step * place) for place, name in enumerate(ordered)}

    def points(self, names: frozenset[str]) -> Iterator[dict[str, Value]]:
        """Values for variables that depend on their names alone; of both signs."""
        for turn in range(2 * POINTS):
            point = {}
            for name in names:
                seed = zlib.crc32(f"{turn}:{name}".encode())
                size = Fraction(seed % 9_973 + 1_000, 4_999)
                point[name] = -size if turn % 2 and seed & 65_536 else size
            yield point
        yield {name: Fraction(zlib.crc32(name.encode()) % 5 + 2) for name in names}
        yield {name: Fraction(zlib.crc32(name.encode()) % 7 + 6) for name in names}

    def at(self, node: Node, point: dict[str, Value], decimal_log: bool = False) -> Value | None:
        try:
            return Evaluator(self.steps, point, decimal_log=decimal_log).value(node)
        except NoValue:
            return None

    def constant(self, node: Node, decimal_log: bool = False) -> Value | None:
        """The value of an expression without variables; None where it has none."""
        key = (node, decimal_log)
        if key not in self.values:
            try:
                self.values[key] = Evaluator(self.steps, decimal_log=decimal_log).value(node)
            except Unread:
                self.values[key] = None
        return self.values[key]

    def numbers(self, gold: Node, pred: Node) -> bool:
        gold_percent, pred_percent = is_percent(gold), is_percent(pred)
        if gold_percent != pred_percent:
            return self.percents(gold, pred)
        for decimal_log in self._logs(gold, pred):
            a, b = self.constant(gold, decimal_log), self.constant(pred, decimal_log)
            if a is None or b is None:
                continue
            if self.same_value(gold, pred, a, b, {}, decimal_log) or rounded(gold, pred, a, b):
                return True
        return False

    def percents(self, gold: Node, pred: Node) -> bool:
        """A percentage against a number: 50 % is 0.5; it is also 50 where 50 stands for a count of hundredths."""
        percent, bare = (gold, pred) if is_percent(gold) else (pred, gold)
        value, other = self.constant(percent), self.constant(bare)
        if value is None or other is None:
            return False
        if self.same_value(percent, bare, value, other, {}, False) or rounded(percent, bare, value, other):
            return True
        hundredths = self.constant(("*", percent, number(100)))
        if percent is not gold:
            integer = bare[0] == "num" and bare[1].denominator == 1 and bare[1] > 1
            decimal = bare[0] == "num" and bare[2] >= 0 and bare[1] >= _COUNT_OF_HUNDREDTHS
            if not integer and not decimal:
                return False
        return bool(hundredths == other)

    def same_value(
        self, gold: Node, pred: Node, a: Value, b: Value, point: dict[str, Value], decimal_log: bool
    ) -> bool:
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return a == b
        x, y = mp(a), mp(b)
        if close(x, y):
            return True
        difference = abs(x - y)
        if difference > mpmath.mpf(2) ** (-AGREE // 2) * max(1, abs(x)):
            return False
        # Both are almost nothing: what is 0 shrinks with the precision, what is small stays.
        with mpmath.workprec(2 * PRECISION):
            try:
                finer = [Evaluator(self.steps, point, decimal_log=decimal_log).value(node) for node in (gold, pred)]
            except Unread:
                return False
            again = abs(mp(finer[0]) - mp(finer[1]))
        return bool(again <= difference * mpmath.mpf(2) ** -(AGREE // 2))

    def constant_ratio(self, gold: Node, pred: Node) -> Value | None:
        """gold / pred where that is one real number at all points and not 0; else None."""
        if variables(gold) != variables(pred) or not variables(gold):
            return None
        ratio = None
        count = 0
        for point in self.points(variables(gold)):
            a, b = self.at(gold, point), self.at(pred, point)
            if a is None or b is None:
                continue
            if b == 0 or a == 0:
                return None
            quotient = mp(a) / mp(b)
            if ratio is not None and not close(quotient, ratio):
                return None
            ratio = quotient
            count += 1
            if count == POINTS:
                break
        if ratio is None or count < 2 or (isinstance(ratio, mpmath.mpc) and ratio.imag != 0):
            return None
        return ratio.real if isinstance(ratio, mpmath.mpc) else ratio

    def difference(self, left: Node, right: Node, point: dict[str, Value]) -> Value | None:
        try:
            evaluator = Evaluator(self.steps, point)
            a, b = evaluator.value(left), evaluator.value(right)
        except Unread:
            return None
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return a - b
        return mp(a) - mp(b)

    def near(self, left: Node, right: Node) -> bool:
        """Whether two numbers agree to 1 %, as sides of an approximation sign should."""
        a, b = self.constant(left), self.constant(right)
        return a is not None and b is not None and bool(abs(real(a) - real(b)) <= abs(real(a)) / 50)
