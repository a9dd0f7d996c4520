r"""Tokens -> what an answer says: a number, an equation, a set, an interval, a quantity, words ..

`read` gives the ways in which the whole answer can be read, mostly one. What has no reading is Unread; nothing is ever
taken out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from gmpo.rewards.reading.grammar import PAIRS, Node, is_word, matching, number, parse, split
from gmpo.rewards.reading.limits import MAX_ITEMS, TooLarge, Unread
from gmpo.rewards.reading.tokens import CLOSE, COMMAND, NAME, NUMBER, OPEN, RUN, SETS, SIGN, WORD, Token, tokenize
from gmpo.rewards.reading.units import MULTIPLES, PERCENT, Unit, UnitReader, begins_unit


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

RELATIONS = ("=", "<", ">", "<=", ">=", "!=", "~", "in", "equiv", "notin")
_ARTICLES = frozenset(("the", "a", "an"))
_LEADS = frozenset(
    (
        *("the", "final", "answer", "answers", "is", "are", "therefore", "thus", "hence", "so", "equals", "exactly"),
        *(
            "result",
            "we",
            "get",
            "have",
            "value",
            "solution",
            "solutions",
            "option",
            "choice",
            "i.e",
            "namely",
            "simply",
        ),
        *(
            "both",
            "either",
            "just",
            "答案是",
            "答案为",
            "答案",
            "第",
            "即",
            "所以",
            "因此",
            "故",
            "共",
            "共有",
            "约",
            "为",
            "是",
        ),
    )
)
_EMPTY = frozenset(("no solution", "no solutions", "empty set", "empty", "there is no solution", "no real solutions"))
_EMPTY |= {"no real solution", "no such number", "no such numbers", "there are no solutions", "无解"}
_REALS = frozenset(("all real numbers", "all reals", "all real values", "real numbers", "any real number", "reals"))
_REALS |= {"all real x", "all real", "set of all real numbers", "全体实数", "任意实数", "all real numbers x"}
_NOT_THERE = frozenset(
    ("dne", "does not exist", "doesn't exist", "undefined", "not defined", "不存在", "limit does not exist")
)
_NUMERALS = {
    word: value
    for value, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
            "twenty",
        ]
    )
}
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_BASES |= {"eleven": 11, "twelve": 12, "sixteen": 16, "hex": 16}


def read(text: str) -> tuple[list[Token], Readings]:
    """The tokens of an answer and its readings.

    Raises:
        Unread: it is no answer as a whole.
        TooLarge: reading it would cost too much.
    """
    tokens = tokenize(text)
    return tokens, read_tokens(tokens)


def read_tokens(tokens: Sequence[Token]) -> Readings:
    """The readings of a whole answer. Raises Unread, TooLarge."""
    tokens = _joined(_trimmed(tokens))
    if not tokens:
        raise Unread("it is empty")
    mixed = _mixed_in_words(tokens)
    parts, joints = _parts(tokens)
    if len(parts) == 1:
        return _item(parts[0])
    if len(parts) > MAX_ITEMS:
        raise TooLarge(f"more than {MAX_ITEMS} values")
    joined = "or" if "or" in joints else "and" if "and" in joints else ","
    try:
        items = tuple(_item(part) for part in parts)
    except Unread:
        words = _words(tokens)
        if words is None:
            raise
        return (*mixed, words)
    whole: Readings = (Items(_with_one_name(items), "list", joined),)
    text = _words(tokens)
    return (*mixed, *whole, *((text,) if text is not None else ()))


def _trimmed(tokens: Sequence[Token]) -> Sequence[Token]:
    """Without the full stop of the sentence, and without blanks and lead-in words at its beginning."""
    start, end = 0, len(tokens)
    while end > start and tokens[end - 1].kind == SIGN and tokens[end - 1].text in (".", ",", ";", ":", "\\\\"):
        end -= 1
    while start < end and tokens[start].kind == SIGN and tokens[start].text in (",", ":", ".", ";", "\\\\", "~", "="):
        start += 1
    return tokens[start:end]


def _joined(tokens: Sequence[Token]) -> list[Token]:
    """`and` and `or` written as words become signs; a dot behind a word goes."""
    result: list[Token] = []
    for token in tokens:
        if token.kind in (WORD, RUN) and token.text.casefold() in ("and", "or"):
            result.append(Token(SIGN, token.text.casefold(), token.spaced))
        elif token.kind == SIGN and token.text == "." and result and result[-1].kind in (WORD, RUN, NAME):
            continue
        elif token.kind == SIGN and token.text == "&" and not any(t.text == "begin" for t in tokens):
            result.append(Token(SIGN, "and", token.spaced))
        else:
            result.append(token)
    return result


def _parts(tokens: Sequence[Token]) -> tuple[list[Sequence[Token]], set[str]]:
    """What commas, semicolons, `and` and `or` separate; a comma before `and` does not count."""
    joints = ("and", "or", ",", ";")
    if any(t.kind == COMMAND and t.text == "begin" for t in tokens):
        joints = ("and", "or", ",")
    parts, used, start, depth = [], set(), 0, 0
    for at, token in enumerate(tokens):
        depth += (token.kind == OPEN) - (token.kind == CLOSE)
        if depth or token.kind != SIGN or token.text not in joints:
            continue
        used.add(token.text)
        if at == start and parts and token.text in ("and", "or"):
            start = at + 1
            continue
        parts.append(tokens[start:at])
        start = at + 1
    parts.append(tokens[start:])
    if any(not part for part in parts):
        raise Unread("a value is missing in a list")
    return parts, used


def _mixed_in_words(tokens: Sequence[Token]) -> Readings:
    """`2 and 1/2`."""
    parts = split(tokens, "and")
    if len(parts) != 2 or len(parts[0]) != 1 or parts[0][0].kind != NUMBER:
        return ()
    whole = parts[0][0].value
    try:
        fraction = parse(parts[1])
    except Unread:
        return ()
    if fraction[0] != "/" or whole is None or any(part[0] != "num" for part in fraction[1:]):
        return ()
    above, below = fraction[1][1], fraction[2][1]
    return (Expression(number(whole + above / below)),) if 0 < above < below else ()


def _with_one_name(items: tuple[Readings, ...]) -> tuple[Readings, ...]:
    """`n = 1, 2, 3` names the first value only: the others carry the name too, or none does."""
    first = items[0][0] if items[0] else None
    if not isinstance(first, Relation) or first.signs != ("=",) or first.sides[0][0] != "var":
        return items
    if all(isinstance(item[0], Expression | Quantity) for item in items[1:]):
        return ((Expression(first.sides[1]),), *items[1:])
    return items


def _item(tokens: Sequence[Token]) -> Readings:
    """The readings of one value. Raises Unread."""
    tokens = _trimmed(tokens)
    if not tokens:
        raise Unread("it is empty")
    stripped = _without_lead(tokens)
    readings: list[Meaning] = []
    for reader in _READERS:
        try:
            readings += reader(stripped)
        except Unread:
            continue
        if readings and reader not in _OPEN_ENDED:
            break
    text = _words(tokens)
    if text is not None and not any(isinstance(r, Words) for r in readings):
        readings.append(text)
    if not readings:
        raise Unread("it has no reading as a whole")
    return tuple(readings)


def _without_lead(tokens: Sequence[Token]) -> Sequence[Token]:
    start = 0
    while start < len(tokens) - 1 and tokens[start].kind in (WORD, RUN) and _leads(tokens[start].text):
        start += 1
    if start and tokens[start].kind == SIGN and tokens[start].text in (":",) and start < len(tokens) - 1:
        start += 1
    rest = tokens[start:]
    # What is left must be no mere word: `the ellipse` stays as it is, its article is dropped later.
    return rest if any(t.kind not in (WORD, RUN) for t in rest) or start else tokens


def _leads(word: str) -> bool:
    return word.casefold() in _LEADS or (not word.isascii() and word.endswith(("是", "为", "等于")))


def _words(tokens: Sequence[Token]) -> Words | None:
    """The answer as a text, if it has a word of two letters and no operators."""
    letters = [t for t in tokens if t.kind in (WORD, RUN, NAME)]
    long = [t for t in letters if (len(t.text) > 1 and (t.kind != NAME)) or not t.text.isascii()]
    if not long or any(t.kind in (COMMAND, OPEN, CLOSE) for t in tokens if t.text not in ("(", ")", "{", "}")):
        return None
    kept: list[str] = []
    glued = False
    for token in tokens:
        if token.kind == SIGN and token.text not in (".", ",", "-", "'", ":", "and", "or", "%", ";", "dollar", "!"):
            return None
        word = token.text.casefold().strip(".'").replace("'", "")
        if glued and kept and token.kind == NAME and not token.spaced:
            kept[-1] += word
        elif token.kind in (WORD, RUN, NAME, NUMBER) or word in ("and", "or"):
            kept.append(word)
        glued = token.kind == SIGN and token.text == "'"
    kept = [word for word in kept if word not in _ARTICLES] or kept
    if len(kept) > 1 and kept[0] in ("on", "in", "at", "to"):
        kept = kept[1:]
    return Words(tuple(kept)) if kept else None


def _whole(tokens: Sequence[Token]) -> list[Meaning]:
    """Sets with a name, and what does not exist."""
    texts = [t.text for t in tokens]
    if texts in (["empty"], ["\\{", "\\}"]):
        return [Whole("empty")]
    if len(tokens) == 4 and texts[0] in ("mathbb", "Bbb") and texts[2] in SETS:
        return [Whole(SETS[texts[2]])]
    if len(tokens) == 2 and texts[0] in ("mathbb", "Bbb") and texts[1] in SETS:
        return [Whole(SETS[texts[1]])]
    words = _words(tokens)
    if words is None:
        raise Unread("no set with a name")
    text = " ".join(words.words)
    if text in _EMPTY:
        return [Whole("empty")]
    if text in _REALS:
        return [Whole("reals")]
    if text in _NOT_THERE:
        return [Whole("nothing")]
    if text in _NUMERALS:
        return [Expression(number(_NUMERALS[text]))]
    raise Unread("no set with a name")


def _related(tokens: Sequence[Token]) -> list[Meaning]:
    """Equations, inequalities, memberships, congruences."""
    tokens = _negated(tokens)
    signs = [t.text for t in _at_top(tokens) if t.kind == SIGN and t.text in RELATIONS]
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
        return [Named(_name(sides[0]), signs[0], _item(sides[1]))]
    if set(signs) <= {"=", "~"}:
        return _equated(sides, signs)
    if "in" in signs or "notin" in signs:
        raise Unread("a membership in a chain")
    return [Relation(tuple(signs), tuple(_parse(side) for side in sides))]


def _equated(sides: list[Sequence[Token]], signs: list[str]) -> list[Meaning]:
    readings: list[Meaning] = []
    try:
        nodes = tuple(_parse(side) for side in sides)
        if not any(_has_pm(node) for node in nodes):
            readings.append(Relation(tuple(signs), nodes))
    except Unread:
        pass
    if len(sides) == 2 and (not readings or _is_label(sides[0])):
        readings.append(Named(_name(sides[0]), "=", _item(sides[1])))
    if not readings:
        raise Unread("an equation of what cannot be read")
    return readings


def _is_label(tokens: Sequence[Token]) -> bool:
    return all(t.kind in (WORD, RUN) for t in tokens)


def _name(tokens: Sequence[Token]) -> Node:
    """The left side of `x = ..`: an expression, a point of variables, or a label in words."""
    if all(t.kind in (WORD, RUN, NAME) for t in tokens) or any(t.text == "begin" for t in tokens):
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


def _at_top(tokens: Sequence[Token]) -> list[Token]:
    found, depth = [], 0
    for token in tokens:
        if token.kind == OPEN:
            depth += 1
        elif token.kind == CLOSE:
            depth -= 1
        elif depth == 0:
            found.append(token)
    return found


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
        quantity = _measured(tokens)
        if len(quantity) == 1 and isinstance(quantity[0], Quantity):
            return quantity[0].node
        raise


def _has_pm(node: Node) -> bool:
    return node[0] in ("pm", "mp") or any(_has_pm(part) for part in node[1:] if isinstance(part, tuple))


def _with_sign(node: Node, plus: bool) -> Node:
    parts = tuple(_with_sign(part, plus) if isinstance(part, tuple) else part for part in node)
    if node[0] in ("pm", "mp"):
        return ("+" if plus == (node[0] == "pm") else "-", *parts[1:])
    return parts


def _based(tokens: Sequence[Token]) -> list[Meaning]:
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


def _matrix(tokens: Sequence[Token]) -> list[Meaning]:
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
    elif name.startswith("v") or name.startswith("V") or not name.endswith("matrix"):
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


def _region(tokens: Sequence[Token]) -> list[Meaning]:
    """Unions, intersections and differences of sets, from the left."""
    parts = split(tokens, "cup", "cap", "minus")
    if len(parts) < 2:
        raise Unread("no union")
    if len(parts) > MAX_ITEMS:
        raise TooLarge("a union of many sets")
    operators = [t.text for t in _at_top(tokens) if t.kind == SIGN and t.text in ("cup", "cap", "minus")]
    if len(set(operators)) > 1:
        raise Unread("unions and intersections without brackets")
    return [Region(operators[0], tuple(_item(part) for part in parts))]


def _bracketed(tokens: Sequence[Token]) -> list[Meaning]:
    """Points, sets, intervals."""
    first, last = tokens[0], tokens[-1]
    if first.kind == CLOSE and first.text == "]" and last.kind == OPEN and last.text == "[":
        parts = split(tokens[1:-1], ",", ";")
        if len(parts) != 2:
            raise Unread("no interval")
        return [Interval(parse(parts[0]), parse(parts[1]), (False, False))]
    if first.kind != OPEN:
        raise Unread("no bracket")
    if matching(tokens, 0) != len(tokens) - 1:
        raise Unread("no bracket around all")
    inside = tokens[1:-1]
    if not inside:
        raise Unread("empty brackets")
    if first.text == "\\{":
        return _set(inside)
    if PAIRS[first.text] != last.text:
        parts = split(inside, ",", ";")
        if len(parts) != 2:
            raise Unread("no interval")
        return [Interval(parse(parts[0]), parse(parts[1]), (first.text == "[", last.text == "]"))]
    if first.text == "{" and len(split(inside, ",", ";", "and", "or")) == 1:
        return list(_item(inside))
    parts = split(inside, ",", ";")
    if len(parts) == 1:
        if first.text == "(":
            return list(_item(inside))
        raise Unread("a single value in square brackets")
    if len(parts) > MAX_ITEMS:
        raise TooLarge(f"more than {MAX_ITEMS} values")
    kind = {"(": "tuple", "<": "tuple", "[": "square", "{": "set"}[first.text]
    return [Items(tuple(_item(part) for part in parts), kind)]


def _set(inside: Sequence[Token]) -> list[Meaning]:
    for bar in ("|", ":"):
        parts = split(inside, bar)
        if len(parts) == 2 and not any(t.text == "," for t in _at_top(parts[0])):
            return list(read_tokens(parts[1]))
    parts = split(inside, ",", ";")
    if len(parts) > MAX_ITEMS:
        raise TooLarge(f"more than {MAX_ITEMS} values")
    return [Items(tuple(_item(part) for part in parts), "set")]


def _ratio(tokens: Sequence[Token]) -> list[Meaning]:
    parts = split(tokens, ":")
    if len(parts) < 2 or len(parts) > 5:
        raise Unread("no ratio")
    try:
        return [Ratio(tuple(parse(part) for part in parts))]
    except Unread:
        words = [i for i, t in enumerate(parts[-1]) if t.kind in (WORD, RUN, NAME)]
        if not words:
            raise
        last, rest = parts[-1][: words[0]], parts[-1][words[0] :]
        suffix = "".join(t.text for t in rest if t.kind != SIGN).casefold().replace(".", "")
        if suffix not in ("am", "pm", "oclock"):
            raise
        return [Ratio((*(parse(part) for part in parts[:-1]), parse(last), ("var", suffix)))]


def _expressed(tokens: Sequence[Token]) -> list[Meaning]:
    if len(tokens) == 1 and tokens[0].kind == RUN and is_word(tokens[0].text):
        raise Unread("a word")
    node = parse(tokens)
    if _has_pm(node):
        signs = (_with_sign(node, plus) for plus in (True, False))
        return [Items(tuple((Expression(signed),) for signed in signs), "list")]
    if node[0] == "deg":
        return [Quantity(node[1], Unit((("angle", 1),)))]
    if node[0] == "neg" and node[1][0] == "deg":
        return [Quantity(("neg", node[1][1]), Unit((("angle", 1),)))]
    return [Expression(node)]


def _measured(tokens: Sequence[Token]) -> list[Meaning]:
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


Reader = Callable[[Sequence[Token]], list[Meaning]]
_READERS: tuple[Reader, ...] = (
    _whole,
    _related,
    _based,
    _matrix,
    _region,
    _bracketed,
    _ratio,
    _expressed,
    _measured,
)
_OPEN_ENDED = frozenset((_expressed,))
"""Readers behind which another one has its say: `5 m` is a product and a quantity."""
