"""Estimators of KL(policy || reference) per token, and the controllers of its coefficient in the reward.

Notation: x = ref_logp - logp. Source of k1, k2, k3: John Schulman, "Approximating KL divergence" (2020).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor


def k1(logp: Float[Tensor, "B T"], ref_logp: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """`-x`: unbiased, of either sign. As a loss its expected gradient is zero; prefer `k2`, `k3` or the `+` forms."""
    return logp - ref_logp


def absolute(logp: Float[Tensor, "B T"], ref_logp: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """`|x|`."""
    return (logp - ref_logp).abs()


def k2(logp: Float[Tensor, "B T"], ref_logp: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """`x^2 / 2`: biased, low variance; its gradient is an unbiased gradient of the KL divergence."""
    return 0.5 * (logp - ref_logp) ** 2


def k3(logp: Float[Tensor, "B T"], ref_logp: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """`e^x - x - 1`: unbiased and never negative; x is bounded to +-20 and the value to 10, as in verl."""
    x = (ref_logp - logp).clamp(-20.0, 20.0)
    return (torch.expm1(x) - x).clamp(max=10.0)  # exp(x) - 1 rounds to below x for small x


KL_ESTIMATORS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": k1,
    "k1": k1,
    "abs": absolute,
    "mse": k2,
    "k2": k2,
    "low_var_kl": k3,
    "k3": k3,
}
"""verl's names, the synonyms included."""


def kl_penalty(logp: Float[Tensor, "B T"], ref_logp: Float[Tensor, "B T"], kind: str) -> Float[Tensor, "B T"]:
    """Per-token KL estimate.

    Args:
        kind: a name of `KL_ESTIMATORS`; with a trailing `+` the value is that estimator's and the gradient is k2's.
    """
    value = KL_ESTIMATORS[kind.removesuffix("+")](logp, ref_logp)
    if not kind.endswith("+"):
        return value
    straight = k2(logp, ref_logp)
    return straight - straight.detach() + value.detach()


def adapted_coefficient(coefficient: float, kl: float, *, target: float, horizon: float, responses: int) -> float:
    """The adaptive controller: `beta * (1 + clip(kl / target - 1, -0.2, 0.2) * responses / horizon)`.

    Args:
        kl: mean over responses of the mean per-token KL, in nats per token.
        horizon: responses over which a persistent error of 0.2 changes the coefficient by a fifth of itself.

    Source: arXiv 1909.08593 section 2.2.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error * responses / horizon)
