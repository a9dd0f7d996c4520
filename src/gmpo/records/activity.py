"""What a run is doing at this moment: counters that samplers and programs move, and that a console reads."""

from __future__ import annotations

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

    def begin(self, phase: str) -> None:
        """A phase of sampling begins."""
        self.phase, self.answers, self.asked, self.tokens = phase, 0, 0, 0

    def ask(self, answers: int) -> None:
        self.asked += answers

    def answered(self, answers: int) -> None:
        self.answers += answers

    def drew(self, tokens: int) -> None:
        self.tokens += tokens

    def __str__(self) -> str:
        if self.phase not in ("sampling", "validation", "grading"):
            return self.phase
        return f"{self.phase}: {self.answers} of {self.asked} answers, {self.tokens} tokens"
