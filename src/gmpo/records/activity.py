"""What a run is doing at this moment: counters that samplers and programs move, and that a console reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Activity:
    """One thread moves the counters, others may read them at any time."""

    phase: str = ""
    """`sampling`, `validation`, `grading`, or a phase of the step as in `timing_s/<phase>`; empty between steps."""
    answers: int = 0
    """Finished ones of the phase of sampling."""
    asked: int = 0
    """Answers that the phase of sampling will have, as far as is known."""
    tokens: int = 0
    """Sampled in the phase of sampling, those of unfinished answers included."""
    graded: Callable[[], int] | None = None
    """Of the answers of the phase of sampling, how many are graded."""

    def begin(self, phase: str, graded: Callable[[], int] | None = None) -> None:
        """A phase of sampling begins."""
        self.phase, self.answers, self.asked, self.tokens, self.graded = phase, 0, 0, 0, graded

    def ask(self, answers: int) -> None:
        self.asked += answers

    def answered(self, answers: int) -> None:
        self.answers += answers

    def drew(self, tokens: int) -> None:
        self.tokens += tokens

    def __str__(self) -> str:
        if self.phase not in ("sampling", "validation", "grading"):
            return self.phase
        graded = f", {self.graded()} graded" if self.graded is not None else ""
        return f"{self.phase}: {self.answers} of {self.asked} answers sampled{graded}, {self.tokens} tokens"
