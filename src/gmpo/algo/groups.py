"""Statistics of rewards within the groups of answers to one problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


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


def unanimous(rewards: Sequence[Float[Tensor, " B"]], group: Int[Tensor, " B"]) -> Bool[Tensor, " B"]:
    """The answers of the response's group are equal, bit for bit, in every one of these rewards."""
    return torch.stack([group_moments(one, group).constant for one in rewards]).all(dim=0)
