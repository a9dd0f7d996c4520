"""Rewards still to come, and their whitening over a batch.

Shapes: B responses, T response positions. The mask is true on the sampled tokens; holes in it are passed over.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def whiten(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """`(x - mean) / sqrt(var + 1e-8)` over all tokens of the mask, var unbiased; zero outside it.

    A single token has no variance and becomes 0.
    """
    x = values[mask].double()
    if x.numel() == 0:
        return torch.zeros_like(values)
    variance = x.var(correction=1) if x.numel() > 1 else torch.zeros((), dtype=torch.float64)
    whitened = (values.double() - x.mean()) * torch.rsqrt(variance + 1e-8)
    return whitened.to(values.dtype).masked_fill(~mask, 0.0)


def discounted(rewards: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], gamma: float) -> Float[Tensor, "B T"]:
    """`G_t = r_t + gamma G_{t+1}` along the response; positions outside the mask are passed over."""
    returns = torch.zeros_like(rewards)
    following = torch.zeros(rewards.shape[0], dtype=rewards.dtype, device=rewards.device)
    for t in reversed(range(rewards.shape[1])):
        following = torch.where(mask[:, t], rewards[:, t] + gamma * following, following)
        returns[:, t] = following
    return returns.masked_fill(~mask, 0.0)


def lambda_returns(
    token_rewards: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    *,
    gamma: float,
    lam: float,
) -> Float[Tensor, "B T"]:
    """Targets of the value function: `returns_t = V_t + A_t` with the generalised advantage

        delta_t = r_t + gamma V_{t+1} - V_t,     A_t = delta_t + gamma lam A_{t+1},

    V = A = 0 behind the last token. t counts the tokens of the mask and passes over the others: an action is a token
    that the policy sampled, its state is all that stands before it, and what a tool or an environment says in between
    belongs to the transition from one state to the next. So the value after an action is the value before the next
    action, and gamma and lambda discount actions. Source: GAE, arXiv 1506.02438 eq. 16; holes as in verl.
    """
    advantage = torch.zeros_like(values)
    next_value = torch.zeros(values.shape[0], dtype=values.dtype, device=values.device)
    following = torch.zeros_like(next_value)
    for t in reversed(range(values.shape[1])):
        here = token_rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * following
        following = torch.where(mask[:, t], here, following)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        advantage[:, t] = following
    return (advantage + values).masked_fill(~mask, 0.0)
