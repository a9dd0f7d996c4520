"""A producer that runs ahead asks the same problems with the same random numbers; only the weights are older."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from gmpo.backends.devices import Device
from gmpo.backends.torch_sampler import TorchSampler
from gmpo.backends.weights import LiveWeights
from gmpo.data.problems import Problem, ProblemStream
from gmpo.data.prompts import EncodedProblem
from gmpo.ports import SamplingParams
from gmpo.records.rollout import Group
from gmpo.rewards.combined import MAIN, Component, Rewards
from gmpo.rewards.grader import Grader, GraderSpec
from gmpo.tracking.tracker import SamplePolicy, SampleWriter, StepRecord
from gmpo.training.collect import Collector
from gmpo.training.producer import Producer
from gmpo.training.state import PartState

PROBLEMS = [
    EncodedProblem(Problem(f"p{i}", ({"role": "user", "content": "?"},), "s", str(i)), (2, 4 + i, 9, 3))
    for i in range(7)
]
PARAMS = SamplingParams(n=2, temperature=1.0, top_p=1.0, top_k=-1, max_tokens=6)


def length(solution_str: str) -> float:
    return float(len(solution_str))


@pytest.fixture(scope="module")
def rewards() -> Iterator[Rewards]:
    grader = Grader(GraderSpec(function=length, workers=1))
    with Rewards(Component(MAIN, 1.0, grader), max_failed_share=0.0) as made:
        yield made


@pytest.fixture
def policy(fresh_policy: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    return fresh_policy()


class Run:
    """A producer with the sampler behind it."""

    def __init__(self, policy: PreTrainedModel, rewards: Rewards, folder: Path, ahead: int, wanted: Any = None) -> None:
        device = Device(torch.device("cpu"), torch.float32)
        self.policy = policy
        self.sampler = TorchSampler(device=device, seed=0, stop_ids=frozenset({1}), max_num_seqs=16)
        self.sampler.load(LiveWeights(policy, 0))
        collector = Collector(self.sampler, rewards, decode=lambda ids: ["x" * len(row) for row in ids])
        stream = ProblemStream(PROBLEMS, 3, shuffle=True, seed=1)
        self.producer = Producer(collector, stream, PARAMS, wanted or (lambda item: True), ahead=ahead)
        self.rec = StepRecord(1, SampleWriter(folder, SamplePolicy(0, 0), all_training=None, all_validation=None))

    def rounds(self, number: int, *, new_weights: bool = False) -> list[list[Group]]:
        """So many rounds; coming ones are begun after each, before the next weights arrive."""
        found = []
        for _ in range(number):
            found.append(self.producer.next_round(self.rec))
            self.producer.run_ahead(self.rec)
            if new_weights:
                self.sampler.load(LiveWeights(self.policy, len(found)))
        return found


def problem_ids(rounds: Sequence[Sequence[Group]]) -> list[list[str]]:
    return [[group.problem.id for group in groups] for groups in rounds]


@pytest.mark.parametrize("ahead", [1, 3])
def test_rounds_begun_early_by_the_same_weights_are_those_on_demand(
    policy: PreTrainedModel, rewards: Rewards, tmp_path: Path, ahead: int
) -> None:
    on_demand = Run(policy, rewards, tmp_path, 0).rounds(6)
    assert Run(policy, rewards, tmp_path, ahead).rounds(6) == on_demand
    # Six rounds of 3 are three epochs of 7 problems less the one that fills no batch.
    assert len({id_ for ids in problem_ids(on_demand)[:2] for id_ in ids}) == 6
    seen: dict[str, list[Any]] = {}
    for groups in on_demand:
        for group in groups:
            seen.setdefault(group.problem.id, []).append([a.completion.token_ids.tolist() for a in group.graded])
    again = [answers for answers in seen.values() if len(answers) > 1]
    assert again
    assert all(a != b for answers in again for a, b in pairwise(answers)), "another epoch draws anew"


def test_completions_say_by_which_weights_they_were_sampled(
    policy: PreTrainedModel, rewards: Rewards, tmp_path: Path
) -> None:
    def versions(ahead: int) -> list[set[tuple[int, int]]]:
        rounds = Run(policy, rewards, tmp_path, ahead).rounds(5, new_weights=True)
        return [{a.completion.weight_versions for group in groups for a in group.graded} for groups in rounds]

    # Round k is learned from by the weights of version k.
    assert versions(0) == [{(k, k)} for k in range(5)]
    assert versions(1) == [{(max(0, k - 1),) * 2} for k in range(5)]
    assert versions(2) == [{(max(0, k - 2),) * 2} for k in range(5)]


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_resumed_producer_drops_no_problem_that_was_under_way(
    policy: PreTrainedModel, rewards: Rewards, tmp_path: Path, ahead: int
) -> None:
    """What was begun is asked again although it is not wanted any more: the decision was made when it was begun."""
    unwanted: set[str] = set()
    whole = Run(policy, rewards, tmp_path, ahead).rounds(5)
    first = Run(policy, rewards, tmp_path, ahead, lambda item: item.problem.id not in unwanted)
    begun = first.rounds(2)
    state = first.producer.state()
    assert state.values["position"] == 6
    assert [len(r["positions"]) for r in state.values["under_way"]] == [3] * ahead
    unwanted |= {id_ for ids in problem_ids(whole[2 : 2 + ahead]) for id_ in ids[:1]}
    second = Run(policy, rewards, tmp_path, ahead, lambda item: item.problem.id not in unwanted)
    second.producer.restore(PartState(json.loads(json.dumps(state.values))))
    assert begun + second.rounds(ahead) == whole[: 2 + ahead]
    assert second.producer.position == 3 * (2 + ahead)
