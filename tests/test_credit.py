"""Credit assignment: where a reward stands, what the KL penalty takes away, how its coefficient moves."""

from __future__ import annotations

import pytest
import torch

from gmpo.algo.advantages import ADVANTAGES
from gmpo.batch import Batch
from gmpo.credit import Credit, RewardKL


def batch_of(lengths: list[int], rewards: list[float], kl: float = 0.0) -> Batch:
    """One problem; the policy is everywhere `kl` nats above the reference."""
    width = max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    shape = (len(lengths), width)
    return Batch(
        prompt_ids=torch.ones(len(lengths), 1, dtype=torch.long),
        prompt_mask=torch.ones(len(lengths), 1, dtype=torch.bool),
        response_ids=torch.ones(shape, dtype=torch.long),
        response_mask=mask,
        group=torch.zeros(len(lengths), dtype=torch.long),
        index=torch.arange(len(lengths)),
        rewards=torch.tensor(rewards),
        rollout_logp=torch.zeros(shape),
        old_logp=torch.full(shape, -1.0) * mask,
        ref_logp=torch.full(shape, -1.0 - kl) * mask,
    )


def credit(reward_kl: RewardKL | None = None) -> Credit:
    return Credit(ADVANTAGES["grpo"], {"normalise_by_std": False}, reward_kl)


def test_a_reward_stands_on_the_last_token() -> None:
    batch = credit()(batch_of([3, 1, 2], [1.0, 0.5, 0.0]), 0.0).batch
    assert batch.token_rewards is not None
    assert batch.token_rewards.tolist() == [[0, 0, 1], [0.5, 0, 0], [0, 0, 0]]


def test_every_token_of_a_response_has_its_advantage_and_no_other_position_has_any() -> None:
    batch = credit()(batch_of([3, 1], [1.0, 0.0]), 0.0).batch
    assert batch.advantage is not None
    assert batch.advantage.tolist() == [[0.5, 0.5, 0.5], [-0.5, 0, 0]]


def test_an_empty_response_has_neither_reward_nor_advantage() -> None:
    batch = credit()(batch_of([2, 0], [1.0, 7.0]), 0.0).batch
    assert batch.token_rewards is not None
    assert batch.token_rewards.tolist() == [[0, 1], [0, 0]]


def test_without_a_kl_penalty_the_coefficient_is_handed_on_and_nothing_is_reported() -> None:
    credited = credit()(batch_of([2, 1], [1.0, 0.0], kl=0.3), 0.2)
    assert credited.kl_coef == 0.2
    assert {k: v for k, v in credited.metrics.items() if k.startswith("actor/")} == {}


def test_the_kl_penalty_is_taken_from_each_token() -> None:
    # beta 0.5 times 0.2 nats on every token
    credited = credit(RewardKL("k1", None, 1.0))(batch_of([3, 1], [1.0, 0.0], kl=0.2), 0.5)
    assert credited.batch.token_rewards is not None
    rewards = credited.batch.token_rewards
    assert rewards[0].tolist() == pytest.approx([-0.1, -0.1, 0.9])
    assert rewards[1].tolist() == pytest.approx([-0.1, 0.0, 0.0])
    # rewards 0.7 and -0.1: the penalty reaches the advantages
    assert credited.batch.advantage is not None
    assert credited.batch.advantage[:, 0].tolist() == pytest.approx([0.4, -0.4])
    assert {k: v for k, v in credited.metrics.items() if k.startswith("actor/")} == {
        "actor/reward_kl_penalty": pytest.approx(0.2),
        "actor/reward_kl_penalty_coeff": 0.5,
    }
    assert credited.kl_coef == 0.5


def test_the_adaptive_controller_counts_responses() -> None:
    # 10 % above the target of 0.2, two responses of a horizon of 100: 0.5 * (1 + 0.1 * 0.02)
    credited = credit(RewardKL("k1", 0.2, 100.0))(batch_of([3, 1], [1.0, 0.0], kl=0.22), 0.5)
    assert credited.kl_coef == pytest.approx(0.5 * 1.002)
