"""The beta distribution, elementwise, and what rests on it: binomial tails for any real number of trials, Student's t.

No torch, and no SciPy for two functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_log_gamma = np.vectorize(math.lgamma, otypes=[float])
_PARTS, _ROUNDS = 16, 11  # 16^-11 = 6e-14


def beta_cdf(x: ArrayLike, a: ArrayLike, b: ArrayLike) -> Array:
    """Chance that a Beta(a, b) variable is at most x in 0..1; a = 0 is all mass at 0, b = 0 (a > 0) all mass at 1.

    The regularised incomplete beta function by its continued fraction. Source: DLMF 8.17.22, with 8.17.4 where x is
    beyond the mean. Errors below 1e-9 for a and b up to 1e5.

    Example: of ten throws that succeed by 0.3, at least four do with chance `beta_cdf(0.3, 4, 7) == 0.350`.
    """
    x, a, b = np.broadcast_arrays(*(np.asarray(v, dtype=float) for v in (x, a, b)))
    inner = (a > 0) & (b > 0) & (x > 0) & (x < 1)
    result = np.where((a <= 0) | (x >= 1), 1.0, 0.0)
    result[(b <= 0) & (a > 0) & (x < 1)] = 0.0
    x, a, b = x[inner], a[inner], b[inner]
    mirror = x > (a + 1) / (a + b + 2)
    p, q, t = np.where(mirror, b, a), np.where(mirror, a, b), np.where(mirror, 1 - x, x)
    fraction = np.zeros_like(t)
    for m in range(20 + int(math.sqrt(np.max(p + q, initial=0.0))), 0, -1):
        even = m * (q - m) * t / ((p + 2 * m - 1) * (p + 2 * m))
        odd = -(p + m - 1) * (p + q + m - 1) * t / ((p + 2 * m - 2) * (p + 2 * m - 1))
        fraction = odd / (1 + even / (1 + fraction))
    log_front = _log_gamma(p + q) - _log_gamma(p) - _log_gamma(q) + p * np.log(t) + q * np.log1p(-t)
    value = np.exp(log_front) / (p * (1 + fraction))
    result[inner] = np.where(mirror, 1 - value, value)
    return result


def crossing(rising: Callable[[Array], Array], level: float, like: ArrayLike = 0.0) -> Array:
    """Where in 0..1 a function that rises there passes `level`, elementwise, to 6e-14: search among 16 parts, 11 times.

    Args:
        rising: takes arrays of shape (15, *shape of `like`).
        like: any array of the shape of the result.
    """
    low, width = np.zeros(np.shape(like)), 1.0
    steps = np.arange(1, _PARTS).reshape(-1, *(1 for _ in low.shape)) / _PARTS
    for _ in range(_ROUNDS):
        low = low + width / _PARTS * np.sum(rising(low + width * steps) <= level, axis=0)
        width /= _PARTS
    return low


@cache
def t_quantile(degrees: int, outside: float = 0.05) -> float:
    """t that Student's variable exceeds in size with chance `outside`; 0 degrees of freedom: infinity.

    From `P(|T| > t) = I_x(degrees / 2, 1 / 2)`, `x = degrees / (degrees + t^2)`. Source: Abramowitz and Stegun 26.5.27.

    Example: 2.262 for 9.
    """
    if degrees < 1:
        return math.inf
    x = float(crossing(lambda points: beta_cdf(points, degrees / 2, 0.5), outside))
    return math.sqrt(degrees * (1 - x) / x)
