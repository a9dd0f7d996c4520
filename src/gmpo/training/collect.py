"""Problems -> graded groups: sampling and grading, for training and validation alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gmpo.data.prompts import EncodedProblem
from gmpo.ports import Sampler, SampleRequest, SamplingParams
from gmpo.records.rollout import Completion, Graded, Group
from gmpo.rewards.combined import Rewards
from gmpo.rewards.grader import GradeRequest

TRAINING, VALIDATION = 0, 1
"""Namespaces of random streams."""


def stream_key(namespace: int, step: int, position: int) -> int:
    """A number unique to the `position`-th problem of a phase: its answers' random streams derive from it.

    Validation passes step 0, so that every validation draws the same random numbers and differs only by the policy.
    """
    return (namespace << 96) | (step << 48) | position


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

    def begin(self, params: SamplingParams, *, namespace: int, step: int, greedy_baseline: bool = False) -> Collection:
        """A phase of sampling.

        Args:
            namespace, step: name the random streams of the phase.
            greedy_baseline: also draw the greedy answer to each problem.
        """
        return Collection(self, params, namespace=namespace, step=step, greedy_baseline=greedy_baseline)


@dataclass(slots=True)
class _Answered:
    """A problem of the phase and, one by one, what comes of it."""

    problem: EncodedProblem
    completions: Sequence[Completion] = ()
    texts: Sequence[str] = ()
    places: Sequence[int] = ()
    """Of its answers among all that are graded."""


class Collection:
    """`sample` as often as wanted, then `groups`. The answers to a problem are graded as soon as all are there, while
    the sampler works on others."""

    def __init__(
        self, collector: Collector, params: SamplingParams, *, namespace: int, step: int, greedy_baseline: bool
    ) -> None:
        self._collector = collector
        self._params = params
        self._namespace, self._step = namespace, step
        self._greedy = replace(params, n=1, temperature=0.0) if greedy_baseline else None
        self._judging = collector.rewards.begin()
        self._graded = 0
        self._answered: list[_Answered] = []
        self._baselines: list[_Answered] = []

    def sample(self, problems: Sequence[EncodedProblem], *, first: int = 0) -> None:
        """`params.n` answers to each problem.

        Args:
            first: position of `problems[0]` within the phase.
        """
        requests = [
            SampleRequest(p.prompt_ids, stream_key(self._namespace, self._step, first + i))
            for i, p in enumerate(problems)
        ]
        self._draw(requests, problems, self._params, self._answered)
        if self._greedy is not None:
            # A greedy answer is a group of its own: functions that compare answers must not see it among the others.
            self._draw(requests, problems, self._greedy, self._baselines)

    def _draw(
        self,
        requests: Sequence[SampleRequest],
        problems: Sequence[EncodedProblem],
        params: SamplingParams,
        into: list[_Answered],
    ) -> None:
        new = [_Answered(problem) for problem in problems]
        into += new
        self._collector.sampler.generate(requests, params, lambda i, found: self._grade(new[i], found))

    def _grade(self, answered: _Answered, completions: Sequence[Completion]) -> None:
        problem = answered.problem.problem
        answered.completions = completions
        answered.texts = self._collector.decode([c.token_ids.tolist() for c in completions])
        answered.places = range(self._graded, self._graded + len(completions))
        requests = [
            GradeRequest(
                data_source=problem.data_source,
                prompt=problem.prompt,
                text=text,
                ground_truth=problem.ground_truth,
                extra_info=problem.extra,
                group=self._graded,
            )
            for text in answered.texts
        ]
        self._graded += len(completions)
        self._judging.add(requests, [len(c) for c in completions])

    def groups(self) -> list[Group]:
        """Every problem with its graded answers, in the order of the problems.

        Raises:
            BackendError: too many gradings ended without a judgement.
        """
        rewards = self._judging.finish()

        def graded(answered: _Answered) -> tuple[Graded, ...]:
            return tuple(
                Graded(completion, text, rewards[place].grade, rewards[place].total, rewards[place].parts)
                for completion, text, place in zip(answered.completions, answered.texts, answered.places, strict=True)
            )

        nothing: list[Graded | None] = [None] * len(self._answered)
        baselines = [graded(b)[0] for b in self._baselines] if self._baselines else nothing
        return [
            Group(a.problem.problem, a.problem.prompt_ids, graded(a), baseline=baseline)
            for a, baseline in zip(self._answered, baselines, strict=True)
        ]
