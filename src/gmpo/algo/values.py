"""The value function of PPO: its loss and how much of the returns it explains."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def value_loss(
    values: Float[Tensor, "B T"],
    old_values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    *,
    clip: float,
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """`0.5 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2)` per token, and where the bound decides.

    Source: PPO's reference implementation (OpenAI baselines, ppo2); as in verl.
    """
    bounded = torch.minimum(torch.maximum(values, old_values - clip), old_values + clip)
    plain, held = (values - returns) ** 2, (bounded - returns) ** 2
    return 0.5 * torch.maximum(plain, held), held > plain


def explained_variance(values: Float[Tensor, "B T"], returns: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> float:
    """`1 - Var(R - V) / Var(R)` over the tokens: 1 is perfect, 0 no better than a constant, below 0 worse.

    NaN where all returns are equal.
    """
    r, v = returns[mask].double(), values[mask].double()
    # Not by their variance, which rounding lifts above 0.
    if bool((r == r[:1]).all()):
        return float("nan")
    return float(1.0 - (r - v).var(correction=0) / r.var(correction=0))
