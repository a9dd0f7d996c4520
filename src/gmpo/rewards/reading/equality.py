r"""Whether two answers that were read whole say the same.

Numbers are compared exactly; where one side is irrational, to 400 bits, and a written decimal is the rounding of an
irrational number if it has at least seven digits. Formulas are compared at points that are drawn from the names of
their variables: two formulas that agree there to 90 digits are the same formula. The reference decides what matters: a
unit counts where both sides have one, an order where the reference is a point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import mpmath

from gmpo.rewards.reading.compute import PRECISION
from gmpo.rewards.reading.cursor import Node, number
from gmpo.rewards.reading.limits import MAX_ITEMS, TooLarge
from gmpo.rewards.reading.meanings import (
    Based,
    Congruence,
    Expression,
    Items,
    Matrix,
    Meaning,
    Named,
    Quantity,
    Ratio,
    Readings,
    Relation,
    Whole,
    Words,
)
from gmpo.rewards.reading.regions import Regions
from gmpo.rewards.reading.trees import (
    arcminutes,
    constants,
    is_infinite,
    is_name,
    is_percent,
    mentions,
    of_letters,
    operators,
    radians,
    renamed,
    variables,
)
from gmpo.rewards.reading.units import Unit


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


class Comparison(Regions):
    """One comparison of two answers, with its budget."""

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
            return None if constant and len(relation.sides) == 2 and not is_infinite(relation) else relation
        sides, signs = list(relation.sides), list(relation.signs)
        while len(sides) > 2:
            # The last two must be one number; what an approximation sign adds to an equation is a remark.
            if signs[-1] == "~":
                sides.pop()
            elif self.nodes(sides[-2], sides[-1]):
                sides.pop(-2 if not variables(sides[-1]) else -1)
            elif not variables(sides[-2]) and not variables(sides[-1]):
                return None
            else:
                return relation if len(sides) == len(relation.sides) else None
            signs.pop()
        left, right = sides
        if not variables(left) and not variables(right) and "call" not in operators(left):
            if signs[0] == "~":
                return Expression(left) if self.near(left, right) else None
            return Expression(right) if self.nodes(left, right) else None
        if signs[0] == "=" and self.nodes(left, right):
            return relation if left == right else None
        return Relation((signs[0],), (left, right))

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
                pred_value = renamed(pred_value, pred_name[2:], gold_name[2:])
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
            if is_name(left) and not mentions(right, left):
                return left, (Expression(right),)
            if is_name(right) and not mentions(left, right) and not variables(left):
                return right, (Expression(left),)
            if not variables(right) and right != number(0) and left[0] == "/" and of_letters(left):
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

    def _equations(self, gold: Relation, pred: Relation) -> bool:
        """Whether two equations differ by a constant factor only."""
        if gold.signs != ("=",) or pred.signs != ("=",):
            return False
        if gold.sides == pred.sides:
            return True
        sides = [("-", *gold.sides), ("-", *pred.sides)]
        return self.constant_ratio(sides[0], sides[1]) is not None

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
        if isinstance(other, Matrix) and items.kind == "square":
            rows = [item[0].items if isinstance(item[0], Items) else () for item in items.items]
            if [len(row) for row in rows] == [len(row) for row in other.rows]:
                cells = [cell for row in rows for cell in row]
                return all(
                    self.readings(cell, (Expression(node),))
                    for cell, node in zip(cells, (node for row in other.rows for node in row), strict=True)
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
                return self.nodes(radians(gold), radians(pred))
            return False
        told = [bool(unit.dimension or unit.nouns) for unit in (a, b)]
        return not all(told) and self.nodes(gold.node, pred.node)

    def _bare_and_quantity(self, bare: Expression, quantity: Quantity) -> bool:
        """The unit is left out on one side."""
        if is_percent(bare.node) and quantity.unit != Unit() and not is_percent(quantity.node):
            return False
        if self.nodes(bare.node, quantity.node):
            return bare.node[0] != "const" and not arcminutes(quantity.unit)
        if quantity.unit.dimension == (("angle", 1),) and "pi" in constants(bare.node):
            return self.nodes(bare.node, radians(quantity))
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
        integers = [int(v) for v in (*rests, moduli[0]) if isinstance(v, Fraction) and v.denominator == 1]
        if len(integers) < len(rests) + 1:
            return self.nodes(gold.right, pred.right)
        first, second, modulus = integers
        return modulus != 0 and (first - second) % modulus == 0

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


def _list_of_names(words: Sequence[str]) -> list[tuple[str, ...]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word in ("and", "or"):
            parts.append([])
        else:
            parts[-1].append(word)
    return sorted(tuple(part) for part in parts)
