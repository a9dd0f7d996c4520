"""The value function's loss and explained variance, on paper."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gmpo.algo.values import explained_variance, value_loss

NAN = float("nan")
ROW = torch.tensor([[1.0, 2.0, 3.0, 6.0]], dtype=torch.float64)
ALL = torch.ones(1, 4, dtype=torch.bool)


def loss(value: float, old: float, target: float, clip: float) -> tuple[float, bool, float]:
    """Value, whether the bound decides, and the derivative by the estimate."""
    v = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    got, held = value_loss(
        v, torch.tensor([[old]], dtype=torch.float64), torch.tensor([[target]], dtype=torch.float64), clip=clip
    )
    got.sum().backward()
    assert v.grad is not None
    return got.item(), bool(held.item()), v.grad.item()


def test_inside_the_bound_it_is_half_the_squared_error() -> None:
    assert loss(1.25, 1.0, 2.0, 0.5) == (0.28125, False, -0.75)  # 0.75^2 / 2


def test_a_step_beyond_the_bound_towards_the_target_has_no_gradient() -> None:
    # V moved from 1 to 1.8, the bound ends at 1.5: the loss stays (1.5 - 2)^2 / 2
    assert loss(1.8, 1.0, 2.0, 0.5) == (0.125, True, 0.0)
    assert loss(0.2, 1.0, 0.0, 0.5) == (0.125, True, 0.0)


def test_a_step_beyond_the_bound_away_from_the_target_keeps_its_gradient() -> None:
    assert loss(0.0, 1.0, 2.0, 0.5) == (2.0, False, -2.0)
    assert loss(3.0, 1.0, 0.0, 0.5) == (4.5, False, 3.0)


numbers = st.integers(-12, 12).map(lambda k: k / 4)


@given(value=numbers, old=numbers, target=numbers, clip=st.sampled_from([0.25, 0.5, 2.0]))
def test_it_equals_the_formula_and_never_falls_below_the_plain_error(
    value: float, old: float, target: float, clip: float
) -> None:
    bounded = min(max(value, old - clip), old + clip)
    got, held, _ = loss(value, old, target, clip)
    assert got == 0.5 * max((value - target) ** 2, (bounded - target) ** 2)
    assert got >= 0.5 * (value - target) ** 2
    assert held == ((bounded - target) ** 2 > (value - target) ** 2)


def test_autograd_agrees_with_finite_differences() -> None:
    g = torch.Generator().manual_seed(0)
    v, old, target = (torch.randn(3, 5, generator=g, dtype=torch.float64) for _ in range(3))
    assert torch.autograd.gradcheck(lambda x: value_loss(x, old, target, clip=0.4)[0], v.requires_grad_())


def test_perfect_values_explain_all_and_a_constant_nothing() -> None:
    assert explained_variance(ROW, ROW, ALL) == 1.0
    assert explained_variance(ROW + 5.0, ROW, ALL) == 1.0  # a constant error is no variance
    assert explained_variance(torch.full_like(ROW, 3.0), ROW, ALL) == 0.0


def test_explained_variance_on_paper() -> None:
    # returns 1, 2, 3, 6: mean 3, squares 4 + 1 + 0 + 9 = 14; errors of half of them: 14 / 4
    assert explained_variance(ROW / 2, ROW, ALL) == pytest.approx(0.75)
    assert explained_variance(-ROW, ROW, ALL) == pytest.approx(-3.0)  # worse than a constant


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("returns", [0.0, 0.1, 1 / 3])
def test_equal_returns_have_no_variance_to_explain(returns: float, dtype: torch.dtype) -> None:
    # The variance of seven times 0.1 is not 0 in floating point.
    same = torch.full((1, 7), returns, dtype=dtype)
    values = torch.linspace(0.0, 1.0, 7, dtype=dtype).unsqueeze(0)
    assert math.isnan(explained_variance(values, same, torch.ones(1, 7, dtype=torch.bool)))


def test_only_the_tokens_of_the_mask_count_and_none_give_nan() -> None:
    values, returns = torch.tensor([[1.0, NAN, 2.0, 9.0]]), torch.tensor([[1.0, 7.0, 2.0, NAN]])
    mask = torch.tensor([[True, False, True, False]])
    assert explained_variance(values, returns, mask) == 1.0
    assert math.isnan(explained_variance(values, returns, torch.zeros_like(mask)))
    assert math.isnan(explained_variance(values, returns, torch.tensor([[True, False, False, False]])))
