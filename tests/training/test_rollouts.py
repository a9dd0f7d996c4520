"""Rollouts of one and of several turns with the embedded sampler: tokens, masks, log-probs, shared requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from gmpo.backends.devices import Device
from gmpo.backends.torch_sampler import TorchSampler
from gmpo.backends.weights import LiveWeights
from gmpo.data.problems import Problem
from gmpo.data.prompts import EncodedProblem
from gmpo.errors import BackendError
from gmpo.ports import SampleRequest, SamplingParams
from gmpo.records.rollout import Completion, joined
from gmpo.streams import TRAINING, stream_key
from gmpo.training.rollouts import Rollout, RolloutSteps, Turn, run_rollouts, single_turn

PROMPTS: list[tuple[int, ...]] = [(2, 7, 9, 3), (2, 30, 3), (2, 5, 6, 7, 8, 9, 10, 3)]
PROBLEMS = [EncodedProblem(Problem(f"p{i}", (), "s", "1"), prompt) for i, prompt in enumerate(PROMPTS)]
KEYS = [stream_key(TRAINING, position) for position in (100, 101, 102)]
PARAMS = SamplingParams(n=3, temperature=1.0, top_p=1.0, top_k=-1, max_tokens=20)
TOOL = (11, 12)


@pytest.fixture
def policy(fresh_policy: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    return fresh_policy()


class Noting(TorchSampler):
    """The embedded sampler, which notes what each call asked."""

    def __init__(self, model: PreTrainedModel) -> None:
        device = Device(torch.device("cpu"), torch.float32)
        super().__init__(device=device, seed=0, stop_ids=frozenset({1}), max_num_seqs=64)
        self.load(LiveWeights(model, version=7))
        self.calls: list[tuple[list[SampleRequest], SamplingParams]] = []

    def generate(self, requests: Sequence[SampleRequest], params: SamplingParams, finished: Any = None) -> Any:
        self.calls.append((list(requests), params))
        return super().generate(requests, params, finished)


def answers(rollout: Rollout, made: TorchSampler, places: Sequence[int] = (0, 1, 2)) -> list[list[Completion]]:
    found: dict[int, list[Completion]] = {}

    def finished(place: int, completions: Sequence[Completion]) -> None:
        assert place not in found
        found[place] = list(completions)

    run_rollouts(rollout, made, [PROBLEMS[i] for i in places], [KEYS[i] for i in places], PARAMS, finished)
    return [found[i] for i in range(len(places))]


def with_a_tool(problem: EncodedProblem, params: SamplingParams) -> RolloutSteps:
    """Says up to 5 tokens; unless they ended with the stop token, a tool puts in two and the policy goes on."""
    first = yield Turn(problem.prompt_ids, 5)
    if first.finish_reason == "stop":
        return first
    context = (*problem.prompt_ids, *first.token_ids.tolist(), *TOOL)
    second = yield Turn(context, params.max_tokens - len(first) - len(TOOL))
    return joined([first, TOOL, second])


def test_one_turn_is_one_call_of_the_sampler_with_a_request_for_each_problem(policy: PreTrainedModel) -> None:
    made = Noting(policy)
    found = answers(single_turn, made)
    assert made.calls == [([SampleRequest(p, k) for p, k in zip(PROMPTS, KEYS, strict=True)], PARAMS)]
    assert found == made.generate(made.calls[0][0], PARAMS)


def test_a_tools_tokens_in_the_middle_are_marked_and_all_others_have_the_policys_log_probs(
    policy: PreTrainedModel,
) -> None:
    made = Noting(policy)
    found = answers(with_a_tool, made)
    # The first turn is shared by the answers to a problem: three requests with three answers.
    assert made.calls[0] == (
        [SampleRequest(p, k) for p, k in zip(PROMPTS, KEYS, strict=True)],
        replace(PARAMS, max_tokens=5),
    )
    of_two_turns = 0
    for prompt, group in zip(PROMPTS, found, strict=True):
        for answer in group:
            with torch.no_grad():
                logits = policy(torch.tensor([[*prompt, *answer.token_ids.tolist()]])).logits[0, len(prompt) - 1 : -1]
            logp = torch.log_softmax(logits.double(), -1).gather(1, torch.tensor(answer.token_ids).long().unsqueeze(1))
            own = answer.sampled_mask
            assert np.abs(logp.squeeze(1).numpy() - answer.logprobs)[own].max() < 1e-5
            assert answer.weight_versions == (7, 7)
            if not own.all():
                of_two_turns += 1
                assert own.nonzero()[0].tolist() == [0, 1, 2, 3, 4, *range(7, len(answer))]
                assert tuple(answer.token_ids[5:7]) == TOOL
                assert answer.logprobs[5:7].tolist() == [0, 0]
                assert len(answer) == 20 or answer.finish_reason == "stop"
    assert of_two_turns >= 5


def test_what_an_answer_says_does_not_depend_on_the_other_rollouts(policy: PreTrainedModel) -> None:
    together = [[a.token_ids.tolist() for a in group] for group in answers(with_a_tool, Noting(policy))]
    for i in range(3):
        alone = answers(with_a_tool, Noting(policy), [i])
        assert [a.token_ids.tolist() for a in alone[0]] == together[i]
    ends = [tuple(said[7:]) for group in together for said in group if len(said) > 7]
    assert len(set(ends)) == len(ends), "second turns draw from streams of their own"


def test_second_turns_of_different_lengths_are_one_call_of_the_sampler(policy: PreTrainedModel) -> None:
    """There was one call for every length that was left: 209 calls where 2 are enough."""

    def shorter_and_shorter(problem: EncodedProblem, params: SamplingParams) -> RolloutSteps:
        first = yield Turn(problem.prompt_ids, 12)
        left = params.max_tokens - len(first)
        return joined([first, (yield Turn((*problem.prompt_ids, *first.token_ids.tolist()), left))])

    made = Noting(policy)
    found = answers(shorter_and_shorter, made)
    (_, one), (second, other) = made.calls
    longest = max(request.limit(other) for request in second)
    assert (one, other) == (replace(PARAMS, max_tokens=12), replace(PARAMS, n=1, max_tokens=longest))
    assert len(second) == 9
    assert len({request.max_tokens for request in second}) >= 3, "the test needs turns of different lengths"
    for request, answer in zip(second, (answer for group in found for answer in group), strict=True):
        ((alone,),) = made.generate(
            [replace(request, max_tokens=None)], replace(other, max_tokens=request.limit(other))
        )
        assert answer.token_ids[-len(alone) :].tolist() == alone.token_ids.tolist()


def end_early(problem: EncodedProblem, params: SamplingParams) -> Any:
    yield Turn(problem.prompt_ids, 4)


def too_long(problem: EncodedProblem, params: SamplingParams) -> RolloutSteps:
    return joined([(yield Turn(problem.prompt_ids, 4)), [5] * 20])


def a_turn_of(tokens: int) -> Rollout:
    def rollout(problem: EncodedProblem, params: SamplingParams) -> RolloutSteps:
        return (yield Turn(problem.prompt_ids, tokens))

    return rollout


@pytest.mark.parametrize(
    ("rollout", "message"),
    [
        (end_early, "returns None; a rollout returns its answer"),
        (too_long, "tokens, and params.max_tokens is 20"),
        (a_turn_of(0), "turn 1 asks for 0 tokens, and an answer has 1 to 20"),
        (a_turn_of(-3), "turn 1 asks for -3 tokens"),
        (a_turn_of(21), "turn 1 asks for 21 tokens"),
    ],
)
def test_a_rollout_that_breaks_its_contract_is_named(policy: PreTrainedModel, rollout: Rollout, message: str) -> None:
    """Groups without answers and answers beyond the limit went on to the learner."""
    with pytest.raises(BackendError, match=r"rollout \d of problem 'p\d': ") as caught:
        answers(rollout, Noting(policy))
    assert message in str(caught.value)


class Wrong(Noting):
    """A sampler that says something else than what was asked."""

    def __init__(self, model: PreTrainedModel, said: Callable[[Any, list[list[Completion]]], None]) -> None:
        super().__init__(model)
        self.said = said

    def generate(self, requests: Sequence[SampleRequest], params: SamplingParams, finished: Any = None) -> Any:
        self.said(finished, super().generate(requests, params))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (lambda finished, found: None, "returned no completions"),
        (lambda finished, found: finished(0, found[0][:2]), "asked once for 3 of at most 20"),
        (lambda finished, found: [finished(0, found[0]) for _ in range(2)], "not for the first time"),
        (lambda finished, found: finished(0, [joined([c, [5] * 20]) for c in found[0]]), "of at most 20"),
    ],
)
def test_a_sampler_that_breaks_its_contract_is_named(policy: PreTrainedModel, said: Any, message: str) -> None:
    with pytest.raises(BackendError, match=rf"of problem 'p0': Wrong .*{message}"):
        answers(single_turn, Wrong(policy, said))


def test_rollouts_that_differ_from_their_first_turn_on_and_one_that_asks_nothing(policy: PreTrainedModel) -> None:
    said = Completion([4, 1], [0.0, 0.0], "stop", (7, 7), sampled=[False, False])
    begun: list[int] = []

    def each_its_own(problem: EncodedProblem, params: SamplingParams) -> RolloutSteps:
        begun.append(len(begun))
        if problem is PROBLEMS[1]:
            return said
        return (yield Turn((*problem.prompt_ids, 20 + begun[-1]), 4))

    made = Noting(policy)
    found = answers(each_its_own, made)
    assert found[1] == [said] * 3
    requests, params = made.calls[0]
    assert [r.prompt_ids[-1] for r in requests] == [20, 21, 22, 26, 27, 28]
    assert (params.n, params.max_tokens, len(made.calls)) == (1, 4, 1)
    assert len({r.key for r in requests}) == 6


def test_an_answer_without_any_completion_of_the_policy_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="at least one completion"):
        joined([(1, 2)])
    two = [Completion([5], [-1.0], "length", (3, 4)), (9,), Completion([6], [-2.0], "stop", (5, 6))]
    assert joined(two) == Completion([5, 9, 6], [-1.0, 0.0, -2.0], "stop", (3, 6), [True, False, True])
