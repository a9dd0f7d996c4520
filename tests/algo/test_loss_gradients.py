"""Gradients of the policy losses: which tokens have one, how large it is, and what the first update sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from gmpo.algo.losses import POLICY_LOSSES, SUPERVISED
from gmpo.algo.masks import AGGREGATIONS, sequence_mean

MiniBatch = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
CONSTANT_PARTS = {"cispo", "gspo_token", "dppo_tv", "dppo_kl"}
"""Losses whose value holds a constant made of log-probs: their gradient is not that of their value, by definition."""
PER_RESPONSE = {"geo_mean", "power_mean", "gspo"}
NOTHING_IS_CUT = {"cispo", "sapo", "gpg", "kl_cov", "dro"}


def kinks(numbers: dict[str, Any]) -> list[float]:
    """Log-ratios at which a bound begins, of a token or of a response's mean, in whichever of the losses."""
    low, high, dual = numbers.get("clip_low", 0.2), numbers.get("clip_high", 0.2), numbers.get("clip_dual", 3.0)
    ratios = torch.tensor([1.0 - low, 1.0 + high, dual], dtype=torch.float64).log().tolist()
    return [0.0, -low, high, *ratios]


def clear_of_kinks(logp: Tensor, old: Tensor, mask: Tensor, numbers: dict[str, Any], distance: float) -> bool:
    d = logp - old
    means = sequence_mean(d, mask)[mask.any(1)]
    return all(bool(((x - kink).abs() > distance).all()) for kink in kinks(numbers) for x in (d[mask], means))


@pytest.mark.parametrize("mode", AGGREGATIONS)
@pytest.mark.parametrize("name", sorted(set(POLICY_LOSSES) - CONSTANT_PARTS))
def test_autograd_agrees_with_finite_differences(losses: Any, mini_batch: MiniBatch, name: str, mode: str) -> None:
    logp, old, advantage, mask = mini_batch(0)
    assert clear_of_kinks(logp, old, mask, losses.numbers[name], 1e-4)
    chosen = losses.selected(name, logp, old, advantage, mask)

    def loss(x: Tensor) -> Tensor:
        surrogate = losses.surrogate(name, x, old, advantage, mask, **chosen)
        return losses.reduced(POLICY_LOSSES[name], surrogate, mask, mode)

    assert torch.autograd.gradcheck(loss, logp.requires_grad_(), eps=1e-6, atol=1e-7)


SWITCHES: list[tuple[str, dict[str, Any]]] = [
    *[("power_mean", {"power": p}) for p in (-30.0, -1.0, -1e-6, 0.0, 1e-6, 0.5, 1.0, 2.0, 30.0)],
    *[(name, {"clip_level": level}) for name in ("geo_mean", "power_mean") for level in ("sequence", "none")],
    *[(name, {"upper": 0.25}) for name in ("geo_mean", "power_mean")],
    ("geo_mean", {"length_norm": False}),
    ("geo_mean", {"length_norm": False, "clip_level": "sequence"}),
    ("sapo", {"tau_positive": 3.0, "tau_negative": 0.2}),
]


@pytest.mark.parametrize(("name", "switches"), SWITCHES)
def test_so_it_does_with_every_switch(losses: Any, mini_batch: MiniBatch, name: str, switches: dict[str, Any]) -> None:
    logp, old, advantage, mask = mini_batch(0)
    total = ((logp - old) * mask).sum(1)[mask.any(1)]
    for kink in (-0.3, 0.5):
        assert ((total - kink).abs() > 1e-4).all(), "the example must stay clear of the kinks of the sum, too"
    assert ((logp - old - 0.25).abs()[mask] > 1e-4).all()

    def loss(x: Tensor) -> Tensor:
        surrogate = losses.surrogate(name, x, old, advantage, mask, **switches)
        return losses.reduced(POLICY_LOSSES[name], surrogate, mask)

    assert torch.autograd.gradcheck(loss, logp.requires_grad_(), eps=1e-6, atol=1e-6, rtol=1e-5)


