"""The policy losses on paper: worked examples, limits and what never matters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from gmpo.algo.losses import POLICY_LOSSES, SUPERVISED, PolicyLoss, Surrogate, geo_mean, reduce_surrogate, vanilla
from gmpo.algo.masks import AGGREGATIONS, Counts, count

NAN, INF = float("nan"), float("inf")
NUMBERS = {
    "geo_mean": {"clip_low": 0.4, "clip_high": 0.4},
    "vanilla": {"clip_low": 0.2, "clip_high": 0.2, "clip_dual": 3.0},
}


def on(
    name: str, log_ratios: Sequence[Sequence[float]], advantages: Sequence[float], **numbers: float
) -> tuple[Surrogate, Tensor, Tensor]:
    """A loss on responses given by their log-ratios: (surrogate, logp as a leaf, mask). Old log-probs are -1."""
    width = max(len(row) for row in log_ratios)
    padded = [[*row, *[0.0] * (width - len(row))] for row in log_ratios]
    mask = torch.tensor([[t < len(row) for t in range(width)] for row in log_ratios])
    old = torch.full(mask.shape, -1.0, dtype=torch.float64)
    logp = (old + torch.tensor(padded, dtype=torch.float64)).requires_grad_()
    advantage = torch.tensor(advantages, dtype=torch.float64).unsqueeze(1) * mask
    return POLICY_LOSSES[name].fn(logp, old, advantage, mask, **{**NUMBERS[name], **numbers}), logp, mask


def loss_of(entry: PolicyLoss, surrogate: Surrogate, mask: Tensor, mode: str = "seq-mean-token-mean") -> Tensor:
    return reduce_surrogate(
        surrogate, mask, per_sequence=entry.per_sequence, mode=mode, counts=count(mask), loss_scale=8.0
    )


def gradient(name: str, log_ratios: Sequence[Sequence[float]], advantages: Sequence[float], **numbers: float) -> Tensor:
    surrogate, logp, mask = on(name, log_ratios, advantages, **numbers)
    loss_of(POLICY_LOSSES[name], surrogate, mask).backward()
    assert logp.grad is not None
    return logp.grad


# --- worked examples


def test_geo_mean_of_three_tokens_with_a_positive_advantage() -> None:
    # m = (0.1, min(0.5, 0.4), -0.9), mean -0.4/3
    surrogate, _, _ = on("geo_mean", [[0.1, 0.5, -0.9]], [1.0])
    assert surrogate.values.tolist() == pytest.approx([-math.exp(-0.4 / 3)], rel=1e-12)
    assert surrogate.sequence_ratio.tolist() == pytest.approx([math.exp(-0.4 / 3)], rel=1e-12)
    assert surrogate.clipped.tolist() == [[False, True, False]]
    assert not surrogate.clipped_lower.any()
    r = math.exp(-0.4 / 3)
    assert gradient("geo_mean", [[0.1, 0.5, -0.9]], [1.0])[0].tolist() == pytest.approx([-r / 3, 0.0, -r / 3])


def test_geo_mean_of_three_tokens_with_a_negative_advantage() -> None:
    # m = (0.1, 0.5, max(-0.9, -0.4)), mean 0.2/3; A = -2
    surrogate, _, _ = on("geo_mean", [[0.1, 0.5, -0.9]], [-2.0])
    r = math.exp(0.2 / 3)
    assert surrogate.values.tolist() == pytest.approx([2 * r], rel=1e-12)
    assert surrogate.clipped_lower.tolist() == [[False, False, True]]
    assert not surrogate.clipped.any()
    assert gradient("geo_mean", [[0.1, 0.5, -0.9]], [-2.0])[0].tolist() == pytest.approx([2 * r / 3, 2 * r / 3, 0.0])


def test_geo_mean_bounds_are_log_ratios_each_on_its_own_side() -> None:
    # bounds 0.3 below and 0.6 above: e^0.6 = 1.82 and e^-0.3 = 0.74
    surrogate, _, _ = on("geo_mean", [[2.0, -2.0], [2.0, -2.0]], [1.0, -1.0], clip_low=0.3, clip_high=0.6)
    assert surrogate.values.tolist() == pytest.approx([-math.exp((0.6 - 2.0) / 2), math.exp((2.0 - 0.3) / 2)])


def test_geo_mean_weights_each_response_once_whatever_its_length() -> None:
    surrogate, _, mask = on("geo_mean", [[0.2, 0.2, 0.2, 0.2], [-0.2]], [1.0, 1.0])
    for mode in AGGREGATIONS:
        loss = loss_of(POLICY_LOSSES["geo_mean"], surrogate, mask, mode)
        assert loss.item() == pytest.approx(-(math.exp(0.2) + math.exp(-0.2)) / 2)


def test_vanilla_on_paper() -> None:
    # ratios 1.1, 1.5, 0.5; A = 1: the gain is bounded at 1.2 and not below
    ratios = [math.log(1.1), math.log(1.5), math.log(0.5)]
    surrogate, _, _ = on("vanilla", [ratios, ratios], [1.0, -1.0])
    assert surrogate.values.tolist() == [pytest.approx([-1.1, -1.2, -0.5]), pytest.approx([1.1, 1.5, 0.8])]
    assert surrogate.clipped.tolist() == [[False, True, False], [False, False, True]]
    assert not surrogate.clipped_lower.any()
    weights = gradient("vanilla", [ratios, ratios], [1.0, -1.0]) * 6  # two responses of three tokens
    assert weights.tolist() == [pytest.approx([-1.1, 0.0, -0.5]), pytest.approx([1.1, 1.5, 0.0])]


def test_dual_clip_holds_a_ratio_of_five_at_three_for_a_negative_advantage() -> None:
    surrogate, _, _ = on("vanilla", [[math.log(5.0)], [math.log(2.9)], [math.log(5.0)]], [-2.0, -2.0, 2.0])
    assert surrogate.values.squeeze(1).tolist() == pytest.approx([6.0, 5.8, -2.4])
    assert surrogate.clipped_lower.squeeze(1).tolist() == [True, False, False]
    assert surrogate.clipped.squeeze(1).tolist() == [False, False, True]
    weights = gradient("vanilla", [[math.log(5.0)], [math.log(2.9)], [math.log(5.0)]], [-2.0, -2.0, 2.0]) * 3
    assert weights.squeeze(1).tolist() == pytest.approx([0.0, 5.8, 0.0])


def test_vanilla_clips_both_sides_at_bounds_of_their_own() -> None:
    surrogate, _, _ = on("vanilla", [[1.0], [-1.0]], [1.0, -1.0], clip_low=0.1, clip_high=0.28)
    assert surrogate.values.squeeze(1).tolist() == pytest.approx([-1.28, 0.9])


def test_supervised_learning_is_the_likelihood_of_the_answer() -> None:
    logp = torch.tensor([[-0.5, -1.5], [-2.0, NAN]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, False]])
    advantage = torch.tensor([[1.0, 1.0], [1.0, NAN]])
    surrogate = SUPERVISED.fn(logp, torch.full_like(logp, NAN), advantage, mask)
    loss = loss_of(SUPERVISED, surrogate, mask, "token-mean")
    loss.backward()
    assert loss.item() == pytest.approx((0.5 + 1.5 + 2.0) / 3)
    assert logp.grad is not None
    assert logp.grad.flatten().tolist() == pytest.approx([-1 / 3, -1 / 3, -1 / 3, 0.0])


# --- limits


@pytest.mark.parametrize("name", POLICY_LOSSES)
@pytest.mark.parametrize("distance", [1000.0, -1000.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradient_are_finite_a_thousand_nats_away(
    name: str, distance: float, advantage: float, dtype: torch.dtype
) -> None:
    old = torch.zeros(2, 3, dtype=dtype)
    logp = torch.full_like(old, distance).requires_grad_()
    mask = torch.tensor([[True, True, True], [True, False, False]])
    entry = POLICY_LOSSES[name]
    loss = loss_of(entry, entry.fn(logp, old, torch.full_like(old, advantage), mask, **NUMBERS[name]), mask)
    loss.backward()
    assert loss.isfinite()
    assert logp.grad is not None
    assert logp.grad.isfinite().all()


def test_geo_mean_holds_the_exponent_at_twenty_and_keeps_the_weight_of_the_cap() -> None:
    rows = [[1000.0, 1000.0], [20.0, 20.0], [20.0, 20.5]]
    surrogate, _, _ = on("geo_mean", rows, [-1.0, -1.0, -1.0])
    cap = math.exp(20.0)
    assert surrogate.values.tolist() == pytest.approx([cap, cap, cap], rel=1e-12)
    assert surrogate.capped.tolist() == [True, False, True]
    # three responses of two tokens: the cap's weight, not zero
    weights = gradient("geo_mean", rows, [-1.0, -1.0, -1.0]) * 6
    assert weights.flatten().tolist() == pytest.approx([cap] * 6, rel=1e-12)


def test_geo_mean_is_exact_right_below_the_cap() -> None:
    surrogate, _, _ = on("geo_mean", [[19.999]], [-1.0])
    assert surrogate.values.item() == pytest.approx(math.exp(19.999), rel=1e-12)
    assert not surrogate.capped.any()


def test_geo_mean_with_a_positive_advantage_never_needs_the_cap() -> None:
    surrogate, _, _ = on("geo_mean", [[1000.0]], [1.0])
    assert surrogate.values.item() == pytest.approx(-math.exp(0.4))
    assert not surrogate.capped.any()


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_an_advantage_that_is_not_a_number_shows_in_the_gradient(name: str) -> None:
    # A learner skips such an update and counts it; a gradient of zero would hide it.
    grad = gradient(name, [[0.1, 0.2], [0.1]], [NAN, 1.0])
    assert grad[0].isnan().all()
    assert grad[1, 0].isfinite()


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_advantage_zero_gives_exactly_zero(name: str) -> None:
    rows = [[3.0, -3.0, 0.1], [500.0], [-500.0, 0.0]]
    surrogate, _, mask = on(name, rows, [0.0, 0.0, 0.0])
    assert loss_of(POLICY_LOSSES[name], surrogate, mask).item() == 0.0
    assert not gradient(name, rows, [0.0, 0.0, 0.0]).any()
    assert not surrogate.clipped.any()
    assert not surrogate.clipped_lower.any()


def test_geo_mean_gives_a_response_of_advantage_zero_the_ratio_one() -> None:
    surrogate, _, _ = on("geo_mean", [[3.0, 0.1], [-3.0], [500.0]], [0.0, 0.0, 0.0])
    assert surrogate.sequence_ratio.tolist() == [1.0, 1.0, 1.0]
    assert not surrogate.capped.any()


@pytest.mark.parametrize("name", POLICY_LOSSES)
@pytest.mark.parametrize(("distance", "advantage"), [(-3.0, 1.0), (0.9, -1.0)])
def test_the_harmless_side_is_never_cut(name: str, distance: float, advantage: float) -> None:
    # Less probable where it should be more, or more probable where it should be less (0.9 < ln 3, the dual bound).
    surrogate, _, _ = on(name, [[distance] * 4], [advantage])
    assert not surrogate.clipped.any()
    assert not surrogate.clipped_lower.any()
    weight = -advantage * math.exp(distance) / 4
    assert gradient(name, [[distance] * 4], [advantage])[0].tolist() == pytest.approx([weight] * 4)


# --- what never matters


@pytest.mark.parametrize("mode", AGGREGATIONS)
@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_an_empty_response_adds_nothing_to_loss_gradient_and_denominator(name: str, mode: str) -> None:
    entry = POLICY_LOSSES[name]
    surrogate, logp, mask = on(name, [[0.1, 0.9], [-0.3]], [1.0, -1.0])
    alone = loss_of(entry, surrogate, mask, mode)
    alone.backward()
    more, more_logp, more_mask = on(name, [[0.1, 0.9], [], [-0.3], []], [1.0, 5.0, -1.0, -5.0])
    with_empty = loss_of(entry, more, more_mask, mode)
    with_empty.backward()
    assert count(more_mask) == count(mask) == Counts(tokens=3, sequences=2)
    assert with_empty.item() == alone.item()
    assert logp.grad is not None
    assert more_logp.grad is not None
    assert torch.equal(more_logp.grad[[0, 2]], logp.grad)
    assert not more_logp.grad[[1, 3]].any()


@pytest.mark.parametrize("name", POLICY_LOSSES)
@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e30, -7.0])
@pytest.mark.parametrize("where", [0, 1, 2], ids=["logp", "old_logp", "advantage"])
def test_what_stands_in_the_padding_never_matters(name: str, garbage: float, where: int) -> None:
    entry = POLICY_LOSSES[name]
    mask = torch.tensor([[True, True, False, False], [False] * 4, [True, True, True, True]])
    generator = torch.Generator().manual_seed(0)
    clean = [torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    clean.append(torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64).expand(3, 4))
    dirty = [x.masked_fill(~mask, garbage) if i == where else x.clone() for i, x in enumerate(clean)]
    outcomes = []
    for logp, old, advantage in (clean, dirty):
        leaf = logp.clone().requires_grad_()
        surrogate = entry.fn(leaf, old, advantage, mask, **NUMBERS[name])
        loss = loss_of(entry, surrogate, mask)
        loss.backward()
        assert leaf.grad is not None
        outcomes.append((loss, leaf.grad, surrogate))
    (loss, grad, surrogate), (dirty_loss, dirty_grad, dirty_surrogate) = outcomes
    assert torch.equal(loss, dirty_loss)
    assert torch.equal(grad, dirty_grad)
    assert not dirty_grad[~mask].any()
    for field in ("clipped", "clipped_lower", "sequence_ratio", "capped"):
        assert torch.equal(getattr(surrogate, field), getattr(dirty_surrogate, field)), field
    assert not (dirty_surrogate.clipped | dirty_surrogate.clipped_lower)[~mask].any()


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_the_order_of_the_rows_never_matters(name: str) -> None:
    rows, advantages = [[0.9, -0.2, 0.1], [-0.5], [0.3, 0.3], []], [1.0, -2.0, 0.5, 1.0]
    order = [2, 0, 3, 1]
    there = gradient(name, rows, advantages)
    back = gradient(name, [rows[i] for i in order], [advantages[i] for i in order])
    assert torch.allclose(back, there[order], rtol=1e-14, atol=0)


# --- the table


def test_both_losses_stand_in_the_table_with_the_numbers_they_take() -> None:
    assert POLICY_LOSSES["geo_mean"].fn is geo_mean
    assert POLICY_LOSSES["vanilla"].fn is vanilla
    for name, entry in POLICY_LOSSES.items():
        assert set(entry.numbers) == set(NUMBERS[name])
        surrogate, _, mask = on(name, [[0.1, 0.2], [0.3]], [1.0, 1.0])
        assert surrogate.values.shape == ((2,) if entry.per_sequence else mask.shape)
