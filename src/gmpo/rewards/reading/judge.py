r"""Whether an answer equals a reference: choices of a letter, answers in words, and what `equality` compares."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from gmpo.rewards import answers
from gmpo.rewards.reading.cursor import number
from gmpo.rewards.reading.equality import equal, meaningful
from gmpo.rewards.reading.limits import MAX_ANSWER_CHARS, MAX_ANSWER_SHARE, TooLarge, Unread
from gmpo.rewards.reading.meanings import Expression, Items, Readings, Words
from gmpo.rewards.reading.tokens import CLOSE, NAME, NUMBER, OPEN, RUN, SIGN, WORD, Token, tokenize
from gmpo.rewards.reading.values import read_tokens


class Judgement(Enum):
    """What becomes of one comparison."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNREAD = "unread"
    """The answer cannot be read as a whole."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference answer, read once."""

    text: str
    tokens: tuple[Token, ...]
    readings: Readings
    letters: frozenset[str]
    """The options it chooses; empty where it is no choice."""

    @property
    def can_be_met(self) -> bool:
        """Whether any answer can equal it."""
        bare = _MACRO.sub(r"\1", self.text).strip()
        return bool(bare) and bare.casefold() not in _SENTINELS


_SENTINELS = frozenset(("none", "null", "nan", "n/a", "[invalidanswer]", "[]", '""', "''", "undefined answer", "error"))
"""What data sets write where there is no reference."""
_MACRO = re.compile(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}")
_OPTIONS = frozenset("ABCDEFGHIJ")
_LEADS = frozenset(("option", "options", "choice", "choices", "answer", "the", "is", "correct", "select"))
_REASONS = frozenset(("because", "since", "as", "so", "due", "for", "it", "they"))
_MARKUP = re.compile(r"\s+|\$|\\[,;:! ]|\\(?:left|right|displaystyle)(?![A-Za-z])")


def reference_text(ground_truth: str) -> str:
    r"""The answer that a reference holds: of a JSON list its values, of a solution what its box or `####` holds."""
    text = ground_truth.strip()
    if text.startswith("[") and text.endswith("]"):
        try:
            values = json.loads(text)
        except ValueError:
            values = None
        quoted = isinstance(values, list) and values and all(isinstance(value, str) for value in values)
        if quoted or (isinstance(values, list) and len(values) == 1):
            return ", ".join(str(value).strip() for value in values)
    if "\\boxed" in text or "\\fbox" in text:
        boxed = answers.all_boxed(text)
        if boxed is not None:
            return boxed
    if "####" in text:
        return text.rpartition("####")[2].strip()
    return text


@lru_cache(maxsize=4096)
def reference(ground_truth: str) -> Reference:
    """A reference with its readings; without any where it cannot be read as a whole. Raises TooLarge."""
    text = reference_text(ground_truth)
    try:
        tokens = tuple(tokenize(text))
    except Unread:
        return Reference(text, (), (), frozenset())
    try:
        readings = read_tokens(tokens)
    except Unread:
        readings = ()
    letters = _chosen(tokens)
    return Reference(text, tokens, readings, letters if letters is not None else frozenset())


def judge(ground_truth: str, answer: str) -> Judgement:
    """Compare an answer with a reference.

    Raises TooLarge when reading or comparing the answer would cost more than an answer may.
    """
    try:
        return _judge(ground_truth, answer)
    except RecursionError:
        raise TooLarge("too deep an expression") from None


def _judge(ground_truth: str, answer: str) -> Judgement:
    try:
        gold = reference(ground_truth)
    except TooLarge:
        same = _MARKUP.sub("", reference_text(ground_truth)) == _MARKUP.sub("", answer)
        return Judgement.EQUAL if same else Judgement.DIFFERENT
    if not gold.can_be_met:
        return Judgement.DIFFERENT
    if len(answer) > max(MAX_ANSWER_CHARS, MAX_ANSWER_SHARE * len(gold.text)):
        raise TooLarge(f"longer than {MAX_ANSWER_CHARS} characters and {MAX_ANSWER_SHARE} times its reference")
    if (
        _MARKUP.sub("", gold.text) == _MARKUP.sub("", answer)
        and answer.strip()
        and not _spaced_digits(gold.text, answer)
    ):
        return Judgement.EQUAL
    try:
        tokens = tokenize(answer)
    except Unread:
        return Judgement.UNREAD
    if gold.tokens and _signature(tokens) == _signature(gold.tokens):
        return Judgement.EQUAL
    if gold.letters and _same_choice(gold, tokens):
        return Judgement.EQUAL
    try:
        readings = read_tokens(tokens)
    except Unread:
        return Judgement.EQUAL if _reasoned(gold, tokens) else Judgement.UNREAD
    if gold.readings and _equal(ground_truth, gold, readings):
        return Judgement.EQUAL
    if _reasoned(gold, tokens):
        return Judgement.EQUAL
    return Judgement.DIFFERENT if meaningful(readings) else Judgement.UNREAD


def _equal(ground_truth: str, gold: Reference, readings: Readings) -> bool:
    """Whether the readings are equal. An answer is not blamed for a reference that is too large to compute."""
    try:
        return equal(gold.readings, readings)
    except TooLarge:
        if _computable(ground_truth):
            raise
        return False


