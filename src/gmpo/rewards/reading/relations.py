"""Equations, inequalities, memberships and congruences."""

from __future__ import annotations

from collections.abc import Sequence

from gmpo.rewards.reading.cursor import Node, matching, outside_brackets, split
from gmpo.rewards.reading.grammar import parse
from gmpo.rewards.reading.limits import Unread
from gmpo.rewards.reading.meanings import (
    Congruence,
    Item,
    Items,
    Meaning,
    Named,
    Quantity,
    Relation,
)
from gmpo.rewards.reading.quantities import measured
from gmpo.rewards.reading.tokens import COMMAND, NAME, OPEN, RUN, SIGN, WORD, Token
from gmpo.rewards.reading.trees import has_pm

RELATIONS = ("=", "<", ">", "<=", ">=", "!=", "~", "in", "equiv", "notin")


def related(tokens: Sequence[Token], item: Item) -> list[Meaning]:
    """Equations, inequalities, memberships, congruences."""
    tokens = _negated(tokens)
    signs = [t.text for t in outside_brackets(tokens) if t.kind == SIGN and t.text in RELATIONS]
    if not signs:
        return _plain_modulus(tokens)
    sides = split(tokens, *RELATIONS)
    if any(not side for side in sides):
        raise Unread("a side is missing")
    if "equiv" in signs:
        return _congruence(sides, signs)
    if len(signs) > 8:
        raise Unread("a long chain")
    if signs in (["in"], ["notin"]):
        return [Named(_name(sides[0]), signs[0], item(sides[1]))]
    if set(signs) <= {"=", "~"}:
        return _equated(sides, signs, item)
    if "in" in signs or "notin" in signs:
        raise Unread("a membership in a chain")
    return [Relation(tuple(signs), tuple(_parse(side) for side in sides))]


def _equated(sides: list[Sequence[Token]], signs: list[str], item: Item) -> list[Meaning]:
    readings: list[Meaning] = []
    try:
        nodes = tuple(_parse(side) for side in sides)
        if not any(has_pm(node) for node in nodes):
            readings.append(Relation(tuple(signs), nodes))
    except Unread:
        pass
    if len(sides) == 2 and (not readings or _is_label(sides[0])):
        readings.append(Named(_name(sides[0]), "=", item(sides[1])))
    if not readings:
        raise Unread("an equation of what cannot be read")
    return readings


def _is_label(tokens: Sequence[Token]) -> bool:
    return all(t.kind in (WORD, RUN) for t in tokens)


def _name(tokens: Sequence[Token]) -> Node:
    """The left side of `x = ..`: an expression, a point of variables, or a label in words."""
    if all(t.kind in (WORD, RUN, NAME) for t in tokens) or any(
        t.text in ("begin", "angle", "triangle") for t in tokens
    ):
        return ("label", " ".join(t.text.casefold() for t in tokens))
    if len(tokens) > 2 and tokens[0].kind == OPEN and matching(tokens, 0) == len(tokens) - 1:
        parts = split(tokens[1:-1], ",")
        if len(parts) > 1:
            return ("point", *(parse(part) for part in parts))
    texts = [t.text for t in tokens]
    if ":" in texts:
        parts = split(tokens, ":")
        return ("label", ":".join("".join(t.text for t in part) for part in parts))
    return parse(tokens)


def _negated(tokens: Sequence[Token]) -> Sequence[Token]:
    r"""`\not=` is one sign."""
    if not any(t.kind == SIGN and t.text == "not" for t in tokens):
        return tokens
    result: list[Token] = []
    for token in tokens:
        if result and result[-1].kind == SIGN and result[-1].text == "not":
            other = {"=": "!=", "in": "notin", "<": ">=", ">": "<="}.get(token.text)
            if other is None:
                raise Unread("a negation of what is no relation")
            result[-1] = Token(SIGN, other)
        else:
            result.append(token)
    return result


def _modulus(tokens: Sequence[Token]) -> tuple[Sequence[Token], Node] | None:
    r"""What stands before `\pmod{5}`, `(mod 5)`, `\mod 5`, and the modulus."""
    for at, token in enumerate(tokens):
        if token.kind == COMMAND and token.text in ("pmod", "mod", "bmod", "pod"):
            before, after = tokens[:at], tokens[at + 1 :]
            if before and before[-1].text == "(" and after and after[-1].text == ")":
                before, after = before[:-1], after[:-1]
            return before, parse(after)
        if token.kind in (WORD, RUN) and token.text.casefold() in ("mod", "modulo"):
            before, after = tokens[:at], tokens[at + 1 :]
            if before and before[-1].text == "(" and after and after[-1].text == ")":
                before, after = before[:-1], after[:-1]
            return before, parse(after)
    return None


def _plain_modulus(tokens: Sequence[Token]) -> list[Meaning]:
    found = _modulus(tokens)
    if found is None:
        raise Unread("no relation")
    return [Congruence(None, parse(found[0]), found[1])]


def _congruence(sides: list[Sequence[Token]], signs: list[str]) -> list[Meaning]:
    if signs != ["equiv"]:
        raise Unread("a chain of congruences")
    found = _modulus(sides[1])
    if found is None:
        return [Relation(("=",), (parse(sides[0]), parse(sides[1])))]
    before, modulus = found
    parts = split(before, ",")
    if len(parts) > 1:
        items = tuple((Congruence(parse(sides[0]), parse(part), modulus),) for part in parts)
        return [Items(items, "list")]
    return [Congruence(parse(sides[0]), parse(before), modulus)]


def _parse(tokens: Sequence[Token]) -> Node:
    """An expression that may carry a unit, which is dropped, on one side of a relation."""
    try:
        return parse(tokens)
    except Unread:
        quantity = measured(tokens)
        if len(quantity) == 1 and isinstance(quantity[0], Quantity):
            return quantity[0].node
        raise
