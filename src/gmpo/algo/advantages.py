"""Advantage estimators: token rewards of a batch -> advantages.

Contract. An estimator takes `token_rewards [B, T]`, `mask [B, T]`, `group [B]` (which problem a response answers, any
integers) and keyword numbers, and returns advantages `[B, T]`, zero outside the mask. It may not see log-probs or the
policy. To add one, write the function and its entry in `ADVANTAGES`, which says what it needs from the run.

Notation: R_i = sum_t r_it the response's reward, g its group, n the group's size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gmpo.algo.masks import sequence_sum


@dataclass(frozen=True, slots=True)
class GroupMoments:
    """Mean, unbiased standard deviation, size and equality of rewards, gathered back to each response `[B]`."""

    mean: Float[Tensor, " B"]
    std: Float[Tensor, " B"]
    size: Int[Tensor, " B"]
    constant: Bool[Tensor, " B"]
    """All rewards of the group are equal bit for bit (also true for a group of one)."""


def group_moments(rewards: Float[Tensor, " B"], group: Int[Tensor, " B"]) -> GroupMoments:
    """Statistics of `rewards` within each group, in float64. A group of one has standard deviation 0."""
    _, index = torch.unique(group, return_inverse=True)
    groups = int(index.max()) + 1 if index.numel() else 0
    r = rewards.double()
    zeros = torch.zeros(groups, dtype=torch.float64, device=r.device)
    size = zeros.index_add(0, index, torch.ones_like(r))
    mean = zeros.index_add(0, index, r) / size
    deviation = r - mean[index]
    variance = zeros.index_add(0, index, deviation**2) / (size - 1).clamp(min=1)
    highest = zeros.scatter_reduce(0, index, r, "amax", include_self=False)
    lowest = zeros.scatter_reduce(0, index, r, "amin", include_self=False)
    return GroupMoments(mean[index], variance.sqrt()[index], size.long()[index], (highest == lowest)[index])


def grpo(
    token_rewards: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    group: Int[Tensor, " B"],
    *,
    normalise_by_std: bool,
    epsilon: float = 1e-6,
) -> Float[Tensor, "B T"]:
    """`A_i = (R_i - mean_g R) / (std_g R + epsilon)`, the same for every token of the response.

    The standard deviation has n - 1 in its denominator. A group of equal rewards gets exactly 0. Without the
    division it is the advantage of Dr.GRPO.

    Source: GRPO, arXiv 2402.03300 section 4.1.2; without std: Dr.GRPO, arXiv 2503.20783 section 3.2.
    """
    rewards = sequence_sum(token_rewards, mask)
    moments = group_moments(rewards, group)
    advantage = rewards.double() - moments.mean
    if normalise_by_std:
        advantage = advantage / (moments.std + epsilon)
    advantage = advantage.masked_fill(moments.constant, 0.0)
    return advantage.to(token_rewards.dtype).unsqueeze(1) * mask


@dataclass(frozen=True, slots=True)
class Estimator:
    """An entry of `ADVANTAGES`: the function and what it needs from the run."""

    fn: Callable[..., Float[Tensor, "B T"]]
    numbers: tuple[str, ...]
    """The keyword numbers it takes from the configuration."""
    needs_groups: bool
    """Several answers to each problem are compared: `rollout.n` must be at least 2."""


ADVANTAGES: Mapping[str, Estimator] = {
    "grpo": Estimator(grpo, ("normalise_by_std",), needs_groups=True),
}