@lru_cache(maxsize=4096)
def _computable(ground_truth: str) -> bool:
    """Whether a reference can be compared with a small number."""
    try:
        equal(reference(ground_truth).readings, (Expression(number(0)),))
    except TooLarge:
        return False
    return True


def readable(answer: str) -> bool:
    """Whether an answer can be read as a whole and is more than words."""
    try:
        return not _only_words(read_tokens(tokenize(answer)))
    except Unread:
        return False
    except RecursionError:
        raise TooLarge("too deep an expression") from None


def _only_words(readings: Readings) -> bool:
    return all(
        isinstance(r, Words) or (isinstance(r, Items) and any(_only_words(item) for item in r.items)) for r in readings
    )


def _spaced_digits(gold: str, answer: str) -> bool:
    """Whether dropping blanks joined digits: `1 2` is not `12`."""
    return bool(re.search(r"[0-9]\s+[0-9]", gold) or re.search(r"[0-9]\s+[0-9]", answer))


def _signature(tokens: Sequence[Token]) -> list[tuple[str, object]]:
    """What the tokens are, without braces around single signs."""
    result: list[tuple[str, object]] = []
    for at, token in enumerate(tokens):
        lone = (token.kind == OPEN and token.text == "{" and at + 2 < len(tokens) and tokens[at + 2].text == "}") or (
            token.kind == CLOSE and token.text == "}" and at >= 2 and tokens[at - 2].text == "{"
        )
        if lone or (token.kind == SIGN and token.text == "." and at == len(tokens) - 1):
            continue
        kind = WORD if token.kind in (WORD, RUN) else token.kind
        result.append((kind, token.value if token.kind == NUMBER else token.text))
    return result


# A choice of options


def _chosen(tokens: Sequence[Token]) -> frozenset[str] | None:
    """The options that an answer chooses: `B`, `(B)`, `B. 12`, `Option B`, `A, C`, `AC`; None where it is no choice."""
    at = 0
    while at < len(tokens) and tokens[at].kind in (WORD, RUN) and tokens[at].text.casefold() in _LEADS:
        at += 1
    while at < len(tokens) and tokens[at].kind == SIGN and tokens[at].text == ":":
        at += 1
    rest = [t for t in tokens[at:] if t.text not in ("{", "}")]
    if len(rest) == 1 and rest[0].kind in (RUN, WORD) and 2 <= len(rest[0].text) <= 6:
        letters = rest[0].text
        return frozenset(letters) if set(letters) <= _OPTIONS and "".join(sorted(set(letters))) == letters else None
    chosen: set[str] = set()
    position = 0
    while position < len(rest):
        bracket = rest[position].kind == OPEN and rest[position].text in ("(", "[", "{")
        position += bracket
        if position >= len(rest) or rest[position].kind not in (NAME, WORD) or rest[position].text not in _OPTIONS:
            return None
        chosen.add(rest[position].text)
        position += 1
        closed = position < len(rest) and rest[position].kind == CLOSE
        if bracket and not closed:
            return None
        position += closed
        if position == len(rest):
            return frozenset(chosen)
        sign = rest[position]
        if closed or (sign.kind == SIGN and sign.text in (".", ":")):
            following = rest[position + (sign.kind == SIGN and sign.text in (".", ":")) :]
            joined = following and following[0].kind in (SIGN, WORD, RUN) and following[0].text in (",", "and", "or")
            if not joined:
                # What follows is the content of the option.
                doubts = {t.text.casefold() for t in following if t.kind in (WORD, RUN, SIGN)} & {"or", "not", "+", "="}
                if len(chosen) > 1 or doubts & {"or", "not"} or (doubts and not bracket and following[0].kind == SIGN):
                    return None
                return frozenset(chosen)
        if sign.kind in (SIGN, WORD, RUN) and sign.text in (",", "and", "&", ";"):
            position += 1
            if position < len(rest) and rest[position].text == "and":
                position += 1
            continue
        return None
    return None


def _same_choice(gold: Reference, tokens: Sequence[Token]) -> bool:
    return _chosen(tokens) == gold.letters


# Answers in words


def _reasoned(gold: Reference, tokens: Sequence[Token]) -> bool:
    """`Yes, because 2 + 2 = 4` says yes: the words of the reference, and behind them a reason."""
    words = next((reading.words for reading in gold.readings if isinstance(reading, Words)), None)
    if words is None or (len(gold.readings) != 1 and not all(isinstance(r, Words) for r in gold.readings[1:])):
        return False
    at = 0
    for word in words:
        while at < len(tokens) and tokens[at].text.casefold() in ("the", "a", "an"):
            at += 1
        if at >= len(tokens) or tokens[at].text.casefold().strip(".'") != word:
            return False
        at += 1
    separated = at < len(tokens) and tokens[at].kind == SIGN and tokens[at].text in (",", ".", ":", ";")
    at += separated
    return at < len(tokens) and tokens[at].kind in (WORD, RUN) and tokens[at].text.casefold() in _REASONS
