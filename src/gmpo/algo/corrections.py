"""Corrections for sampler and learner being two policies: importance weights and rejection.

The sampler's probabilities mu differ from the learner's pi_old (other kernels, other precision, older weights). With
r_t = log pi_old - log mu, a weight w is a constant that multiplies the gradient of a token or of a response; a rejected
token or response leaves the loss and its denominator.

Sources: truncated weights, Yao et al., "Your efficient RL framework secretly brings you off-policy training" (2025);
rejection, Liu and Li, "When speed kills stability" (2025); IcePop, arXiv 2510.18855 eq. 4; names as in verl.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gmpo.algo.masks import sequence_mean, sequence_sum
from gmpo.objectives import REJECTIONS

LOG_LIMIT = 20.0
"""Log weights are bounded to +-20 before the exponential."""


def importance_weights(
    log_ratio: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    level: str,
    threshold: float,
    batch_normalise: bool,
    answer: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T"]:
    """`min(w, threshold)`, with `w = exp(r_t)` per token or `exp(sum_t r_t)` per response on each of its tokens.

    Args:
        level: `token` or `sequence`.
        threshold: truncation from above; weights below 1 are kept.
        batch_normalise: divide by the mean weight (over tokens, or over responses).
        mask: the tokens in the loss.
        answer: all sampled tokens, where some have left the loss: a response's ratio is that of the whole.
    """
    if level == "sequence":
        per_row = torch.exp(
            sequence_sum(log_ratio, mask if answer is None else answer).clamp(-LOG_LIMIT, LOG_LIMIT)
        ).clamp(max=threshold)
        present = mask.any(dim=1)
        if batch_normalise and bool(present.any()):
            per_row = per_row / per_row[present].mean().clamp(min=1e-8)
        return (per_row.unsqueeze(1) * mask).detach()
    weights = torch.exp(log_ratio.masked_fill(~mask, 0.0).clamp(-LOG_LIMIT, LOG_LIMIT)).clamp(max=threshold)
    if batch_normalise and bool(mask.any()):
        weights = weights / weights[mask].mean().clamp(min=1e-8)
    return (weights * mask).detach()


def icepop_weights(
    log_ratio: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, low: float, high: float
) -> Float[Tensor, "B T"]:
    """`w_t = exp(r_t)` where it lies in [low, high], else 0: such tokens count in the mean and have no gradient."""
    weights = torch.exp(log_ratio.masked_fill(~mask, 0.0).clamp(-LOG_LIMIT, LOG_LIMIT))
    return weights.masked_fill((weights < low) | (weights > high) | ~mask, 0.0).detach()


def geometric_weights(weights: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """The geometric mean of a response's weights on each of its tokens: how verl weights `geo_mean`."""
    means = torch.exp(sequence_mean(torch.log(weights + 1e-10), mask))
    return means.unsqueeze(1) * mask


def with_gradient_weights(logp: Float[Tensor, "B T"], weights: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """`logp` in value, `weights * d logp` in gradient: weights any loss without touching its ratios and bounds."""
    return logp.detach() + weights * (logp - logp.detach())


def _k1(log_ratio: Tensor) -> Tensor:
    return -log_ratio


def _k2(log_ratio: Tensor) -> Tensor:
    return 0.5 * log_ratio**2


def _k3(log_ratio: Tensor) -> Tensor:
    bounded = log_ratio.clamp(-LOG_LIMIT, LOG_LIMIT)
    return torch.expm1(bounded) - bounded  # exp(r) - 1 rounds to below r for small r


def _row_max(values: Tensor, mask: Tensor) -> Tensor:
    # k2 and k3 are never negative; the column of zeros stands for a response without tokens.
    zeros = values.new_zeros(values.shape[0], 1)
    return torch.cat([values.masked_fill(~mask, 0.0), zeros], dim=1).amax(dim=1)


@dataclass(frozen=True, slots=True)
class RejectionRule:
    """How one option of `rollout_rs` measures the distance between sampler and learner."""

    divergence: Callable[[Tensor], Tensor]
    """Per-token estimate from r_t."""
    over: Callable[[Tensor, Tensor], Tensor] | None
    """Reduction over the response `(values, mask) -> [B]`; None judges each token by itself."""
    two_sided: bool
    """The threshold is a band `lower_upper` of ratios (k1); otherwise an upper bound."""


_DIVERGENCES: Mapping[str, Callable[[Tensor], Tensor]] = {"k1": _k1, "k2": _k2, "k3": _k3}
_REDUCTIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor] | None] = {
    "token": None,
    "seq_sum": sequence_sum,
    "seq_mean": sequence_mean,
    "seq_max": _row_max,
}
REJECTION: Mapping[str, RejectionRule] = {
    name: RejectionRule(_DIVERGENCES[traits.divergence], _REDUCTIONS[traits.level], traits.two_sided)
    for name, traits in REJECTIONS.items()
}
"""Option of `rollout_rs` -> rule; names and traits are those of `gmpo.objectives`."""


def accepted(
    log_ratio: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, rule: str, low: float, high: float
) -> Bool[Tensor, "B T"]:
    """The tokens of the mask that `rule` keeps.

    Args:
        rule: a name of `REJECTION`.
        low, high: for k1 a band of ratios, compared as logs with -r; otherwise only `high` is used, an upper bound.
    """
    entry = REJECTION[rule]
    r = log_ratio.masked_fill(~mask, 0.0)
    values = entry.divergence(r)
    if entry.over is not None:
        values = entry.over(values, mask).unsqueeze(1)
    if entry.two_sided:
        return mask & (values >= math.log(low)) & (values <= math.log(high))
    return mask & (values <= high)
