"""Rewards -> token rewards, less a KL penalty if asked for -> what the loss sees: advantages, mask, weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gmpo.algo.advantages import Estimator
from gmpo.algo.corrections import accepted, geometric_weights, icepop_weights, importance_weights
from gmpo.algo.kl import adapted_coefficient, kl_penalty
from gmpo.algo.masks import last_token, quantile, sequence_mean
from gmpo.errors import CheckpointError
from gmpo.metrics.mismatch import mismatch, rejection_stats, weight_stats
from gmpo.objectives import Rejection
from gmpo.records.batch import Batch
from gmpo.training.state import CREDIT, PartState


@dataclass(frozen=True, slots=True)
class RewardKL:
    """KL to the reference, subtracted from the reward of each token."""

    kind: str
    """A name of `gmpo.algo.kl.KL_ESTIMATORS`."""
    coefficient: float
    """Of the first step."""
    target: float | None
    """KL per token that the adaptive controller steers to; None keeps the coefficient."""
    horizon: float


@dataclass(frozen=True, slots=True)
class Correction:
    """What is done about sampler and learner being two policies."""

    level: str | None = None
    """Importance weights per `token` or `sequence`; None for none."""
    threshold: float = 2.0
    batch_normalise: bool = False
    geometric: bool = False
    """Give each token the geometric mean of its response's weights, as verl does for `geo_mean`."""
    icepop: tuple[float, float] | None = None
    """Band of weights, outside of which a token has no gradient."""
    rejections: tuple[Rejection, ...] = ()
    bypass: bool = False
    """The sampler's log-probs are the old ones: one clipped ratio covers mismatch and update."""


@dataclass(frozen=True, slots=True)
class LossMask:
    """Tokens that leave the loss, and its denominators, for reasons of the response itself."""

    zero_variance: bool = False
    """Groups whose answers all have the same reward leave (`algorithm.drop_zero_variance`)."""
    truncated: bool = False
    """Answers cut at the length limit leave (`actor.mask_truncated`): their reward says little about them."""
    entropy_quantile: float | None = None
    """Only tokens whose entropy is at or above this quantile of the batch stay (arXiv 2506.01939)."""


@dataclass(frozen=True, slots=True)
class CreditedBatch:
    """A batch with advantages, and metrics."""

    batch: Batch
    metrics: Mapping[str, float]


