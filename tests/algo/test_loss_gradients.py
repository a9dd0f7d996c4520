"""Gradients of the policy losses: which tokens have one, how large it is, and what the first update sees."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from gmpo.algo.losses import POLICY_LOSSES, SUPERVISED, PolicyLoss, reduce_surrogate
from gmpo.algo.masks import AGGREGATIONS, count

NUMBERS = {
    "geo_mean": {"clip_low": 0.3, "clip_high": 0.5},
    "vanilla": {"clip_low": 0.2, "clip_high": 0.3, "clip_dual": 3.0},
}
KINKS = {
    "geo_mean": torch.tensor([0.5, -0.3]),
    "vanilla": torch.tensor([1.3, 0.8, 3.0]).log(),
}
"""Log-ratios at which a bound begins."""


def example(seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Six responses of 0 to 5 tokens with advantages of both signs: logp, old_logp, advantage, mask."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(5) < torch.tensor([5, 0, 1, 3, 4, 2]).unsqueeze(1)
    old = -torch.rand(6, 5, generator=g, dtype=torch.float64) - 0.5
    logp = old + spread * torch.randn(6, 5, generator=g, dtype=torch.float64)
    advantage = torch.tensor([[1.0], [1.0], [-1.0], [-0.5], [0.7], [2.0]], dtype=torch.float64).expand(6, 5)
    return logp, old, advantage, mask


def loss_of(entry: PolicyLoss, numbers: dict[str, float], mode: str, *args: Tensor) -> Tensor:
    mask = args[3]
    surrogate = entry.fn(*args, **numbers)
    return reduce_surrogate(
        surrogate, mask, per_sequence=entry.per_sequence, mode=mode, counts=count(mask), loss_scale=5.0
    )


def gradient(name: str, mode: str, logp: Tensor, *rest: Tensor) -> Tensor:
    leaf = logp.clone().requires_grad_()
    loss_of(POLICY_LOSSES[name], NUMBERS[name], mode, leaf, *rest).backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("mode", AGGREGATIONS)
@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_autograd_agrees_with_finite_differences(name: str, mode: str) -> None:
    logp, old, advantage, mask = example(0)
    for kink in KINKS[name].tolist():
        assert ((logp - old - kink).abs()[mask] > 1e-4).all(), "the example must stay clear of the kinks"

    def loss(x: Tensor) -> Tensor:
        return loss_of(POLICY_LOSSES[name], NUMBERS[name], mode, x, old, advantage, mask)

    assert torch.autograd.gradcheck(loss, logp.requires_grad_(), eps=1e-6, atol=1e-7)


@given(st.integers(0, 10**6))
def test_a_token_of_geo_mean_weighs_minus_a_times_the_ratio_over_the_length_or_nothing(seed: int) -> None:
    logp, old, advantage, mask = example(seed)
    leaf = logp.clone().requires_grad_()
    surrogate = POLICY_LOSSES["geo_mean"].fn(leaf, old, advantage, mask, **NUMBERS["geo_mean"])
    surrogate.values.sum().backward()
    lengths = mask.sum(1, keepdim=True).clamp(min=1)
    weight = -advantage * surrogate.sequence_ratio.unsqueeze(1) / lengths
    cut = surrogate.clipped | surrogate.clipped_lower
    assert leaf.grad is not None
    assert not leaf.grad[cut | ~mask].any()
    assert torch.allclose(leaf.grad[mask & ~cut], weight[mask & ~cut], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", POLICY_LOSSES)
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([0.3, 1.0, 3.0]))
def test_cut_tokens_are_exactly_those_without_gradient(name: str, seed: int, spread: float) -> None:
    logp, old, advantage, mask = example(seed, spread)
    for kink in KINKS[name].tolist():
        assume(bool(((logp - old - kink).abs() > 1e-9).all()))
    surrogate = POLICY_LOSSES[name].fn(logp, old, advantage, mask, **NUMBERS[name])
    grad = gradient(name, "seq-mean-token-mean", logp, old, advantage, mask)
    assert not (surrogate.clipped & surrogate.clipped_lower).any()
    assert torch.equal((surrogate.clipped | surrogate.clipped_lower)[mask], (grad == 0)[mask])
    assert not (surrogate.clipped | surrogate.clipped_lower)[~mask].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_update_after_a_rollout_has_the_gradient_of_sequence_mean_grpo(dtype: torch.dtype) -> None:
    _, old, advantage, mask = (x.to(dtype) if x.is_floating_point() else x for x in example(1))
    geo = gradient("geo_mean", "token-mean", old, old, advantage, mask)
    grpo = gradient("vanilla", "seq-mean-token-mean", old, old, advantage, mask)
    # -A / |o| / 5: five responses have tokens
    expected = (-advantage / mask.sum(1, keepdim=True).clamp(min=1) / 5).masked_fill(~mask, 0.0)
    tolerance = 1e-12 if dtype is torch.float64 else 1e-6
    assert torch.allclose(geo, expected, rtol=tolerance, atol=0)
    assert torch.allclose(grpo, expected, rtol=tolerance, atol=0)


def test_a_second_update_tells_the_two_apart() -> None:
    logp, old, advantage, mask = example(2, spread=0.1)
    geo = gradient("geo_mean", "token-mean", logp, old, advantage, mask)
    grpo = gradient("vanilla", "seq-mean-token-mean", logp, old, advantage, mask)
    assert (geo - grpo).norm() > 0.02 * grpo.norm()


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_old_log_probs_and_reported_ratios_carry_no_gradient(name: str) -> None:
    logp, old, advantage, mask = example(3)
    surrogate = POLICY_LOSSES[name].fn(logp.requires_grad_(), old, advantage, mask, **NUMBERS[name])
    assert not surrogate.sequence_ratio.requires_grad
    for flags in (surrogate.clipped, surrogate.clipped_lower, surrogate.capped):
        assert flags.dtype is torch.bool


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_the_supervised_gradient_is_minus_one_over_the_denominator(mode: str) -> None:
    logp, old, _, mask = example(4)
    leaf = logp.requires_grad_()
    loss_of(SUPERVISED, {}, mode, leaf, old, torch.ones_like(old), mask).backward()
    lengths = mask.sum(1, keepdim=True).clamp(min=1).double()
    per_token = {
        "token-mean": torch.full_like(lengths, 1 / 15),
        "seq-mean-token-sum": torch.full_like(lengths, 1 / 5),
        "seq-mean-token-mean": 1 / lengths / 5,
        "seq-mean-token-sum-norm": torch.full_like(lengths, 1 / 5 / 5),
    }[mode]
    assert leaf.grad is not None
    assert torch.allclose(leaf.grad, -per_token.expand(6, 5) * mask, rtol=1e-12, atol=0)
