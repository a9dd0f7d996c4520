"""How large an answer may be, and what it may cost to compute. What is beyond is refused, not tried."""

from __future__ import annotations

MAX_CHARS = 2_000
"""Of a reference."""
MAX_ANSWER_CHARS, MAX_ANSWER_SHARE = 300, 4
"""An answer may be longer than so many characters only if it is at most so many times as long as its reference."""
MAX_TOKENS = 1_200
MAX_DEPTH = 40
"""Brackets inside brackets, or functions of functions."""
MAX_OPERATORS = 250
"""Of one expression between brackets."""
MAX_ITEMS = 200
"""Of a list, a set or a matrix."""
MAX_BITS = 40_000
"""Of an exact number: 12,000 digits."""
MAX_MAGNITUDE = 400_000
"""Of an approximate number: its binary exponent."""
MAX_STEPS = 1_500
"""Operations of one comparison."""
MAX_TERMS = 200
"""Of a sum or a product."""


class Unread(Exception):
    """The text is no answer that can be read whole."""


class TooLarge(Exception):
    """The answer may mean something, but reading or computing it would cost more than an answer may."""


class Steps:
    """Counts operations down."""

    __slots__ = ("left",)

    def __init__(self, left: int = MAX_STEPS) -> None:
        self.left = left

    def take(self, count: int = 1) -> None:
        """Raise TooLarge when the operations are used up."""
        self.left -= count
        if self.left < 0:
            raise TooLarge(f"more than {MAX_STEPS} operations")
