"""The policy losses on paper: worked examples, limits and what never matters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from gmpo.algo.losses import POLICY_LOSSES, SUPERVISED
from gmpo.algo.masks import AGGREGATIONS, Counts, count
from gmpo.objectives import LOSSES

NAN, INF = float("nan"), float("inf")
Build = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
NARROW = {"clip_low": 0.2, "clip_high": 0.2}
GEO = {"clip_low": 0.4, "clip_high": 0.4}
WEIGHTED_WITH_A_RATIO = ["vanilla", "geo_mean", "power_mean", "gspo", "gspo_token", "clip_cov", "kl_cov"]
"""Losses whose gradient is -A times a ratio, on the side that no bound cuts."""


@pytest.fixture(scope="session")
def outcome(losses: Any, responses: Build) -> Callable[..., Any]:
    """A loss on responses that are given by their log-ratios; no token is selected."""

    def on(name: str, log_ratios: Sequence[Sequence[float]], advantages: Sequence[float], **numbers: Any) -> Any:
        return losses.update(name, *responses(log_ratios, advantages), choose=False, **numbers)

    return on


# --- worked examples


def test_geo_mean_of_three_tokens_with_a_positive_advantage(outcome: Callable[..., Any]) -> None:
    # m = (0.1, min(0.5, 0.4), -0.9), mean -0.4/3
    got = outcome("geo_mean", [[0.1, 0.5, -0.9]], [1.0], **GEO)
    r = math.exp(-0.4 / 3)
    assert got.surrogate.values.tolist() == pytest.approx([-r], rel=1e-12)
    assert got.surrogate.sequence_ratio.tolist() == pytest.approx([r], rel=1e-12)
    assert got.surrogate.clipped.tolist() == [[False, True, False]]
    assert not got.surrogate.clipped_lower.any()
    assert got.gradient[0].tolist() == pytest.approx([-r / 3, 0.0, -r / 3])


def test_geo_mean_of_three_tokens_with_a_negative_advantage(outcome: Callable[..., Any]) -> None:
    # m = (0.1, 0.5, max(-0.9, -0.4)), mean 0.2/3; A = -2
    got = outcome("geo_mean", [[0.1, 0.5, -0.9]], [-2.0], **GEO)
    r = math.exp(0.2 / 3)
    assert got.surrogate.values.tolist() == pytest.approx([2 * r], rel=1e-12)
    assert got.surrogate.clipped_lower.tolist() == [[False, False, True]]
    assert not got.surrogate.clipped.any()
    assert got.gradient[0].tolist() == pytest.approx([2 * r / 3, 2 * r / 3, 0.0])


def test_geo_mean_bounds_are_log_ratios_each_on_its_own_side(outcome: Callable[..., Any]) -> None:
    # bounds 0.3 below and 0.6 above: e^0.6 = 1.82 and e^-0.3 = 0.74
    got = outcome("geo_mean", [[2.0, -2.0], [2.0, -2.0]], [1.0, -1.0], clip_low=0.3, clip_high=0.6)
    assert got.surrogate.values.tolist() == pytest.approx([-math.exp((0.6 - 2.0) / 2), math.exp((2.0 - 0.3) / 2)])


@pytest.mark.parametrize("name", ["geo_mean", "power_mean", "gspo"])
def test_a_loss_per_response_weights_each_once_whatever_its_length_and_the_mode(
    losses: Any, responses: Build, name: str
) -> None:
    tensors = responses([[0.1, 0.1, 0.1, 0.1], [-0.2]], [1.0, 1.0])
    for mode in AGGREGATIONS:
        got = losses.update(name, *tensors, mode=mode).loss
        assert got == pytest.approx(-(math.exp(0.1) + math.exp(-0.2)) / 2)


def test_vanilla_on_paper(outcome: Callable[..., Any]) -> None:
    # ratios 1.1, 1.5, 0.5; A = 1: the gain is bounded at 1.2 and not below
    ratios = [math.log(1.1), math.log(1.5), math.log(0.5)]
    got = outcome("vanilla", [ratios, ratios], [1.0, -1.0], **NARROW)
    assert got.surrogate.values.tolist() == [pytest.approx([-1.1, -1.2, -0.5]), pytest.approx([1.1, 1.5, 0.8])]
    assert got.surrogate.clipped.tolist() == [[False, True, False], [False, False, True]]
    assert not got.surrogate.clipped_lower.any()
    # two responses of three tokens
    assert (6 * got.gradient).tolist() == [pytest.approx([-1.1, 0.0, -0.5]), pytest.approx([1.1, 1.5, 0.0])]


def test_dual_clip_holds_a_ratio_of_five_at_three_for_a_negative_advantage(outcome: Callable[..., Any]) -> None:
    got = outcome("vanilla", [[math.log(5.0)], [math.log(2.9)], [math.log(5.0)]], [-2.0, -2.0, 2.0], **NARROW)
    assert got.surrogate.values.squeeze(1).tolist() == pytest.approx([6.0, 5.8, -2.4])
    assert got.surrogate.clipped_lower.squeeze(1).tolist() == [True, False, False]
    assert got.surrogate.clipped.squeeze(1).tolist() == [False, False, True]
    assert (3 * got.gradient).squeeze(1).tolist() == pytest.approx([0.0, 5.8, 0.0])


def test_vanilla_clips_both_sides_at_bounds_of_their_own(outcome: Callable[..., Any]) -> None:
    got = outcome("vanilla", [[1.0], [-1.0]], [1.0, -1.0], clip_low=0.1, clip_high=0.28)
    assert got.surrogate.values.squeeze(1).tolist() == pytest.approx([-1.28, 0.9])


@pytest.mark.parametrize("name", ["gspo", "gspo_token"])
def test_gspo_bounds_the_geometric_mean_and_drops_the_whole_response(outcome: Callable[..., Any], name: str) -> None:
    # means 0.1, 0.3 and -0.3: ratios 1.105, 1.350 and 0.741 against 0.8 to 1.2
    rows = [[0.5, -0.3], [0.9, -0.3], [-0.9, 0.3], [0.9, -0.3]]
    got = outcome(name, rows, [1.0, 1.0, -1.0, -1.0], **NARROW)
    values = got.surrogate.values.tolist()
    expected = [-math.exp(0.1), -1.2, 0.8, math.exp(0.3)]
    assert values == pytest.approx(expected) if name == "gspo" else [pytest.approx([v, v]) for v in expected]
    assert got.surrogate.clipped.tolist() == [[False] * 2, [True] * 2, [True] * 2, [False] * 2], "either sign of A"
    assert not got.surrogate.clipped_lower.any()
    weights = [-math.exp(0.1), 0.0, 0.0, math.exp(0.3)]
    assert (8 * got.gradient).flatten().tolist() == pytest.approx([w for w in weights for _ in range(2)])


def test_cispo_bounds_the_weight_and_keeps_every_token(outcome: Callable[..., Any]) -> None:
    # ratios 1.1, 1.5, 0.5 become 1.1, 1.2, 0.8 whatever the advantage's sign; log-probs are -1 + log ratio
    ratios = [math.log(1.1), math.log(1.5), math.log(0.5)]
    got = outcome("cispo", [ratios, ratios], [1.0, -2.0], **NARROW)
    gains = [w * (x - 1.0) for w, x in zip([1.1, 1.2, 0.8], ratios, strict=True)]
    assert got.surrogate.values.tolist() == [pytest.approx([-g for g in gains]), pytest.approx([2 * g for g in gains])]
    assert (6 * got.gradient).tolist() == [pytest.approx([-1.1, -1.2, -0.8]), pytest.approx([2.2, 2.4, 1.6])]
    assert got.surrogate.clipped.tolist() == [[False, True, True]] * 2, "the weights that the range changed"
    assert not got.surrogate.clipped_lower.any()


def test_sapo_has_the_plain_slope_at_ratio_one_and_a_soft_gate_beyond(outcome: Callable[..., Any]) -> None:
    got = outcome("sapo", [[0.0], [0.0], [math.log(2.0)]], [1.0, -1.0, 1.0], tau_positive=1.0, tau_negative=2.0)
    # 4 / tau * sigmoid(0) is 2 and 1; sigmoid(1) = 0.7310586
    assert got.surrogate.values.flatten().tolist() == pytest.approx([-2.0, 1.0, -4 * 0.7310585786300049])
    slope = 4 * 0.7310585786300049 * 0.2689414213699951 * 2.0
    assert (3 * got.gradient).flatten().tolist() == pytest.approx([-1.0, 1.0, -slope])


def test_gpg_is_the_plain_policy_gradient_whatever_the_old_policy(outcome: Callable[..., Any]) -> None:
    got = outcome("gpg", [[0.25, -2.0], [3.0, 0.0]], [1.0, -2.0])
    assert got.surrogate.values.tolist() == [[0.75, 3.0], [4.0, -2.0]]
    assert (4 * got.gradient).tolist() == [[-1.0, -1.0], [2.0, 2.0]]


def test_clip_cov_silences_the_chosen_tokens(losses: Any, responses: Build) -> None:
    tensors = responses([[math.log(1.1), math.log(1.5), math.log(0.5)]], [1.0])
    chosen = torch.tensor([[True, False, False]])
    got = losses.update("clip_cov", *tensors, selected=chosen, **NARROW)
    assert got.surrogate.values.tolist() == [pytest.approx([0.0, -1.2, -0.5])]
    assert got.surrogate.clipped.tolist() == [[False, True, False]]
    assert got.surrogate.clipped_lower.tolist() == [[True, False, False]]
    assert (3 * got.gradient).tolist() == [pytest.approx([0.0, 0.0, -0.5])]  # still a mean over three tokens


def test_kl_cov_does_not_follow_the_sign_of_a_rounding_error(losses: Any, responses: Build) -> None:
    tensors = responses([[-9e-5, 9e-5, 2e-4]], [0.0])
    got = losses.update("kl_cov", *tensors, selected=torch.ones(1, 3, dtype=torch.bool), kl_coef=0.1)
    assert got.gradient.flatten().tolist() == pytest.approx([0.0, 0.0, 0.1 / 3], abs=1e-7)


def test_kl_cov_pulls_the_chosen_tokens_back_to_the_old_policy(losses: Any, responses: Build) -> None:
    tensors = responses([[math.log(2.0), math.log(2.0), math.log(0.5)]], [1.0])
    chosen = torch.tensor([[True, False, True]])
    got = losses.update("kl_cov", *tensors, selected=chosen, kl_coef=0.1)
    extra = 0.1 * math.log(2.0)
    assert got.surrogate.values.tolist() == [pytest.approx([-2.0 + extra, -2.0, -0.5 + extra])]
    assert (3 * got.gradient).tolist() == [pytest.approx([-2.0 + 0.1, -2.0, -0.5 - 0.1])]


def test_supervised_learning_is_the_likelihood_of_the_answer(losses: Any) -> None:
    logp = torch.tensor([[-0.5, -1.5], [-2.0, NAN]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, False]])
    advantage = torch.tensor([[1.0, 1.0], [1.0, NAN]])
    surrogate = SUPERVISED.fn(logp, torch.full_like(logp, NAN), advantage, mask)
    loss = losses.reduced(SUPERVISED, surrogate, mask, "token-mean")
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
    losses: Any, name: str, distance: float, advantage: float, dtype: torch.dtype
) -> None:
    old = torch.zeros(2, 3, dtype=dtype)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    got = losses.update(name, torch.full_like(old, distance), old, torch.full_like(old, advantage), mask)
    assert math.isfinite(got.loss)
    assert got.gradient.isfinite().all()


@pytest.mark.parametrize("name", ["geo_mean", "power_mean", "gspo", "gspo_token"])
def test_a_ratio_per_response_is_held_at_e_to_the_twenty_and_keeps_the_weight_of_the_cap(
    outcome: Callable[..., Any], name: str
) -> None:
    rows = [[1000.0, 1000.0], [19.999, 19.999], [20.001, 20.001]]
    got = outcome(name, rows, [-1.0, -1.0, -1.0])
    cap, below = math.exp(20.0), math.exp(19.999)
    assert got.loss == pytest.approx((cap + below + cap) / 3, rel=1e-12)
    assert got.surrogate.capped.tolist() == [True, False, True]
    # three responses of two tokens: the cap's weight, not zero
    weights = [cap, cap, below, below, cap, cap]
    assert (6 * got.gradient).flatten().tolist() == pytest.approx(weights, rel=1e-12)


@pytest.mark.parametrize("name", ["geo_mean", "power_mean"])
def test_with_a_positive_advantage_a_log_clip_never_needs_the_cap(outcome: Callable[..., Any], name: str) -> None:
    got = outcome(name, [[1000.0]], [1.0], **GEO)
    assert got.loss == pytest.approx(-math.exp(0.4))
    assert not got.surrogate.capped.any()


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_an_advantage_that_is_not_a_number_shows_in_the_gradient(outcome: Callable[..., Any], name: str) -> None:
    # A learner skips such an update and counts it; a gradient of zero would hide it.
    gradient = outcome(name, [[0.1, 0.2], [0.1]], [NAN, 1.0]).gradient
    assert gradient[0].isnan().all()
    assert gradient[1, 0].isfinite()


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_advantage_zero_gives_exactly_zero(outcome: Callable[..., Any], name: str) -> None:
    # of kl_cov the surrogate: the KL term of a chosen token does not ask for the advantage; nor does dro's pull
    if LOSSES[name].pulls:
        assert outcome(name, [[3.0]], [0.0]).gradient.item() == pytest.approx(1.5), "beta d, with beta = 0.5"
        return
    got = outcome(name, [[3.0, -3.0, 0.1], [500.0], [-500.0, 0.0]], [0.0, 0.0, 0.0])
    assert got.loss == 0.0
    assert not got.gradient.any()
    assert name == "cispo" or not got.surrogate.clipped.any()  # its weight is bounded whatever A is
    assert not got.surrogate.clipped_lower.any()


@pytest.mark.parametrize("name", ["geo_mean", "power_mean"])
def test_a_response_of_advantage_zero_has_the_ratio_one(outcome: Callable[..., Any], name: str) -> None:
    surrogate = outcome(name, [[3.0, 0.1], [-3.0], [500.0]], [0.0, 0.0, 0.0]).surrogate
    assert surrogate.sequence_ratio.tolist() == [1.0, 1.0, 1.0]
    assert not surrogate.capped.any()


@pytest.mark.parametrize("name", WEIGHTED_WITH_A_RATIO)
@pytest.mark.parametrize(("distance", "advantage"), [(-3.0, 1.0), (0.9, -1.0)])
def test_the_harmless_side_is_never_cut(
    outcome: Callable[..., Any], name: str, distance: float, advantage: float
) -> None:
    # Less probable where it should be more, or more probable where it should be less (0.9 < ln 3, the dual bound).
    got = outcome(name, [[distance] * 4], [advantage])
    assert not got.surrogate.clipped.any()
    assert not got.surrogate.clipped_lower.any()
    weight = -advantage * math.exp(distance) / 4
    assert got.gradient[0].tolist() == pytest.approx([weight] * 4)


# --- what never matters


@pytest.mark.parametrize("mode", AGGREGATIONS)
@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_an_empty_response_adds_nothing_to_loss_gradient_and_denominator(
    losses: Any, responses: Build, name: str, mode: str
) -> None:
    alone, more = responses([[0.1, 0.9], [-0.3]], [1.0, -1.0]), responses([[0.1, 0.9], [], [-0.3], []], [1, 5, -1, -5])
    assert count(more[3]) == count(alone[3]) == Counts(tokens=3, sequences=2)
    without, with_empty = losses.update(name, *alone, mode=mode), losses.update(name, *more, mode=mode)
    assert with_empty.loss == without.loss
    assert torch.equal(with_empty.gradient[[0, 2]], without.gradient)
    assert not with_empty.gradient[[1, 3]].any()


@pytest.mark.parametrize("name", POLICY_LOSSES)
@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e30, -7.0])
@pytest.mark.parametrize("where", [0, 1, 2], ids=["logp", "old_logp", "advantage"])
def test_what_stands_outside_the_mask_never_matters(losses: Any, name: str, garbage: float, where: int) -> None:
    # a response of two tokens, an empty one, and one with a hole
    mask = torch.tensor([[True, True, False, False], [False] * 4, [True, False, True, True]])
    generator = torch.Generator().manual_seed(0)
    clean = [torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    clean.append(torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64).expand(3, 4))
    dirty = [x.masked_fill(~mask, garbage) if i == where else x for i, x in enumerate(clean)]
    expected, got = losses.update(name, *clean, mask), losses.update(name, *dirty, mask)
    assert got.loss == expected.loss
    assert torch.equal(got.gradient, expected.gradient)
    assert not got.gradient[~mask].any()
    for field in fields(got.surrogate):
        if field.name != "values":
            assert torch.equal(getattr(got.surrogate, field.name), getattr(expected.surrogate, field.name)), field.name
    assert not (got.surrogate.clipped | got.surrogate.clipped_lower)[~mask].any()


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_the_order_of_the_rows_never_matters(losses: Any, responses: Build, name: str) -> None:
    rows, advantages = [[0.9, -0.2, 0.1], [-0.5], [0.3, 0.35], []], [1.0, -2.0, 0.5, 1.0]
    order = [2, 0, 3, 1]
    there = losses.update(name, *responses(rows, advantages)).gradient
    back = losses.update(name, *responses([rows[i] for i in order], [advantages[i] for i in order])).gradient
    assert torch.allclose(back, there[order], rtol=1e-14, atol=0)
