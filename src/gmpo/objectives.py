"""The estimators, policy losses and rejection rules by name, and what each needs from a run. The only list of names.

No torch: the configuration checks names and combinations with it. The functions stand in `gmpo.algo` under the same
names; `ADVANTAGES`, `POLICY_LOSSES` and `REJECTION` of `gmpo.algo.advantages`, `losses` and `corrections` join the two.
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
    needs_components: bool = False
    """It takes `components`, several rewards of each answer, and not their sum: `algorithm.gdpo_reward_keys`."""
    needs_score_norms: bool = False
    """It takes `score_norm`, how far each token's log-prob moves with the logits, and the tokens' `weights`."""
    per_token: bool = False
    """Advantages vary over the tokens of a response, which losses with one weight per response refuse."""
    rewards_to_come: bool = False
    """Advantages sum the rewards still to come: they vary over tokens once a KL penalty is spread over the rewards."""


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
    divergence: bool = False
    """The bounds are distances between the token's probabilities before and now, not bounds of their ratio."""
    pulls: bool = False
    """It has a gradient where the advantage is 0: the pull back to the old policy."""
    log_clip: bool = False
    """The bounds are log-ratios, not distances of a ratio from 1."""
    published_clip: tuple[float, float] | None = None
    """Its paper's bounds, where PPO's 0.2 is on another scale."""

    @property
    def all_numbers(self) -> tuple[str, ...]:
        """The keyword arguments from the configuration, of the loss or of its choice of tokens, each once."""
        return tuple(dict.fromkeys(self.numbers + self.select_numbers))


@dataclass(frozen=True, slots=True)
class RejectionTraits:
    """How an option of `rollout_rs` measures the distance between sampler and learner."""

    level: str
    """`token` judges each token by itself; `seq_sum`, `seq_mean` and `seq_max` judge responses."""
    divergence: str
    """Estimate per token from r = log pi_old - log mu: `k1` = -r, `k2` = r^2 / 2, `k3` = e^r - 1 - r."""

    @property
    def two_sided(self) -> bool:
        """The threshold is a band of ratios around 1; otherwise an upper bound on the divergence."""
        return self.divergence == "k1"


@dataclass(frozen=True, slots=True)
class Rejection:
    """One option of `rollout_rs` with its bounds. Example: `Rejection("seq_mean_k1", 0.999, 1.001)`."""

    rule: str
    """A name of `REJECTIONS`."""
    low: float
    """k1: the smallest ratio mu / pi_old that is kept. Otherwise 0, which every divergence reaches."""
    high: float
    """k1: the largest ratio that is kept. Otherwise the largest divergence."""


ESTIMATORS: Mapping[str, EstimatorTraits] = {
    "grpo": EstimatorTraits(("normalise_by_std",), needs_groups=True),
    "gae": EstimatorTraits(("gamma", "lam"), needs_critic=True, per_token=True),
    "rloo": EstimatorTraits(needs_groups=True),
    "reinforce_plus_plus": EstimatorTraits(("gamma",), per_token=True),
    "reinforce_plus_plus_baseline": EstimatorTraits(needs_groups=True),
    "remax": EstimatorTraits(needs_greedy=True, rewards_to_come=True),
    "opo": EstimatorTraits(needs_groups=True),
    "optimal_token_baseline": EstimatorTraits(needs_groups=True, needs_score_norms=True, per_token=True),
    "gpg": EstimatorTraits(needs_groups=True),
    "gdpo": EstimatorTraits(("normalise_by_std", "component_weights"), needs_groups=True, needs_components=True),
    "max_rl": EstimatorTraits(needs_groups=True),
    "grpo_passk": EstimatorTraits(("normalise_by_std",), needs_groups=True),
    "grpo_batch_std": EstimatorTraits(needs_groups=True),
    "geo_mean": EstimatorTraits(("normalise_by_std", "floor", "offset"), needs_groups=True),
}
"""`algorithm.adv_estimator` -> traits."""

LOSSES: Mapping[str, LossTraits] = {
    "vanilla": LossTraits(("clip_low", "clip_high", "clip_dual")),
    "geo_mean": LossTraits(
        ("clip_low", "clip_high", "clip_level", "length_norm", "upper"),
        per_sequence=True,
        log_clip=True,
        published_clip=(0.4, 0.4),
    ),
    "power_mean": LossTraits(
        ("clip_low", "clip_high", "clip_level", "upper", "power"),
        per_sequence=True,
        log_clip=True,
        published_clip=(0.4, 0.4),
    ),
    "gspo": LossTraits(("clip_low", "clip_high"), per_sequence=True, published_clip=(3e-4, 4e-4)),
    "gspo_token": LossTraits(("clip_low", "clip_high"), aggregation="seq-mean-token-mean", published_clip=(3e-4, 4e-4)),
    "cispo": LossTraits(("clip_low", "clip_high")),
    "sapo": LossTraits(("tau_positive", "tau_negative"), aggregation="seq-mean-token-mean"),
    "gpg": LossTraits(),
    "dppo_tv": LossTraits(("clip_low", "clip_high", "clip_dual", "symmetric"), divergence=True),
    "dppo_kl": LossTraits(("clip_low", "clip_high", "clip_dual", "symmetric"), divergence=True),
    "dro": LossTraits(("beta",), pulls=True),
    "clip_cov": LossTraits(
        ("clip_low", "clip_high"),
        select="select_clip_cov",
        select_numbers=("clip_low", "clip_high", "clip_cov_share", "cov_low", "cov_high"),
    ),
    "kl_cov": LossTraits(("kl_coef",), select="select_kl_cov", select_numbers=("kl_cov_share",)),
}
"""`actor.policy_loss.loss_mode` -> traits."""

REJECTIONS: Mapping[str, RejectionTraits] = {
    "token_k1": RejectionTraits("token", "k1"),
    "token_k2": RejectionTraits("token", "k2"),
    "token_k3": RejectionTraits("token", "k3"),
    "seq_sum_k1": RejectionTraits("seq_sum", "k1"),
    "seq_sum_k2": RejectionTraits("seq_sum", "k2"),
    "seq_sum_k3": RejectionTraits("seq_sum", "k3"),
    "seq_mean_k1": RejectionTraits("seq_mean", "k1"),
    "seq_mean_k2": RejectionTraits("seq_mean", "k2"),
    "seq_mean_k3": RejectionTraits("seq_mean", "k3"),
    "seq_max_k2": RejectionTraits("seq_max", "k2"),
    "seq_max_k3": RejectionTraits("seq_max", "k3"),
}
"""Option of `algorithm.rollout_correction.rollout_rs`, under verl's names -> traits."""
