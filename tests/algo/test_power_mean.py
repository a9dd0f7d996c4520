"""The power means of token ratios: the known means, the way to their limit, and accuracy beside 60 decimal digits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal, getcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gmpo.algo.masks import sequence_mean
from gmpo.algo.sequence_losses import log_power_mean

getcontext().prec = 60
MiniBatch = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
OPEN = {"clip_level": "none"}
POWERS = [-100.0, -2.0, -1.0, -0.3, -1e-6, 1e-6, 0.3, 1.0, 2.0, 100.0]


def exact(m: Sequence[float], power: float) -> Decimal:
    """`log (mean e^{p m})^{1/p}`, the mean of m at p = 0."""
    values, p = [Decimal(x) for x in m], Decimal(power)
    if p == 0:
        return sum(values, Decimal(0)) / len(values)
    return (sum(((p * x).exp() for x in values), Decimal(0)) / len(values)).ln() / p


def computed(m: Sequence[float], power: float, dtype: torch.dtype = torch.float64) -> float:
    row = torch.tensor([m], dtype=dtype)
    return log_power_mean(row, torch.ones_like(row, dtype=torch.bool), power).item()


singles = st.floats(-30.0, 30.0, width=32)
some = st.lists(singles, min_size=1, max_size=7)
either = st.sampled_from([torch.float32, torch.float64])


@given(m=some, magnitude=st.integers(1, 12), sign=st.sampled_from([-1.0, 1.0]), dtype=either)
def test_on_the_way_to_zero_it_is_exact_to_rounding_in_both_precisions(
    m: list[float], magnitude: int, sign: float, dtype: torch.dtype
) -> None:
    """The plain formula, log-sum-exp over p, errs by eps / p: by 1e5 at p = 1e-12 in float32."""
    power = sign * 10.0**-magnitude
    largest = max(abs(x) for x in m)
    assert abs(computed(m, power, dtype) - float(exact(m, power))) <= 8 * torch.finfo(dtype).eps * largest


@given(m=some, size=st.floats(1e-6, 100.0), sign=st.sampled_from([-1.0, 1.0]), dtype=either)
def test_it_is_exact_to_rounding_at_every_exponent(
    m: list[float], size: float, sign: float, dtype: torch.dtype
) -> None:
    largest = max(abs(x) for x in m)
    error = abs(computed(m, sign * size, dtype) - float(exact(m, sign * size)))
    assert error <= 16 * torch.finfo(dtype).eps * largest * (1 + math.log(len(m)))


@pytest.mark.parametrize("power", [-100.0, -1.0, -1e-9, 0.0, 1e-9, 1.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_exact_a_thousand_nats_apart(power: float, dtype: torch.dtype) -> None:
    for m in ([1000.0, -1000.0, 0.5], [1000.0, 1000.0], [-1000.0, 999.0, -1000.0]):
        assert abs(computed(m, power, dtype) - float(exact(m, power))) <= 8 * torch.finfo(dtype).eps * 1000


@given(m=some, power=st.sampled_from([*POWERS, 0.1, 1e-3, -1e-3, 1e-9, -1e-12]))
def test_its_distance_from_the_geometric_mean_is_bounded_by_p_times_the_range_squared_over_eight(
    m: list[float], power: float
) -> None:
    # Jensen's inequality on one side, Hoeffding's lemma on the other: so p -> 0 is continuous
    ahead = (computed(m, power) - computed(m, 0.0)) * math.copysign(1.0, power)
    rounding = 1e-14 * max(abs(x) for x in m)
    assert -rounding <= ahead <= abs(power) * (max(m) - min(m)) ** 2 / 8 + rounding


@given(m=some, powers=st.lists(st.floats(-100.0, 100.0), min_size=2, max_size=2))
def test_it_increases_with_the_exponent_and_stays_between_the_smallest_and_the_largest(
    m: list[float], powers: list[float]
) -> None:
    low, high = (computed(m, p) for p in sorted(powers))
    rounding = 1e-13 * max(1.0, *(abs(x) for x in m))
    assert min(m) - rounding <= low <= high + rounding <= max(m) + 2 * rounding


def test_known_means_of_the_ratios_1_2_and_4() -> None:
    m = [0.0, math.log(2.0), math.log(4.0)]
    assert math.exp(computed(m, 1.0)) == pytest.approx(7 / 3, rel=1e-14)  # arithmetic
    assert math.exp(computed(m, 0.0)) == pytest.approx(2.0, rel=1e-14)  # geometric
    assert math.exp(computed(m, -1.0)) == pytest.approx(12 / 7, rel=1e-14)  # harmonic
    assert math.exp(computed(m, 2.0)) == pytest.approx(math.sqrt(7.0), rel=1e-14)  # quadratic
    assert math.exp(computed(m, 1000.0)) == pytest.approx(4.0 * 3**-0.001, rel=1e-12)  # towards the largest


@pytest.mark.parametrize("power", POWERS)
def test_a_single_token_is_its_own_mean_and_a_response_without_any_has_the_ratio_one(power: float) -> None:
    m, mask = torch.tensor([[0.7, 9.0], [3.0, 4.0]]), torch.tensor([[True, False], [False, False]])
    assert log_power_mean(m, mask, power).tolist() == pytest.approx([0.7, 0.0], abs=1e-7)
    assert log_power_mean(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool), power).tolist() == [0.0, 0.0]


# --- as a loss


@given(seed=st.integers(0, 10**6), power=st.sampled_from([0.0, -0.0, 1e-45, -1e-300]))
def test_power_zero_is_geo_mean_exactly(losses: Any, mini_batch: MiniBatch, seed: int, power: float) -> None:
    logp, old, advantage, mask = mini_batch(seed)
    for dtype in (torch.float32, torch.float64):
        tensors = [x.to(dtype) for x in (logp, old, advantage)]
        geo = losses.update("geo_mean", *tensors, mask)
        own = losses.update("power_mean", *tensors, mask, power=power)
        assert own.loss == geo.loss
        assert torch.equal(own.gradient, geo.gradient)
        assert torch.equal(own.surrogate.clipped, geo.surrogate.clipped)
        assert torch.equal(own.surrogate.clipped_lower, geo.surrogate.clipped_lower)


@given(seed=st.integers(0, 10**6), exponent=st.integers(2, 12), sign=st.sampled_from([-1.0, 1.0]))
def test_loss_and_gradient_go_to_those_of_geo_mean(
    losses: Any, mini_batch: MiniBatch, seed: int, exponent: int, sign: float
) -> None:
    tensors, power = mini_batch(seed), 10.0**-exponent
    geo, own = losses.update("geo_mean", *tensors), losses.update("power_mean", *tensors, power=sign * power)
    assert own.loss == pytest.approx(geo.loss, rel=20 * power + 1e-13, abs=20 * power)
    assert (own.gradient - geo.gradient).norm() <= (20 * power + 1e-13) * geo.gradient.norm()


@given(seed=st.integers(0, 10**6))
def test_exponents_one_and_minus_one_are_arithmetic_and_harmonic_mean_of_the_clipped_ratios(
    losses: Any, mini_batch: MiniBatch, seed: int
) -> None:
    logp, old, advantage, mask = mini_batch(seed)
    numbers = losses.numbers["power_mean"]
    for row in mask.any(1).nonzero().flatten().tolist():
        a = advantage[row, 0].item()
        d = (logp - old)[row][mask[row]].tolist()
        ratios = [math.exp(min(x, numbers["clip_high"]) if a > 0 else max(x, -numbers["clip_low"])) for x in d]
        for power, mean in (
            (1.0, sum(ratios) / len(ratios)),
            (-1.0, len(ratios) / sum(1 / r for r in ratios)),
        ):
            values = losses.surrogate("power_mean", logp, old, advantage, mask, power=power).values
            assert values[row].item() == pytest.approx(-a * mean, rel=1e-12)


@given(seed=st.integers(0, 10**6), power=st.sampled_from([0.0, *POWERS]))
def test_a_token_weighs_minus_a_times_the_mean_times_its_softmax_share_or_nothing(
    losses: Any, mini_batch: MiniBatch, seed: int, power: float
) -> None:
    logp, old, advantage, mask = mini_batch(seed)
    got = losses.update("power_mean", logp, old, advantage, mask, power=power)
    d = logp - old
    m = torch.where(advantage > 0, d.clamp(max=0.5), d.clamp(min=-0.3))
    share = torch.softmax((power * m).masked_fill(~mask, -torch.inf), dim=1).nan_to_num(0.0)
    weight = -advantage * got.surrogate.sequence_ratio.unsqueeze(1) * share / 5
    cut = torch.where(advantage > 0, d > 0.5, d < -0.3) & mask
    assert torch.equal(got.surrogate.clipped | got.surrogate.clipped_lower, cut)
    assert not got.gradient[cut | ~mask].any()
    assert torch.allclose(got.gradient[mask & ~cut], weight[mask & ~cut], rtol=1e-10, atol=1e-14)


@given(seed=st.integers(0, 10**6), power=st.sampled_from(POWERS))
def test_without_a_clip_the_weights_of_a_response_add_up_to_minus_a_times_its_ratio(
    losses: Any, mini_batch: MiniBatch, seed: int, power: float
) -> None:
    logp, old, advantage, mask = mini_batch(seed)
    got = losses.update("power_mean", logp, old, advantage, mask, power=power, **OPEN)
    expected = -sequence_mean(advantage, mask) * got.surrogate.sequence_ratio / 5
    assert torch.allclose(got.gradient.sum(1), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("power", [-100.0, -1.0, -1e-12, 1e-30, 1e-12, 1.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("level", ["token", "sequence", "none"])
def test_loss_and_gradient_are_finite_a_thousand_nats_apart(
    losses: Any, responses: MiniBatch, power: float, dtype: torch.dtype, advantage: float, level: str
) -> None:
    rows = [[1000.0, -1000.0, 0.0], [1000.0], [-1000.0, -1000.0], [1000.0, 1000.0, 1000.0], []]
    tensors = responses(rows, [advantage] * 5, dtype)
    got = losses.update("power_mean", *tensors, power=power, clip_level=level)
    assert math.isfinite(got.loss)
    assert got.gradient.isfinite().all()
