"""Problems -> graded groups: sampling and grading, for training and validation alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gmpo.data.prompts import EncodedProblem
from gmpo.ports import Sampler, SampleRequest, SamplingParams
from gmpo.rewards.combined import Rewards
from gmpo.rewards.grader import GradeRequest
from gmpo.rollout import Completion, Graded, Group

TRAINING, VALIDATION = 0, 1
"""Namespaces of random streams."""


def stream_key(namespace: int, step: int, position: int) -> int:
    """A number unique to the `position`-th problem of a phase: its answers' random streams derive from it.

    Validation passes step 0, so that every validation draws the same random numbers and differs only by the policy.
    """
    return (namespace << 96) | (step << 48) | position


@dataclass(frozen=True, slots=True)
class Sampled:
    """The answers to one problem before grading."""

    problem: EncodedProblem
    completions: Sequence[Completion]
    greedy: Completion | None = None
    """The greedy answer, where it was asked for."""


class Collector:
    """Samples answers with `sampler` and grades them with `rewards`.

    Args:
        decode: token ids of several answers -> their texts, special tokens left out.
    """

    def __init__(
        self,
        sampler: Sampler,
        rewards: Rewards,
        *,
        decode: Callable[[list[list[int]]], list[str]],
    ) -> None:
        self.sampler = sampler
        self.rewards = rewards
        self.decode = decode

    def sample(
        self,
        problems: Sequence[EncodedProblem],
        params: SamplingParams,
        *,
        namespace: int,
        step: int,
        first: int = 0,
        greedy_baseline: bool = False,
    ) -> list[Sampled]:
        """`params.n` answers to each problem.

        Args:
            namespace, step: name the random streams of the phase.
            first: position of `problems[0]` within the phase.
            greedy_baseline: also draw the greedy answer to each problem.
        """
        requests = [SampleRequest(p.prompt_ids, stream_key(namespace, step, first + i)) for i, p in enumerate(problems)]
        answers = self.sampler.generate(requests, params)
        if not greedy_baseline:
            return [Sampled(problem, completions) for problem, completions in zip(problems, answers, strict=True)]
        greedy = self.sampler.generate(requests, replace(params, n=1, temperature=0.0))
        return [Sampled(p, c, g) for p, c, (g,) in zip(problems, answers, greedy, strict=True)]

    def grade(self, sampled: Sequence[Sampled]) -> list[Group]:
        """Decode and grade every answer.

        Raises:
            BackendError: too many gradings ended without a judgement.
        """
        flat = [(index, s.problem.problem, c) for index, s in enumerate(sampled) for c in s.completions]
        # A greedy answer is a group of its own: reward functions that compare answers must not see it among the others.
        flat += [(len(sampled) + i, s.problem.problem, s.greedy) for i, s in enumerate(sampled) if s.greedy is not None]
        texts = self.decode([list(completion.token_ids) for _, _, completion in flat])
        requests = [
            GradeRequest(
                data_source=problem.data_source,
                prompt=problem.prompt,
                text=text,
                ground_truth=problem.ground_truth,
                extra_info=problem.extra,
                group=index,
            )
            for (index, problem, _), text in zip(flat, texts, strict=True)
        ]
        rewards = self.rewards.grade(requests, [len(completion.token_ids) for _, _, completion in flat])
        graded: dict[int, list[Graded]] = {}
        for (index, _, completion), text, reward in zip(flat, texts, rewards, strict=True):
            graded.setdefault(index, []).append(Graded(completion, text, reward.grade, reward.total, reward.parts))
        return [
            Group(
                s.problem.problem,
                s.problem.prompt_ids,
                tuple(graded[index]),
                baseline=graded[len(sampled) + index][0] if s.greedy is not None else None,
            )
            for index, s in enumerate(sampled)
        ]
