"""Losses per token: PPO's clipped surrogate and its relatives.

See `gmpo.algo.surrogate` for the notation and `gmpo.algo.losses` for the contract.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gmpo.algo.masks import sequence_mean
from gmpo.algo.surrogate import LOG_RATIO_LIMIT, Surrogate, bounded_ratio, capped_exp, log_ratio, token_surrogate

KL_COV_ROUNDING = 1e-4
"""Nats below which a log-ratio is taken for rounding: as far as reused log-probs may be from the learner's own."""


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
    d = log_ratio(logp, old_logp, mask)
    plain, bounded = _ppo_pair(d, advantage, clip_low, clip_high)
    worse = torch.maximum(plain, bounded)
    dual_bound = -advantage * clip_dual
    dual = (advantage < 0) & (worse > dual_bound)
    return token_surrogate(
        torch.where(dual, dual_bound, worse), d, mask, clipped=(bounded > plain) & ~dual, clipped_lower=dual
    )


def _ppo_pair(
    d: Float[Tensor, "B T"], advantage: Float[Tensor, "B T"], clip_low: float, clip_high: float
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    ratio = bounded_ratio(d)
    return -advantage * ratio, -advantage * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)


def gspo_token(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_low: float,
    clip_high: float,
) -> Surrogate:
    """GSPO with an advantage of its own for each token: PPO's surrogate on `sg[s] rho_t / sg[rho_t]`, value s.

    With equal advantages it has GSPO's value and gradient. The exponent is held at 20 as in `gspo`; verl holds it at 10
    and drops the gradient above.

    Source: GSPO, arXiv 2507.18071 eq. 11-13.
    """
    d = log_ratio(logp, old_logp, mask)
    mean = sequence_mean(d.detach(), mask)
    straight = logp.masked_fill(~mask, 0.0)
    # The difference is 0 exactly; a mean of 3e-4 added to a log-prob of -10 first would lose its last digits.
    ratio = capped_exp(mean.unsqueeze(1) + (straight - straight.detach()))
    plain, bounded = -advantage * ratio, -advantage * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    held = bounded > plain
    return token_surrogate(
        torch.maximum(plain, bounded),
        d,
        mask,
        clipped=held,
        capped=mean > LOG_RATIO_LIMIT,
    )


def cispo(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_low: float,
    clip_high: float,
) -> Surrogate:
    """`-sg[clip(rho, 1 - low, 1 + high)] A logp`: the weight is bounded, and no token loses its gradient.

    `clipped` are the tokens whose weight the range changed, on either side and whatever the sign of A.

    Source: CISPO, arXiv 2506.13585 eq. 4.
    """
    d = log_ratio(logp, old_logp, mask)
    ratio = bounded_ratio(d).detach()
    weight = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    values = -weight * advantage * logp.masked_fill(~mask, 0.0)
    return token_surrogate(values, d, mask, clipped=weight != ratio)


def sapo(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    tau_positive: float,
    tau_negative: float,
) -> Surrogate:
    """`-A (4 / tau) sigmoid(tau (rho - 1))`: a soft gate in place of the clip, tau by the sign of A.

    Its slope at rho = 1 is that of `-A rho`. Source: SAPO, arXiv 2511.20347 eq. 5.
    """
    d = log_ratio(logp, old_logp, mask)
    tau = torch.full_like(d, tau_negative).masked_fill(advantage > 0, tau_positive)
    gate = torch.sigmoid(tau * (bounded_ratio(d) - 1.0)) * 4.0 / tau
    return token_surrogate(-advantage * gate, d, mask)


def gpg(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
) -> Surrogate:
    """`-A logp`: the plain policy gradient. Source: GPG, arXiv 2504.02546 eq. 4."""
    return token_surrogate(-advantage * logp.masked_fill(~mask, 0.0), log_ratio(logp, old_logp, mask), mask)


def dppo_tv(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_low: float,
    clip_high: float,
    clip_dual: float,
    symmetric: bool,
) -> Surrogate:
    """`-A sg[min(rho, clip_dual)] logp`, and 0 where the token's probability has moved too far the way A asks.

    With p and q the token's probability now and before: `p - q > clip_high` where A > 0, `q - p > clip_low` elsewhere.
    That is the total variation of "this token or another": a rare token may change its ratio by much, a frequent one
    may
    not. `symmetric` cuts either way whatever the sign of A.

    Source: DPPO, arXiv 2602.04879 (binary total variation); as in verl. Symmetric mask: prime-rl.
    """
    moved = (logp.exp() - old_logp.exp()).detach()
    return _divergence_masked(logp, old_logp, advantage, mask, moved, (clip_low, clip_high), clip_dual, symmetric)


def dppo_kl(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_low: float,
    clip_high: float,
    clip_dual: float,
    symmetric: bool,
) -> Surrogate:
    """`dppo_tv` with the distance `KL(q || p) = q log(q / p) + (1 - q) log((1 - q) / (1 - p))` of that choice of two.

    Source: DPPO, arXiv 2602.04879 (binary KL); as in verl.
    """
    new, old = logp.detach().double().clamp(max=-1e-12), old_logp.double().clamp(max=-1e-12)
    others = torch.log(-torch.expm1(old)) - torch.log(-torch.expm1(new))
    divergence = old.exp() * (old - new) - torch.expm1(old) * others
    moved = (divergence.clamp(min=0.0) * torch.sign(new - old)).to(logp.dtype)
    return _divergence_masked(logp, old_logp, advantage, mask, moved, (clip_low, clip_high), clip_dual, symmetric)


