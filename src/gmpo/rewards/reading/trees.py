"""Questions about expressions as trees: which names, functions and constants are in them."""

from __future__ import annotations

from collections.abc import Sequence

from gmpo.rewards.reading.cursor import Node, number
from gmpo.rewards.reading.meanings import Expression, Quantity, Readings, Relation
from gmpo.rewards.reading.units import Unit


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
    if node[0] == "/" and all(part[0] == "*" and part[1] == ("var", "d") for part in node[1:]):
        return True
    if node[0] == "fn" and node[1] == "abs":
        return of_letters(node[2])
    if node[0] == "*":
        return of_letters(node) and all(name[:1].isupper() for name in variables(node))
    return node[0] == "fn" and node[1] in ("max", "min") and False


def of_letters(node: Node) -> bool:
    """A product or quotient of capital letters: names of points."""
    if node[0] == "var":
        return bool(node[1][:1].isupper())
    return node[0] in ("*", "/") and all(of_letters(part) for part in node[1:])


def mentions(node: Node, name: Node) -> bool:
    return node == name or any(mentions(part, name) for part in node[1:] if isinstance(part, tuple))


def operators(node: Node) -> frozenset[str]:
    return frozenset((node[0],)).union(*(operators(part) for part in node[1:] if isinstance(part, tuple)))


_PLAIN = 3
"""Length of a function of one argument."""


def functions(node: Node) -> frozenset[str]:
    """The functions in an expression; `log` only where it has no base."""
    named = node[0] == "fn" and (node[1] != "log" or len(node) == _PLAIN)
    own = frozenset((node[1],)) if named else frozenset()
    return own.union(*(functions(part) for part in node[1:] if isinstance(part, tuple)))


def constants(node: Node) -> frozenset[str]:
    own = frozenset((node[1],)) if node[0] == "const" else frozenset()
    return own.union(*(constants(part) for part in node[1:] if isinstance(part, tuple)))


def is_percent(node: Node) -> bool:
    return bool(node[0] == "%" or (node[0] == "neg" and node[1][0] == "%"))


def exchanged(node: Node, table: dict[Node, Node]) -> Node:
    if node in table:
        return table[node]
    return tuple(exchanged(part, table) if isinstance(part, tuple) else part for part in node)


def has_pm(node: Node) -> bool:
    return node[0] in ("pm", "mp") or any(has_pm(part) for part in node[1:] if isinstance(part, tuple))


def radians(quantity: Quantity) -> Node:
    if quantity.unit.dimension == (("angle", 1),):
        factor = quantity.unit.factor / 180
        return ("*", quantity.node, ("*", ("const", "pi"), number(factor)))
    return quantity.node


def arcminutes(unit: Unit) -> bool:
    return unit.dimension == (("angle", 1),) and unit.factor != 1


def is_infinite(relation: Relation) -> bool:
    return any("inf" in constants(side) for side in relation.sides)


def renamed(readings: Readings, old: Sequence[Node], new: Sequence[Node]) -> Readings:
    """What `f(t) = 2t` says of t, said of x; nothing where it already speaks of an x that is another one."""
    table = dict(zip(old, new, strict=True))
    others = [node for node in new if node not in old]
    if any(mentions(r.node, node) for r in readings if isinstance(r, Expression) for node in others):
        return ()
    return tuple(Expression(exchanged(r.node, table)) if isinstance(r, Expression) else r for r in readings)
