"""What a parser of expressions stands on: brackets that match, parts between signs, and a place in the tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from gmpo.rewards.reading.limits import MAX_DEPTH, MAX_OPERATORS, TooLarge, Unread
from gmpo.rewards.reading.tokens import CLOSE, COMMAND, OPEN, SIGN, Token

Node = tuple[Any, ...]
PAIRS = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "<": ">"}
END = Token("end", "")
_VOWELS = frozenset("aeiouAEIOU")
_SHORT_WORDS = frozenset(
    [
        "no",
        "on",
        "is",
        "it",
        "in",
        "if",
        "so",
        "do",
        "go",
        "he",
        "me",
        "we",
        "us",
        "at",
        "as",
        "am",
        "an",
        "by",
        "be",
        "my",
        "of",
        "or",
        "to",
        "up",
        "ox",
        "hi",
        "ok",
    ]
)


def number(value: int | Fraction) -> Node:
    """An exact number."""
    return ("num", Fraction(value), -1)


def is_word(letters: str) -> bool:
    """Whether letters that are a whole answer are a word: `no` is, `xy` is not."""
    if len(letters) == 2:
        return letters.casefold() in _SHORT_WORDS
    return bool(_VOWELS & set(letters)) and not set(letters) <= set("abcd")


def is_product(letters: str) -> bool:
    """Whether letters that stand together may be a product of variables and not a word."""
    return len(letters) <= 3 or not _VOWELS & set(letters) or set(letters) <= set("abcd")


def matching(tokens: Sequence[Token], start: int) -> int:
    """Where the bracket that opens at `start` closes. Any two round or square ones match, as in `[1,2)`.

    Raises: Unread.
    """
    stack: list[str] = []
    for at in range(start, len(tokens)):
        token = tokens[at]
        if token.kind == OPEN:
            stack.append(token.text)
            if len(stack) > MAX_DEPTH:
                raise TooLarge(f"brackets {MAX_DEPTH} deep")
        elif token.kind == CLOSE:
            if not stack:
                raise Unread("a bracket closes that did not open")
            opened = stack.pop()
            half_open = opened in "([" and token.text in ")]"
            if not half_open and PAIRS[opened] != token.text:
                raise Unread("the brackets do not match")
            if not stack:
                return at
    raise Unread("a bracket is not closed")


def split(tokens: Sequence[Token], *signs: str) -> list[Sequence[Token]]:
    """The parts between signs that stand outside all brackets."""
    parts: list[Sequence[Token]] = []
    start = depth = 0
    for at, token in enumerate(tokens):
        if token.kind == OPEN:
            depth += 1
        elif token.kind == CLOSE:
            depth -= 1
        elif depth == 0 and token.kind == SIGN and token.text in signs:
            parts.append(tokens[start:at])
            start = at + 1
    parts.append(tokens[start:])
    return parts


def at_top(tokens: Sequence[Token], position: int) -> bool:
    depth = 0
    for token in tokens[:position]:
        depth += (token.kind == OPEN) - (token.kind == CLOSE)
    return depth == 0


class Cursor(ABC):
    """Where a parser is in its tokens; `token` is the next one."""

    def __init__(self, tokens: Sequence[Token], depth: int = 0) -> None:
        if depth > MAX_DEPTH:
            raise TooLarge(f"expressions {MAX_DEPTH} deep")
        self.tokens = list(tokens)
        self.at = 0
        self.depth = depth
        self.inside = depth > 0
        self.in_bars = 0
        self.operators = 0

    @property
    def token(self) -> Token:
        """The next token."""
        return self.tokens[self.at] if self.at < len(self.tokens) else END

    def sign(self, *texts: str) -> bool:
        """Whether the next token is one of these signs."""
        token = self.token
        return token.kind == SIGN and token.text in texts

    def command(self, *names: str) -> bool:
        """Whether the next token is one of these commands."""
        token = self.token
        return token.kind == COMMAND and token.text in names

    def group(self) -> Sequence[Token]:
        """What the bracket that opens here holds; goes behind it."""
        end = matching(self.tokens, self.at)
        inside = self.tokens[self.at + 1 : end]
        self.at = end + 1
        return inside

    def count(self) -> None:
        """Count an operator. Raises TooLarge."""
        self.operators += 1
        if self.operators > MAX_OPERATORS:
            raise TooLarge(f"more than {MAX_OPERATORS} operators")

    @abstractmethod
    def sum(self) -> Node:
        """Terms with + and - between them."""

    @abstractmethod
    def product(self) -> Node:
        """Factors with *, / or nothing between them."""

    @abstractmethod
    def factor(self) -> Node:
        """A power with what is written behind it."""

    @abstractmethod
    def atom(self) -> Node:
        """A number, a name, a bracket, a function."""

    @abstractmethod
    def bracket(self) -> Node:
        """An expression in brackets."""

    @abstractmethod
    def starts_factor(self) -> bool:
        """Whether the next token can begin a factor."""

    @abstractmethod
    def next_to(self, left: Node) -> Node:
        """A factor without a sign before it."""

    @abstractmethod
    def inner(self, tokens: Sequence[Token]) -> Node:
        """The expression of a group."""


def outside_brackets(tokens: Sequence[Token]) -> list[Token]:
    found, depth = [], 0
    for token in tokens:
        if token.kind == OPEN:
            depth += 1
        elif token.kind == CLOSE:
            depth -= 1
        elif depth == 0:
            found.append(token)
    return found
