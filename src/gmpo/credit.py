"""Rewards -> token rewards (less a KL penalty, if asked for) -> advantages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gmpo.algo.advantages import Estimator
from gmpo.algo.kl import adapted_coefficient, kl_penalty
from gmpo.algo.masks import sequence_mean
from gmpo.batch import Batch


@dataclass(frozen=True, slots=True)
class RewardKL:
    """KL to the reference, subtracted from the reward of each token."""

    kind: str
    """A name of `gmpo.algo.kl.KL_ESTIMATORS`."""
    target: float | None
    """KL per token that the adaptive controller steers to; None keeps the coefficient."""
    horizon: float


@dataclass(frozen=True, slots=True)
class Credited:
    """A batch with advantages, the coefficient for the next step and what to report."""

    batch: Batch
    kl_coef: float
    metrics: Mapping[str, float]


class Credit:
    """Credit assignment of a run.

    Args:
        numbers: the estimator's keyword numbers.
        reward_kl: None leaves the rewards alone.
    """

    def __init__(self, estimator: Estimator, numbers: Mapping[str, float], reward_kl: RewardKL | None) -> None:
        self.estimator = estimator
        self.numbers = numbers
        self.reward_kl = reward_kl

    def __call__(self, batch: Batch, kl_coef: float) -> Credited:
        """Put each response's reward on its last token, subtract the KL penalty, estimate advantages."""
        mask = batch.response_mask
        last = mask.sum(dim=1, keepdim=True) - 1
        positions = torch.arange(mask.shape[1]).unsqueeze(0)
        token_rewards = torch.where(positions == last, batch.rewards.unsqueeze(1), 0.0)
        metrics: dict[str, float] = {}
        if self.reward_kl is not None:
            assert batch.old_logp is not None
            assert batch.ref_logp is not None
            kl = kl_penalty(batch.old_logp, batch.ref_logp, self.reward_kl.kind) * mask
            token_rewards = token_rewards - kl_coef * kl
            mean_kl = float(sequence_mean(kl, mask).mean())
            metrics = {"actor/reward_kl_penalty": mean_kl, "actor/reward_kl_penalty_coeff": kl_coef}
            if self.reward_kl.target is not None:
                kl_coef = adapted_coefficient(
                    kl_coef, mean_kl, target=self.reward_kl.target, horizon=self.reward_kl.horizon, responses=batch.rows
                )
        advantage = self.estimator.fn(token_rewards, mask, batch.group, **self.numbers)
        return Credited(batch.replace(token_rewards=token_rewards, advantage=advantage), kl_coef, metrics)
