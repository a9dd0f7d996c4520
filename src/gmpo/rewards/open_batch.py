"""A batch of gradings that is open: what is asked, what no worker holds yet, and the grades so far."""

from __future__ import annotations

import math
import pickle
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gmpo.errors import DataError
from gmpo.rewards.custom import Answer
from gmpo.rewards.process import BrokenReply
from gmpo.rewards.verdict import Grade, Verdict
from gmpo.rewards.worker import Task


@dataclass(frozen=True, slots=True)
class GradeRequest:
    """One answer to grade."""

    data_source: str
    prompt: Sequence[Mapping[str, str]] | str
    text: str
    """The decoded answer."""
    ground_truth: str
    extra_info: Mapping[str, Any]
    group: int
    """Number of its problem within one `add`: a function in TRL's signature gets all answers of a group at once."""


@dataclass(slots=True)
class OpenBatch:
    """The state of one batch."""

    units: list[Sequence[int]] = field(default_factory=list)
    """What a worker grades in one go: positions of requests, several only for TRL's signature."""
    tasks: list[Task] = field(default_factory=list)
    """[units] as they are sent."""
    pending: deque[int] = field(default_factory=deque)
    """Units that no worker holds and that have no grades."""
    grades: dict[int, Grade] = field(default_factory=dict)
    """Position of the request -> its grade."""
    asked: int = 0
    """Requests so far."""

    @property
    def complete(self) -> bool:
        """Every request has its grade."""
        return len(self.grades) == self.asked

    def add(self, requests: Sequence[GradeRequest], *, by_group: bool) -> None:
        """Ask for more; answers to one problem make one unit where functions compare them (`by_group`).

        Raises:
            DataError: a request cannot be sent to a worker; nothing was added then.
        """
        units = _by_group(requests) if by_group else [[i] for i in range(len(requests))]
        tasks = [_task([requests[i] for i in unit], unit[0]) for unit in units]
        self.pending.extend(range(len(self.units), len(self.units) + len(units)))
        self.units += [[self.asked + i for i in unit] for unit in units]
        self.tasks += tasks
        self.asked += len(requests)

    def accept(self, unit: int, reply: Mapping[str, Any]) -> None:
        """Take a worker's reply. Raises BrokenReply when it is not the grades of the unit."""
        grades = _grades(reply)
        if len(grades) != len(self.units[unit]):
            raise BrokenReply(f"the worker gave {len(grades)} grades for {len(self.units[unit])} answers")
        self.grades.update(zip(self.units[unit], grades, strict=True))

    def blame(self, unit: int, grade: Grade) -> None:
        """Give all answers of a unit the same grade."""
        self.grades.update(dict.fromkeys(self.units[unit], grade))


def _by_group(requests: Sequence[GradeRequest]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for position, request in enumerate(requests):
        groups.setdefault(request.group, []).append(position)
    return list(groups.values())


def _task(requests: Sequence[GradeRequest], position: int) -> Task:
    answers = [Answer(r.data_source, r.prompt, r.text, r.ground_truth, r.extra_info) for r in requests]
    try:
        return Task(pickle.dumps(answers))
    except Exception as error:
        raise DataError(
            f"The prompt or extra_info of answer {position} ({requests[0].data_source}) cannot be sent to a grading "
            f"worker: {error}. Keep to plain values there: numbers, strings, lists and dicts."
        ) from error


def _grades(reply: Mapping[str, Any]) -> list[Grade]:
    """The grades of a reply, checked field by field: what ran a user's code is not trusted."""
    try:
        return [
            Grade(
                Verdict(g["verdict"]), _finite(g["score"]), g["pred"], dict(g["extra"]), g["reason"], bool(g["refused"])
            )
            for g in reply["grades"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenReply(f"the worker wrote a reply without a grade: {error}") from error


def _finite(score: float) -> float:
    if not math.isfinite(score):
        raise ValueError(f"score {score}")
    return float(score)
