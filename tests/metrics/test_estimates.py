"""pass@k, best-of, worst-of, majority and intervals, checked by enumeration or on paper."""

from __future__ import annotations

import math
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmpo.metrics.estimates import extreme_of, majority, mean_interval, pass_at_k, wilson_interval


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


def test_wilson_on_paper() -> None:
    # (8 + 1.92) / (10 + 3.84) +- 1.96 sqrt(0.16 * 10 + 0.96) / 13.84
    assert wilson_interval(8, 10) == pytest.approx((0.490, 0.943), abs=5e-4)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 3.8416 / 13.8416), abs=1e-6)
    assert wilson_interval(10, 10) == pytest.approx((10 / 13.8416, 1.0), abs=1e-6)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 200), st.data())
def test_wilson_holds_its_share_and_is_mirrored_by_failures(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    low, high = wilson_interval(successes, trials)
    assert 0.0 <= low <= successes / trials <= high <= 1.0
    mirrored = wilson_interval(trials - successes, trials)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)


def test_the_interval_of_a_mean_is_wilsons_where_every_problem_is_right_or_wrong() -> None:
    assert mean_interval([1.0] * 8 + [0.0] * 2) == wilson_interval(8, 10)
    assert mean_interval([]) == (0.0, 1.0)


def test_the_interval_of_a_mean_on_paper() -> None:
    # mean 1/2, deviation sqrt((3 * 1/16) / 2) of 1/4, 1/2, 3/4 is 1/4: 1.96 / 4 / sqrt 3
    half = 1.96 * 0.25 / math.sqrt(3)
    assert mean_interval([0.25, 0.5, 0.75]) == pytest.approx((0.5 - half, 0.5 + half))
    assert mean_interval([0.5]) == (0.0, 1.0)  # one problem says nothing
