"""The result of grading one answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """The five outcomes of grading. The last two mean that there is no judgement; they never count as wrong answers."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSED = "unparsed"
    TIMEOUT = "timeout"
    GRADER_ERROR = "grader_error"


@dataclass(frozen=True, slots=True)
class Grade:
    """One graded answer.

    Example: `Grade(Verdict.CORRECT, 1.0, pred="42")`.
    """

    verdict: Verdict
    score: float
    """The scorer's number, before any shaping. 0.0 when there is no judgement."""
    pred: str | None = None
    """The answer extracted from the response, for majority votes; None when none was found."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Everything else the scorer returned; numbers in it become validation metrics. JSON values only."""
    reason: str | None = None
    """Why there is no judgement (timeout, grader_error): the message of the error. None otherwise."""
    refused: bool = False
    """A timeout that blames the answer: the scorer refused to compute it. It is no failure of the grader."""
