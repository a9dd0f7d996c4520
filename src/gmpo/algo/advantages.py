"""Advantage estimators: token rewards of a batch -> advantages.

Contract. An estimator takes `token_rewards [B, T]`, `mask [B, T]`, `group [B]` (which problem a response answers, any
integers) and keyword arguments that its entry names, and returns advantages `[B, T]`, zero outside the mask. The mask
is true on the sampled tokens and may have holes. What stands in them plays no part: a response has the advantages that
it has with its holes closed. An estimator may not see log-probs or the policy, but for the `score_norm` that one may
ask for. To add one, write the function here and its traits, what it needs from the run, in `gmpo.objectives`.

Notation: R_i = sum_t r_it the response's reward, g its group, n the group's size, T_i its number of sampled tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gmpo.algo.groups import group_moments
from gmpo.algo.masks import sequence_sum
from gmpo.algo.returns import discounted, lambda_returns, whiten
from gmpo.errors import ConfigError
from gmpo.objectives import ESTIMATORS, EstimatorTraits


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


def _spread(rewards: Float[Tensor, " B"], mask: Bool[Tensor, "B T"], like: Tensor) -> Float[Tensor, "B T"]:
    """One number per response, on each of its tokens."""
    return rewards.to(like.dtype).unsqueeze(1) * mask


def rloo(
    token_rewards: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], group: Int[Tensor, " B"]
) -> Float[Tensor, "B T"]:
    """Leave-one-out: `A_i = R_i - mean of the others' R = n / (n - 1) (R_i - mean_g R)`; R_i itself in a group of one.

    Source: RLOO, arXiv 2402.14740 section 3.2.
    """
    rewards = sequence_sum(token_rewards, mask).double()
    moments = group_moments(rewards, group)
    scale = moments.size.double() / (moments.size - 1).clamp(min=1)
    advantage = (scale * (rewards - moments.mean)).masked_fill(moments.constant, 0.0)
    return _spread(torch.where(moments.size == 1, rewards, advantage), mask, token_rewards)


def reinforce_plus_plus(
    token_rewards: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], group: Int[Tensor, " B"], *, gamma: float
) -> Float[Tensor, "B T"]:
    """Discounted returns `G_t = r_t + gamma G_{t+1}`, whitened over the tokens of the batch.

    Source: REINFORCE++, arXiv 2501.03262 section 3; as in verl.
    """
    return whiten(discounted(token_rewards, mask, gamma), mask)


def reinforce_plus_plus_baseline(
    token_rewards: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], group: Int[Tensor, " B"]
) -> Float[Tensor, "B T"]:
    """`R_i - mean_g R` (R_i in a group of one) on each token, whitened over the tokens of the batch.

    Source: REINFORCE++-baseline, arXiv 2501.03262 section 3.3; as in verl.
    """
    rewards = sequence_sum(token_rewards, mask).double()
    moments = group_moments(rewards, group)
    centred = (rewards - moments.mean).masked_fill(moments.constant, 0.0)
    centred = torch.where(moments.size == 1, rewards, centred)
    return whiten(_spread(centred, mask, token_rewards), mask)


def remax(
    token_rewards: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    group: Int[Tensor, " B"],
    *,
    greedy_reward: Float[Tensor, " B"],
) -> Float[Tensor, "B T"]:
    """Reward still to come, less the reward of the greedy answer to the same problem.

    Args:
        greedy_reward: reward of that answer, for each response.

    Source: ReMax, arXiv 2310.10505 algorithm 1.
    """
    return discounted(token_rewards, mask, 1.0) - _spread(greedy_reward, mask, token_rewards)


def opo(
    token_rewards: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], group: Int[Tensor, " B"]
) -> Float[Tensor, "B T"]:
    """`R_i - sum_g T R / sum_g T`: the baseline of least variance when gradients grow with length.

    A group without any token has baseline 0. Source: OPO, arXiv 2505.23585 eq. 8.
    """
    rewards = sequence_sum(token_rewards, mask).double()
    lengths = mask.sum(dim=1).double()
    weighted = group_moments(rewards * lengths, group)
    total = group_moments(lengths, group).mean
    baseline = torch.where(total > 0, weighted.mean / total.clamp(min=1e-300), 0.0)
    # In a group of equal rewards the quotient may miss the reward by rounding.
    advantage = (rewards - baseline).masked_fill(group_moments(rewards, group).constant & (total > 0), 0.0)
    return _spread(advantage, mask, token_rewards)


def optimal_token_baseline(
    token_rewards: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    group: Int[Tensor, " B"],
    *,
    score_norm: Float[Tensor, "B T"],
    weights: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T"]:
    """Reward still to come, less the baseline of least variance at this place of the group's responses:

        A_it = G_it - B_t,   B_t = sum_j W_jt G_jt / sum_j W_jt,   W_it = sum_{k <= t} w_ik^2 ||d log pi(o_ik) / d z||^2

    over the group's responses that have a t-th sampled token. Of a response that is alone there B_t is 0, else it would
    be compared with itself. Where no token can move (W = 0) B_t is the plain mean.

    Args:
        score_norm: `||d log pi(o_t) / d z||^2 = 1 - 2 pi(o_t) + sum_v pi(v)^2`, z the logits; without meaning outside
            the mask.
        weights: w, factors of the tokens' gradients; None for 1.

    Source: OTB, arXiv 2602.07078; as in verl, which adds 1e-8 to the denominator.
    """
    energy = score_norm.double().masked_fill(~mask, 0.0)
    if weights is not None:
        energy = energy * weights.double().masked_fill(~mask, 0.0) ** 2
    returns = discounted(token_rewards.double(), mask, 1.0)[mask]
    energy = energy.cumsum(dim=1)[mask]
    place = mask.cumsum(dim=1) - 1
    cell = torch.unique(group.unsqueeze(1) * mask.shape[1] + place, return_inverse=True)[1][mask]
    at = group_moments(returns, cell)
    total = group_moments(energy, cell).mean
    weighted = group_moments(energy * returns, cell).mean / total
    baseline = torch.where(total > 0, weighted, at.mean)
    advantage = torch.where(at.size > 1, (returns - baseline).masked_fill(at.constant, 0.0), returns)
    return torch.zeros_like(token_rewards).masked_scatter(mask, advantage.to(token_rewards.dtype))


def gpg(
    token_rewards: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], group: Int[Tensor, " B"]
) -> Float[Tensor, "B T"]:
    """`alpha (R_i - mean_g R)` with `alpha = B / max(1, number of non-zero rewards)` over the batch.

    Source: GPG, arXiv 2504.02546; alpha as in verl.
    """
    rewards = sequence_sum(token_rewards, mask).double()
    moments = group_moments(rewards, group)
    alpha = rewards.numel() / torch.count_nonzero(rewards).clamp(min=1).double()
    return _spread((alpha * (rewards - moments.mean)).masked_fill(moments.constant, 0.0), mask, token_rewards)


def grpo_passk(
    token_rewards: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    group: Int[Tensor, " B"],
    *,
    normalise_by_std: bool,
    epsilon: float = 1e-6,
) -> Float[Tensor, "B T"]:
    """Only the group's best response gets an advantage: its reward less the second best (over std + epsilon).

    A tie for the best gives 0 to all. Every group needs two responses. Source: arXiv 2503.19595; as in verl.
    """
    rewards = sequence_sum(token_rewards, mask).double()
    moments = group_moments(rewards, group)
    _, index = torch.unique(group, return_inverse=True)
    groups = int(index.max()) + 1 if index.numel() else 0
    lowest = torch.full((groups,), -torch.inf, dtype=torch.float64, device=rewards.device)
    best = lowest.scatter_reduce(0, index, rewards, "amax")[index]
    is_best = rewards == best
    winners = torch.zeros(groups, dtype=torch.float64, device=rewards.device).index_add(0, index, is_best.double())
    second = lowest.scatter_reduce(0, index, rewards.masked_fill(is_best, -torch.inf), "amax")[index]
    advantage = torch.where(is_best & (winners[index] == 1) & second.isfinite(), rewards - second, 0.0)
    if normalise_by_std:
        advantage = advantage / (moments.std + epsilon)
    return _spread(advantage, mask, token_rewards)


def grpo_batch_std(
    token_rewards: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    group: Int[Tensor, " B"],
    *,
    epsilon: float = 1e-6,
) -> Float[Tensor, "B T"]:
    """`(R_i - mean_g R) / (std of all rewards of the batch + epsilon)`.

    An almost unanimous group is not blown up as by its own standard deviation. Source: Lite-PPO, arXiv 2508.08221
    section 4.
    """
    rewards = sequence_sum(token_rewards, mask).double()
    moments = group_moments(rewards, group)
    std = rewards.std(correction=1) if rewards.numel() > 1 else torch.zeros((), dtype=torch.float64)
    advantage = ((rewards - moments.mean) / (std + epsilon)).masked_fill(moments.constant, 0.0)
    return _spread(advantage, mask, token_rewards)


def gdpo(
    token_rewards: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    group: Int[Tensor, " B"],
    *,
    components: Float[Tensor, "B K"],
    component_weights: tuple[float, ...] | None,
    normalise_by_std: bool,
    epsilon: float = 1e-6,
) -> Float[Tensor, "B T"]:
    """Every reward is made an advantage of its own within the group; their weighted sum is whitened over the tokens:

        A_i = whiten( sum_k w_k (r_ik - mean_g r_k) / (std_g r_k + epsilon) ).

    A sum of rewards that is normalised once gives [1, 0] and [0, 1] one advantage whatever their scales are; here a
    reward's scale plays no part, and its weight is what is said. Of `token_rewards` nothing is taken.

    Args:
        components: r, the rewards of each response.
        component_weights: w, one for each of them; None weighs all alike.

    Source: GDPO, arXiv 2601.05242; as in verl.
    """
    weights = (1.0,) * components.shape[1] if component_weights is None else component_weights
    total = torch.zeros(mask.shape[0], dtype=torch.float64, device=mask.device)
    for rewards, weight in zip(components.double().unbind(1), weights, strict=True):
        moments = group_moments(rewards, group)
        centred = (rewards - moments.mean) / (moments.std + epsilon if normalise_by_std else 1.0)
        total += weight * centred.masked_fill(moments.constant, 0.0)
    return whiten(_spread(total, mask, token_rewards), mask)


def max_rl(
    token_rewards: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], group: Int[Tensor, " B"]
) -> Float[Tensor, "B T"]:
    """`A_i = (R_i - mean_g R) / mean_g R`: a group in which little is right counts for more.

    For 0/1 rewards its expected gradient is that of the log of the pass rate, the likelihood of a right answer, where
    the plain difference has the pass rate's. A group without any reward gets 0.

    Source: MaxRL, arXiv 2602.02710.

    Raises:
        ConfigError: a reward is negative.
    """
    rewards = sequence_sum(token_rewards, mask).double()
    if bool((rewards < 0).any()):
        raise ConfigError(
            "algorithm.adv_estimator=max_rl divides by a group's mean reward, but a reward is "
            f"{float(rewards.min()):g}. "
            "Give rewards of 0 and more, or take adv_estimator=grpo, which takes any sign."
        )
    moments = group_moments(rewards, group)
    advantage = (rewards - moments.mean) / moments.mean.clamp(min=1e-12)
    return _spread(advantage.masked_fill(moments.constant, 0.0), mask, token_rewards)


def geo_mean(
    token_rewards: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    group: Int[Tensor, " B"],
    *,
    normalise_by_std: bool,
    floor: float,
    offset: float,
    epsilon: float = 1e-6,
) -> Float[Tensor, "B T"]:
    """The geometric mean of the group's **rewards** as baseline: `A_i = log R_i - mean_g log R = log(R_i / GM_g(R))`.

    Its expected gradient maximises E[log R], the growth rate of Kelly's bettor: one outlier moves it little. Rewards
    [10, 10, 10, 1000] have GM = 31.62 and A = [-1.151, -1.151, -1.151, 3.454], where the arithmetic mean gives
    [-247.5, -247.5, -247.5, 742.5]. Unrelated to the loss `geo_mean`, whose mean runs over a response's token ratios.

    Args:
        normalise_by_std: divide by the group's standard deviation (n - 1) of log rewards plus epsilon.
        floor: smallest value whose log is taken; a 0/1 reward becomes log(floor)/0, so its scale is the floor's choice.
        offset: added to every reward first.

    Raises:
        ConfigError: a reward is negative after the offset.
    """
    rewards = sequence_sum(token_rewards, mask).double() + offset
    if bool((rewards < 0).any()):
        raise ConfigError(
            "algorithm.adv_estimator=geo_mean takes the log of rewards, but they range from "
            f"{float(rewards.min()):g} to {float(rewards.max()):g} with algorithm.geo_mean_offset={offset:g}. Set the "
            f"offset above {offset - float(rewards.min()):g} so that all are positive, or use "
            "adv_estimator=grpo, which takes any sign."
        )
    logs = rewards.clamp(min=floor).log()
    moments = group_moments(logs, group)
    advantage = logs - moments.mean
    if normalise_by_std:
        advantage = advantage / (moments.std + epsilon)
    return _spread(advantage.masked_fill(moments.constant, 0.0), mask, token_rewards)


def gae(
    token_rewards: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    group: Int[Tensor, " B"],
    *,
    values: Float[Tensor, "B T"],
    gamma: float,
    lam: float,
) -> Float[Tensor, "B T"]:
    """Generalised advantages, whitened over the tokens of the batch: the advantages of PPO with a critic.

    Source: arXiv 1506.02438 eq. 16; whitening as in verl.
    """
    returns = lambda_returns(token_rewards, mask, values, gamma=gamma, lam=lam)
    return whiten((returns - values).masked_fill(~mask, 0.0), mask)


@dataclass(frozen=True, slots=True)
class Estimator:
    """An entry of `ADVANTAGES`."""

    fn: Callable[..., Float[Tensor, "B T"]]
    traits: EstimatorTraits


_FUNCTIONS = (
    grpo,
    gae,
    rloo,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    remax,
    opo,
    optimal_token_baseline,
    gpg,
    gdpo,
    max_rl,
    grpo_passk,
    grpo_batch_std,
    geo_mean,
)
ADVANTAGES: Mapping[str, Estimator] = {fn.__name__: Estimator(fn, ESTIMATORS[fn.__name__]) for fn in _FUNCTIONS}
"""`adv_estimator` -> estimator; names and traits are those of `gmpo.objectives`."""
