"""The reward of an answer: the main score, weighted further scores, and a penalty for length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from gmpo.rewards.failures import check_failed_share
from gmpo.rewards.grader import Grader, GradeRequest
from gmpo.rewards.printed import PrintedLog
from gmpo.rewards.shaping import OverlongPenalty
from gmpo.rewards.verdict import Grade

MAIN, OVERLONG = "main", "overlong_penalty"
"""Names of parts of a reward."""


@dataclass(frozen=True, slots=True)
class Component:
    """One of several rewards."""

    name: str
    weight: float
    grader: Grader


@dataclass(frozen=True, slots=True)
class Reward:
    """The reward of one answer."""

    grade: Grade
    """By the main reward: its verdict says whether the answer is right, its score is before shaping."""
    total: float
    parts: Mapping[str, float] = field(default_factory=dict)
    """Name -> score before weighting, where a reward has several parts; empty where the score is the reward."""


class Rewards:
    """Grades answers by all rewards of a run.

    Args:
        main: its verdict decides what is right; the other rewards are only added.
        max_failed_share: share of the gradings of any reward that may end without a judgement.
    """

    def __init__(
        self,
        main: Component,
        extra: Sequence[Component] = (),
        *,
        penalty: OverlongPenalty | None = None,
        max_failed_share: float,
    ) -> None:
        self.main = main
        self.extra = tuple(extra)
        self.penalty = penalty
        self.max_failed_share = max_failed_share
        self._open = ExitStack()

    def __enter__(self) -> Self:
        for component in (self.main, *self.extra):
            self._open.enter_context(component.grader)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def start(self, data_sources: Sequence[str], log: PrintedLog | None = None) -> None:
        """Start all workers, so that a wrong setting is known before anything is sampled. Raises as `Grader.start`.

        Args:
            log: what they print to; None for standard error.
        """
        for component in (self.main, *self.extra):
            component.grader.log = log
            component.grader.start(data_sources)

    def begin(self) -> Judging:
        """Gradings that go on in the workers while the caller samples."""
        return Judging(self)

    def reward(self, grades: Mapping[str, Grade], length: int) -> Reward:
        """The reward of an answer of `length` tokens. `grades`: by name of the component."""
        main = grades[self.main.name]
        total = sum(c.weight * grades[c.name].score for c in (self.main, *self.extra))
        if not self.extra and self.penalty is None:
            return Reward(main, total)
        parts = {name: grade.score for name, grade in grades.items()}
        if self.penalty is not None:
            parts[OVERLONG] = self.penalty(length)
            total += parts[OVERLONG]
        return Reward(main, total, parts)


class Judging:
    """Answers being graded by all rewards: `add` returns at once, `finish` waits. Several may be open; one that is
    left as a context manager without `finish` is given up."""

    def __init__(self, rewards: Rewards) -> None:
        self._rewards = rewards
        self._gradings = [(component, component.grader.begin()) for component in (rewards.main, *rewards.extra)]
        self._texts: list[str] = []
        self._lengths: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def graded(self) -> int:
        """Answers that have all their grades."""
        return min(grading.graded for _, grading in self._gradings)

    def close(self) -> None:
        """Give up what is not graded yet."""
        for _, grading in self._gradings:
            grading.close()

    def add(self, requests: Sequence[GradeRequest], lengths: Sequence[int]) -> None:
        """Hand over answers.

        Args:
            lengths: tokens of the answers.
        """
        self._texts += [request.text for request in requests]
        self._lengths += lengths
        for _, grading in self._gradings:
            grading.add(requests)

    def finish(self) -> list[Reward]:
        """The rewards of all answers, in the order in which they were handed over.

        Raises:
            BackendError: too many gradings of one reward ended without a judgement.
        """
        graded: dict[str, list[Grade]] = {}
        for component, grading in self._gradings:
            graded[component.name] = grading.finish()
            check_failed_share(graded[component.name], self._rewards.max_failed_share, self._texts)
        return [
            self._rewards.reward({name: grades[i] for name, grades in graded.items()}, length)
            for i, length in enumerate(self._lengths)
        ]
