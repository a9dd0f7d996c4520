"""The switches of `geo_mean`: where the clip acts, the 1/|o|, and a bound on the side that the clip leaves open."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

MiniBatch = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
BAND = {"clip_low": 0.4, "clip_high": 0.4}
BOTH = pytest.mark.parametrize("name", ["geo_mean", "power_mean"])


def cut(surrogate: Any) -> list[list[bool]]:
    return (surrogate.clipped | surrogate.clipped_lower).tolist()


@BOTH
def test_a_sequence_clip_bounds_the_sum_of_the_log_ratios_and_then_divides(
    losses: Any, responses: MiniBatch, name: str
) -> None:
    # sums 0.9, -0.9, 0.9, 0.3: the first two are cut, the third moved the harmless way
    rows = [[0.3] * 3, [-0.3] * 3, [0.3] * 3, [0.1] * 3]
    got = losses.update(name, *responses(rows, [1.0, -2.0, -1.0, 1.0]), clip_level="sequence", **BAND)
    # in float64, where 0.4 / 3 in float32 would show at 1e-8
    expected = [-math.exp(0.4 / 3), 2 * math.exp(-0.4 / 3), math.exp(0.3), -math.exp(0.1)]
    assert got.surrogate.values.tolist() == pytest.approx(expected, rel=1e-14)
    assert got.surrogate.clipped.tolist() == [[True] * 3, [False] * 3, [False] * 3, [False] * 3]
    assert got.surrogate.clipped_lower.tolist() == [[False] * 3, [True] * 3, [False] * 3, [False] * 3]
    weights = [0.0, 0.0, math.exp(0.3) / 3, -math.exp(0.1) / 3]
    assert (4 * got.gradient)[:, 0].tolist() == pytest.approx(weights, rel=1e-12)


def test_a_sequence_clip_lets_a_wild_token_pass_that_the_others_balance(losses: Any, responses: MiniBatch) -> None:
    tensors = responses([[2.0, -1.9]], [1.0])
    by_sequence = losses.update("geo_mean", *tensors, clip_level="sequence", **BAND)
    by_token = losses.update("geo_mean", *tensors, clip_level="token", **BAND)
    assert by_sequence.loss == pytest.approx(-math.exp(0.1 / 2))
    assert by_token.loss == pytest.approx(-math.exp((0.4 - 1.9) / 2))
    assert cut(by_sequence.surrogate) == [[False, False]]
    assert cut(by_token.surrogate) == [[True, False]]


def test_a_sequence_clip_of_04_over_a_thousand_tokens_is_a_band_of_04_thousandths_on_the_mean(
    losses: Any, responses: MiniBatch
) -> None:
    got = losses.update("geo_mean", *responses([[0.01] * 1000], [1.0]), clip_level="sequence", **BAND)
    assert got.surrogate.sequence_ratio.item() == pytest.approx(math.exp(4e-4), rel=1e-14)


@given(seed=st.integers(0, 10**6), spread=st.sampled_from([1.0, 5.0]))
def test_without_a_clip_it_is_gspo_without_a_clip(losses: Any, mini_batch: MiniBatch, seed: int, spread: float) -> None:
    tensors = mini_batch(seed, spread)
    geo = losses.update("geo_mean", *tensors, clip_level="none", clip_low=0.0, clip_high=0.0)
    gspo = losses.update("gspo", *tensors, clip_low=1e9, clip_high=1e9)
    assert geo.loss == pytest.approx(gspo.loss, rel=1e-12)
    assert torch.allclose(geo.gradient, gspo.gradient, rtol=1e-12, atol=0)
    assert not any(map(any, cut(geo.surrogate)))


@BOTH
@given(seed=st.integers(0, 10**6))
def test_without_a_clip_it_is_a_token_clip_at_infinity(
    losses: Any, mini_batch: MiniBatch, name: str, seed: int
) -> None:
    tensors = mini_batch(seed)
    none = losses.update(name, *tensors, clip_level="none")
    wide = losses.update(name, *tensors, clip_level="token", clip_low=1e9, clip_high=1e9)
    assert none.loss == wide.loss
    assert torch.equal(none.gradient, wide.gradient)


def test_without_the_length_the_exponent_is_the_sum(losses: Any, responses: MiniBatch) -> None:
    # m = (0.1, 0.4, -0.9), (0.1, 0.5, -0.4) and (0.3)
    rows = [[0.1, 0.5, -0.9], [0.1, 0.5, -0.9], [0.3]]
    got = losses.update("geo_mean", *responses(rows, [1.0, -2.0, 1.0]), length_norm=False, **BAND)
    up, down, short = math.exp(-0.4), math.exp(0.2), math.exp(0.3)
    assert got.surrogate.values.tolist() == pytest.approx([-up, 2 * down, -short], rel=1e-12)
    assert got.surrogate.sequence_ratio.tolist() == pytest.approx([up, down, short], rel=1e-12)
    # no 1/|o| in the gradient either
    weights = [-up, 0.0, -up, 2 * down, 2 * down, 0.0, -short, 0.0, 0.0]
    assert (3 * got.gradient).flatten().tolist() == pytest.approx(weights)


def test_without_the_length_a_sequence_clip_bounds_the_exponent_itself(losses: Any, responses: MiniBatch) -> None:
    got = losses.update(
        "geo_mean", *responses([[0.3] * 3, [-0.3] * 3], [1.0, -1.0]), length_norm=False, clip_level="sequence", **BAND
    )
    assert got.surrogate.values.tolist() == pytest.approx([-math.exp(0.4), math.exp(-0.4)], rel=1e-14)


@BOTH
def test_an_upper_bound_holds_the_side_that_the_clip_leaves_open(losses: Any, responses: MiniBatch, name: str) -> None:
    tensors = responses([[2.0, 2.0], [2.0, 2.0], [-9.0, 2.0]], [-1.0, 1.0, -1.0])
    exponent = {"power": 0.0} if name == "power_mean" else {}
    got = losses.update(name, *tensors, upper=0.5, **BAND, **exponent)
    expected = [math.exp(0.5), -math.exp(0.4), math.exp((-0.4 + 0.5) / 2)]
    assert got.surrogate.values.tolist() == pytest.approx(expected, rel=1e-14)
    assert got.surrogate.clipped.tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert got.surrogate.clipped_lower.tolist() == [[True] * 2, [False] * 2, [True] * 2]
    assert not got.gradient.any()


@BOTH
@pytest.mark.parametrize("level", ["token", "sequence", "none"])
@given(seed=st.integers(0, 10**6), upper=st.sampled_from([0.0, 0.4, 2.0]))
def test_an_upper_bound_cuts_exactly_the_tokens_above_it_with_a_negative_advantage(
    losses: Any, mini_batch: MiniBatch, name: str, level: str, seed: int, upper: float
) -> None:
    logp, old, advantage, mask = mini_batch(seed)
    without = losses.update(name, logp, old, advantage, mask, clip_level=level)
    got = losses.update(name, logp, old, advantage, mask, clip_level=level, upper=upper)
    over = (logp - old > upper) & (advantage < 0) & mask & ~without.surrogate.clipped_lower
    assert torch.equal(got.surrogate.clipped, without.surrogate.clipped)
    assert torch.equal(got.surrogate.clipped_lower, without.surrogate.clipped_lower | over)
    is_cut = got.surrogate.clipped | got.surrogate.clipped_lower
    assert torch.equal((got.gradient == 0)[mask], is_cut[mask])
    assert (got.surrogate.sequence_ratio[advantage[:, 0] < 0] <= math.exp(upper) * (1 + 1e-12)).all()


def test_an_upper_bound_makes_the_cap_needless(losses: Any, responses: MiniBatch) -> None:
    got = losses.update("geo_mean", *responses([[1000.0, 1000.0]], [-1.0]), upper=1.0)
    assert got.loss == pytest.approx(math.e)
    assert not got.surrogate.capped.any()


@given(seed=st.integers(0, 10**6))
def test_tokens_masked_out_are_as_if_they_had_never_been_there(losses: Any, mini_batch: MiniBatch, seed: int) -> None:
    """What masking by entropy, by truncation or by rejection means: the mean runs over the tokens that are kept."""
    logp, old, advantage, _ = mini_batch(seed)
    keep = torch.tensor([True, False, True, True, False])
    kept = keep.expand(6, 5)
    short = losses.update("geo_mean", *(x[:, keep] for x in (logp, old, advantage)), torch.ones(6, 3).bool())
    holes = losses.update("geo_mean", logp, old, advantage, kept)
    assert holes.loss == pytest.approx(short.loss, rel=1e-12)
    assert torch.allclose(holes.gradient[:, keep], short.gradient, rtol=1e-12, atol=0)
    assert not holes.gradient[:, ~keep].any()
