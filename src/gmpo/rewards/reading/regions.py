"""Sets of real numbers: what intervals, unions and inequalities mean, and when they are the same set."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Sequence
from fractions import Fraction

import mpmath

from gmpo.rewards.reading.counting import Value
from gmpo.rewards.reading.cursor import Node
from gmpo.rewards.reading.formulas import Formulas
from gmpo.rewards.reading.intervals import COMBINED, HIGH, LOW, ORDER, Piece, contains, intersection, same_end, union
from gmpo.rewards.reading.magnitudes import AGREE, close, mp, real
from gmpo.rewards.reading.meanings import Expression, Interval, Items, Meaning, Named, Readings, Region, Relation, Whole
from gmpo.rewards.reading.trees import variables, variables_of

FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!=", "~": "~"}
INFINITY = ("const", "inf")


class Regions(Formulas):
    """Compares sets of real numbers."""

    def region(self, meaning: Meaning) -> list[Piece] | None:
        """A set of real numbers as intervals in order; None where it is none, or its ends are no numbers."""
        self.steps.take()
        if isinstance(meaning, Whole):
            return {"reals": [(LOW, False, HIGH, False)], "empty": []}.get(meaning.name)
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
                result = COMBINED[meaning.operator](result, other)
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
                None if None in pieces or len(pieces) < len(values) else union([p for ps in pieces for p in ps or ()])
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
                    result = intersection(result, other)
                if result or items.joined == "and":
                    return result
            return union([piece for region in found for piece in region])
        return None

    def _piece(self, low: Node, low_closed: bool, high_closed: bool, high: Node) -> list[Piece] | None:
        ends = []
        for node in (low, high):
            if node in (INFINITY, ("+", INFINITY)):
                ends.append(HIGH)
            elif node == ("neg", INFINITY):
                ends.append(LOW)
            else:
                value = self.constant(node)
                if value is None or isinstance(value, mpmath.mpc):
                    return None
                ends.append(real(value))
        if ends[0] > ends[1] or (ends[0] == ends[1] and not (low_closed and high_closed)):
            return None if ends[0] > ends[1] else []
        return [(ends[0], low_closed and ends[0] != LOW, ends[1], high_closed and ends[1] != HIGH)]

    def _solved(self, relation: Relation) -> list[Piece] | None:
        """The values of the one variable of a chain of inequalities whose sides are linear in it."""
        result: list[Piece] = [(LOW, False, HIGH, False)]
        signs, sides = relation.signs, relation.sides
        if "=" in signs or "~" in signs:
            return None
        for sign, left, right in zip(signs, sides[:-1], sides[1:], strict=True):
            pieces = self._linear(left, sign, right)
            if pieces is None:
                return None
            result = intersection(result, pieces)
        return result

    def _linear(self, left: Node, sign: str, right: Node) -> list[Piece] | None:
        for node, infinite in ((left, INFINITY), (right, INFINITY)):
            if node in (infinite, ("neg", infinite)):
                return [(LOW, False, HIGH, False)]
        names = variables(left) | variables(right)
        call = next((side for side in (left, right) if side[0] == "call"), None)
        if call is not None:
            left, right = (("var", "@") if side == call else side for side in (left, right))
            names = variables(left) | variables(right)
        if len(names) != 1:
            return None
        (name,) = names
        differences = [self.difference(left, right, {name: Fraction(x)}) for x in (0, 1, 2, -3)]
        at = [value for value in differences if value is not None and not isinstance(value, mpmath.mpc)]
        if len(at) < len(differences):
            return None
        start, slope = at[0], at[1] - at[0]
        if not (close(at[2], start + 2 * slope) and close(at[3], start - 3 * slope)) or slope == 0:
            return None
        root = real(-start / slope)
        if slope < 0:
            sign = FLIPPED[sign]
        return {
            "<": [(LOW, False, root, False)],
            "<=": [(LOW, False, root, True)],
            ">": [(root, False, HIGH, False)],
            ">=": [(root, True, HIGH, False)],
            "!=": [(LOW, False, root, False), (root, False, HIGH, False)],
        }[sign]

    def holds_on(self, relation: Relation, pieces: Sequence[Piece]) -> bool:
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
            inside = any(contains(piece, x) for piece in pieces)
            if self._holds(relation, name, x) is not inside:
                return False
        return True

    def _holds(self, relation: Relation, name: str, x: Value) -> bool | None:
        sides = relation.sides
        for sign, left, right in zip(relation.signs, sides[:-1], sides[1:], strict=True):
            value = self.difference(left, right, {name: x})
            if value is None or isinstance(value, mpmath.mpc):
                return False
            value = 0 if abs(mp(value)) < mpmath.mpf(2) ** -AGREE else value
            if not ORDER[sign](value):
                return False
        return True

    def same_pieces(self, first: Sequence[Piece], second: Sequence[Piece]) -> bool:
        if len(first) != len(second):
            return False
        return all(
            a[1] == b[1] and a[3] == b[3] and same_end(a[0], b[0]) and same_end(a[2], b[2])
            for a, b in zip(first, second, strict=True)
        )

    def inequalities(self, gold: Relation, pred: Relation) -> bool:
        """Two inequalities between formulas: the same up to a positive factor, in either direction."""
        if len(gold.signs) != len(pred.signs):
            return False
        forward = zip(
            gold.signs, gold.sides[:-1], gold.sides[1:], pred.signs, pred.sides[:-1], pred.sides[1:], strict=True
        )
        if all(self._one_inequality(*pair) for pair in forward):
            return True
        turned = Relation(tuple(FLIPPED[s] for s in reversed(pred.signs)), tuple(reversed(pred.sides)))
        if len(gold.signs) == 1 or turned.signs != gold.signs:
            return False
        return all(self.nodes(a, b) for a, b in zip(gold.sides, turned.sides, strict=True))

    def _one_inequality(self, sign: str, left: Node, right: Node, other: str, low: Node, high: Node) -> bool:
        ratio = self.constant_ratio(("-", left, right), ("-", low, high))
        if ratio is None:
            return False
        return other == (sign if ratio > 0 else FLIPPED[sign])

    def _as_regions(self, gold: Meaning, pred: Meaning) -> bool | None:
        kinds = (Interval, Region, Relation, Whole)
        if not isinstance(gold, kinds) and not isinstance(pred, kinds) and not _joined_relations(gold, pred):
            return None
        ordered = [_is_order(m) for m in (gold, pred)]
        if all(ordered) and isinstance(gold, Relation) and isinstance(pred, Relation):
            if variables_of(gold) != variables_of(pred):
                return False
            if len(variables_of(gold)) != 1:
                return self.inequalities(gold, pred)
        elif (isinstance(gold, Relation) and not ordered[0]) or (isinstance(pred, Relation) and not ordered[1]):
            return None
        first, second = self.region(gold), self.region(pred)
        if first is not None and second is not None:
            return self.same_pieces(first, second)
        for relation, pieces in ((gold, second), (pred, first)):
            if isinstance(relation, Relation) and pieces is not None and len(variables_of(relation)) == 1:
                return self.holds_on(relation, pieces)
        if all(ordered) and isinstance(gold, Relation) and isinstance(pred, Relation):
            return self.inequalities(gold, pred)
        if isinstance(gold, Region) and isinstance(pred, Region):
            return gold.operator == pred.operator and self._same_set(gold.parts, pred.parts)
        if isinstance(gold, Interval) and isinstance(pred, Interval):
            return gold.closed == pred.closed and self.nodes(gold.low, pred.low) and self.nodes(gold.high, pred.high)
        return False

    @abstractmethod
    def _same_set(self, gold: Sequence[Readings], pred: Sequence[Readings], *, multiset: bool = True) -> bool:
        """Whether every value has its partner."""


def _is_order(meaning: Meaning) -> bool:
    return isinstance(meaning, Relation) and not {"=", "~"} & set(meaning.signs)


def _joined_relations(*meanings: Meaning) -> bool:
    """Whether one is a list of inequalities."""
    return any(
        isinstance(m, Items) and m.kind == "list" and all(item and _is_order(item[0]) for item in m.items)
        for m in meanings
    )
