"""What every policy loss returns, and the exponent cap that they share.

Notation in the loss modules: d = logp - old_logp, rho = exp(d), A the advantage, |o| the response's number of tokens in
the mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gmpo.algo.masks import sequence_mean

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
    """Tokens on which the clip range holds: those whose gradient it cut (for losses with a log clip: those with A > 0),
    and for `cispo` those whose weight it changed."""
    clipped_lower: Bool[Tensor, "B T"]
    """Tokens cut by the second bound: dual clip for `vanilla`, the lower bound with A < 0 for log clips. Disjoint from
    `clipped`."""
    sequence_ratio: Float[Tensor, " B"]
    """The ratio that a response as a whole is weighted with: exp of the mean (clipped) log-ratio. Detached."""
    capped: Bool[Tensor, " B"]
    """Responses whose ratio was held at exp(20)."""


def capped_exp(exponent: Tensor) -> Tensor:
    """exp(min(x, 20)) whose derivative stays exp(min(x, 20)): above the cap the weight is held, not dropped."""
    return torch.exp(exponent.detach().clamp(max=LOG_RATIO_LIMIT) + (exponent - exponent.detach()))


def log_ratio(
    logp: Float[Tensor, "B T"], old_logp: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """d, with 0 outside the mask whatever stands there."""
    return (logp - old_logp).masked_fill(~mask, 0.0)


def bounded_ratio(d: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """rho with d bounded to +-20."""
    return torch.exp(d.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


def token_surrogate(
    values: Float[Tensor, "B T"],
    d: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clipped: Bool[Tensor, "B T"] | None = None,
    clipped_lower: Bool[Tensor, "B T"] | None = None,
    capped: Bool[Tensor, " B"] | None = None,
) -> Surrogate:
    """The record of a per-token loss: its sequence ratio is the plain geometric mean, for the metrics alone."""
    nothing = torch.zeros_like(mask)
    return Surrogate(
        values=values,
        clipped=nothing if clipped is None else clipped & mask,
        clipped_lower=nothing if clipped_lower is None else clipped_lower & mask,
        sequence_ratio=torch.exp(sequence_mean(d.detach(), mask).clamp(max=LOG_RATIO_LIMIT)),
        capped=nothing.any(dim=1) if capped is None else capped,
    )
