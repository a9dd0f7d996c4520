"""Reward shaping: what is added to the score of an answer before the policy learns from it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OverlongPenalty:
    """DAPO's soft punishment of long answers.

    Example: `OverlongPenalty(max_length=8192, buffer=4096, factor=1.0)` subtracts nothing at 4096 tokens, 0.5 at
    6144 and 1 at 8192.
    """

    max_length: int
    """Tokens at which the penalty is `factor`."""
    buffer: int
    """Tokens before `max_length` over which it grows."""
    factor: float

    def __call__(self, length: int) -> float:
        """What is added to the score of an answer of `length` tokens: 0 or less.

        `min(-(length - (max_length - buffer)) / buffer * factor, 0)`. Source: arXiv 2503.14476 eq. 13, as in verl: it
        keeps growing beyond `max_length`.
        """
        exceed = length - (self.max_length - self.buffer)
        return min(-exceed / self.buffer * self.factor, 0.0)
