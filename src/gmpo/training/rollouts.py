"""How answers come to be: a rollout asks the policy as often as it wants, and many rollouts go on together.

A rollout is a generator: it yields what the policy shall continue, receives the completion, and returns the answer. It
never sees the sampler, so that all rollouts of a phase share its batches: in each wave, what they ask goes to the
sampler in one call for each number of answers, and answers that begin alike share one request and so one prefill.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from gmpo.data.prompts import EncodedProblem
from gmpo.errors import BackendError
from gmpo.ports import Sampler, SampleRequest, SamplingParams
from gmpo.records.rollout import Completion
from gmpo.streams import turn_key


@dataclass(frozen=True, slots=True)
class Turn:
    """What the policy shall continue."""

    context_ids: tuple[int, ...]
    """The whole sequence so far, prompt included."""
    max_tokens: int
    """Length at which this turn is cut: from 1 to that of the whole answer."""


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

    Raises:
        BackendError: a rollout asks for a turn of no tokens or of more than an answer may have, or returns no answer or
            one that is too long; the sampler leaves out a request, or answers it too often or at too great a length.
    """
    groups = [
        _Group([_Running(rollout, problem, params, number) for number in range(params.n)], key)
        for problem, key in zip(problems, keys, strict=True)
    ]

    def report(place: int) -> None:
        if groups[place].done:
            finished(place, groups[place].answers)

    for place in range(len(groups)):
        report(place)  # rollouts may end without asking anything
    while asked := [(place, ask) for place, group in enumerate(groups) for ask in group.asks()]:
        calls: dict[int, list[tuple[int, _Ask]]] = {}
        for place, ask in asked:
            calls.setdefault(len(ask.rollouts), []).append((place, ask))
        for n, members in calls.items():
            longest = max(ask.turn.max_tokens for _, ask in members)
            _call(sampler, replace(params, n=n, max_tokens=longest), members, report)


def _call(
    sampler: Sampler, params: SamplingParams, members: Sequence[tuple[int, _Ask]], report: Callable[[int], None]
) -> None:
    """One call of the sampler for all that ask for as many answers; reports each one's place."""
    waiting = set(range(len(members)))

    def received(i: int, completions: Sequence[Completion]) -> None:
        place, ask = members[i]
        lengths = [len(completion) for completion in completions]
        if i not in waiting or len(lengths) != params.n or max(lengths) > ask.turn.max_tokens:
            again = "" if i in waiting else ", and not for the first time"
            raise BackendError(
                f"{ask.rollouts[0].name}: {type(sampler).__name__} returns completions of {lengths} tokens{again}; it "
                f"was asked once for {params.n} of at most {ask.turn.max_tokens}."
            )
        waiting.remove(i)
        for running, completion in zip(ask.rollouts, completions, strict=True):
            running.receive(completion)
        report(place)

    sampler.generate([ask.request(params) for _, ask in members], params, received)
    for i in waiting:
        raise BackendError(f"{members[i][1].rollouts[0].name}: {type(sampler).__name__} returned no completions.")


class _Running:
    """A rollout under way."""

    def __init__(self, rollout: Rollout, problem: EncodedProblem, params: SamplingParams, number: int) -> None:
        self.name = f"rollout {number + 1} of problem {problem.problem.id!r}"
        self._longest = params.max_tokens
        self._steps = rollout(problem, params)
        self.turn: Turn | None = None
        """What it waits for."""
        self.turns = 0
        """Turns that it has asked."""
        self.answer: Completion | None = None
        self._advance(lambda: next(self._steps))

    def receive(self, completion: Completion) -> None:
        self._advance(lambda: self._steps.send(completion))

    def _advance(self, resume: Callable[[], Turn]) -> None:
        try:
            self.turn = resume()
            self.turns += 1
        except StopIteration as end:
            self.turn, self.answer = None, end.value
        for wrong in self._wrong():
            raise BackendError(f"{self.name}: {wrong}.")

    def _wrong(self) -> Iterator[str]:
        """What breaks the contract of a rollout."""
        turn, answer = self.turn, self.answer
        if turn is not None and not 1 <= turn.max_tokens <= self._longest:
            yield (
                f"turn {self.turns} asks for {turn.max_tokens} tokens, and an answer has 1 to {self._longest} "
                "(params.max_tokens). End the rollout where no room is left"
            )
        if turn is None and not isinstance(answer, Completion):
            yield f"returns {answer!r}; a rollout returns its answer, a Completion (gmpo.records.rollout.joined)"
        elif answer is not None and len(answer) > self._longest:
            yield (
                f"returns an answer of {len(answer)} tokens, and params.max_tokens is {self._longest}. What comes from "
                "elsewhere counts too: cut it, or ask for shorter turns"
            )


@dataclass(slots=True)
class _Ask:
    """What rollouts of one problem ask together."""

    turn: Turn
    rollouts: list[_Running]
    key: int

    def request(self, params: SamplingParams) -> SampleRequest:
        limit = self.turn.max_tokens
        return SampleRequest(self.turn.context_ids, self.key, None if limit == params.max_tokens else limit)


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
