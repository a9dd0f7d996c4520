"""The estimators and policy losses by name, and what each needs from a run. The only list of their names.

No torch: the configuration checks names and combinations with it. The functions stand in `gmpo.algo` under the same
names; `gmpo.algo.advantages.ADVANTAGES` and `gmpo.algo.losses.POLICY_LOSSES` join the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EstimatorTraits:
    """What an advantage estimator needs."""

    numbers: tuple[str, ...] = ()
    """The keyword arguments it takes from the configuration."""
    needs_groups: bool = False
    """Several answers to each problem are compared: `rollout.n` must be at least 2."""
    needs_critic: bool = False
    """It takes `values`, a critic's estimate per token."""
    needs_greedy: bool = False
    """It takes `greedy_reward`, the reward of a greedy answer to each problem."""
    per_token: bool = False
    """Advantages vary over the tokens of a response, which losses with one weight per response refuse."""


@dataclass(frozen=True, slots=True)
class LossTraits:
    """What the callers of a policy loss must know about it."""

    numbers: tuple[str, ...] = ()
    """The keyword arguments it takes from the configuration."""
    per_sequence: bool = False
    """One value per response, averaged over responses whatever `loss_agg_mode` says; takes one advantage per response.
    Otherwise one value per token."""
    aggregation: str | None = None
    """A `loss_agg_mode` that belongs to the definition of a per-token loss; None takes the run's."""
    select: str | None = None
    """Function that chooses tokens from log-probs of the whole mini-batch; the loss takes the choice as `selected`."""
    select_numbers: tuple[str, ...] = ()
    """Keyword arguments of that function from the configuration."""


ESTIMATORS: Mapping[str, EstimatorTraits] = {
    "grpo": EstimatorTraits(("normalise_by_std",), needs_groups=True),
    "gae": EstimatorTraits(("gamma", "lam"), needs_critic=True, per_token=True),
    "rloo": EstimatorTraits(needs_groups=True),
    "reinforce_plus_plus": EstimatorTraits(("gamma",), per_token=True),
    "reinforce_plus_plus_baseline": EstimatorTraits(needs_groups=True),
    "remax": EstimatorTraits(needs_greedy=True),
    "opo": EstimatorTraits(needs_groups=True),
    "gpg": EstimatorTraits(needs_groups=True),
    "grpo_passk": EstimatorTraits(("normalise_by_std",), needs_groups=True),
    "grpo_batch_std": EstimatorTraits(needs_groups=True),
    "geo_mean": EstimatorTraits(("normalise_by_std", "floor", "offset"), needs_groups=True),
}
"""`algorithm.adv_estimator` -> traits."""

LOSSES: Mapping[str, LossTraits] = {
    "vanilla": LossTraits(("clip_low", "clip_high", "clip_dual")),
    "geo_mean": LossTraits(("clip_low", "clip_high", "clip_level", "length_norm", "upper"), per_sequence=True),
    "power_mean": LossTraits(("clip_low", "clip_high", "clip_level", "upper", "power"), per_sequence=True),
    "gspo": LossTraits(("clip_low", "clip_high"), per_sequence=True),
    "gspo_token": LossTraits(("clip_low", "clip_high"), aggregation="seq-mean-token-mean"),
    "cispo": LossTraits(("clip_low", "clip_high")),
    "sapo": LossTraits(("tau_positive", "tau_negative"), aggregation="seq-mean-token-mean"),
    "gpg": LossTraits(),
    "clip_cov": LossTraits(
        ("clip_low", "clip_high"),
        select="select_clip_cov",
        select_numbers=("clip_low", "clip_high", "clip_cov_share", "cov_low", "cov_high"),
    ),
    "kl_cov": LossTraits(("kl_coef",), select="select_kl_cov", select_numbers=("kl_cov_share",)),
}
"""`actor.policy_loss.loss_mode` -> traits."""
