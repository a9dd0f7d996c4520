"""Problems -> graded groups: sampling and grading, for training and validation alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from gmpo.data.prompts import EncodedProblem
from gmpo.errors import GradingError
from gmpo.ports import Sampler, SamplingParams
from gmpo.records.activity import Activity
from gmpo.records.rollout import Completion, Graded, Group
from gmpo.rewards.combined import Rewards
from gmpo.rewards.grader import GradeRequest
from gmpo.streams import VALIDATION, stream_key
from gmpo.training.rollouts import Rollout, run_rollouts, single_turn


class Collector:
    """Samples answers with `sampler` and grades them with `rewards`.

    Args:
        decode: token ids of several answers -> their texts, special tokens left out.
        rollout: how one answer comes to be.
        activity: is told how far sampling and grading are.
    """

    def __init__(
        self,
        sampler: Sampler,
        rewards: Rewards,
        *,
        decode: Callable[[list[list[int]]], list[str]],
        rollout: Rollout = single_turn,
        activity: Activity | None = None,
    ) -> None:
        self.sampler = sampler
        self.rewards = rewards
        self.decode = decode
        self.rollout = rollout
        self.activity = activity or Activity()

    def begin(self, params: SamplingParams, *, namespace: int, greedy_baseline: bool = False) -> RolloutPhase:
        """A phase of sampling. Several may be open.

        Args:
            namespace: of the phase's random streams, see `gmpo.streams`.
            greedy_baseline: also draw the greedy answer to each problem.
        """
        return RolloutPhase(self, params, namespace=namespace, greedy_baseline=greedy_baseline)


@dataclass(slots=True)
class _Answers:
    """The answers to a problem, while they are sampled and graded."""

    problem: EncodedProblem
    completions: Sequence[Completion] = ()
    texts: Sequence[str] = ()
    places: Sequence[int] = ()
    """Of its answers among all that are graded."""


class RolloutPhase:
    """`sample` as often as wanted, then `groups`. The answers to a problem are graded as soon as all are there, while
    the sampler works on others. A context manager: left without `groups`, the gradings are given up."""

    def __init__(self, collector: Collector, params: SamplingParams, *, namespace: int, greedy_baseline: bool) -> None:
        self._collector = collector
        self._params = params
        self._namespace = namespace
        self._greedy = replace(params, n=1, temperature=0.0) if greedy_baseline else None
        self._judging = collector.rewards.begin()
        phase = "validation" if namespace == VALIDATION else "sampling"
        collector.activity.begin(phase, lambda: self._judging.graded)
        self._graded = 0
        self._answers: list[_Answers] = []
        self._baselines: list[_Answers] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up what is not graded yet; nothing happens after `groups`."""
        self._judging.close()

    def sample(self, problems: Sequence[EncodedProblem], positions: Sequence[int]) -> None:
        """`params.n` answers to each problem.

        Args:
            positions: of the problems in the stream, or in the validation set: they name the random streams.
        """
        keys = [stream_key(self._namespace, position) for position in positions]
        self._roll_out(problems, keys, self._params, self._answers)
        if self._greedy is not None:
            # A greedy answer is a group of its own: functions that compare answers must not see it among the others.
            self._roll_out(problems, keys, self._greedy, self._baselines)

    def _roll_out(
        self,
        problems: Sequence[EncodedProblem],
        keys: Sequence[int],
        params: SamplingParams,
        into: list[_Answers],
    ) -> None:
        new = [_Answers(problem) for problem in problems]
        into += new
        collector = self._collector
        collector.activity.ask(params.n * len(problems))
        run_rollouts(
            collector.rollout,
            collector.sampler,
            problems,
            keys,
            params,
            lambda i, completions: self._grade(new[i], completions),
        )

    def _grade(self, answers: _Answers, completions: Sequence[Completion]) -> None:
        problem = answers.problem.problem
        self._collector.activity.answered(len(completions))
        answers.completions = completions
        answers.texts = self._collector.decode([c.token_ids.tolist() for c in completions])
        answers.places = range(self._graded, self._graded + len(completions))
        requests = [
            GradeRequest(
                data_source=problem.data_source,
                prompt=problem.prompt,
                text=text,
                ground_truth=problem.ground_truth,
                extra_info=problem.extra,
                group=self._graded,
            )
            for text in answers.texts
        ]
        self._graded += len(completions)
        self._judging.add(requests, [len(c) for c in completions])

    def _asked(self, answers: _Answers, text: str) -> dict[str, object]:
        problem = answers.problem.problem
        messages = [dict(message) for message in problem.prompt]
        return {"problem": problem.id, "input": messages, "output": text, "gts": problem.ground_truth}

    def groups(self) -> list[Group]:
        """Every problem with its graded answers, in the order of the problems. The phase is closed then.

        Raises:
            BackendError: too many gradings ended without a judgement.
        """
        self._collector.activity.phase = "grading"
        try:
            rewards = self._judging.finish()
        except GradingError as error:
            error.answers = [
                {**self._asked(answers, text), **error.answers[place]}
                for answers in (*self._answers, *self._baselines)
                for text, place in zip(answers.texts, answers.places, strict=True)
            ]
            raise

        def graded(answers: _Answers) -> tuple[Graded, ...]:
            return tuple(
                Graded(completion, text, rewards[place].grade, rewards[place].total, rewards[place].parts)
                for completion, text, place in zip(answers.completions, answers.texts, answers.places, strict=True)
            )

        nothing: list[Graded | None] = [None] * len(self._answers)
        baselines = [graded(b)[0] for b in self._baselines] if self._baselines else nothing
        return [
            Group(a.problem.problem, a.problem.prompt_ids, graded(a), baseline=baseline)
            for a, baseline in zip(self._answers, baselines, strict=True)
        ]