def _divergence_masked(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    moved: Float[Tensor, "B T"],
    bounds: tuple[float, float],
    largest: float,
    symmetric: bool,
) -> Surrogate:
    """`moved` is the distance from the old policy with the sign of p - q; bounds are those of a fall and of a rise."""
    d = log_ratio(logp, old_logp, mask)
    rose, fell = moved > bounds[1], moved < -bounds[0]
    cut = (rose | fell) if symmetric else torch.where(advantage > 0, rose, fell)
    cut = cut & (advantage != 0) & mask  # without an advantage there is no gradient to cut
    weight = bounded_ratio(d).clamp(max=largest).detach()
    values = (-advantage * weight * logp.masked_fill(~mask, 0.0)).masked_fill(cut, 0.0)
    return token_surrogate(values, d, mask, clipped=cut & (advantage > 0), clipped_lower=cut & (advantage < 0))


def dro(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    beta: float,
) -> Surrogate:
    """`-(A logp - beta / 2 d^2)`: the plain policy gradient with a quadratic pull back to the old policy; nothing is
    cut.

    Source: direct reward optimisation, as in verl's `dro`.
    """
    d = log_ratio(logp, old_logp, mask)
    return token_surrogate(0.5 * beta * d.square() - advantage * logp.masked_fill(~mask, 0.0), d, mask)


def clip_cov(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_low: float,
    clip_high: float,
    selected: Bool[Tensor, "B T"],
) -> Surrogate:
    """PPO's clipped surrogate with the loss of `selected` tokens set to 0 (`select_clip_cov`).

    Source: Clip-Cov, arXiv 2505.22617 eq. 10-11.
    """
    d = log_ratio(logp, old_logp, mask)
    plain, bounded = _ppo_pair(d, advantage, clip_low, clip_high)
    values = torch.maximum(plain, bounded).masked_fill(selected, 0.0)
    return token_surrogate(values, d, mask, clipped=(bounded > plain) & ~selected, clipped_lower=selected)


def kl_cov(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    kl_coef: float,
    selected: Bool[Tensor, "B T"],
) -> Surrogate:
    """`-A rho`, plus `kl_coef |d|` on `selected` tokens (`select_kl_cov`); nothing is clipped.

    |d| counts from 1e-4 on. Where nothing has changed d is what two kernels round differently, and the sign of that is
    no direction, yet |d| would pull with full force along it.

    Source: KL-Cov, arXiv 2505.22617 eq. 12-13.
    """
    d = log_ratio(logp, old_logp, mask)
    changed = selected & (d.detach().abs() >= KL_COV_ROUNDING)
    return token_surrogate(-advantage * bounded_ratio(d) + kl_coef * d.abs() * changed, d, mask)


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


def covariance(
    logp: Float[Tensor, "B T"], advantage: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """`(A - mean A)(logp - mean logp)` per token, means over all tokens of the mini-batch; 0 outside the mask."""
    x, a = logp.detach().double(), advantage.double()
    if not bool(mask.any()):
        return torch.zeros_like(x)
    return ((a - a[mask].mean()) * (x - x[mask].mean())).masked_fill(~mask, 0.0)


def select_clip_cov(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    noise: Float[Tensor, "B T"],
    *,
    clip_low: float,
    clip_high: float,
    clip_cov_share: float,
    cov_low: float,
    cov_high: float,
) -> Bool[Tensor, "B T"]:
    """A random share `clip_cov_share` of the mini-batch's tokens (at least one), among those whose covariance lies in
    the band and that the clip does not cut already.

    Args:
        noise: one uniform number per token, keyed by its place in the step, so that the choice does not depend on how
            the mini-batch is split: the smallest are chosen.
    """
    d = log_ratio(logp, old_logp, mask)
    plain, bounded = _ppo_pair(d, advantage, clip_low, clip_high)
    cov = covariance(logp, advantage, mask)
    candidate = mask & (cov > cov_low) & (cov < cov_high) & ~(bounded > plain)
    return _smallest(noise.masked_fill(~candidate, torch.inf), max(1, int(clip_cov_share * int(mask.sum()))))


def select_kl_cov(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    noise: Float[Tensor, "B T"],
    *,
    kl_cov_share: float,
) -> Bool[Tensor, "B T"]:
    """The share `kl_cov_share` of the mini-batch's tokens (at least one) with the largest covariance."""
    cov = covariance(logp, advantage, mask).masked_fill(~mask, -torch.inf)
    return _smallest(-cov, max(1, int(kl_cov_share * int(mask.sum()))))


def _smallest(values: Tensor, number: int) -> Bool[Tensor, "B T"]:
    """Where the `number` smallest finite values stand; the earlier of equals first."""
    flat = values.flatten()
    chosen = torch.argsort(flat, stable=True)[:number]
    chosen = chosen[flat[chosen].isfinite()]
    where = torch.zeros(flat.shape, dtype=torch.bool, device=values.device)
    where[chosen] = True
    return where.view(values.shape)
