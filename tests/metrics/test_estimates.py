"""pass@k, best-of, worst-of, majority and intervals, checked by enumeration or on paper."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmpo.metrics.estimates import (
    effective_trials,
    extreme_of,
    majority,
    mean_interval,
    pass_at_k,
    proportion_interval,
    tail,
)


@given(st.data())
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_correct_answer(data: st.DataObject) -> None:
    answers = data.draw(st.integers(1, 8))
    correct, k = data.draw(st.integers(0, answers)), data.draw(st.integers(1, answers))
    marks = [True] * correct + [False] * (answers - correct)
    subsets = list(combinations(marks, k))
    assert pass_at_k(correct, answers, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_on_paper() -> None:
    assert pass_at_k(1, 4, 1) == 0.25
    assert pass_at_k(1, 4, 2) == 0.5
    assert pass_at_k(3, 4, 2) == 1.0  # two wrong answers are not there
    assert pass_at_k(0, 4, 4) == 0.0


@pytest.mark.parametrize(("correct", "answers", "k"), [(-1, 4, 1), (5, 4, 1), (1, 4, 0), (1, 4, 5), (0, 0, 1)])
def test_pass_at_k_refuses_impossible_counts(correct: int, answers: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(correct, answers, k)


@given(st.lists(st.integers(-3, 3).map(lambda i: i / 2), min_size=1, max_size=4), st.integers(1, 4), st.booleans())
def test_best_and_worst_of_k_equal_the_mean_over_all_draws(values: list[float], k: int, best: bool) -> None:
    outcomes = [(max if best else min)(draw) for draw in product(values, repeat=k)]
    mean = sum(outcomes) / len(outcomes)
    spread = math.sqrt(sum((o - mean) ** 2 for o in outcomes) / len(outcomes))
    got_mean, got_spread = extreme_of(values, k, best=best)
    assert got_mean == pytest.approx(mean, abs=1e-12)
    assert got_spread == pytest.approx(spread, abs=1e-7)  # a root of a difference


def test_best_of_four_with_one_correct_of_four_is_below_pass_at_four() -> None:
    # 1 - (3/4)^4 = 175/256: four draws with replacement may all miss it
    assert extreme_of([0, 0, 1, 0], 4, best=True)[0] == pytest.approx(175 / 256)
    assert extreme_of([0, 0, 1, 0], 4, best=False)[0] == pytest.approx(1 / 256)
    assert pass_at_k(1, 4, 4) == 1.0


def test_majority_of_one_draw_is_the_mean() -> None:
    mean, spread = majority(["a", "b", "c", "d"], [1.0, 0.0, 0.0, 0.0], 1)
    assert mean == pytest.approx(0.25, abs=0.05)
    assert spread == pytest.approx(math.sqrt(mean * (1 - mean)))


def test_majority_finds_the_frequent_answer_and_not_the_rewarded_one() -> None:
    predictions, values = ["7"] * 12 + ["8"] * 4, [0.0] * 12 + [1.0] * 4
    assert majority(predictions, values, 64)[0] < 0.01
    assert majority(predictions, [1.0 - v for v in values], 64)[0] > 0.99


def test_majority_of_three_with_two_of_three_alike_on_paper() -> None:
    # "a" twice of three answers: it wins with 2 or 3 of 3 draws, 3 (4/9)(1/3) + 8/27 = 20/27
    assert majority(["a", "a", "b"], [1.0, 1.0, 0.0], 3)[0] == pytest.approx(20 / 27, abs=0.04)


def test_majority_is_the_same_each_time_and_certain_when_all_agree() -> None:
    predictions, values = ["1", "2", "3", "2"], [0.0, 1.0, 0.0, 1.0]
    assert majority(predictions, values, 4) == majority(predictions, values, 4)
    assert majority(["x"] * 5, [1.0] * 5, 5) == (1.0, 0.0)


def test_none_and_all_of_n_have_clopper_and_pearsons_interval() -> None:
    # none of 10: 1 - 0.025^(1/10)
    assert proportion_interval(0, 10) == pytest.approx((0.0, 0.30850), abs=1e-5)
    assert proportion_interval(10, 10) == pytest.approx((0.69150, 1.0), abs=1e-5)
    assert proportion_interval(0, 0) == pytest.approx((0.0, 1.0))


def _at_least(k: int, n: int, p: float) -> float:
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))


@pytest.mark.parametrize(("k", "n", "weight"), [(1, 10, (1 + math.exp(-1)) / 2), (9, 10, 0.68394), (50, 100, 0.5)])
def test_at_a_bound_the_tail_beyond_what_was_seen_has_two_and_a_half_percent(k: int, n: int, weight: float) -> None:
    low, high = map(float, proportion_interval(k, n))
    above = weight * _at_least(k, n, low) + (1 - weight) * _at_least(k + 1, n, low)
    below = weight * (1 - _at_least(k + 1, n, high)) + (1 - weight) * (1 - _at_least(k, n, high))
    assert (above, below) == pytest.approx((0.025, 0.025), abs=1e-6)


@pytest.mark.parametrize("problems", [10, 16, 30, 50, 64, 100, 128, 200, 512])
def test_a_binomial_proportion_is_covered_93_percent_at_least_and_97_at_most_where_it_is_not_too_discrete(
    problems: int,
) -> None:
    """Exact, for problems answered once, at 100 true values: the count of right answers is binomial."""
    k = np.arange(problems + 1)
    trials = effective_trials(k / problems, k * (problems - k) / problems, problems, 1.0)
    low, high = proportion_interval(k / problems * trials, trials)
    for truth in np.geomspace(0.005, 0.5, 100):
        log_chance = [math.lgamma(problems + 1) - math.lgamma(i + 1) - math.lgamma(problems - i + 1) for i in k]
        chance = np.exp(log_chance + k * math.log(truth) + (problems - k) * math.log1p(-truth))
        coverage = chance[(low <= truth) & (truth <= high)].sum()
        assert coverage >= 0.93, truth
        assert coverage <= 0.97 or problems < 100 or truth < 0.05, truth


def test_effective_trials_on_paper() -> None:
    degrees = (1.959964 / 1.983972) ** 2  # t of 100 degrees
    half = 0.5 / 26**2
    assert effective_trials(0.5, 25 / 4, 101, 1 / 4) == pytest.approx(degrees * 101 * (25 + half) / (6.25 + half))
    assert effective_trials(0.5, 25 / 4, 101, 1 / 4) == pytest.approx(404 * degrees, rel=1e-3)  # alike: every answer
    added = half + 8 * 0.5 / 26  # half of the way from alike, 25 / 4, to settled, 25
    assert effective_trials(0.5, 15.625, 101, 1 / 4) == pytest.approx(degrees * 101 * (25 + added) / (15.625 + added))
    assert effective_trials(0.5, 25.0, 101, 1 / 4) == pytest.approx(101 * degrees)  # settled: every problem
    assert effective_trials(0.5, 0.0, 101, 1 / 4) == pytest.approx(404 / 0.8 * degrees, rel=1e-3)  # less is chance
    assert effective_trials(0.0, 0.0, 101, 1 / 4) == pytest.approx(101 * degrees)  # nothing known: every problem


def test_the_interval_of_a_mean_on_paper() -> None:
    assert mean_interval([1.0] * 8 + [0.0] * 2, [1] * 10) == pytest.approx((0.405, 0.981), abs=5e-4)
    assert mean_interval([0.0] * 29 + [1 / 16], [16] * 30) == pytest.approx((0.000, 0.115), abs=5e-4)
    assert mean_interval([], []) == mean_interval([0.5], [4]) == (0.0, 1.0)  # one problem says nothing


def test_without_a_right_answer_the_bound_is_that_of_problems_however_often_they_were_answered() -> None:
    # t of 29 degrees is 2.0452: 1 - 0.025^(1 / (30 (1.95996 / 2.0452)^2))
    for answers in (1, 16, 1000):
        low, high = mean_interval([0.0] * 30, [answers] * 30)
        assert (low, high) == pytest.approx((0.0, 0.12532), abs=1e-5)


def test_problems_with_the_same_share_have_an_interval_all_the_same() -> None:
    # worth 4 x 64 / 0.8 trials and a little less for t: 1.96 sqrt(0.25 / 320) = 0.055
    low, high = mean_interval([0.5] * 64, [4] * 64)
    assert (low, high) == pytest.approx((0.444, 0.556), abs=1e-3)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 8)), min_size=1, max_size=30))
def test_an_interval_holds_the_mean_has_a_width_and_is_mirrored_by_failures(counts: list[tuple[int, int]]) -> None:
    shares, answers = [min(k, n) / n for k, n in counts], [n for _, n in counts]
    low, high = mean_interval(shares, answers)
    assert 0.0 <= low <= float(np.mean(shares)) <= high <= 1.0
    assert high - low > 0.5 / len(counts) / max(answers)
    mirrored = mean_interval([1 - s for s in shares], answers)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-6)


@pytest.fixture(scope="module")
def intervals_of_ten_problems_answered_twice() -> dict[tuple[int, int, int], tuple[float, float]]:
    """Problems with 0, 1 and 2 right answers -> the interval, for all 66 outcomes."""
    outcomes = [(a, b, 10 - a - b) for a in range(11) for b in range(11 - a)]
    return {o: mean_interval(np.repeat([0.0, 0.5, 1.0], o).tolist(), [2] * 10) for o in outcomes}


@pytest.mark.parametrize("truth", [0.005, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5])
def test_exact_coverage_of_ten_problems_answered_twice(
    truth: float, intervals_of_ten_problems_answered_twice: dict[tuple[int, int, int], tuple[float, float]]
) -> None:
    alike = np.array([(1 - truth) ** 2, 2 * truth * (1 - truth), truth**2])
    settled = np.array([1 - truth, 0.0, truth])
    for chances in (alike, (alike + settled) / 2, settled):
        covered = 0.0
        for outcome, (low, high) in intervals_of_ten_problems_answered_twice.items():
            ways = math.factorial(10) / math.prod(map(math.factorial, outcome))
            covered += ways * float(np.prod(chances**outcome)) * (low <= truth <= high)
        assert covered >= 0.93


def _simulated(chances: np.ndarray, problems: int, truth: float, draws: int = 4000) -> float:
    n = len(chances) - 1
    histograms = np.random.default_rng(0).multinomial(problems, chances, size=draws)
    values = np.arange(n + 1) / n
    mean = histograms @ values / problems
    trials = effective_trials(mean, histograms @ values**2 - problems * mean**2, problems, 1 / n)
    below = mean <= truth  # the interval holds the mean, so only the bound on the truth's side can miss it
    successes = np.where(below, trials - mean * trials, mean * trials)
    return float(np.mean(tail(np.where(below, 1 - truth, truth), successes, trials) > 0.025))


def _beta_binomial(n: int, mean: float, concentration: float) -> np.ndarray:
    a, b = mean * concentration, (1 - mean) * concentration

    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    return np.array([math.comb(n, k) * math.exp(log_beta(k + a, n - k + b) - log_beta(a, b)) for k in range(n + 1)])


@pytest.mark.parametrize(
    ("problems", "answers", "mean", "concentration"),
    [(30, 16, 0.01, 2), (100, 32, 0.01, 0.5), (200, 32, 0.02, 0.5), (20, 32, 0.02, 2), (200, 2, 0.3, 10)],
)
def test_coverage_where_problems_differ_by_simulation(
    problems: int, answers: int, mean: float, concentration: float
) -> None:
    """Normal intervals over problems cover 0.62 in the first of these, Korn and Graubard's 0.84 in the second."""
    assert _simulated(_beta_binomial(answers, mean, concentration), problems, mean) >= 0.93


def test_coverage_where_samples_often_lack_the_solved_problems_that_make_half_of_the_mean() -> None:
    """24 problems x 64: 0.075 are solved, 0.375 right by 0.2, the rest hopeless. No solved one in 15 % of samples."""
    chances = 0.375 * np.array([math.comb(64, k) * 0.2**k * 0.8 ** (64 - k) for k in range(65)])
    chances[64] += 0.075
    chances[0] += 0.55
    assert _simulated(chances, 24, 0.15) >= 0.93


@pytest.mark.parametrize(("problems", "answers", "truth"), [(100, 32, 0.05), (100, 16, 0.5), (200, 8, 0.9)])
def test_alike_problems_are_not_covered_too_often(problems: int, answers: int, truth: float) -> None:
    chances = [math.comb(answers, k) * truth**k * (1 - truth) ** (answers - k) for k in range(answers + 1)]
    assert 0.93 <= _simulated(np.array(chances), problems, truth) <= 0.972  # 4,000 draws: 0.003