@given(seed=st.integers(0, 10**6))
def test_a_token_of_geo_mean_weighs_minus_a_times_the_ratio_over_the_length_or_nothing(
    losses: Any, mini_batch: MiniBatch, seed: int
) -> None:
    logp, old, advantage, mask = mini_batch(seed)
    got = losses.update("geo_mean", logp, old, advantage, mask)
    surrogate = got.surrogate
    weight = -advantage * surrogate.sequence_ratio.unsqueeze(1) / mask.sum(1, keepdim=True).clamp(min=1) / 5
    cut = surrogate.clipped | surrogate.clipped_lower
    assert not got.gradient[cut | ~mask].any()
    assert torch.allclose(got.gradient[mask & ~cut], weight[mask & ~cut], rtol=1e-12, atol=0)


@given(seed=st.integers(0, 10**6))
def test_gspo_weighs_all_tokens_of_a_response_with_its_ratio_over_the_length_or_drops_them_all(
    losses: Any, mini_batch: MiniBatch, seed: int
) -> None:
    logp, old, advantage, mask = mini_batch(seed)
    got = losses.update("gspo", logp, old, advantage, mask)
    ratio = sequence_mean(logp - old, mask).exp().unsqueeze(1)
    held = torch.where(advantage > 0, ratio > 1.3, ratio < 0.8)
    expected = (-advantage * ratio / mask.sum(1, keepdim=True).clamp(min=1) / 5).masked_fill(held | ~mask, 0.0)
    assert torch.allclose(got.gradient, expected, rtol=1e-12, atol=0)
    assert torch.equal(got.surrogate.clipped | got.surrogate.clipped_lower, held & mask)


@given(seed=st.integers(0, 10**6), spread=st.sampled_from([0.3, 1.0, 30.0]))
def test_with_equal_advantages_gspo_token_is_gspo_in_value_and_gradient(
    losses: Any, mini_batch: MiniBatch, seed: int, spread: float
) -> None:
    tensors = mini_batch(seed, spread)
    per_response, per_token = losses.update("gspo", *tensors), losses.update("gspo_token", *tensors)
    assert per_token.loss == pytest.approx(per_response.loss, rel=1e-12)
    assert torch.allclose(per_token.gradient, per_response.gradient, rtol=1e-12, atol=0)
    assert torch.equal(per_token.surrogate.capped, per_response.surrogate.capped)


def test_gspo_token_keeps_a_mean_of_a_few_ten_thousandths_in_float32(losses: Any) -> None:
    # Its published range is 3e-4 and 4e-4; numbers near 30 are 2e-6 apart.
    old = torch.full((1, 3), -30.0)
    logp = old + torch.tensor([[2.0**-11, 0.0, 0.0]])  # exact; the mean is 1.6e-4
    mask = torch.ones(1, 3, dtype=torch.bool)
    got = losses.update("gspo_token", logp, old, torch.ones(1, 3), mask, clip_low=3e-4, clip_high=4e-4)
    assert got.surrogate.values.flatten().tolist() == pytest.approx([-math.exp(2.0**-11 / 3)] * 3, abs=1.3e-7)


@given(seed=st.integers(0, 10**6))
def test_gspo_token_gives_each_token_the_weight_of_its_own_advantage(
    losses: Any, mini_batch: MiniBatch, seed: int
) -> None:
    logp, old, _, mask = mini_batch(seed, 0.05)  # nothing is bounded
    advantage = torch.linspace(-1.0, 1.0, 30, dtype=torch.float64).reshape(6, 5)
    got = losses.update("gspo_token", logp, old, advantage, mask)
    ratio = sequence_mean(logp - old, mask).exp().unsqueeze(1)
    expected = (-advantage * ratio / mask.sum(1, keepdim=True).clamp(min=1) / 5) * mask
    assert torch.allclose(got.gradient, expected, rtol=1e-12, atol=0)


@given(seed=st.integers(0, 10**6), spread=st.sampled_from([1.0, 30.0]))
def test_no_token_of_cispo_loses_its_gradient(losses: Any, mini_batch: MiniBatch, seed: int, spread: float) -> None:
    logp, old, advantage, mask = mini_batch(seed, spread)
    got = losses.update("cispo", logp, old, advantage, mask)
    weight = (logp - old).exp().clamp(0.8, 1.3)
    expected = (-advantage * weight / mask.sum(1, keepdim=True).clamp(min=1) / 5) * mask
    assert torch.allclose(got.gradient, expected, rtol=1e-12, atol=0)
    assert got.gradient[mask].all()
    ratio = (logp - old).exp()
    assert torch.equal(got.surrogate.clipped, ((ratio < 0.8) | (ratio > 1.3)) & mask)


