"""The records of a rollout: what was sampled and how it was graded. No torch: these outlive a process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from gmpo.data.problems import Problem
from gmpo.rewards.verdict import Grade, Verdict


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer, token-in/token-out: these ids go to the learner as they are and are never re-encoded.

    Example: `Completion((7, 9, 2), (-0.1, -1.2, -0.01), "stop", weight_version=3)`.
    """

    token_ids: tuple[int, ...]
    """[T] sampled ids, the stop token included."""
    logprobs: tuple[float, ...]
    """[T] natural-log probabilities under the distribution the tokens were drawn from (temperature, top-k and top-p
    applied)."""
    finish_reason: Literal["stop", "length"]
    """`stop`: a stop token was drawn. `length`: the answer was cut at the limit."""
    weight_version: int
    """Number of training steps behind the weights that sampled it."""


@dataclass(frozen=True, slots=True)
class Graded:
    """A completion with its text, its grade and the reward the learner sees."""

    completion: Completion
    text: str
    """Decoded once, for grading and for people."""
    grade: Grade
    reward: float
    """What the policy learns from: the grade's score after weighting and shaping."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Parts of the reward by name, before their weights; empty where the score is the reward."""


@dataclass(frozen=True, slots=True)
class Group:
    """The n answers to one problem."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    """[P] ids of the templated prompt, as sampled from."""
    graded: tuple[Graded, ...]
    baseline: Graded | None = None
    """The greedy answer, where the advantage estimator compares with it. Never trained on."""


def group_record(group: Group) -> dict[str, Any]:
    """The group as JSON values, the problem by its id alone. Floats survive JSON bit for bit."""
    return {
        "problem": group.problem.id,
        "graded": [asdict(graded) for graded in group.graded],
        "baseline": None if group.baseline is None else asdict(group.baseline),
    }


def group_from_record(record: Mapping[str, Any], problem: Problem, prompt_ids: tuple[int, ...]) -> Group:
    """The inverse of `group_record`. Raises KeyError, TypeError or ValueError for anything else."""
    baseline = record["baseline"]
    return Group(
        problem,
        prompt_ids,
        tuple(_graded(graded) for graded in record["graded"]),
        baseline=None if baseline is None else _graded(baseline),
    )


def _graded(record: Mapping[str, Any]) -> Graded:
    completion, grade = record["completion"], record["grade"]
    return Graded(
        Completion(
            tuple(completion["token_ids"]),
            tuple(completion["logprobs"]),
            completion["finish_reason"],
            completion["weight_version"],
        ),
        record["text"],
        Grade(**{**grade, "verdict": Verdict(grade["verdict"])}),
        record["reward"],
        record["parts"],
    )
