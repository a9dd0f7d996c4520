"""Numbers with units, in bases, and ratios."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from gmpo.rewards.reading.cursor import Node, number, split
from gmpo.rewards.reading.grammar import parse
from gmpo.rewards.reading.limits import Unread
from gmpo.rewards.reading.meanings import (
    Based,
    Expression,
    Meaning,
    Quantity,
    Ratio,
)
from gmpo.rewards.reading.tokens import CLOSE, NAME, NUMBER, OPEN, RUN, SIGN, WORD, Token
from gmpo.rewards.reading.units import MULTIPLES, PERCENT, Unit, UnitReader, begins_unit

_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_BASES |= {"eleven": 11, "twelve": 12, "sixteen": 16, "hex": 16}


def based(tokens: Sequence[Token]) -> list[Meaning]:
    """`1011_2`, `2A_{16}`, `(52)_8`, `52 base 8`."""
    texts = [t.text for t in tokens]
    at = next((i for i, t in enumerate(tokens) if t.kind == SIGN and t.text == "_"), None)
    words = [i for i, t in enumerate(tokens) if t.kind in (WORD, RUN) and t.text.casefold() in ("base", "in")]
    if at is not None:
        digits, index = tokens[:at], tokens[at + 1 :]
    elif words:
        digits, index = tokens[: words[0]], tokens[words[-1] + 1 :]
        if digits and digits[-1].text == "(" and index and index[-1].text == ")":
            digits, index = digits[:-1], index[:-1]
    else:
        raise Unread("no base")
    while digits and digits[0].kind == OPEN and digits[-1].kind == CLOSE:
        digits = digits[1:-1]
    index = [t for t in index if t.kind not in (OPEN, CLOSE) and t.text.casefold() != "base"]
    negative = bool(digits) and digits[0].text == "-"
    written = "".join(t.text for t in digits[negative:])
    if len(index) != 1 or not written or any(t.kind not in (NUMBER, NAME, RUN, WORD) for t in digits[negative:]):
        raise Unread("no base")
    base = int(index[0].text) if index[0].text.isdigit() else _BASES.get(index[0].text.casefold(), 0)
    if not 2 <= base <= 36 or texts.count("_") > 1 or len(written) > 200:
        raise Unread("no base")
    value = _in_base(written.upper(), base)
    return [Based(-value if negative else value, base)]


def _in_base(written: str, base: int) -> Fraction:
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:base]
    whole, _, after = written.partition(".")
    if not whole + after or any(sign not in digits for sign in whole + after):
        raise Unread(f"{written} is no number in base {base}")
    if not any(sign.isdigit() for sign in written):
        raise Unread(f"{written} is a name")
    return Fraction(int(whole + after, base), base ** len(after))


def ratio(tokens: Sequence[Token]) -> list[Meaning]:
    parts = split(tokens, ":")
    if len(parts) < 2 or len(parts) > 5:
        raise Unread("no ratio")
    words = [i for i, t in enumerate(parts[-1]) if t.kind in (WORD, RUN, NAME)]
    suffix = "".join(t.text for t in parts[-1][words[0] :] if t.kind != SIGN) if words else ""
    suffix = suffix.casefold().replace(".", "")
    if suffix in ("am", "pm", "oclock"):
        return [Ratio((*(parse(part) for part in parts[:-1]), parse(parts[-1][: words[0]]), ("var", suffix)))]
    return [Ratio(tuple(parse(part) for part in parts))]


def measured(tokens: Sequence[Token]) -> list[Meaning]:
    """Numbers with units: `5 km/h`, `$5`, `45^\\circ 30'`, `3 h 30 min`, `5 million`."""
    tokens = _degrees(tokens)
    currency: Sequence[Token] = ()
    if tokens[0].kind == SIGN and tokens[0].text in ("dollar", "€", "£", "¥", "₹"):
        currency, tokens = tokens[:1], tokens[1:]
    elif len(tokens) > 2 and tokens[0].text == "-" and tokens[1].text in ("dollar", "€", "£", "¥", "₹"):
        currency, tokens = tokens[1:2], [tokens[0], *tokens[2:]]
    parts: list[tuple[Node, Unit]] = []
    at = 0
    while at < len(tokens):
        start_of_unit = start = _unit_start(tokens, at)
        node = parse(tokens[at:start])
        while start < len(tokens) and tokens[start].text.casefold() in MULTIPLES:
            node = ("*", node, number(MULTIPLES[tokens[start].text.casefold()]))
            start += 1
        if start < len(tokens) and tokens[start].text.casefold() in PERCENT:
            node = ("%", node)
            start += 1
        reader = UnitReader([*tokens[start:], *(currency if not parts else ())])
        unit = reader.read()
        at = start + reader.at
        parts.append((node, unit))
        if len(parts) > 4:
            raise Unread("many numbers with units")
    if len(parts) == 1:
        node, unit = parts[0]
        if unit == Unit() and at == start_of_unit:
            raise Unread("no unit")
        return [Quantity(node, unit)] if unit != Unit() else [Expression(node)]
    dimensions = {unit.dimension for _, unit in parts}
    factors = [unit.factor for _, unit in parts]
    if len(dimensions) != 1 or dimensions == {()} or sorted(factors, reverse=True) != factors:
        raise Unread("several numbers with units")
    total = parts[0][0]
    for node, unit in parts[1:]:
        total = ("+", total, ("*", node, number(unit.factor / factors[0])))
    return [Quantity(total, parts[0][1])]


def _degrees(tokens: Sequence[Token]) -> Sequence[Token]:
    r"""`^\circ` as one sign."""
    result: list[Token] = []
    at = 0
    while at < len(tokens):
        texts = [t.text for t in tokens[at : at + 4]]
        if texts[:2] in (["^", "circ"], ["^", "deg"]):
            result.append(Token(SIGN, "deg"))
            at += 2
        elif texts in (["^", "{", "circ", "}"], ["^", "{", "deg", "}"]):
            result.append(Token(SIGN, "deg"))
            at += 4
        elif texts[:2] == ["^", "{"] and texts[2:] in ([o, "}"] for o in ("th", "st", "nd", "rd")):
            result.append(Token(WORD, texts[2]))
            at += 4
        elif texts[:2] == ["^", "'"]:
            result.append(Token(SIGN, "'"))
            at += 2
        elif texts in (["^", "{", "'", "}"],):
            result.append(Token(SIGN, "'"))
            at += 4
        else:
            result.append(tokens[at])
            at += 1
    return result


def _unit_start(tokens: Sequence[Token], start: int) -> int:
    depth = 0
    for at in range(start, len(tokens)):
        token = tokens[at]
        if token.kind == OPEN and token.text == "(" and depth == 0 and start < at < len(tokens) - 1:
            inner = tokens[at + 1]
            if inner.kind in (WORD, RUN) and begins_unit(inner):
                return at
        depth += (token.kind == OPEN) - (token.kind == CLOSE)
        if depth == 0 and at > start and (begins_unit(token) or token.text.casefold() in MULTIPLES):
            if token.kind == SIGN and token.text == "%":
                continue
            return at
    return len(tokens)
