"""Matrices, their sums and products, and multiples."""

from __future__ import annotations

from collections.abc import Sequence

from gmpo.rewards.reading.cursor import Node, matching, split
from gmpo.rewards.reading.grammar import parse
from gmpo.rewards.reading.limits import MAX_ITEMS, TooLarge, Unread
from gmpo.rewards.reading.meanings import (
    Matrix,
    Meaning,
)
from gmpo.rewards.reading.tokens import COMMAND, OPEN, SIGN, Token


def matrix(tokens: Sequence[Token]) -> list[Meaning]:
    """Matrices, their sums and products, and multiples: what comes out is one matrix."""
    if not any(t.kind == COMMAND and t.text == "begin" for t in tokens):
        raise Unread("no matrix")
    while len(tokens) > 2 and tokens[0].kind == OPEN and matching(tokens, 0) == len(tokens) - 1:
        tokens = tokens[1:-1]
    terms: list[tuple[str, list[Sequence[Token]]]] = [("+", [])]
    at = start = 0
    while at < len(tokens):
        token = tokens[at]
        if token.kind == COMMAND and token.text == "begin":
            if start < at:
                terms[-1][1].append(tokens[start:at])
            end = _end_of_matrix(tokens, at)
            terms[-1][1].append(tokens[at:end])
            at = start = end
        elif token.kind == OPEN:
            at = matching(tokens, at) + 1
        elif token.kind == SIGN and token.text in ("+", "-") and ((start == at and terms[-1][1]) or at == 0):
            terms.append((token.text, []))
            at = start = at + 1
        else:
            at += 1
    if start < len(tokens):
        terms[-1][1].append(tokens[start:])
    total: Matrix | None = None
    for sign, factors in terms:
        if not factors:
            continue
        term = _multiplied([_matrix_or_factor(factor) for factor in factors])
        if sign == "-":
            term = Matrix(tuple(tuple(("neg", cell) for cell in row) for row in term.rows))
        total = term if total is None else _added(total, term)
    if total is None:
        raise Unread("no matrix")
    return [total]


def _end_of_matrix(tokens: Sequence[Token], start: int) -> int:
    for at in range(start + 1, len(tokens)):
        if tokens[at].kind == COMMAND and tokens[at].text == "end" and at + 1 < len(tokens):
            return matching(tokens, at + 1) + 1
    raise Unread("a matrix that does not end")


def _matrix_or_factor(tokens: Sequence[Token]) -> Matrix | Node:
    if tokens[0].kind != COMMAND or tokens[0].text != "begin":
        while tokens and tokens[-1].kind == SIGN and tokens[-1].text == "*":
            tokens = tokens[:-1]
        while tokens and tokens[0].kind == SIGN and tokens[0].text == "*":
            tokens = tokens[1:]
        return parse(tokens)
    opened = matching(tokens, 1)
    name = "".join(t.text for t in tokens[2:opened])
    end = next(i for i, t in enumerate(tokens) if t.kind == COMMAND and t.text == "end")
    if "".join(t.text for t in tokens[end + 2 : -1]) != name:
        raise Unread("a matrix that does not end")
    start = opened + 1
    if name == "array" and start < len(tokens) and tokens[start].kind == OPEN:
        start = matching(tokens, start) + 1
    elif name.startswith(("v", "V")) or not name.endswith("matrix"):
        raise Unread(f"a {name} is no matrix")
    rows = [row for row in split(tokens[start:end], "\\\\") if row]
    if not rows or len(rows) > MAX_ITEMS:
        raise TooLarge("a large matrix")
    return Matrix(tuple(tuple(parse(cell) for cell in split(row, "&")) for row in rows))


def _multiplied(factors: list[Matrix | Node]) -> Matrix:
    matrices = [f for f in factors if isinstance(f, Matrix)]
    if not matrices:
        raise Unread("a number beside matrices")
    result = matrices[0]
    for other in matrices[1:]:
        width = len(other.rows)
        if any(len(row) != width for row in result.rows) or width > 6:
            raise Unread("matrices that do not fit")
        columns = list(zip(*other.rows, strict=True))
        result = Matrix(tuple(tuple(_dot(row, column) for column in columns) for row in result.rows))
    for factor in factors:
        if not isinstance(factor, Matrix):
            result = Matrix(tuple(tuple(("*", factor, cell) for cell in row) for row in result.rows))
    return result


def _dot(row: Sequence[Node], column: Sequence[Node]) -> Node:
    node: Node = ("*", row[0], column[0])
    for a, b in zip(row[1:], column[1:], strict=True):
        node = ("+", node, ("*", a, b))
    return node


def _added(first: Matrix, second: Matrix) -> Matrix:
    if [len(row) for row in first.rows] != [len(row) for row in second.rows]:
        raise Unread("matrices that do not fit")
    rows = zip(first.rows, second.rows, strict=True)
    return Matrix(tuple(tuple(("+", a, b) for a, b in zip(f, s, strict=True)) for f, s in rows))
