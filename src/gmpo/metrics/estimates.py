"""Estimates from N graded answers per problem: pass@k, best-of, worst-of, majority, and intervals of a mean.

No torch. Sources are given with each function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from gmpo.metrics.beta import Array, beta_cdf, crossing, t_quantile

MAJORITY_DRAWS = 1000
"""Bootstrap draws of `majority`, as in verl."""

_NORMAL_QUANTILE = 1.959963984540054


def pass_at_k(correct: int, answers: int, k: int) -> float:
    """Probability that k of the answers, drawn without replacement, hold a correct one: `1 - C(n-c, k) / C(n, k)`.

    Unbiased for the chance that k fresh answers hold one. Source: arXiv 2107.03374 eq. 1.

    Example: `pass_at_k(1, 4, 2) == 0.5`.
    """
    if not 0 <= correct <= answers or not 1 <= k <= answers:
        raise ValueError(f"pass@k needs 0 <= correct <= answers and 1 <= k <= answers, got {correct}, {answers}, {k}")
    return 1.0 - math.comb(answers - correct, k) / math.comb(answers, k)


def extreme_of(values: Sequence[float], k: int, *, best: bool) -> tuple[float, float]:
    """Mean and standard deviation of the best (or worst) of k draws **with** replacement from `values`.

    This is what verl's best@k and worst@k estimate by 1,000 bootstrap draws; here it is exact:
    `E = sum_i v_(i) ((i/N)^k - ((i-1)/N)^k)` over the sorted values. Below the any-correct rate: one correct answer
    of four gives best@4 = 0.684, while `pass_at_k(1, 4, 4) == 1`.
    """
    ordered = np.sort(np.asarray(values, dtype=float))[:: 1 if best else -1]
    steps = (np.arange(len(ordered) + 1) / len(ordered)) ** k
    chance = np.diff(steps)
    mean = float(chance @ ordered)
    return mean, math.sqrt(max(0.0, float(chance @ ordered**2) - mean**2))


def majority(predictions: Sequence[str], values: Sequence[float], k: int) -> tuple[float, float]:
    """Mean and standard deviation of the value of the most frequent prediction among k draws with replacement.

    1,000 seeded draws as in verl's maj@k; ties go to the prediction that was drawn first.
    """
    rng = np.random.Generator(np.random.PCG64(42))
    draws = rng.integers(0, len(values), size=(MAJORITY_DRAWS, k))
    outcomes = np.empty(MAJORITY_DRAWS)
    for row, draw in enumerate(draws):
        votes: dict[str, int] = {}
        for index in draw:
            votes[predictions[index]] = votes.get(predictions[index], 0) + 1
        winner = max(votes, key=votes.__getitem__)
        outcomes[row] = values[next(i for i in draw if predictions[i] == winner)]
    return float(outcomes.mean()), float(outcomes.std())


def mean_interval(shares: Sequence[float], answers: Sequence[int]) -> tuple[float, float]:
    """95 % interval of the mean, over the population of problems, of the chance that an answer is right.

    Problems are the independent trials; answers to one problem are alike to an unknown degree. So: the interval of a
    binomial proportion (`proportion_interval`) with as many trials as the data are worth (`effective_trials`). Source:
    E. L. Korn and B. I. Graubard, Survey Methodology 24 (1998) 193-201; comparisons of such intervals: K. K. Saha,
    D. Miller and S. Wang, Int. J. Biostatistics 12 (2016), N. Dean and M. Pagano, J. Survey Statistics and Methodology
    3 (2015) 484-503, C. Franco et al., ibid. 7 (2019) 334-364. The additions of `effective_trials` and the weight of
    `tail` are our own; coverage and widths by simulation: `benchmarks/coverage.py`, docs/log.md.

    The interval holds the mean, has no width 0, and is mirrored where right and wrong change places. One problem gives
    (0, 1), and so do none.

    Args:
        shares: of each problem, the share of its answers that are right.
        answers: of each problem, their number.

    Examples: 8 of 10 problems right, one answer each: worth 7.3 trials, (0.405, 0.981). 30 problems with 16 answers, a
    single one of the 480 right: worth 31 trials, (0.000, 0.115).
    """
    x, problems = np.asarray(shares, dtype=float), len(shares)
    if problems < 2:
        return 0.0, 1.0
    mean = float(x.mean())
    trials = effective_trials(mean, np.sum((x - mean) ** 2), problems, float(np.mean(1 / np.asarray(answers))))
    low, high = proportion_interval(mean * trials, trials)
    return min(mean, float(low)), max(mean, float(high))


def effective_trials(mean: ArrayLike, squares: ArrayLike, problems: int, inverse_answers: float) -> Array:
    """Independent answers that the data are worth: problems over the share of variance that lies between them,
    times `(z / t)^2` for the degrees of freedom of that estimate. Elementwise.

    The share is `squares / all` with `all = (problems - 1) mean (1 - mean)`, which problems that are solved always or
    never would have: 1 for those (a problem is worth one answer), 1 / n for alike problems with n answers each (every
    answer counts). Being an estimate, it is held twice:

    - `1 / (2 (1 + all)^2) + 8 rho / (1 + all)` is added to both parts of the ratio, rho the share of variance beyond
      1 / n (the intraclass correlation). Few right (or wrong) answers do not show how alike they are: without one every
      problem counts once. And where problems are seen to differ, a few may differ more than any that was seen.
    - It is at least 0.8 / n (0.8 `inverse_answers`), because less than 1 / n is chance; at 1 / n itself the bound would
      lift the average. This decides where problems happen to have the same share, and where n differs between them.

    t is the quantile of 95 % for `problems - 1` degrees, z the normal one.

    Args:
        mean: of the problems' shares of right answers.
        squares: sum of the squared deviations of the shares from the mean.
        problems: their number, at least 2.
        inverse_answers: mean of 1 / n over the problems.

    Example: 101 problems with 4 answers, mean 0.5, so `all` is 25. Squares of 6.25 are a quarter of it:
    rho is 0, 101 (25 + 0.0007) / (6.25 + 0.0007) = 404, the number of the answers; times (1.960 / 1.984)^2, 394.
    """
    mean, squares = np.asarray(mean, dtype=float), np.asarray(squares, dtype=float)
    settled = (problems - 1) * mean * (1 - mean)
    alike = inverse_answers * settled
    rho = np.clip((squares - alike) / np.maximum(settled - alike, 1e-12), 0, 1)
    unknown = 0.5 / (1 + settled) ** 2 + 8 * rho / (1 + settled)
    squares = np.maximum(squares, 0.8 * alike)
    degrees = (_NORMAL_QUANTILE / t_quantile(problems - 1)) ** 2
    return np.asarray(degrees * problems * (settled + unknown) / (squares + unknown))


def proportion_interval(successes: ArrayLike, trials: ArrayLike) -> tuple[Array, Array]:
    """95 % interval of a binomial proportion, elementwise; successes and trials need not be whole.

    Each bound is where the tail beyond the observation, `tail`, has a chance of 2.5 %.

    Example: 0 of 10 gives (0, 0.308), which is Clopper and Pearson's; 50 of 100 gives (0.403, 0.597), mid-P's.
    """
    k, n = np.broadcast_arrays(np.asarray(successes, dtype=float), np.asarray(trials, dtype=float))
    low = crossing(lambda truth: tail(truth, k, n), 0.025, like=k)
    return low, 1 - crossing(lambda truth: tail(truth, n - k, n), 0.025, like=k)


def tail(truth: ArrayLike, successes: ArrayLike, trials: ArrayLike) -> Array:
    """Chance of so many successes or more, where each trial succeeds by `truth`; just so many count by a weight.

    Weight 1 is Clopper and Pearson's interval (Biometrika 26 (1934) 404-413), which covers too often; 1/2 is mid-P's
    (H. O. Lancaster, JASA 56 (1961) 223-234), which covers 92 % only where the truth is 3 / trials. The weight here is
    1 for none or all and falls to 1/2 with the smaller of successes and failures: `(1 + e^-m) / 2`.
    """
    truth, k, n = (np.asarray(v, dtype=float) for v in (truth, successes, trials))
    weight = (1 + np.exp(-np.minimum(k, n - k))) / 2
    return np.asarray(weight * beta_cdf(truth, k, n - k + 1) + (1 - weight) * beta_cdf(truth, k + 1, n - k))
