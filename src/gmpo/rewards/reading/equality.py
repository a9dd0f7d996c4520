r"""Whether two answers that were read whole say the same.

Numbers are compared exactly; where one side is irrational, to 400 bits, and a written decimal is the rounding of an
irrational number if it has at least seven digits. Formulas are compared at points that are drawn from the names of
their variables: two formulas that agree there to 90 digits are the same formula. The reference decides what matters: a
unit counts where both sides have one, an order where the reference is a point.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import mpmath

from gmpo.rewards.reading.compute import PRECISION, Evaluator, NoValue, Value
from gmpo.rewards.reading.grammar import Node, number
from gmpo.rewards.reading.limits import MAX_ITEMS, Steps, TooLarge, Unread
from gmpo.rewards.reading.units import Unit
from gmpo.rewards.reading.values import (
    Based,
    Congruence,
    Expression,
    Interval,
    Items,
    Matrix,
    Meaning,
    Named,
    Quantity,
    Ratio,
    Readings,
    Region,
    Relation,
    Whole,
    Words,
)

_POINTS = 4
"""Points at which two formulas are compared."""
_AGREE = 300
"""Bits to which two values must agree."""
_DIGITS, _DECIMALS = 7, 6
"""Significant digits, or digits after the point, that make a decimal the rounding of an irrational number."""
_FLOAT_DIGITS = 15
"""Significant digits of a decimal that a computer's floating-point arithmetic wrote."""
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!=", "~": "~"}
_INFINITY = ("const", "inf")


def equal(gold: Readings, pred: Readings) -> bool:
    """Whether any reading of the answer equals any reading of the reference.

    Raises TooLarge when that cannot be decided at the cost that one answer may have.
    """
    with mpmath.workprec(PRECISION):
        return Comparison().readings(gold, pred)


def meaningful(readings: Readings) -> bool:
    """Whether an answer says something definite: a chain of numbers that are not equal does not."""
    with mpmath.workprec(PRECISION):
        try:
            return any(Comparison().definite(meaning) for meaning in readings)
        except TooLarge:
            return True


