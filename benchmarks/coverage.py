"""Coverage of the 95 % interval of a mean over problems that are answered several times each, by simulation.

    OMP_NUM_THREADS=1 python benchmarks/coverage.py [--set main|confirm|stress] [--draws 4000] [--json FILE]

The truth is the mean over the population of problems: problems are drawn from it, then answers. A candidate sees the
answers alone. The designs below were fixed before anything was measured; candidates were compared on `main`, and the
chosen one was then measured once on `confirm`. The bar: at least 93 % in each design of `main` and `confirm`; at most
97 % where the data are not too discrete (100 problems and more, means 0.05 to 0.95); never of width 0.

`stress` is not part of the bar. Its problems are guessed with a small chance, and a few are solved always. A sample
without one of the few looks like one of alike problems, so an interval that holds 97 % at most for alike problems
must miss: for every n, P(no solved problem among P) = (1 - share)^P.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

MEANS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
PROBLEMS = (10, 20, 30, 50, 100, 200, 512, 1319)
ANSWERS = (1, 2, 4, 8, 16, 32)
CONCENTRATIONS = (0.1, 0.5, 2.0, 10.0, 50.0)

CONFIRM_MEANS = (0.007, 0.014, 0.03, 0.07, 0.15, 0.4, 0.6, 0.85, 0.93, 0.97, 0.986, 0.993)
CONFIRM_PROBLEMS = (15, 24, 40, 64, 128, 300, 1000)
CONFIRM_ANSWERS = (1, 3, 6, 12, 24, 64)
CONFIRM_CONCENTRATIONS = (0.25, 1.0, 4.0, 20.0)


@dataclass(frozen=True)
class Population:
    """Chances of a right answer over problems: `parts` of (share, a, b), a Beta(a, b) or, with b = inf, the point a."""

    name: str
    parts: tuple[tuple[float, float, float], ...]

    def counts(self, answers: int) -> np.ndarray:
        """Chance of 0 .. `answers` right answers to one problem. Shape (answers + 1,)."""
        pmf = sum(share * _count_chances(answers, a, b) for share, a, b in self.parts)
        return np.asarray(pmf / np.sum(pmf))


def _count_chances(n: int, a: float, b: float) -> np.ndarray:
    """Binomial (b = inf, chance a) or beta-binomial chances of 0 .. n."""
    if math.isinf(b):
        return np.array([math.comb(n, k) * a**k * (1 - a) ** (n - k) for k in range(n + 1)])

    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    return np.array([math.comb(n, k) * math.exp(log_beta(k + a, n - k + b) - log_beta(a, b)) for k in range(n + 1)])


def alike(mean: float) -> Population:
    return Population("alike", ((1.0, mean, math.inf),))


def beta(mean: float, concentration: float) -> Population:
    return Population(f"beta {concentration:g}", ((1.0, mean * concentration, (1 - mean) * concentration),))


def all_or_nothing(mean: float) -> Population:
    return Population("all or nothing", ((mean, 1.0, math.inf), (1 - mean, 0.0, math.inf)))


def three_kinds(mean: float, chance: float = 0.5) -> Population:
    """Solved, hopeless, and uncertain ones (right with `chance`); the uncertain are as many as make half of the mean."""
    rare = min(mean, 1 - mean)
    uncertain = rare * 0.5 / chance if mean <= 0.5 else rare * 0.5 / (1 - chance)
    solved = mean - uncertain * chance
    parts = ((solved, 1.0, math.inf), (uncertain, chance, math.inf), (1 - solved - uncertain, 0.0, math.inf))
    return Population(f"three kinds {chance:g}", parts)


def uniform_and_hopeless(mean: float) -> Population:
    """Uniform chances for as many problems as give the mean; the rest hopeless (above 0.5: solved)."""
    rare = 2 * min(mean, 1 - mean)
    return Population("uniform or settled", ((rare, 1.0, 1.0), (1 - rare, float(mean > 0.5), math.inf)))


def guessed_or_solved(mean: float, part: float) -> Population:
    """A share of `part * mean` solved always, the others guessed; above 0.5 its mirror image."""
    rare = min(mean, 1 - mean)
    share = part * rare
    guess = (rare - share) / (1 - share)
    points = (1.0, guess) if mean <= 0.5 else (0.0, 1 - guess)
    return Population(f"guessed, {part:g} solved", ((share, points[0], math.inf), (1 - share, points[1], math.inf)))


@dataclass(frozen=True)
class Design:
    """`blocks`: (problems, answers to each). More than one block: numbers of answers differ between problems."""

    mean: float
    blocks: tuple[tuple[int, int], ...]
    population: Population

    @property
    def problems(self) -> int:
        return sum(p for p, _ in self.blocks)

    @property
    def answers(self) -> int:
        return max(n for _, n in self.blocks)

    @property
    def mixed(self) -> bool:
        return len(self.blocks) > 1

    def held_to_97(self) -> bool:
        return self.problems >= 100 and 0.05 <= self.mean <= 0.95

    def histograms(self, draws: int, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
        """One pair a block: values 0, 1/n .. 1, and the number of problems with each. Shapes (n + 1,), (draws, n + 1)."""
        pairs = []
        for problems, n in self.blocks:
            pairs.append((np.arange(n + 1) / n, rng.multinomial(problems, self.population.counts(n), size=draws)))
        return pairs


def _designs(
    means: Sequence[float],
    problems: Sequence[int],
    answers: Sequence[int],
    populations: Sequence[Callable[[float], Population]],
    mixed: Sequence[tuple[int, int]],
) -> list[Design]:
    found = []
    for mean in means:
        for p in problems:
            for n in answers:
                kinds = populations if n > 1 else [alike]  # one answer a problem: all populations are the same
                found += [Design(mean, ((p, n),), kind(mean)) for kind in kinds]
            for n, few in mixed:
                found += [Design(mean, ((p // 2, n), (p - p // 2, few)), kind(mean)) for kind in populations]
    return found


def designs(which: str) -> list[Design]:
    def betas(concentrations: Sequence[float]) -> list[Callable[[float], Population]]:
        return [lambda mean, c=c: beta(mean, c) for c in concentrations]  # type: ignore[misc]

    if which == "main":
        kinds = [alike, *betas(CONCENTRATIONS), all_or_nothing, three_kinds]
        return _designs(MEANS, PROBLEMS, ANSWERS, kinds, mixed=[(16, 1)])
    if which == "confirm":
        kinds = [alike, *betas(CONFIRM_CONCENTRATIONS), lambda mean: three_kinds(mean, 0.2), uniform_and_hopeless]
        return _designs(CONFIRM_MEANS, CONFIRM_PROBLEMS, CONFIRM_ANSWERS, kinds, mixed=[(12, 3)])
    if which == "stress":
        kinds = [lambda mean: guessed_or_solved(mean, 0.5), lambda mean: guessed_or_solved(mean, 0.25)]
        return _designs(MEANS, PROBLEMS, (2, 4, 8, 16, 32), kinds, mixed=[])
    raise ValueError(f"no set of designs is called {which!r}: main, confirm, stress")
