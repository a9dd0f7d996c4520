"""How answers come to be: a rollout asks the policy as often as it wants, and many rollouts go on together.

A rollout is a generator: it yields what the policy shall continue, receives the completion, and returns the answer. It
never sees the sampler, so that all rollouts of a phase share its batches: in each wave, what they ask goes to the
sampler in as few calls as possible, and answers that begin alike share one request and so one prefill.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from gmpo.data.prompts import EncodedProblem
from gmpo.ports import Sampler, SampleRequest, SamplingParams
from gmpo.records.rollout import Completion
from gmpo.streams import turn_key


@dataclass(frozen=True, slots=True)
class Turn:
    """What the policy shall continue."""

    context_ids: tuple[int, ...]
    """The whole sequence so far, prompt included."""
    max_tokens: int
    """Length at which this turn is cut."""


RolloutSteps = Generator[Turn, Completion, Completion]
"""Yields turns, receives their completions, returns the answer: everything behind the prompt."""


class Rollout(Protocol):
    """One answer to one problem. An answer of several pieces is put together by `gmpo.records.rollout.joined`, which
    marks the tokens that came from elsewhere as not sampled."""

    def __call__(self, problem: EncodedProblem, params: SamplingParams) -> RolloutSteps:
        """Begin.

        Args:
            params: of the phase; `params.max_tokens` is the length of the whole answer, which the rollout keeps to.
        """
        ...


def single_turn(problem: EncodedProblem, params: SamplingParams) -> RolloutSteps:
    """The policy continues the prompt, once."""
    return (yield Turn(problem.prompt_ids, params.max_tokens))


def run_rollouts(
    rollout: Rollout,
    sampler: Sampler,
    problems: Sequence[EncodedProblem],
    keys: Sequence[int],
    params: SamplingParams,
    finished: Callable[[int, Sequence[Completion]], None],
) -> None:
    """Run `params.n` rollouts of each problem to their end.

    Args:
        keys: name the random streams of each problem's answers, see `gmpo.streams`. What is drawn for an answer
            depends on its key, its number and its turn alone, and not on what else goes on.
        finished: is called with a problem's place and its answers, once for each problem, when all are there and
            while others may still be sampled.
    """
    groups = [
        _Group([_Running(rollout(problem, params)) for _ in range(params.n)], key)
        for problem, key in zip(problems, keys, strict=True)
    ]

    def report(place: int) -> None:
        if groups[place].done:
            finished(place, groups[place].answers)

    for place in range(len(groups)):
        report(place)  # rollouts may end without asking anything
    while asked := [(place, ask) for place, group in enumerate(groups) for ask in group.asks()]:
        calls: dict[SamplingParams, list[tuple[int, _Ask]]] = {}
        for place, ask in asked:
            alike = replace(params, n=len(ask.rollouts), max_tokens=ask.turn.max_tokens)
            calls.setdefault(alike, []).append((place, ask))
        for alike, members in calls.items():
            _call(sampler, alike, members, report)


def _call(
    sampler: Sampler, params: SamplingParams, members: Sequence[tuple[int, _Ask]], report: Callable[[int], None]
) -> None:
    """One call of the sampler for all that ask for as many answers of the same length; reports each one's place."""

    def received(i: int, completions: Sequence[Completion]) -> None:
        place, ask = members[i]
        for running, completion in zip(ask.rollouts, completions, strict=True):
            running.receive(completion)
        report(place)

    sampler.generate([SampleRequest(ask.turn.context_ids, ask.key) for _, ask in members], params, received)


class _Running:
    """A rollout under way."""

    def __init__(self, steps: RolloutSteps) -> None:
        self._steps = steps
        self.turn: Turn | None = None
        """What it waits for."""
        self.turns = 0
        """Turns that it has asked."""
        self.answer: Completion | None = None
        self._advance(lambda: next(steps))

    def receive(self, completion: Completion) -> None:
        self._advance(lambda: self._steps.send(completion))

    def _advance(self, resume: Callable[[], Turn]) -> None:
        try:
            self.turn = resume()
            self.turns += 1
        except StopIteration as end:
            self.turn, self.answer = None, end.value


@dataclass(slots=True)
class _Ask:
    """What rollouts of one problem ask together."""

    turn: Turn
    rollouts: list[_Running]
    key: int


@dataclass(slots=True)
class _Group:
    """The rollouts of one problem."""

    rollouts: list[_Running]
    key: int

    @property
    def done(self) -> bool:
        return all(running.answer is not None for running in self.rollouts)

    @property
    def answers(self) -> list[Completion]:
        return [running.answer for running in self.rollouts if running.answer is not None]

    def asks(self) -> list[_Ask]:
        """First turns that are all alike are one request with n answers; every other turn is a request of its own."""
        waiting = [(j, running, running.turn) for j, running in enumerate(self.rollouts) if running.turn is not None]
        first = [turn for _, running, turn in waiting if running.turns == 1]
        if len(first) == len(self.rollouts) and len(set(first)) == 1:
            return [_Ask(first[0], self.rollouts, self.key)]
        return [_Ask(turn, [running], turn_key(self.key, running.turns - 1, j)) for j, running, turn in waiting]
