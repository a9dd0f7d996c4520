"""The beta distribution against exact binomial sums and closed forms; Student's t where it has one."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmpo.metrics.beta import beta_cdf, crossing, t_quantile


@given(st.integers(1, 40), st.integers(1, 99), st.data())
def test_it_is_the_chance_of_so_many_successes_or_more(trials: int, percent: int, data: st.DataObject) -> None:
    least, p = data.draw(st.integers(1, trials)), Fraction(percent, 100)
    chance = sum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(least, trials + 1))
    assert beta_cdf(float(p), least, trials - least + 1) == pytest.approx(float(chance), rel=1e-9)


def test_on_paper() -> None:
    # 1 - 0.7^10 - 10 0.3 0.7^9 - 45 0.3^2 0.7^8 - 120 0.3^3 0.7^7
    assert beta_cdf(0.3, 4, 7) == pytest.approx(0.350, abs=5e-4)
    x = np.array([0.01, 0.3, 0.5, 0.99])
    assert beta_cdf(x, 0.37, 1) == pytest.approx(x**0.37)
    assert beta_cdf(x, 1, 2.6) == pytest.approx(1 - (1 - x) ** 2.6)
    assert beta_cdf(x, 0.5, 0.5) == pytest.approx(2 / math.pi * np.arcsin(np.sqrt(x)))


def test_the_ends_and_the_mass_at_a_point() -> None:
    assert beta_cdf([0, 0.5, 1], 2, 3) == pytest.approx([0, 0.6875, 1])
    assert beta_cdf([0, 0.5, 1], 0, 3).tolist() == [1, 1, 1]
    assert beta_cdf([0, 0.5, 1], 3, 0).tolist() == [0, 0, 1]


@pytest.mark.parametrize(("trials", "p"), [(42_208, 0.5), (42_208, 0.005), (1319, 0.3)])
def test_many_trials(trials: int, p: float) -> None:
    least = round(trials * p + 1.5 * math.sqrt(trials * p * (1 - p)))

    def log_chance(k: int) -> float:
        choose = math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        return choose + k * math.log(p) + (trials - k) * math.log1p(-p)

    chance = math.fsum(math.exp(log_chance(k)) for k in range(least, trials + 1))
    assert beta_cdf(p, least, trials - least + 1) == pytest.approx(chance, rel=1e-8)


def test_a_crossing_is_found_elementwise() -> None:
    roots = np.array([[0.0, 0.1], [0.7, 1.0]])
    assert crossing(lambda x: x - roots, 0.0, like=roots) == pytest.approx(roots, abs=1e-13)


def test_students_quantiles_where_they_have_a_closed_form() -> None:
    assert t_quantile(0) == math.inf
    assert t_quantile(1) == pytest.approx(math.tan(math.pi * 0.475))  # 12.706
    assert t_quantile(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)))  # 4.303
    assert t_quantile(9) == pytest.approx(2.262157, abs=1e-6)  # any table
    assert t_quantile(10**5) == pytest.approx(1.959964 + 2.3723 / 10**5, abs=1e-6)  # z + (z^3 + z) / (4 degrees)
