"""What an answer may say: a number, an equation, a set, an interval, a quantity, words .."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from gmpo.rewards.reading.cursor import Node
from gmpo.rewards.reading.tokens import Token
from gmpo.rewards.reading.units import Unit


@dataclass(frozen=True, slots=True)
class Expression:
    """A number or a formula."""

    node: Node


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with a unit."""

    node: Node
    unit: Unit


@dataclass(frozen=True, slots=True)
class Words:
    """A text, in one case, without articles and punctuation."""

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Items:
    """Several values: each with its readings."""

    items: tuple[Readings, ...]
    kind: str
    """`list` without brackets, `set`, `tuple` (round or angular), `square`."""
    joined: str = ","
    """The sign between them: `,`, `and`, `or`."""


@dataclass(frozen=True, slots=True)
class Interval:
    """From low to high, both expressions."""

    low: Node
    high: Node
    closed: tuple[bool, bool]


@dataclass(frozen=True, slots=True)
class Region:
    """Sets put together: `cup`, `cap` or `minus`."""

    operator: str
    parts: tuple[Readings, ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain of equations or inequalities."""

    signs: tuple[str, ...]
    sides: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Named:
    """A side that is a variable, a function or a label, and what it is: `x = (1, 2)`, `x \\in (0, 1)`."""

    name: Node
    sign: str
    value: Readings


@dataclass(frozen=True, slots=True)
class Congruence:
    """left = right modulo modulus."""

    left: Node | None
    right: Node
    modulus: Node


@dataclass(frozen=True, slots=True)
class Based:
    """A number written in a base."""

    value: Fraction
    base: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """`7:32`, or a time."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of expressions."""

    rows: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True, slots=True)
class Whole:
    """A set with a name: `reals`, `empty` .."""

    name: str


Meaning = (
    Expression
    | Quantity
    | Words
    | Items
    | Interval
    | Region
    | Relation
    | Named
    | Congruence
    | Based
    | Ratio
    | Matrix
    | Whole
)
Readings = tuple[Meaning, ...]
Item = Callable[[Sequence[Token]], Readings]
"""Reads one value inside another one."""
