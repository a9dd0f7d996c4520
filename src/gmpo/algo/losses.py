"""Policy losses: pure functions of log-probabilities, advantages and a mask.

Contract. A loss takes `logp, old_logp, advantage, mask`, all `[B, T]`, and keyword numbers, and returns a `Surrogate`:
values to be minimised per token `[B, T]` or per response `[B]`, and the tokens on which a bound cut the gradient. It
neither averages nor logs: `gmpo.algo.masks` owns the denominator. To add a loss, write the function and its entry in
`POLICY_LOSSES`; nothing else in the package compares names.

Notation: d = logp - old_logp, rho = exp(d), A the advantage, |o| the response's number of tokens in the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gmpo.algo.masks import Counts, aggregate, sequence_aggregate, sequence_mean

LOG_RATIO_LIMIT = 20.0
"""Largest exponent that is taken: exp(20) = 4.9e8 stays finite in every dtype that trains."""


@dataclass(frozen=True, slots=True)
class Surrogate:
    """What a policy loss returns.

    Example: `Surrogate(values=[-1.2, 0.9], clipped=..., clipped_lower=..., sequence_ratio=[1.2, 0.9], capped=...)`.
    """

    values: Tensor
    """[B, T] per token or [B] per response, to be minimised; zero or meaningless outside the mask."""
    clipped: Bool[Tensor, "B T"]
    """Tokens whose gradient the clip range cut (for `geo_mean`: those with A > 0)."""
    clipped_lower: Bool[Tensor, "B T"]
    """Tokens cut by the second bound: dual clip for `vanilla`, the lower bound with A < 0 for `geo_mean`. Disjoint from
    `clipped`."""
    sequence_ratio: Float[Tensor, " B"]
    """The ratio that a response as a whole is weighted with: exp of the mean (clipped) log-ratio. Detached."""
    capped: Bool[Tensor, " B"]
    """Responses whose ratio was held at exp(20)."""


def _capped_exp(exponent: Tensor) -> Tensor:
    """exp(min(x, 20)) whose derivative stays exp(min(x, 20)): above the cap the weight is held, not dropped."""
    return torch.exp(exponent.detach().clamp(max=LOG_RATIO_LIMIT) + (exponent - exponent.detach()))


def vanilla(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_low: float,
    clip_high: float,
    clip_dual: float,
) -> Surrogate:
    """The clipped surrogate of PPO with dual clip, per token.

    `l = max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high))`, and for A < 0 `l = min(l, -A clip_dual)`; d is bounded
    to +-20 first.

    Source: PPO, arXiv 1707.06347 eq. 7; dual clip, arXiv 1912.09729 eq. 5; as in verl's `vanilla`.
    """
    d = (logp - old_logp).masked_fill(~mask, 0.0)
    ratio = torch.exp(d.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    plain = -advantage * ratio
    bounded = -advantage * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    worse = torch.maximum(plain, bounded)
    dual_bound = -advantage * clip_dual
    dual = (advantage < 0) & (worse > dual_bound) & mask
    values = torch.where(dual, dual_bound, worse)
    return Surrogate(
        values=values,
        clipped=(bounded > plain) & ~dual & mask,
        clipped_lower=dual,
        sequence_ratio=torch.exp(sequence_mean(d.detach(), mask).clamp(max=LOG_RATIO_LIMIT)),
        capped=torch.zeros(mask.shape[0], dtype=torch.bool, device=mask.device),
    )


def geo_mean(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_low: float,
    clip_high: float,
) -> Surrogate:
    """Geometric-Mean Policy Optimization: the response is weighted by the geometric mean of its clipped token ratios.

    With m_t = min(d_t, clip_high) where A > 0 and max(d_t, -clip_low) where A < 0 (bounds are log-ratios: 0.4 means
    ratios up to e^0.4 = 1.49 and down to e^-0.4 = 0.67), per response

        l = -A exp(1/|o| sum_t m_t)        and        dl/dlogp_t = -A exp(1/|o| sum m) / |o| * [token t is not cut].

    Only the side on which the policy already moved as the advantage asks is bounded, so for A < 0 the ratio has no
    upper bound; the exponent is therefore held at 20, with the gradient of the cap. A = 0 gives exactly 0.

    Args:
        advantage: constant over each response's tokens.

    Source: GMPO, arXiv 2507.20673 eq. 4 and algorithm 1; the gradient is eq. 6 with the cut tokens left out.
    """
    d = logp - old_logp
    # Only A = 0 has no gradient: an advantage that is not a number (whose torch.sign is 0) must show in it.
    m = torch.where(advantage > 0, d.clamp(max=clip_high), d.clamp(min=-clip_low)).masked_fill(advantage == 0, 0.0)
    mean = sequence_mean(m, mask)
    ratio = _capped_exp(mean)
    return Surrogate(
        values=-sequence_mean(advantage, mask) * ratio,
        clipped=(advantage > 0) & (d > clip_high) & mask,
        clipped_lower=(advantage < 0) & (d < -clip_low) & mask,
        sequence_ratio=ratio.detach(),
        capped=mean.detach() > LOG_RATIO_LIMIT,
    )


def negative_log_likelihood(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
) -> Surrogate:
    """`-A logp` per token: supervised learning when A = 1. `old_logp` plays no part and nothing is bounded."""
    nothing = torch.zeros_like(mask)
    rows = mask.shape[0]
    return Surrogate(
        values=-advantage.masked_fill(~mask, 0.0) * logp,
        clipped=nothing,
        clipped_lower=nothing,
        sequence_ratio=torch.ones(rows, device=mask.device),
        capped=torch.zeros(rows, dtype=torch.bool, device=mask.device),
    )


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """An entry of `POLICY_LOSSES`: the function and what its callers must know about it."""

    fn: Callable[..., Surrogate]
    numbers: tuple[str, ...]
    """The keyword numbers it takes, as named in its signature."""
    per_sequence: bool
    """True: one value per response, averaged over responses whatever `loss_agg_mode` says. False: per token."""


POLICY_LOSSES: Mapping[str, PolicyLoss] = {
    "vanilla": PolicyLoss(vanilla, ("clip_low", "clip_high", "clip_dual"), per_sequence=False),
    "geo_mean": PolicyLoss(geo_mean, ("clip_low", "clip_high"), per_sequence=True),
}


SUPERVISED = PolicyLoss(negative_log_likelihood, (), per_sequence=False)
"""Learning from given answers, for the warm-up; not a `loss_mode`."""


def reduce_surrogate(
    surrogate: Surrogate,
    mask: Bool[Tensor, "B T"],
    *,
    per_sequence: bool,
    mode: str,
    counts: Counts,
    loss_scale: float,
) -> Float[Tensor, ""]:
    """A micro-batch's share of the mini-batch loss: what is passed to backward.

    Args:
        per_sequence: as in the loss's table entry.
        mode: `loss_agg_mode`, for per-token losses.
        counts: of the whole mini-batch.
        loss_scale: see `gmpo.algo.masks.aggregate`.
    """
    if per_sequence:
        return sequence_aggregate(surrogate.values, mask, counts)
    return aggregate(surrogate.values, mask, mode, counts, loss_scale)
