"""Losses that weight a response as a whole: GMPO and the power means around it, GSPO.

All of them take one advantage per response. See `gmpo.algo.surrogate` for the notation and `gmpo.algo.losses` for the
contract.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gmpo.algo.masks import sequence_mean, sequence_sum
from gmpo.algo.surrogate import LOG_RATIO_LIMIT, Surrogate, capped_exp, log_ratio

SERIES_BELOW = 0.5
"""Largest |p (m_t - mean m)| for which the power mean is computed about its limit; beyond, log-sum-exp is exact."""
POWER_IS_ZERO_BELOW = 1e-20
"""Smaller exponents are the geometric mean up to rounding, and dividing by them would overflow in float32."""


def geo_mean(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_low: float,
    clip_high: float,
    clip_level: str = "token",
    length_norm: bool = True,
    upper: float | None = None,
) -> Surrogate:
    """Geometric-Mean Policy Optimization: the response is weighted by the geometric mean of its clipped token ratios.

    With m_t = min(d_t, clip_high) where A > 0 and max(d_t, -clip_low) where A < 0 (bounds are log-ratios: 0.4 means
    ratios up to e^0.4 = 1.49 and down to e^-0.4 = 0.67), per response

        l = -A exp(1/|o| sum_t m_t)        and        dl/dlogp_t = -A exp(1/|o| sum m) / |o| * [token t is not cut].

    Only the side on which the policy already moved as the advantage asks is bounded, so for A < 0 the ratio has no
    upper bound; the exponent is therefore held at 20, with the gradient of the cap. A = 0 gives exactly 0.

    Args:
        advantage: constant over each response's tokens.
        clip_level: `token` as above; `sequence` bounds the sum of d and then divides by |o|, so at |o| = 1000 a bound
            of 0.4 allows a mean of 4e-4; `none` bounds nothing.
        length_norm: False leaves out 1/|o|: the exponent is the sum.
        upper: also m_t <= upper where A < 0, which bounds the ratio on the side that the clip leaves open.

    Source: GMPO, arXiv 2507.20673 eq. 4 and algorithm 1; the gradient is eq. 6 with the cut tokens left out; the
    switches are its ablations (tables 4 and 5, appendix C).
    """
    m, above, below = _log_clipped(
        log_ratio(logp, old_logp, mask), advantage, mask, clip_low, clip_high, clip_level, upper
    )
    exponent = sequence_mean(m, mask) if length_norm else sequence_sum(m, mask)
    return _weighted(exponent, advantage, mask, above, below)


def power_mean(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_low: float,
    clip_high: float,
    power: float,
    clip_level: str = "token",
    upper: float | None = None,
) -> Surrogate:
    """The response is weighted by the power mean with exponent p of its clipped token ratios e^{m_t}:

        M_p = (1/|o| sum_t e^{p m_t})^{1/p},    l = -A M_p,    dl/dlogp_t = -A M_p softmax_t(p m) * [t is not cut].

    p = 1 is the arithmetic mean (GRPO with the log clip), p -> 0 the geometric mean (GMPO), p = -1 the harmonic mean;
    smaller p gives outliers above less weight. m_t and the other arguments as in `geo_mean`.

    Source: arXiv 2605.12058 (Hoelder means); p = -1 is HMPO of the GMPO authors' code.
    """
    m, above, below = _log_clipped(
        log_ratio(logp, old_logp, mask), advantage, mask, clip_low, clip_high, clip_level, upper
    )
    return _weighted(log_power_mean(m, mask, power), advantage, mask, above, below)


def log_power_mean(m: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], power: float) -> Float[Tensor, " B"]:
    """`log (mean_t e^{p m_t})^{1/p}` over the mask, stable for every p and m; the mean of m at p = 0.

    About the mean, `mean m + log1p(mean expm1(p (m - mean m))) / p` keeps its accuracy as p -> 0, where log-sum-exp
    divided by p would lose it; where p (m - mean m) is large it is the other way round.
    """
    mean = sequence_mean(m, mask)
    if abs(power) < POWER_IS_ZERO_BELOW:
        return mean
    x = power * (m - mean.unsqueeze(1)).masked_fill(~mask, 0.0)
    near = (x.detach().abs() <= SERIES_BELOW).all(dim=1)
    lengths = mask.sum(dim=1).clamp(min=1)
    small = torch.log1p(sequence_mean(torch.expm1(x.clamp(-SERIES_BELOW, SERIES_BELOW)), mask))
    # A row without any token would be the log of nothing.
    counted = mask | ~mask.any(dim=1, keepdim=True)
    large = torch.logsumexp(x.masked_fill(~counted, -torch.inf), dim=1) - lengths.to(x.dtype).log()
    return mean + torch.where(near, small, large) / power


def gspo(
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_low: float,
    clip_high: float,
) -> Surrogate:
    """PPO's surrogate on the sequence ratio `s = exp(1/|o| sum_t d_t)`: `l = max(-A s, -A clip(s, 1 - low, 1 + high))`.

    Where the bound holds, the whole response has no gradient: `clipped`, whatever the sign of A. Its published range is
    3e-4 and 4e-4, a thousandth of a token's. The exponent is held at 20 as in `geo_mean`.

    Source: GSPO, arXiv 2507.18071 eq. 5-7.
    """
    mean = sequence_mean(log_ratio(logp, old_logp, mask), mask)
    ratio = capped_exp(mean)
    a = sequence_mean(advantage, mask)
    plain, bounded = -a * ratio, -a * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    held = ((bounded > plain).unsqueeze(1)) & mask
    return Surrogate(
        values=torch.maximum(plain, bounded),
        clipped=held,
        clipped_lower=torch.zeros_like(held),
        sequence_ratio=ratio.detach(),
        capped=mean.detach() > LOG_RATIO_LIMIT,
    )


def _log_clipped(
    d: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    clip_low: float,
    clip_high: float,
    clip_level: str,
    upper: float | None,
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """m_t, and the tokens that were cut with A > 0 and with A < 0."""
    positive, negative = (advantage > 0) & mask, (advantage < 0) & mask
    if clip_level == "none":
        m, above, below = d, torch.zeros_like(mask), torch.zeros_like(mask)
    elif clip_level == "sequence":
        total = sequence_sum(d, mask).unsqueeze(1)
        above, below = positive & (total > clip_high), negative & (total < -clip_low)
        # Each token carries an equal part of the bounded sum, which has no gradient.
        length = mask.sum(dim=1, keepdim=True).clamp(min=1).to(d.dtype)
        m = torch.where(above, clip_high / length, torch.where(below, -clip_low / length, d))
    else:
        above, below = positive & (d > clip_high), negative & (d < -clip_low)
        m = torch.where(advantage > 0, d.clamp(max=clip_high), d.clamp(min=-clip_low))
    if upper is not None:
        over = negative & (m > upper)
        m, below = torch.where(over, upper, m), below | over
    # Only A = 0 has no gradient: an advantage that is not a number must show in the loss.
    return m.masked_fill(advantage == 0, 0.0), above, below


def _weighted(
    exponent: Float[Tensor, " B"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    above: Bool[Tensor, "B T"],
    below: Bool[Tensor, "B T"],
) -> Surrogate:
    """`-A exp(exponent)` with the exponent held at 20."""
    ratio = capped_exp(exponent)
    return Surrogate(
        values=-sequence_mean(advantage, mask) * ratio,
        clipped=above,
        clipped_lower=below,
        sequence_ratio=ratio.detach(),
        capped=exponent.detach() > LOG_RATIO_LIMIT,
    )
