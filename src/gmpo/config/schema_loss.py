"""`actor.policy_loss.*`: which policy loss, and the numbers of those that are not PPO's."""

from __future__ import annotations

from typing import Annotated, Literal

from gmpo.config.fields import Section, one_of, setting
from gmpo.objectives import LOSSES


class PolicyLoss(Section):
    """The policy loss. Its clip bounds are actor.clip_ratio_low and clip_ratio_high."""

    loss_mode: Annotated[str, one_of(LOSSES)] = setting(
        "vanilla",
        "vanilla: PPO's clipped ratio per token, with dual clip. geo_mean: GMPO, the geometric mean of an answer's "
        "clipped ratios. power_mean: their mean with exponent power. gspo: one clipped ratio per answer; gspo_token: "
        "the same with advantages per token. cispo: clipped weights. sapo: a soft gate. gpg: the plain policy "
        "gradient. dppo_tv, dppo_kl: no gradient where a token's probability moved too far, by total variation or KL. "
        "dro: the policy gradient with a quadratic pull back. clip_cov, kl_cov: less gradient for tokens of high "
        "covariance.",
    )
    power: float | tuple[float, float] = setting(
        0.0,
        "Exponent of power_mean: 1 is the arithmetic mean, 0 geo_mean, -1 the harmonic mean. [start, end] goes in a "
        "straight line from one to the other over the run.",
        own=True,
    )
    clip_level: Literal["token", "sequence", "none"] = setting(
        "token",
        "What geo_mean and power_mean bound: each log-ratio, the answer's sum of them, or nothing.",
        own=True,
    )
    length_norm: bool = setting(
        True,
        "Divide the sum of log-ratios in geo_mean by the answer's length. False is an ablation of the paper.",
        own=True,
    )
    geo_mean_upper: float | None = setting(
        None,
        "Upper bound of each log-ratio where A < 0, which the one-sided clip of geo_mean and power_mean leaves open.",
        own=True,
        gt=0,
    )
    dppo_symmetric: bool = setting(
        False, "Let dppo_tv and dppo_kl cut tokens that moved too far either way, whatever the sign of A.", own=True
    )
    dro_beta: float = setting(0.1, "Weight of dro's pull back, half of the squared log-ratio.", gt=0)
    clip_cov_ratio: float = setting(2e-4, "Share of the mini-batch's tokens that clip_cov takes out.", gt=0, le=1)
    clip_cov_lb: float = setting(1.0, "clip_cov takes tokens whose covariance is above it.")
    clip_cov_ub: float = setting(5.0, "clip_cov takes tokens whose covariance is below it.")
    kl_cov_ratio: float = setting(2e-4, "Share of the mini-batch's tokens that kl_cov penalises.", gt=0, le=1)
    ppo_kl_coef: float = setting(0.1, "Weight of that penalty, the absolute log-ratio.", ge=0)
