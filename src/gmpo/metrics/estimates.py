"""Estimates from N graded answers per problem: pass@k, best-of, worst-of, majority, and intervals of a mean.

No torch. Sources are given with each function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

MAJORITY_DRAWS = 1000
"""Bootstrap draws of `majority`, as in verl."""


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


def wilson_interval(successes: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a proportion (z = 1.96). Source: E. B. Wilson, JASA 22 (1927) 209-212.

    Example: 8 of 10 gives (0.490, 0.943).
    """
    if trials == 0:
        return 0.0, 1.0
    p = successes / trials
    centre = p + z * z / (2 * trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # At p = 0 and p = 1 the bound is p itself; rounding must not put it beyond.
    return min(p, max(0.0, (centre - half) / scale)), max(p, min(1.0, (centre + half) / scale))


def mean_interval(per_problem: Sequence[float], z: float = 1.96) -> tuple[float, float]:
    """95 % interval of the mean over problems of a score in 0..1.

    Answers to one problem are alike, so the problems are the independent trials: the standard error is taken over their
    means. Where every problem has the value 0 or 1 this is Wilson's interval.
    """
    x = np.asarray(per_problem, dtype=float)
    if len(x) == 0 or np.isin(x, (0.0, 1.0)).all():
        return wilson_interval(float(x.sum()), len(x), z)
    half = z * float(x.std(ddof=1)) / math.sqrt(len(x)) if len(x) > 1 else 1.0
    return max(0.0, float(x.mean()) - half), min(1.0, float(x.mean()) + half)
