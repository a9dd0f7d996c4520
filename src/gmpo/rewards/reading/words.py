"""Answers in words, and words that stand for sets and numbers."""

from __future__ import annotations

from collections.abc import Sequence

from gmpo.rewards.reading.cursor import is_word
from gmpo.rewards.reading.meanings import Words
from gmpo.rewards.reading.tokens import CLOSE, COMMAND, NAME, NUMBER, OPEN, RUN, SIGN, WORD, Token

_ARTICLES = frozenset(("the", "a", "an"))
EMPTY = frozenset(("no solution", "no solutions", "empty set", "empty", "there is no solution", "no real solutions"))
EMPTY |= {"no real solution", "no such number", "no such numbers", "there are no solutions", "无解"}
REALS = frozenset(("all real numbers", "all reals", "all real values", "real numbers", "any real number", "reals"))
REALS |= {"all real x", "all real", "set of all real numbers", "全体实数", "任意实数", "all real numbers x"}
NOT_THERE = frozenset(
    ("dne", "does not exist", "doesn't exist", "undefined", "not defined", "不存在", "limit does not exist")
)
NUMERALS = {
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


_OF_NUMBERS = ("-", "%", "!", "dollar")
"""Signs that belong to a number and are no punctuation beside one."""


def _may_be_word(token: Token) -> bool:
    """Whether a token is more than letters that stand for numbers."""
    if not token.text.isascii():
        return True
    return (token.kind == WORD and len(token.text) > 1) or (token.kind == RUN and is_word(token.text))


def in_words(tokens: Sequence[Token]) -> Words | None:
    """The answer as a text, if it has a word of two letters and no operators."""
    letters = [t for t in tokens if t.kind in (WORD, RUN, NAME)]
    long = [t for t in letters if _may_be_word(t)]
    if tokens and tokens[0].kind == SIGN and tokens[0].text == "-":
        return None
    if not long or any(t.kind in (COMMAND, OPEN, CLOSE) for t in tokens if t.text not in ("(", ")", "{", "}")):
        return None
    if any(t.kind == NUMBER for t in tokens) and any(t.kind == SIGN and t.text in _OF_NUMBERS for t in tokens):
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