class Credit:
    """Credit assignment of a run.

    Args:
        numbers: the estimator's keyword numbers.
        reward_kl: None leaves the rewards alone.
    """

    def __init__(
        self,
        estimator: Estimator,
        numbers: Mapping[str, Any],
        reward_kl: RewardKL | None,
        *,
        correction: Correction | None = None,
        loss_mask: LossMask | None = None,
    ) -> None:
        self.estimator = estimator
        self.numbers = numbers
        self.reward_kl = reward_kl
        self.correction = correction or Correction()
        self.loss_mask = loss_mask or LossMask()
        self.kl_coef = 0.0 if reward_kl is None else reward_kl.coefficient

    def state(self) -> PartState:
        """The coefficient of the KL penalty in the reward for the next step."""
        return PartState({"kl_coef": self.kl_coef})

    def restore(self, state: PartState) -> None:
        """Raises CheckpointError for another entry."""
        state.check_format(CREDIT, known=1)
        try:
            saved = float(state.values["kl_coef"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint's KL coefficient cannot be read: {error!r}") from error
        if self.reward_kl is not None and self.reward_kl.target is not None:  # else it is what the settings say
            self.kl_coef = saved

    def __call__(self, batch: Batch) -> CreditedBatch:
        """Put each response's reward on its last sampled token, subtract the KL penalty, estimate advantages; then mask
        and weight what the loss sees. Every answer informs its group's baseline, also one that leaves the loss.

        An answer may end with tokens that were not sampled; they are no actions of the policy, so the reward belongs to
        the last one that is. A response without any sampled token has no place for a reward, and counts with 0.
        """
        token_rewards, metrics = self._token_rewards(batch)
        batch, correction_metrics = self._corrected(self._masked(batch))
        traits = self.estimator.traits
        tensors: dict[str, Tensor | None] = {}
        if traits.needs_critic:
            tensors["values"] = batch.values
        if traits.needs_greedy:
            tensors["greedy_reward"] = batch.greedy_reward
        if traits.needs_components:
            tensors["components"] = batch.components
        if traits.needs_score_norms:
            tensors |= {"score_norm": batch.score_norm, "weights": batch.weights}
        advantage = self.estimator.fn(token_rewards, batch.sampled_mask, batch.group, **tensors, **self.numbers)
        credited = batch.replace(token_rewards=token_rewards, advantage=advantage)
        return CreditedBatch(credited, {**metrics, **correction_metrics})

    def _token_rewards(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        mask = batch.sampled_mask
        token_rewards = torch.where(last_token(mask), batch.rewards.unsqueeze(1), 0.0)
        if self.reward_kl is None:
            return token_rewards, {}
        assert batch.old_logp is not None
        assert batch.ref_logp is not None
        kl = kl_penalty(batch.old_logp, batch.ref_logp, self.reward_kl.kind) * mask
        token_rewards = token_rewards - self.kl_coef * kl
        mean_kl = float(sequence_mean(kl, mask).mean())
        metrics = {"actor/reward_kl_penalty": mean_kl, "actor/reward_kl_penalty_coeff": self.kl_coef}
        if self.reward_kl.target is not None:
            self.kl_coef = adapted_coefficient(
                self.kl_coef,
                mean_kl,
                target=self.reward_kl.target,
                horizon=self.reward_kl.horizon,
                responses=batch.rows,
            )
        return token_rewards, metrics

    def _masked(self, batch: Batch) -> Batch:
        mask = batch.sampled_mask
        if self.loss_mask.zero_variance:
            mask = mask & ~batch.unanimous.unsqueeze(1)
        if self.loss_mask.truncated and batch.finished is not None:
            mask = mask & batch.finished.unsqueeze(1)
        if self.loss_mask.entropy_quantile is not None and mask.any():
            assert batch.entropy is not None
            bound = quantile(batch.entropy[mask].double(), self.loss_mask.entropy_quantile)
            mask = mask & (batch.entropy >= bound)
        return batch.replace(loss_mask=mask)

    def _corrected(self, batch: Batch) -> tuple[Batch, dict[str, float]]:
        c = self.correction
        metrics: dict[str, float] = {}
        if batch.learner_logp is not None:
            log_ratio = batch.learner_logp - batch.rollout_logp
            mask = before = batch.loss_mask
            metrics |= mismatch(batch.learner_logp, batch.rollout_logp, batch.sampled_mask)
            for rejection in c.rejections:
                kept = accepted(log_ratio, batch.loss_mask, rule=rejection.rule, low=rejection.low, high=rejection.high)
                metrics |= rejection_stats(rejection.rule, batch.loss_mask, kept)
                mask = mask & kept
            if c.rejections:
                metrics |= rejection_stats("", batch.loss_mask, mask)
                batch = batch.replace(loss_mask=mask)
            weights = self._weights(log_ratio, before, mask, batch.sampled_mask)
            if weights is not None:
                low, high = (1.0 / c.threshold, c.threshold) if c.icepop is None else c.icepop
                metrics |= weight_stats(log_ratio, batch.sampled_mask, low, high, level=c.level or "token")
                metrics["rollout_corr/applied_weight_mean"] = (
                    float(weights[mask].double().mean()) if mask.any() else 1.0
                )
                batch = batch.replace(weights=weights)
        if c.bypass:
            batch = batch.replace(old_is_rollout=True)
        return batch, metrics

    def _weights(self, log_ratio: Tensor, before: Tensor, mask: Tensor, answer: Tensor) -> Tensor | None:
        """Of the tokens of `mask`. What is rejected out of `before` has no weight, and counts in their mean."""
        c = self.correction
        if c.icepop is not None:
            return icepop_weights(log_ratio, mask, low=c.icepop[0], high=c.icepop[1])
        if c.level is None:
            return None
        weights = importance_weights(
            log_ratio,
            before,
            level=c.level,
            threshold=c.threshold,
            batch_normalise=c.batch_normalise,
            answer=answer,
        )
        return geometric_weights(weights, mask) if c.geometric else weights * mask
