"""The records of a rollout: what was sampled and how it was graded. No torch: these outlive a process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gmpo.data.problems import Problem
from gmpo.rewards.verdict import Grade, Verdict

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """One sampled answer, token-in/token-out: these ids go to the learner as they are and are never re-encoded.

    Sequences are accepted and kept as read-only arrays: 9 bytes a token, where tuples of Python numbers take 68.

    Example: `Completion([7, 9, 2], [-0.1, -1.2, -0.01], "stop", (3, 3))`.
    """

    token_ids: npt.NDArray[np.int32]
    """[T] ids, the stop token included."""
    logprobs: npt.NDArray[np.float32]
    """[T] natural-log probabilities under the distribution the tokens were drawn from (temperature, top-k and top-p
    applied); without meaning where a token was not sampled."""
    finish_reason: FinishReason
    """`stop`: a stop token was drawn. `length`: the answer was cut at the limit."""
    weight_versions: tuple[int, int]
    """Training steps behind the weights that sampled its first and its last token."""
    sampled: npt.NDArray[np.bool_] | None = None
    """[T] the policy's own tokens; False where the id came from elsewhere, a tool for example. None: all of them."""

    def __post_init__(self) -> None:
        """Raises ValueError where the lengths differ."""
        for name, dtype in (("token_ids", np.int32), ("logprobs", np.float32), ("sampled", np.bool_)):
            value = getattr(self, name)
            if value is not None:
                array = np.array(value, dtype=dtype)
                array.setflags(write=False)
                object.__setattr__(self, name, array)
        others = [self.logprobs] if self.sampled is None else [self.logprobs, self.sampled]
        if any(other.shape != (len(self.token_ids),) for other in others):
            raise ValueError(f"a completion of {len(self.token_ids)} tokens has {[len(o) for o in others]} values")

    def __len__(self) -> int:
        return len(self.token_ids)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is made like any other: numpy forgets that an array is read-only when it is pickled or copied."""
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Completion):
            return NotImplemented
        return (self.finish_reason, self.weight_versions) == (other.finish_reason, other.weight_versions) and all(
            np.array_equal(a, b)
            for a, b in (
                (self.token_ids, other.token_ids),
                (self.logprobs, other.logprobs),
                (self.sampled_mask, other.sampled_mask),
            )
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def sampled_mask(self) -> npt.NDArray[np.bool_]:
        """[T] `sampled`, written out."""
        return np.ones(len(self), dtype=np.bool_) if self.sampled is None else self.sampled


def joined(pieces: Sequence[Completion | Sequence[int]]) -> Completion:
    """One answer made of what the policy said and of ids from elsewhere (a tool's output, say), in their order.

    Its versions are those of the first and the last sampled piece, and it ends as the last one does. Log-probs of ids
    from elsewhere are 0.

    Raises:
        ValueError: the policy said nothing.
    """
    said = [piece for piece in pieces if isinstance(piece, Completion)]
    if not said:
        raise ValueError("an answer needs at least one completion of the policy")
    sampled = [p.sampled_mask if isinstance(p, Completion) else np.zeros(len(p), np.bool_) for p in pieces]
    return Completion(
        np.concatenate([p.token_ids if isinstance(p, Completion) else np.asarray(p, np.int32) for p in pieces]),
        np.concatenate([p.logprobs if isinstance(p, Completion) else np.zeros(len(p), np.float32) for p in pieces]),
        said[-1].finish_reason,
        (said[0].weight_versions[0], said[-1].weight_versions[1]),
        np.concatenate(sampled),
    )


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


def number_of(graded: Graded, name: str) -> float | None:
    """A number of an answer by its name; None where there is none: `score` (the scorer's), `seq_reward` (after
    shaping), a part of its reward, `acc` (right or wrong), or any number that the reward function returned."""
    grade = graded.grade
    known = {**graded.parts, "score": grade.score, "seq_reward": graded.reward, "seq_final_reward": graded.reward}
    right = float(grade.verdict == Verdict.CORRECT)
    value = known.get(name, grade.extra.get(name, right if name == "acc" else None))
    return float(value) if isinstance(value, bool | int | float) else None


def numbers_of(graded: Graded) -> list[str]:
    """The names of which `number_of` gives a number."""
    returned = [name for name, value in graded.grade.extra.items() if isinstance(value, bool | int | float)]
    return list(dict.fromkeys(["acc", "score", "seq_reward", *graded.parts, *returned]))


@dataclass(frozen=True, slots=True)
class Group:
    """The n answers to one problem."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    """[P] ids of the templated prompt, as sampled from."""
    graded: tuple[Graded, ...]
    baseline: Graded | None = None
    """The greedy answer, where the advantage estimator compares with it. Never trained on."""


TOKEN_ARRAYS: Mapping[str, npt.DTypeLike] = {"token_ids": np.int32, "logprobs": np.float32, "sampled": np.bool_}
"""What a completion has for every token, with its type on disk."""


def group_records(groups: Sequence[Group]) -> tuple[list[dict[str, Any]], dict[str, npt.NDArray[Any]]]:
    """The groups as JSON values, problems by their ids alone, and their tokens as arrays.

    Returns:
        One record a group, and `TOKEN_ARRAYS` of all its answers one after the other, each group's greedy answer last.
        No arrays without groups. Floats survive JSON bit for bit.
    """
    records = [
        {
            "problem": group.problem.id,
            "graded": [_record(graded) for graded in group.graded],
            "baseline": None if group.baseline is None else _record(group.baseline),
        }
        for group in groups
    ]
    found = [graded.completion for group in groups for graded in _answers(group)]
    if not found:
        return records, {}
    arrays = {
        "token_ids": np.concatenate([completion.token_ids for completion in found]),
        "logprobs": np.concatenate([completion.logprobs for completion in found]),
        "sampled": np.concatenate([completion.sampled_mask for completion in found]),
    }
    return records, arrays


def groups_from_records(
    records: Sequence[Mapping[str, Any]],
    arrays: Mapping[str, npt.NDArray[Any]],
    problem: Callable[[str], tuple[Problem, tuple[int, ...]]],
) -> list[Group]:
    """The inverse of `group_records`.

    Args:
        problem: id -> the problem and its prompt's ids.

    Raises:
        KeyError, TypeError or ValueError for anything that `group_records` did not return.
    """
    start = 0

    def graded(record: Mapping[str, Any]) -> Graded:
        nonlocal start
        span = slice(start, start + int(record["tokens"]))
        start = span.stop
        first, last = record["weight_versions"]
        ids, logprobs, sampled = (arrays[name][span] for name in TOKEN_ARRAYS)
        completion = Completion(
            ids, logprobs, record["finish_reason"], (int(first), int(last)), None if sampled.all() else sampled
        )
        grade = Grade(**{**record["grade"], "verdict": Verdict(record["grade"]["verdict"])})
        return Graded(completion, record["text"], grade, record["reward"], record["parts"])

    groups = []
    for record in records:
        found, prompt_ids = problem(record["problem"])
        answers = tuple(graded(answer) for answer in record["graded"])
        baseline = None if record["baseline"] is None else graded(record["baseline"])
        groups.append(Group(found, prompt_ids, answers, baseline))
    if any(start != len(array) for array in arrays.values()):
        raise ValueError(f"{start} tokens are named, and there are {[len(array) for array in arrays.values()]}")
    return groups


def _answers(group: Group) -> list[Graded]:
    return [*group.graded, *([] if group.baseline is None else [group.baseline])]


def _record(graded: Graded) -> dict[str, Any]:
    completion = graded.completion
    return {
        "tokens": len(completion),
        "finish_reason": completion.finish_reason,
        "weight_versions": list(completion.weight_versions),
        "text": graded.text,
        "grade": asdict(graded.grade),
        "reward": graded.reward,
        "parts": dict(graded.parts),
    }
