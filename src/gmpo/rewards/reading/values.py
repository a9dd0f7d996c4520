r"""Tokens -> what an answer says: a number, an equation, a set, an interval, a quantity, words ..

`read` gives the ways in which the whole answer can be read, mostly one. What has no reading is Unread; nothing is ever
taken out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from gmpo.rewards.reading.alphabet import SETS
from gmpo.rewards.reading.cursor import Node, is_word, number, split
from gmpo.rewards.reading.grammar import parse
from gmpo.rewards.reading.limits import MAX_ITEMS, TooLarge, Unread
from gmpo.rewards.reading.matrices import matrix
from gmpo.rewards.reading.meanings import (
    Expression,
    Items,
    Meaning,
    Quantity,
    Readings,
    Region,
    Relation,
    Whole,
    Words,
)
from gmpo.rewards.reading.quantities import based, measured, ratio
from gmpo.rewards.reading.relations import related
from gmpo.rewards.reading.sets import bracketed, region
from gmpo.rewards.reading.tokens import CLOSE, COMMAND, NAME, NUMBER, OPEN, RUN, SIGN, WORD, Token, tokenize
from gmpo.rewards.reading.trees import has_pm
from gmpo.rewards.reading.units import Unit
from gmpo.rewards.reading.words import EMPTY, NOT_THERE, NUMERALS, REALS, in_words

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


_SUBJECT_WORDS = 12
_LONG_WHOLE = 4
_DENIALS = frozenset(("not", "no", "never", "if", "isn't", "aren't", "cannot", "what", "which", "whether", "neither"))
_BEFORE = (",", ":", ".", ";", "\\\\", "~", "=", "implies", "iff")
"""Signs that may stand before an answer."""


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
    if sum(t.kind == SIGN and t.text == "equiv" for t in tokens) == 1 and any(t.kind == COMMAND for t in tokens):
        try:
            return tuple(_related(tokens))
        except Unread:
            pass
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
        words = in_words(tokens)
        if words is None:
            raise
        return (*mixed, words)
    whole: Readings = (Items(_with_one_name(items), "list", joined), *_with_decimal_comma(tokens))
    text = in_words(tokens)
    return (*mixed, *whole, *((text,) if text is not None else ()))


def _trimmed(tokens: Sequence[Token]) -> Sequence[Token]:
    """Without the full stop of the sentence, and without blanks and lead-in words at its beginning."""
    start, end = 0, len(tokens)
    while end > start and tokens[end - 1].kind == SIGN and tokens[end - 1].text in (".", ",", ";", ":", "\\\\"):
        end -= 1
    while start < end and tokens[start].kind == SIGN and tokens[start].text in _BEFORE:
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
    joints = {"and", "or", ",", ";"}
    if any(t.kind == COMMAND and t.text == "begin" for t in tokens):
        joints.remove(";")
    parts: list[Sequence[Token]] = []
    used: set[str] = set()
    start = depth = 0
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


def _with_decimal_comma(tokens: Sequence[Token]) -> Readings:
    """`1000,99` may be a decimal: no thousands are written so, and no list without a blank."""
    if len(tokens) != 3 or [t.kind for t in tokens] != [NUMBER, SIGN, NUMBER] or tokens[2].spaced:
        return ()
    whole, comma, after = (t.text for t in tokens)
    if comma != "," or len(whole) < _LONG_WHOLE or not (whole + after).isdigit() or len(after) > 2:
        return ()
    return (Expression(("num", Fraction(int(whole + after), 10 ** len(after)), len(after))),)


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
    text = in_words(tokens)
    if text is not None and not any(isinstance(r, Words) for r in readings):
        readings.append(text)
    if not readings:
        raise Unread("it has no reading as a whole")
    return tuple(readings)


def _without_lead(tokens: Sequence[Token]) -> Sequence[Token]:
    start = _end_of_subject(tokens)
    while start < len(tokens) - 1 and tokens[start].kind in (WORD, RUN) and _leads(tokens[start].text):
        start += 1
    if start and tokens[start].kind == SIGN and tokens[start].text in (":",) and start < len(tokens) - 1:
        start += 1
    rest = tokens[start:]
    # What is left must be no mere word: `the ellipse` stays as it is, its article is dropped later.
    return rest if any(t.kind not in (WORD, RUN) for t in rest) or start else tokens


def _end_of_subject(tokens: Sequence[Token]) -> int:
    """Where `The area is` ends, words that name what follows; 0 where there are none, or they deny it."""
    end = 0
    for at, token in enumerate(tokens[:_SUBJECT_WORDS]):
        word = token.text.casefold()
        if token.kind not in (WORD, RUN, NAME) or word in _DENIALS:
            break
        if word in ("is", "are", "equals") and at + 1 < len(tokens):
            end = at + 1
    following = tokens[end].text.casefold() if end else ""
    return 0 if following in _DENIALS else end


def _leads(word: str) -> bool:
    return word.casefold() in _LEADS or (not word.isascii() and word.endswith(("是", "为", "等于")))


def _whole(tokens: Sequence[Token]) -> list[Meaning]:
    """Sets with a name, and what does not exist."""
    texts = [t.text for t in tokens]
    if texts in (["empty"], ["\\{", "\\}"]):
        return [Whole("empty")]
    if len(tokens) == 4 and texts[0] in ("mathbb", "Bbb") and texts[2] in SETS:
        return [Whole(SETS[texts[2]])]
    if len(tokens) == 2 and texts[0] in ("mathbb", "Bbb") and texts[1] in SETS:
        return [Whole(SETS[texts[1]])]
    excepted = next((i for i, t in enumerate(tokens) if t.kind == WORD and t.text.casefold() == "except"), 0)
    if excepted and (in_words(tokens[:excepted]) or Words(())).words:
        return [Region("minus", (tuple(_whole(tokens[:excepted])), _as_set(tokens[excepted + 1 :])))]
    words = in_words(tokens)
    if words is None:
        raise Unread("no set with a name")
    text = " ".join(words.words)
    if text in EMPTY:
        return [Whole("empty")]
    if text in REALS:
        return [Whole("reals")]
    if text in NOT_THERE:
        return [Whole("nothing")]
    if text in NUMERALS:
        return [Expression(number(NUMERALS[text]))]
    raise Unread("no set with a name")


def _with_sign(node: Node, plus: bool) -> Node:
    parts = tuple(_with_sign(part, plus) if isinstance(part, tuple) else part for part in node)
    if node[0] in ("pm", "mp"):
        return ("+" if plus == (node[0] == "pm") else "-", *parts[1:])
    return parts


def _expressed(tokens: Sequence[Token]) -> list[Meaning]:
    if len(tokens) == 1 and tokens[0].kind == RUN and is_word(tokens[0].text):
        raise Unread("a word")
    node = parse(tokens)
    if has_pm(node):
        signs = (_with_sign(node, plus) for plus in (True, False))
        return [Items(tuple((Expression(signed),) for signed in signs), "list")]
    if node[0] == "deg":
        return [Quantity(node[1], Unit((("angle", 1),)))]
    if node[0] == "neg" and node[1][0] == "deg":
        return [Quantity(("neg", node[1][1]), Unit((("angle", 1),)))]
    return [Expression(node)]


def _as_set(tokens: Sequence[Token]) -> Readings:
    """`1, 2` or `x = 1` as a set."""
    values = [_item(part) for part in _parts(tokens)[0]]
    bare = [(Expression(v[0].sides[1]),) if isinstance(v[0], Relation) else v for v in values]
    return (Items(tuple(bare), "set"),)


def _related(tokens: Sequence[Token]) -> list[Meaning]:
    return related(tokens, _item)


def _region(tokens: Sequence[Token]) -> list[Meaning]:
    return region(tokens, _item)


def _bracketed(tokens: Sequence[Token]) -> list[Meaning]:
    return bracketed(tokens, _item, read_tokens)


Reader = Callable[[Sequence[Token]], list[Meaning]]
_READERS: tuple[Reader, ...] = (
    _whole,
    _related,
    based,
    matrix,
    _region,
    _bracketed,
    ratio,
    _expressed,
    measured,
)
_OPEN_ENDED = frozenset((_expressed,))
"""Readers behind which another one has its say: `5 m` is a product and a quantity."""