@pytest.mark.parametrize("name", [name for name in POLICY_LOSSES if name != "cispo"])
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([0.3, 1.0, 3.0]))
def test_cut_tokens_are_exactly_those_without_gradient(
    losses: Any, mini_batch: MiniBatch, name: str, seed: int, spread: float
) -> None:
    logp, old, advantage, mask = mini_batch(seed, spread)
    assume(clear_of_kinks(logp, old, mask, losses.numbers[name], 1e-9))
    assume(name != "sapo" or bool((logp - old < 3.5).all()))  # its sigmoid rounds to 1 where the ratio is above 37
    got = losses.update(name, logp, old, advantage, mask)
    clipped, lower = got.surrogate.clipped, got.surrogate.clipped_lower
    assert not (clipped & lower).any()
    assert torch.equal((clipped | lower)[mask], (got.gradient == 0)[mask])
    assert not (clipped | lower)[~mask].any()


@pytest.mark.parametrize("name", sorted(set(POLICY_LOSSES) - NOTHING_IS_CUT))
def test_the_mini_batches_above_have_cut_tokens_and_others(losses: Any, mini_batch: MiniBatch, name: str) -> None:
    surrogate = losses.surrogate(name, *mini_batch(0))
    share = float((surrogate.clipped | surrogate.clipped_lower).sum()) / 15
    assert 0.1 < share < 0.9


@pytest.mark.parametrize("power", [-30.0, -1.0, 0.0, 1e-9, 1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_update_after_a_rollout_has_the_gradient_of_sequence_mean_grpo(
    losses: Any, mini_batch: MiniBatch, dtype: torch.dtype, power: float
) -> None:
    _, old, advantage, mask = (x.to(dtype) if x.is_floating_point() else x for x in mini_batch(1))
    grpo = losses.update("vanilla", old, old, advantage, mask).gradient
    # -A / |o| / 5: five responses have tokens
    expected = (-advantage / mask.sum(1, keepdim=True).clamp(min=1) / 5).masked_fill(~mask, 0.0)
    tolerance = 1e-12 if dtype is torch.float64 else 1e-6
    assert torch.allclose(grpo, expected, rtol=tolerance, atol=0)
    for name in ("geo_mean", "gspo", "gspo_token"):
        got = losses.update(name, old, old, advantage, mask, mode="token-mean").gradient
        assert torch.allclose(got, expected, rtol=tolerance, atol=0), name
    got = losses.update("power_mean", old, old, advantage, mask, mode="token-mean", power=power).gradient
    assert torch.allclose(got, expected, rtol=tolerance, atol=0)


def test_a_second_update_tells_the_two_apart(losses: Any, mini_batch: MiniBatch) -> None:
    tensors = mini_batch(2, 0.1)
    geo, grpo = (losses.update(name, *tensors).gradient for name in ("geo_mean", "vanilla"))
    assert (geo - grpo).norm() > 0.02 * grpo.norm()


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_reported_ratios_and_flags_carry_no_gradient(losses: Any, mini_batch: MiniBatch, name: str) -> None:
    logp, *rest = mini_batch(3)
    surrogate = losses.surrogate(name, logp.requires_grad_(), *rest)
    assert surrogate.values.requires_grad
    assert not surrogate.sequence_ratio.requires_grad
    for flags in (surrogate.clipped, surrogate.clipped_lower, surrogate.capped):
        assert flags.dtype is torch.bool


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_the_supervised_gradient_is_minus_one_over_the_denominator(
    losses: Any, mini_batch: MiniBatch, mode: str
) -> None:
    logp, old, _, mask = mini_batch(4)
    leaf = logp.requires_grad_()
    losses.reduced(SUPERVISED, SUPERVISED.fn(leaf, old, torch.ones_like(old), mask), mask, mode).backward()
    lengths = mask.sum(1, keepdim=True).clamp(min=1).double()
    per_token = {
        "token-mean": torch.full_like(lengths, 1 / 15),
        "token-sum": torch.ones_like(lengths),
        "seq-mean-token-sum": torch.full_like(lengths, 1 / 5),
        "seq-mean-token-mean": 1 / lengths / 5,
        "seq-mean-token-sum-norm": torch.full_like(lengths, 1 / 8 / 5),
    }[mode]
    assert leaf.grad is not None
    assert torch.allclose(leaf.grad, -per_token.expand(6, 5) * mask, rtol=1e-12, atol=0)