class Comparison:
    """One comparison of two answers, with its budget."""

    def __init__(self) -> None:
        self.steps = Steps()
        self.values: dict[tuple[Any, ...], Value | None] = {}

    # Readings and kinds

    def readings(self, gold: Readings, pred: Readings) -> bool:
        """Whether some pair of readings is equal."""
        return any(self.meanings(g, p) for g in gold for p in pred)

    def definite(self, meaning: Meaning) -> bool:
        """See `meaningful`."""
        return not isinstance(meaning, Relation) or self.simplified(meaning) is not None

    def meanings(self, gold: Meaning, pred: Meaning) -> bool:
        """Whether two readings are equal."""
        self.steps.take()
        if gold == pred and not isinstance(gold, Relation):
            return True
        bare_gold, bare_pred = self.bare(gold), self.bare(pred)
        if bare_gold is None or bare_pred is None:
            return False
        for compare in (self._named, self._as_regions, self._as_lists):
            verdict = compare(bare_gold, bare_pred)
            if verdict is not None:
                return verdict
        kinds = (type(bare_gold), type(bare_pred))
        rule = _RULES.get(kinds)
        return rule is not None and rule(self, bare_gold, bare_pred)

    def bare(self, meaning: Meaning) -> Meaning | None:
        """A relation as simple as it can be; None for one that says nothing, as `40 = 41`."""
        return self.simplified(meaning) if isinstance(meaning, Relation) else meaning

    def simplified(self, relation: Relation) -> Meaning | None:
        """`x = 2 + 3 = 5` is `x = 5`; `2 + 3 = 5` is 5; a chain of numbers that differ is nothing."""
        if not set(relation.signs) <= {"=", "~"}:
            constant = all(not variables(side) and side[0] != "call" for side in relation.sides)
            return None if constant and len(relation.sides) == 2 and not _is_infinite(relation) else relation
        sides, signs = list(relation.sides), list(relation.signs)
        while len(sides) > 2:
            # The last two must be one number; behind an approximation sign stands no claim of equality.
            if signs[-1] == "~" and self._near(sides[-2], sides[-1]):
                sides.pop()
            elif self.nodes(sides[-2], sides[-1]):
                sides.pop(-2 if not variables(sides[-1]) else -1)
            elif not variables(sides[-2]) and not variables(sides[-1]):
                return None
            else:
                return relation if len(sides) == len(relation.sides) else None
            signs.pop()
        left, right = sides
        if not variables(left) and not variables(right) and "call" not in _operators(left):
            if signs[0] == "~":
                return Expression(left) if self._near(left, right) else None
            return Expression(right) if self.nodes(left, right) else None
        if signs[0] == "=" and self.nodes(left, right):
            return relation if left == right else None
        return Relation((signs[0],), (left, right))

    def _near(self, left: Node, right: Node) -> bool:
        """Whether two numbers agree to 1 %, as sides of an approximation sign should."""
        a, b = self.constant(left), self.constant(right)
        return a is not None and b is not None and bool(abs(_real(a) - _real(b)) <= abs(_real(a)) / 50)

    # Names: x = .., f(x) = .., x in ..

    def _named(self, gold: Meaning, pred: Meaning) -> bool | None:
        gold_name, gold_value = self._split_name(gold)
        pred_name, pred_value = self._split_name(pred)
        if gold_name is None and pred_name is None:
            return None
        if gold_name is not None and pred_name is not None:
            if isinstance(gold, Relation) and isinstance(pred, Relation) and self._equations(gold, pred):
                return True
            if gold_name[0] == "label" and pred_name[0] == "label":
                return self.readings(gold_value, pred_value)
            if not self._same_name(gold_name, pred_name):
                return False
            if gold_name[0] == pred_name[0] == "call":
                pred_value = _renamed(pred_value, pred_name[2:], gold_name[2:])
            if self._negated(gold) != self._negated(pred):
                return False
            return self.readings(gold_value, pred_value)
        if self._negated(gold) or self._negated(pred):
            return None
        other = pred if gold_name is not None else gold
        if isinstance(other, Relation):
            return None
        if gold_name is not None:
            return self.readings(gold_value, (pred,))
        return self.readings((gold,), pred_value)

    def _negated(self, meaning: Meaning) -> bool:
        return isinstance(meaning, Named) and meaning.sign == "notin"

    def _split_name(self, meaning: Meaning) -> tuple[Node | None, Readings]:
        """`x = 5` -> x and 5; no name for an equation between two formulas."""
        if isinstance(meaning, Named):
            return meaning.name, meaning.value
        if isinstance(meaning, Relation) and meaning.signs in (("=",), ("~",)):
            left, right = meaning.sides
            if is_name(left) and not _mentions(right, left):
                return left, (Expression(right),)
            if is_name(right) and not _mentions(left, right) and not variables(left):
                return right, (Expression(left),)
            if not variables(right) and not right == number(0) and left[0] == "/" and _of_letters(left):
                return left, (Expression(right),)
        return None, ()

    def _same_name(self, gold: Node, pred: Node) -> bool:
        """Whether two names are one; a function may call its argument otherwise."""
        if gold == pred:
            return True
        if gold[0] == pred[0] == "call":
            return gold[1] == pred[1] and len(gold) == len(pred)
        if "point" in (gold[0], pred[0]):
            return gold[0] == pred[0] and len(gold) == len(pred) and gold[1:] == pred[1:]
        return "label" in (gold[0], pred[0]) and gold[0] != pred[0]

    # Sets of real numbers

    def _as_regions(self, gold: Meaning, pred: Meaning) -> bool | None:
        kinds = (Interval, Region, Relation, Whole)
        if not isinstance(gold, kinds) and not isinstance(pred, kinds) and not _joined_relations(gold, pred):
            return None
        ordered = [_is_order(m) for m in (gold, pred)]
        if all(ordered) and isinstance(gold, Relation) and isinstance(pred, Relation):
            if variables_of(gold) != variables_of(pred):
                return False
            if len(variables_of(gold)) != 1:
                return self._inequalities(gold, pred)
        elif (isinstance(gold, Relation) and not ordered[0]) or (isinstance(pred, Relation) and not ordered[1]):
            return None
        first, second = self.region(gold), self.region(pred)
        if first is not None and second is not None:
            return self._same_pieces(first, second)
        for relation, pieces in ((gold, second), (pred, first)):
            if isinstance(relation, Relation) and pieces is not None and len(variables_of(relation)) == 1:
                return self._holds_on(relation, pieces)
        if all(ordered) and isinstance(gold, Relation) and isinstance(pred, Relation):
            return self._inequalities(gold, pred)
        if isinstance(gold, Region) and isinstance(pred, Region):
            return gold.operator == pred.operator and self._same_set(gold.parts, pred.parts)
        if isinstance(gold, Interval) and isinstance(pred, Interval):
            return gold.closed == pred.closed and self.nodes(gold.low, pred.low) and self.nodes(gold.high, pred.high)
        return False

    def region(self, meaning: Meaning) -> list[Piece] | None:
        """A set of real numbers as intervals in order; None where it is none, or its ends are no numbers."""
        self.steps.take()
        if isinstance(meaning, Whole):
            return {"reals": [(_LOW, False, _HIGH, False)], "empty": []}.get(meaning.name)
        if isinstance(meaning, Interval):
            return self._piece(meaning.low, meaning.closed[0], meaning.closed[1], meaning.high)
        if isinstance(meaning, Items):
            return self._region_of_items(meaning)
        if isinstance(meaning, Region):
            regions = [next((r for r in map(self.region, part) if r is not None), None) for part in meaning.parts]
            found = [region for region in regions if region is not None]
            if len(found) < len(regions):
                return None
            result = found[0]
            for other in found[1:]:
                result = _COMBINED[meaning.operator](result, other)
            return result
        if isinstance(meaning, Relation):
            return self._solved(meaning)
        if isinstance(meaning, Named):
            return next((r for r in map(self.region, meaning.value) if r is not None), None)
        return None

    def _region_of_items(self, items: Items) -> list[Piece] | None:
        if items.kind in ("tuple", "square") and len(items.items) == 2:
            ends = [next((m.node for m in item if isinstance(m, Expression)), None) for item in items.items]
            closed = items.kind == "square"
            return None if None in ends else self._piece(ends[0], closed, closed, ends[1])  # type: ignore[arg-type]
        if items.kind == "set":
            values = [next((m.node for m in item if isinstance(m, Expression)), None) for item in items.items]
            pieces = [self._piece(value, True, True, value) for value in values if value is not None]
            return (
                None if None in pieces or len(pieces) < len(values) else _union([p for ps in pieces for p in ps or ()])
            )
        if items.kind == "list" and all(isinstance(item[0], Relation | Interval | Region) for item in items.items):
            regions = [self.region(item[0]) for item in items.items]
            found = [region for region in regions if region is not None]
            names = {name for item in items.items if isinstance(item[0], Relation) for name in variables_of(item[0])}
            if len(found) < len(regions) or len(names) > 1:
                return None
            if all(isinstance(item[0], Relation) for item in items.items) and items.joined != "or":
                result = found[0]
                for other in found[1:]:
                    result = _intersection(result, other)
                if result or items.joined == "and":
                    return result
            return _union([piece for region in found for piece in region])
        return None

    def _piece(self, low: Node, low_closed: bool, high_closed: bool, high: Node) -> list[Piece] | None:
        ends = []
        for node in (low, high):
            if node in (_INFINITY, ("+", _INFINITY)):
                ends.append(_HIGH)
            elif node == ("neg", _INFINITY):
                ends.append(_LOW)
            else:
                value = self.constant(node)
                if value is None or isinstance(value, mpmath.mpc):
                    return None
                ends.append(_real(value))
        if ends[0] > ends[1] or (ends[0] == ends[1] and not (low_closed and high_closed)):
            return None if ends[0] > ends[1] else []
        return [(ends[0], low_closed and ends[0] != _LOW, ends[1], high_closed and ends[1] != _HIGH)]

    def _solved(self, relation: Relation) -> list[Piece] | None:
        """The values of the one variable of a chain of inequalities whose sides are linear in it."""
        result: list[Piece] = [(_LOW, False, _HIGH, False)]
        signs, sides = relation.signs, relation.sides
        if "=" in signs or "~" in signs:
            return None
        for sign, left, right in zip(signs, sides[:-1], sides[1:], strict=True):
            pieces = self._linear(left, sign, right)
            if pieces is None:
                return None
            result = _intersection(result, pieces)
        return result

    def _linear(self, left: Node, sign: str, right: Node) -> list[Piece] | None:
        for node, infinite in ((left, _INFINITY), (right, _INFINITY)):
            if node in (infinite, ("neg", infinite)):
                return [(_LOW, False, _HIGH, False)]
        names = variables(left) | variables(right)
        call = next((side for side in (left, right) if side[0] == "call"), None)
        if call is not None:
            left, right = (("var", "@") if side == call else side for side in (left, right))
            names = variables(left) | variables(right)
        if len(names) != 1:
            return None
        (name,) = names
        at = [self._difference(left, right, {name: Fraction(x)}) for x in (0, 1, 2, -3)]
        if any(value is None or isinstance(value, mpmath.mpc) for value in at):
            return None
        start, slope = at[0], at[1] - at[0]
        if not (_close(at[2], start + 2 * slope) and _close(at[3], start - 3 * slope)) or slope == 0:
            return None
        root = _real(-start / slope)
        if slope < 0:
            sign = _FLIPPED[sign]
        return {
            "<": [(_LOW, False, root, False)],
            "<=": [(_LOW, False, root, True)],
            ">": [(root, False, _HIGH, False)],
            ">=": [(root, True, _HIGH, False)],
            "!=": [(_LOW, False, root, False), (root, False, _HIGH, False)],
        }[sign]

    def _difference(self, left: Node, right: Node, point: dict[str, Value]) -> Value | None:
        try:
            evaluator = Evaluator(self.steps, point)
            a, b = evaluator.value(left), evaluator.value(right)
        except Unread:
            return None
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return a - b
        return _mp(a) - _mp(b)

    def _holds_on(self, relation: Relation, pieces: Sequence[Piece]) -> bool:
        """Whether an inequality that is not linear holds on these intervals and nowhere else: tried at their ends, just
        beside them, between them, and on a grid."""
        (name,) = variables_of(relation)
        ends = [end for piece in pieces for end in (piece[0], piece[2]) if mpmath.isfinite(end)]
        if len(ends) > 12:
            return False
        beside = [end + step for end in ends for step in (mpmath.mpf("-1e-9"), 0, mpmath.mpf("1e-9"))]
        middles = [(a + b) / 2 for a, b in itertools.pairwise(sorted(ends))]
        grid = [mpmath.mpf(k * k * (1 if k > 0 else -1)) / 7 for k in range(-20, 21)]
        for x in (*beside, *middles, *grid):
            inside = any(_contains(piece, x) for piece in pieces)
            if self._holds(relation, name, x) is not inside:
                return False
        return True

    def _holds(self, relation: Relation, name: str, x: Value) -> bool | None:
        sides = relation.sides
        for sign, left, right in zip(relation.signs, sides[:-1], sides[1:], strict=True):
            value = self._difference(left, right, {name: x})
            if value is None or isinstance(value, mpmath.mpc):
                return False
            value = 0 if abs(_mp(value)) < mpmath.mpf(2) ** -_AGREE else value
            if not _ORDER[sign](value):
                return False
        return True

    def _same_pieces(self, first: Sequence[Piece], second: Sequence[Piece]) -> bool:
        if len(first) != len(second):
            return False
        return all(
            a[1] == b[1] and a[3] == b[3] and _same_end(a[0], b[0]) and _same_end(a[2], b[2])
            for a, b in zip(first, second, strict=True)
        )

    def _inequalities(self, gold: Relation, pred: Relation) -> bool:
        """Two inequalities between formulas: the same up to a positive factor, in either direction."""
        if len(gold.signs) != len(pred.signs):
            return False
        forward = zip(
            gold.signs, gold.sides[:-1], gold.sides[1:], pred.signs, pred.sides[:-1], pred.sides[1:], strict=True
        )
        if all(self._one_inequality(*pair) for pair in forward):
            return True
        turned = Relation(tuple(_FLIPPED[s] for s in reversed(pred.signs)), tuple(reversed(pred.sides)))
        if len(gold.signs) == 1 or turned.signs != gold.signs:
            return False
        return all(self.nodes(a, b) for a, b in zip(gold.sides, turned.sides, strict=True))

    def _one_inequality(self, sign: str, left: Node, right: Node, other: str, low: Node, high: Node) -> bool:
        ratio = self._constant_ratio(("-", left, right), ("-", low, high))
        if ratio is None:
            return False
        return other == (sign if ratio > 0 else _FLIPPED[sign])

    # Equations

    def _equations(self, gold: Relation, pred: Relation) -> bool:
        """Whether two equations differ by a constant factor only."""
        if gold.signs != ("=",) or pred.signs != ("=",):
            return False
        if gold.sides == pred.sides:
            return True
        sides = [("-", *gold.sides), ("-", *pred.sides)]
        if self._constant_ratio(sides[0], sides[1]) is None:
            return False
        return True

    def _constant_ratio(self, gold: Node, pred: Node) -> Value | None:
        """gold / pred where that is one real number at all points and not 0; else None."""
        if variables(gold) != variables(pred) or not variables(gold):
            return None
        ratio = None
        count = 0
        for point in self._points(variables(gold)):
            a, b = self._at(gold, point), self._at(pred, point)
            if a is None or b is None:
                continue
            if b == 0 or a == 0:
                return None
            quotient = _mp(a) / _mp(b)
            if ratio is not None and not _close(quotient, ratio):
                return None
            ratio = quotient
            count += 1
            if count == _POINTS:
                break
        if ratio is None or count < 2 or (isinstance(ratio, mpmath.mpc) and ratio.imag != 0):
            return None
        return ratio.real if isinstance(ratio, mpmath.mpc) else ratio

    # Lists, sets, points

    def _as_lists(self, gold: Meaning, pred: Meaning) -> bool | None:
        if not isinstance(gold, Items) and not isinstance(pred, Items):
            return None
        if isinstance(gold, Items) and isinstance(pred, Items):
            return self._items(gold, pred)
        if isinstance(gold, Items):
            return self._items_and_other(gold, pred)
        assert isinstance(pred, Items)
        return self._items_and_other(pred, gold)

    def _items_and_other(self, items: Items, other: Meaning) -> bool:
        if isinstance(other, Matrix) and items.kind == "tuple":
            flat = [cell for row in other.rows for cell in row]
            if 1 in (len(other.rows), len(other.rows[0])) and len(flat) == len(items.items):
                return all(
                    self.readings(item, (Expression(cell),)) for item, cell in zip(items.items, flat, strict=True)
                )
        if isinstance(other, Whole) and other.name == "empty":
            return not items.items
        if items.kind in ("set", "list") and len(items.items) == 1:
            return self.readings(items.items[0], (other,))
        return False

    def _items(self, gold: Items, pred: Items) -> bool:
        gold_kind, pred_kind = gold.kind, pred.kind
        g, p = self._flat(gold), self._flat(pred)
        if "list" in (gold_kind, pred_kind) and gold_kind != pred_kind and {gold_kind, pred_kind} <= {"list", "tuple"}:
            values = [self._split_name(item[0])[1] or item for item in (p if pred_kind == "list" else g)]
            other = g if pred_kind == "list" else p
            first, second = (other, values) if pred_kind == "list" else (values, other)
            return len(g) == len(p) and all(self.readings(a, b) for a, b in zip(first, second, strict=True))
        unordered = {"list", "set"}
        if gold_kind in unordered and pred_kind in unordered:
            if self._same_set(g, p, multiset=gold_kind == pred_kind == "list"):
                return True
            return self._same_without_names(g, p)
        if gold_kind != pred_kind:
            return False
        return len(g) == len(p) and all(self.readings(a, b) for a, b in zip(g, p, strict=True))

    def _flat(self, items: Items) -> list[Readings]:
        """The values of a list; `1 \\pm 2` among them counts as two, a set or a list inside as its values."""
        if items.kind not in ("list", "set"):
            return list(items.items)
        result: list[Readings] = []
        for item in items.items:
            inner = item[0] if item else None
            if isinstance(inner, Items) and inner.kind == "list":
                result += inner.items
            elif isinstance(inner, Named) and inner.value and isinstance(inner.value[0], Items):
                values = inner.value[0]
                result += values.items if values.kind == "list" else (item,)
            else:
                result.append(item)
        return result

    def _same_without_names(self, gold: Sequence[Readings], pred: Sequence[Readings]) -> bool:
        """`x = 1, x = 2` against `1, 2`."""
        stripped = []
        for items in (gold, pred):
            named = [self._split_name(item[0]) for item in items]
            names = {name for name, _ in named if name is not None}
            values = [value if name is not None else item for item, (name, value) in zip(items, named, strict=True)]
            stripped.append((len(names), len(names) and all(name is not None for name, _ in named), values))
        (gold_names, _, gold_values), (pred_names, _, pred_values) = stripped
        if {gold_names, pred_names} != {0, 1} and not (gold_names == 0 or pred_names == 0):
            return False
        if max(gold_names, pred_names) > 1:
            return False
        return bool(gold_names + pred_names) and self._same_set(gold_values, pred_values, multiset=True)

    def _same_set(self, gold: Sequence[Readings], pred: Sequence[Readings], *, multiset: bool = True) -> bool:
        """Whether every value has its partner."""
        if len(gold) > MAX_ITEMS or len(pred) > MAX_ITEMS:
            raise TooLarge(f"more than {MAX_ITEMS} values")
        if multiset:
            if len(gold) != len(pred):
                return False
            left = list(pred)
            for value in gold:
                partner = next((i for i, other in enumerate(left) if self.readings(value, other)), None)
                if partner is None:
                    return False
                left.pop(partner)
            return True
        return all(any(self.readings(g, p) for p in pred) for g in gold) and all(
            any(self.readings(g, p) for g in gold) for p in pred
        )

    # Pairs of kinds

    def _expressions(self, gold: Expression, pred: Expression) -> bool:
        return self.nodes(gold.node, pred.node)

    def _quantities(self, gold: Quantity, pred: Quantity) -> bool:
        a, b = gold.unit, pred.unit
        if a.dimension == b.dimension:
            if a.nouns and b.nouns and not a.nouns & b.nouns:
                return False
            factor = b.factor / a.factor
            node = pred.node if factor == 1 else ("*", pred.node, number(factor))
            return self.nodes(gold.node, node)
        if a.dimension and b.dimension:
            angles = ((("angle", 1),), (("radian", 1),))
            if {a.dimension, b.dimension} == set(angles):
                return self.nodes(_radians(gold), _radians(pred))
            return False
        return not (a.nouns and b.nouns) and self.nodes(gold.node, pred.node)

    def _bare_and_quantity(self, bare: Expression, quantity: Quantity) -> bool:
        """The unit is left out on one side."""
        if self.nodes(bare.node, quantity.node):
            return not (bare.node[0] == "const" or quantity.unit.dimension == (("angle", 1 / 60),)) and not _arcminutes(
                quantity.unit
            )
        if quantity.unit.dimension == (("angle", 1),) and "pi" in _constants(bare.node):
            return self.nodes(bare.node, _radians(quantity))
        return False

    def _expression_quantity(self, gold: Expression, pred: Quantity) -> bool:
        return self._bare_and_quantity(gold, pred)

    def _quantity_expression(self, gold: Quantity, pred: Expression) -> bool:
        return self._bare_and_quantity(pred, gold)

    def _words(self, gold: Words, pred: Words) -> bool:
        if gold.words == pred.words:
            return True
        return _list_of_names(gold.words) == _list_of_names(pred.words) and "and" in gold.words

    def _congruences(self, gold: Congruence, pred: Congruence) -> bool:
        moduli = [self.constant(c.modulus) for c in (gold, pred)]
        if None in moduli or moduli[0] != moduli[1]:
            return gold == pred
        if gold.left is not None and pred.left is not None and gold.left != pred.left:
            return False
        rests = [self.constant(c.right) for c in (gold, pred)]
        if None in rests or not all(isinstance(v, Fraction) and v.denominator == 1 for v in (*rests, *moduli)):
            return self.nodes(gold.right, pred.right)
        modulus = int(moduli[0])
        return modulus != 0 and (int(rests[0]) - int(rests[1])) % modulus == 0

    def _numbers_in_bases(self, gold: Based, pred: Based) -> bool:
        return gold.value == pred.value

    def _ratios(self, gold: Ratio, pred: Ratio) -> bool:
        longer, shorter = sorted((gold.parts, pred.parts), key=len, reverse=True)
        if len(longer) == len(shorter) + 1 and longer[-1][0] == "var":
            longer = longer[:-1]
        return len(longer) == len(shorter) and all(self.nodes(a, b) for a, b in zip(longer, shorter, strict=True))

    def _ratio_and_number(self, ratio: Ratio, bare: Expression) -> bool:
        return False

    def _matrices(self, gold: Matrix, pred: Matrix) -> bool:
        if [len(row) for row in gold.rows] != [len(row) for row in pred.rows]:
            return False
        pairs = ((a, b) for g, p in zip(gold.rows, pred.rows, strict=True) for a, b in zip(g, p, strict=True))
        return all(self.nodes(a, b) for a, b in pairs)

    def _wholes(self, gold: Whole, pred: Whole) -> bool:
        return gold.name == pred.name

    # Expressions

    def nodes(self, gold: Node, pred: Node) -> bool:
        """Whether two expressions have one value, at all points if they have variables."""
        if gold == pred:
            return True
        names = variables(gold) | variables(pred)
        if not names:
            return self._numbers(gold, pred)
        if _percent(gold) != _percent(pred):
            return False
        return any(self._formulas(gold, pred, names, decimal_log) for decimal_log in self._logs(gold, pred))

    def _logs(self, gold: Node, pred: Node) -> Iterator[bool]:
        yield False
        if "log" in _functions(gold) | _functions(pred):
            yield True

    def _formulas(self, gold: Node, pred: Node, names: frozenset[str], decimal_log: bool) -> bool:
        agreed = 0
        for point in self._points(names):
            a, b = self._at(gold, point, decimal_log), self._at(pred, point, decimal_log)
            if a is None and b is None:
                continue
            if a is None or b is None:
                # One has a hole there: at a random point that means another formula.
                return False
            if not self._same_value(gold, pred, a, b, point, decimal_log):
                return False
            agreed += 1
            if agreed == _POINTS:
                break
        return agreed >= 2

    def _points(self, names: frozenset[str]) -> Iterator[dict[str, Value]]:
        """Values for variables that depend on their names alone; of both signs."""
        for turn in range(2 * _POINTS):
            point = {}
            for name in names:
                seed = zlib.crc32(f"{turn}:{name}".encode())
                size = Fraction(seed % 9_973 + 1_000, 4_999)
                point[name] = -size if turn % 2 and seed & 65_536 else size
            yield point
        yield {name: Fraction(zlib.crc32(name.encode()) % 5 + 2) for name in names}
        yield {name: Fraction(zlib.crc32(name.encode()) % 7 + 6) for name in names}

    def _at(self, node: Node, point: dict[str, Value], decimal_log: bool = False) -> Value | None:
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

    def _numbers(self, gold: Node, pred: Node) -> bool:
        gold_percent, pred_percent = _percent(gold), _percent(pred)
        if gold_percent != pred_percent:
            return self._percents(gold, pred)
        for decimal_log in self._logs(gold, pred):
            a, b = self.constant(gold, decimal_log), self.constant(pred, decimal_log)
            if a is None or b is None:
                continue
            if self._same_value(gold, pred, a, b, {}, decimal_log) or _rounded(gold, pred, a, b):
                return True
        return False

    def _percents(self, gold: Node, pred: Node) -> bool:
        """A percentage against a number: 50 % is 0.5; it is also 50 where 50 stands for a count of hundredths."""
        percent, bare = (gold, pred) if _percent(gold) else (pred, gold)
        value, other = self.constant(percent), self.constant(bare)
        if value is None or other is None:
            return False
        if self._same_value(percent, bare, value, other, {}, False) or _rounded(percent, bare, value, other):
            return True
        hundredths = self.constant(("*", percent, number(100)))
        written_as_count = bare[0] == "num" and (bare[2] >= 0 or bare[1].denominator == 1) and bare[1] > 1
        counts = percent is gold or (written_as_count and bare[2] < 0) or (written_as_count and bare[1] >= 5)
        return counts and hundredths == other

    def _same_value(
        self, gold: Node, pred: Node, a: Value, b: Value, point: dict[str, Value], decimal_log: bool
    ) -> bool:
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return a == b
        x, y = _mp(a), _mp(b)
        if _close(x, y):
            return True
        difference = abs(x - y)
        if difference > mpmath.mpf(2) ** (-_AGREE // 2) * max(1, abs(x)):
            return False
        # Both are almost nothing: what is 0 shrinks with the precision, what is small stays.
        with mpmath.workprec(2 * PRECISION):
            names = {name: value for name, value in point.items()}
            try:
                finer = [Evaluator(self.steps, names, decimal_log=decimal_log).value(node) for node in (gold, pred)]
            except Unread:
                return False
            again = abs(_mp(finer[0]) - _mp(finer[1]))
        return bool(again <= difference * mpmath.mpf(2) ** -(_AGREE // 2))


# Intervals of real numbers

Piece = tuple[Any, bool, Any, bool]
"""Low end, whether it belongs, high end, whether it belongs."""
_LOW, _HIGH = mpmath.mpf("-inf"), mpmath.mpf("inf")
_ORDER: dict[str, Callable[[Value], bool]] = {
    "<": lambda v: v < 0,
    "<=": lambda v: v <= 0,
    ">": lambda v: v > 0,
    ">=": lambda v: v >= 0,
    "!=": lambda v: v != 0,
    "=": lambda v: v == 0,
    "~": lambda v: v == 0,
}


def _same_end(a: Value, b: Value) -> bool:
    return bool(a == b) or (mpmath.isfinite(a) and mpmath.isfinite(b) and _close(a, b))


def _contains(piece: Piece, x: Value) -> bool:
    low, low_closed, high, high_closed = piece
    above = x > low or (low_closed and _same_end(x, low))
    below = x < high or (high_closed and _same_end(x, high))
    at_open_end = (_same_end(x, low) and not low_closed) or (_same_end(x, high) and not high_closed)
    return bool(above and below and not at_open_end)


def _union(pieces: Sequence[Piece]) -> list[Piece]:
    """Intervals in order, those that touch put together."""
    result: list[Piece] = []
    for piece in sorted(pieces, key=lambda p: (p[0], not p[1])):
        if result:
            low, low_closed, high, high_closed = result[-1]
            touches = piece[0] < high or (_same_end(piece[0], high) and (piece[1] or high_closed))
            if touches:
                if _same_end(piece[2], high):
                    result[-1] = (low, low_closed, high, high_closed or piece[3])
                elif piece[2] > high:
                    result[-1] = (low, low_closed, piece[2], piece[3])
                continue
        result.append(piece)
    return result


def _intersection(first: Sequence[Piece], second: Sequence[Piece]) -> list[Piece]:
    result = []
    for a in first:
        for b in second:
            low, low_closed = (a[0], a[1]) if a[0] > b[0] else (b[0], b[1])
            if _same_end(a[0], b[0]):
                low_closed = a[1] and b[1]
            high, high_closed = (a[2], a[3]) if a[2] < b[2] else (b[2], b[3])
            if _same_end(a[2], b[2]):
                high_closed = a[3] and b[3]
            if low < high or (_same_end(low, high) and low_closed and high_closed):
                result.append((low, low_closed, high, high_closed))
    if len(result) > MAX_ITEMS:
        raise TooLarge("an intersection of many intervals")
    return _union(result)


def _difference(first: Sequence[Piece], second: Sequence[Piece]) -> list[Piece]:
    outside: list[Piece] = []
    low, low_closed = _LOW, False
    for piece in _union(second):
        if piece[0] > low or (piece[0] == low and low_closed and not piece[1]):
            outside.append((low, low_closed, piece[0], not piece[1]))
        low, low_closed = piece[2], not piece[3]
    if low < _HIGH:
        outside.append((low, low_closed, _HIGH, False))
    return _intersection(first, outside)


_COMBINED = {"cup": lambda a, b: _union([*a, *b]), "cap": _intersection, "minus": _difference}

_RULES: dict[tuple[type, type], Callable[[Comparison, Any, Any], bool]] = {
    (Expression, Expression): Comparison._expressions,
    (Quantity, Quantity): Comparison._quantities,
    (Expression, Quantity): Comparison._expression_quantity,
    (Quantity, Expression): Comparison._quantity_expression,
    (Words, Words): Comparison._words,
    (Congruence, Congruence): Comparison._congruences,
    (Based, Based): Comparison._numbers_in_bases,
    (Ratio, Ratio): Comparison._ratios,
    (Matrix, Matrix): Comparison._matrices,
    (Whole, Whole): Comparison._wholes,
    (Relation, Relation): Comparison._equations,
}


# Expressions as trees


def variables(node: Node) -> frozenset[str]:
    """The names in an expression that stand for numbers."""
    if node[0] == "var":
        return frozenset((node[1],))
    inner = frozenset().union(*(variables(part) for part in node[1:] if isinstance(part, tuple)))
    return inner - {node[1]} if node[0] in ("sum", "prod") else inner


def variables_of(relation: Relation) -> frozenset[str]:
    """The names in a relation; a function that is called stands for a number of its own."""
    return frozenset().union(*(frozenset((s[1] + "(",)) if s[0] == "call" else variables(s) for s in relation.sides))


def is_name(node: Node) -> bool:
    """Whether a side only names what the other side is: `x`, `f(x)`, `|AB|`, `S_{MBCN}`, `A:B`."""
    if node[0] in ("var", "label", "point"):
        return True
    if node[0] == "call":
        return all(part[0] == "var" for part in node[2:])
    if node[0] == "fn" and node[1] == "abs":
        return _of_letters(node[2])
    if node[0] == "*":
        return _of_letters(node) and all(name[:1].isupper() for name in variables(node))
    return node[0] == "fn" and node[1] in ("max", "min") and False


def _renamed(readings: Readings, old: Sequence[Node], new: Sequence[Node]) -> Readings:
    """What `f(t) = 2t` says of t, said of x."""
    table = dict(zip(old, new, strict=True))
    return tuple(Expression(_exchanged(r.node, table)) if isinstance(r, Expression) else r for r in readings)


def _exchanged(node: Node, table: dict[Node, Node]) -> Node:
    if node in table:
        return table[node]
    return tuple(_exchanged(part, table) if isinstance(part, tuple) else part for part in node)


def _of_letters(node: Node) -> bool:
    """A product or quotient of capital letters: names of points."""
    if node[0] == "var":
        return node[1][:1].isupper()
    return node[0] in ("*", "/") and all(_of_letters(part) for part in node[1:])


def _mentions(node: Node, name: Node) -> bool:
    return node == name or any(_mentions(part, name) for part in node[1:] if isinstance(part, tuple))


def _operators(node: Node) -> frozenset[str]:
    return frozenset((node[0],)).union(*(_operators(part) for part in node[1:] if isinstance(part, tuple)))


def _functions(node: Node) -> frozenset[str]:
    own = frozenset((node[1],)) if node[0] == "fn" and len(node) == 3 else frozenset()
    return own.union(*(_functions(part) for part in node[1:] if isinstance(part, tuple)))


def _constants(node: Node) -> frozenset[str]:
    own = frozenset((node[1],)) if node[0] == "const" else frozenset()
    return own.union(*(_constants(part) for part in node[1:] if isinstance(part, tuple)))


def _percent(node: Node) -> bool:
    return node[0] == "%" or (node[0] == "neg" and node[1][0] == "%")


def _radians(quantity: Quantity) -> Node:
    if quantity.unit.dimension == (("angle", 1),):
        factor = quantity.unit.factor / 180
        return ("*", quantity.node, ("*", ("const", "pi"), number(factor)))
    return quantity.node


def _arcminutes(unit: Unit) -> bool:
    return unit.dimension == (("angle", 1),) and unit.factor != 1


def _is_order(meaning: Meaning) -> bool:
    return isinstance(meaning, Relation) and not {"=", "~"} & set(meaning.signs)


def _is_infinite(relation: Relation) -> bool:
    return any("inf" in _constants(side) for side in relation.sides)


def _joined_relations(*meanings: Meaning) -> bool:
    """Whether one is a list of inequalities."""
    return any(
        isinstance(m, Items) and m.kind == "list" and all(item and _is_order(item[0]) for item in m.items)
        for m in meanings
    )


def _list_of_names(words: Sequence[str]) -> list[tuple[str, ...]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word in ("and", "or"):
            parts.append([])
        else:
            parts[-1].append(word)
    return sorted(tuple(part) for part in parts)


# Values


def _mp(value: Value) -> Value:
    return mpmath.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _real(value: Value) -> Value:
    found = _mp(value)
    return found.real if isinstance(found, mpmath.mpc) else found


def _close(a: Value, b: Value) -> bool:
    x, y = _mp(a), _mp(b)
    return bool(abs(x - y) <= mpmath.mpf(2) ** -_AGREE * max(abs(x), abs(y)))


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


def _rounded(gold: Node, pred: Node, a: Value, b: Value) -> bool:
    """Whether one side is a written decimal with enough digits, and the other side's value rounds to it.

    The last digit may be cut off instead of rounded; of two decimals the shorter one must be the rounding of the longer.
    """
    for node, other_node, other in ((gold, pred, b), (pred, gold, a)):
        found, second = _literal(node), _literal(other_node)
        if found is None or isinstance(other, mpmath.mpc) or _is_integer(other):
            continue
        value, last, digits, decimals = found
        difference = abs(_mp(value) - _mp(other))
        if digits >= _FLOAT_DIGITS and difference <= abs(_mp(other)) * mpmath.mpf(2) ** -50:
            return True
        if digits < _DIGITS and not (digits >= _DECIMALS and decimals >= _DECIMALS):
            continue
        if second is not None and (second[1] >= last or difference > _mp(last) / 2):
            continue
        if difference < _mp(last):
            return True
    return False


def _is_integer(value: Value) -> bool:
    return isinstance(value, Fraction) and value.denominator == 1
