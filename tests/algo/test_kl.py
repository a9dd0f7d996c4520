"""KL estimators and the controller of their coefficient, with numbers on paper."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gmpo.algo.kl import KL_ESTIMATORS, adapted_coefficient, kl_penalty

LN2 = math.log(2.0)


def value(kind: str, x: float) -> float:
    """The estimate where ref_logp - logp = x."""
    return kl_penalty(torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), x, dtype=torch.float64), kind).item()


def gradient(kind: str, x: float) -> float:
    """Its derivative by logp."""
    logp = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    kl_penalty(logp, torch.full((1, 1), x, dtype=torch.float64), kind).sum().backward()
    assert logp.grad is not None
    return logp.grad.item()


# The reference finds the token twice as probable: x = ln 2, e^x = 2.
@pytest.mark.parametrize(
    ("kind", "expected", "slope"),
    [
        ("kl", -LN2, 1.0),
        ("k1", -LN2, 1.0),
        ("abs", LN2, -1.0),
        ("mse", LN2**2 / 2, -LN2),
        ("k2", LN2**2 / 2, -LN2),
        ("low_var_kl", 2 - LN2 - 1, 1.0 - 2.0),
        ("k3", 2 - LN2 - 1, 1.0 - 2.0),
    ],
)
def test_values_and_gradients_on_paper(kind: str, expected: float, slope: float) -> None:
    assert value(kind, LN2) == pytest.approx(expected, rel=1e-12)
    assert gradient(kind, LN2) == pytest.approx(slope, rel=1e-12)


@pytest.mark.parametrize("kind", KL_ESTIMATORS)
@pytest.mark.parametrize("x", [-1.5, LN2])
def test_a_plus_keeps_the_value_and_takes_k2s_gradient(kind: str, x: float) -> None:
    assert value(kind + "+", x) == pytest.approx(value(kind, x), rel=1e-12)
    assert gradient(kind + "+", x) == pytest.approx(gradient("k2", x), rel=1e-12)


@pytest.mark.parametrize("kind", KL_ESTIMATORS)
def test_equal_policies_have_no_divergence(kind: str) -> None:
    assert value(kind, 0.0) == 0.0


@given(st.floats(-60.0, 60.0))
def test_k3_is_between_zero_and_ten(x: float) -> None:
    assert 0.0 <= value("k3", x) <= 10.0


@given(st.floats(-1 / 128, 1 / 128, width=32))
def test_k3_is_never_negative_and_does_not_drown_for_small_differences_in_float32(x: float) -> None:
    k3 = kl_penalty(torch.zeros(1, 1), torch.full((1, 1), x), "k3").item()
    assert k3 >= 0.0
    # e^x - x - 1 = x^2/2 + ...; taken as e^x - 1 - x it is wrong by 6e-8, which is all of it where |x| < 3e-4
    assert k3 == pytest.approx(x * x / 2 + x**3 / 6 + x**4 / 24, abs=abs(x) * 2e-7)


def test_k3_is_finite_and_flat_beyond_its_bounds() -> None:
    assert value("k3", 1000.0) == 10.0  # e^20 - 21, held at 10
    assert value("k3", -1000.0) == 10.0  # e^-20 + 19, held at 10
    assert gradient("k3", 1000.0) == gradient("k3", -1000.0) == 0.0


def test_the_adaptive_coefficient_moves_by_the_error_over_the_horizon() -> None:
    # KL 10 % above its target, 512 responses, horizon 10,000: 0.2 * (1 + 0.1 * 0.0512)
    raised = adapted_coefficient(0.2, 0.11, target=0.1, horizon=10_000.0, responses=512)
    assert raised == pytest.approx(0.2 * (1 + 0.1 * 0.0512), rel=1e-12)
    lowered = adapted_coefficient(0.2, 0.09, target=0.1, horizon=10_000.0, responses=512)
    assert lowered == pytest.approx(0.2 * (1 - 0.1 * 0.0512), rel=1e-12)
    assert adapted_coefficient(0.2, 0.1, target=0.1, horizon=10_000.0, responses=512) == 0.2


@pytest.mark.parametrize(("kl", "error"), [(100.0, 0.2), (0.0, -0.2)])
def test_the_adaptive_coefficient_never_moves_by_more_than_a_fifth_per_horizon(kl: float, error: float) -> None:
    assert adapted_coefficient(1.0, kl, target=0.1, horizon=64.0, responses=64) == pytest.approx(1 + error)
