"""Weights and rejection for a sampler that differs from the learner, on paper and against plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gmpo.algo.corrections import (
    REJECTION,
    accepted,
    geometric_weights,
    icepop_weights,
    importance_weights,
    with_gradient_weights,
)
from gmpo.algo.losses import POLICY_LOSSES

MiniBatch = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
NAN = float("nan")
LN2 = math.log(2.0)
RULES = sorted(REJECTION)

ragged = st.lists(st.lists(st.floats(-3.0, 3.0) | st.none(), max_size=5), min_size=1, max_size=6)


def tensors(rows: Sequence[Sequence[float | None]], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """log_ratio and mask; None is a position outside the mask and holds NaN."""
    width = max(len(row) for row in rows)
    padded = [[*row, *[None] * (width - len(row))] for row in rows]
    shape = (len(rows), width)
    mask = torch.tensor([[x is not None for x in row] for row in padded], dtype=torch.bool).reshape(shape)
    return torch.tensor([[NAN if x is None else x for x in row] for row in padded], dtype=dtype).reshape(shape), mask


def weights(rows: Sequence[Sequence[float | None]], level: str, threshold: float, normalise: bool = False) -> Tensor:
    r, mask = tensors(rows)
    got = importance_weights(r, mask, level=level, threshold=threshold, batch_normalise=normalise)
    assert not got[~mask].any()
    return got[mask]


# --- importance weights


def test_weights_per_token_and_per_response_on_paper() -> None:
    # ratios 1/2, 4, 2 and 1/4: products 4 and 1/4
    rows = [[-LN2, 2 * LN2, LN2], [-2 * LN2]]
    assert weights(rows, "token", 3.0).tolist() == pytest.approx([0.5, 3.0, 2.0, 0.25])
    assert weights(rows, "sequence", 3.0).tolist() == pytest.approx([3.0, 3.0, 3.0, 0.25])
    assert weights(rows, "sequence", 10.0).tolist() == pytest.approx([4.0, 4.0, 4.0, 0.25])


def test_normalised_weights_on_paper() -> None:
    rows = [[-LN2, 2 * LN2, LN2], [-2 * LN2]]
    # tokens: 0.5 + 3 + 2 + 0.25 = 5.75 over 4; responses: 3 + 0.25 = 3.25 over 2
    assert weights(rows, "token", 3.0, True).tolist() == pytest.approx([w / 1.4375 for w in (0.5, 3.0, 2.0, 0.25)])
    assert weights(rows, "sequence", 3.0, True).tolist() == pytest.approx([3 / 1.625] * 3 + [0.25 / 1.625])


@given(
    rows=ragged,
    level=st.sampled_from(["token", "sequence"]),
    threshold=st.sampled_from([0.5, 1.0, 2.0, 5.0]),
    normalise=st.booleans(),
)
def test_weights_equal_the_loop(rows: list[list[float | None]], level: str, threshold: float, normalise: bool) -> None:
    present = [[x for x in row if x is not None] for row in rows]
    if level == "token":
        own = [[min(math.exp(x), threshold) for x in row] for row in present]
        units = [w for row in own for w in row]
    else:
        own = [[min(math.exp(sum(row)), threshold)] * len(row) for row in present]
        units = [row[0] for row in own if row]
    mean = sum(units) / len(units) if normalise and units else 1.0
    expected = [w / mean for row in own for w in row]
    assert weights(rows, level, threshold, normalise).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_equal_policies_have_weight_one_and_thousands_of_nats_stay_finite(level: str) -> None:
    assert weights([[0.0, 0.0], [0.0]], level, 2.0, True).tolist() == [1.0] * 3
    extreme = weights([[1000.0], [-1000.0]], level, 2.0)
    assert extreme.tolist() == pytest.approx([2.0, math.exp(-20.0)])


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_weights_are_constants(level: str) -> None:
    r = torch.zeros(2, 3, requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert not importance_weights(r, mask, level=level, threshold=2.0, batch_normalise=True).requires_grad
    assert not icepop_weights(r, mask, low=0.5, high=5.0).requires_grad


def test_icepop_keeps_the_ratio_inside_its_band_and_gives_nothing_outside() -> None:
    r, mask = tensors([[math.log(0.49), math.log(0.51), 0.0, math.log(4.9), math.log(5.1), None, 1000.0, -1000.0]])
    got = icepop_weights(r, mask, low=0.5, high=5.0)
    assert got[0].tolist() == pytest.approx([0.0, 0.51, 1.0, 4.9, 0.0, 0.0, 0.0, 0.0])


@given(rows=ragged, low=st.sampled_from([0.2, 0.5, 1.0]), high=st.sampled_from([1.0, 2.0, 5.0]))
def test_icepop_equals_the_loop(rows: list[list[float | None]], low: float, high: float) -> None:
    r, mask = tensors(rows)
    flat = [math.exp(x) for row in rows for x in row if x is not None]
    expected = [w if low <= w <= high else 0.0 for w in flat]
    got = icepop_weights(r, mask, low=low, high=high)
    assert got[mask].tolist() == pytest.approx(expected, rel=1e-12)
    assert not got[~mask].any()


@given(rows=ragged)
def test_geometric_weights_are_the_geometric_mean_of_the_response_on_each_of_its_tokens(
    rows: list[list[float | None]],
) -> None:
    r, mask = tensors(rows)
    got = geometric_weights(importance_weights(r, mask, level="token", threshold=2.0, batch_normalise=False), mask)
    expected = []
    for row in rows:
        own = [min(math.exp(x), 2.0) for x in row if x is not None]
        expected += [math.prod(own) ** (1 / len(own))] * len(own) if own else []
    assert got[mask].tolist() == pytest.approx(expected, rel=1e-8)
    assert not got[~mask].any()


# --- weights on gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_a_weight_multiplies_a_tokens_gradient_and_leaves_the_value_bit_for_bit(
    losses: Any, mini_batch: MiniBatch, name: str, dtype: torch.dtype
) -> None:
    logp, old, advantage = (x.to(dtype) for x in mini_batch(5)[:3])
    mask = mini_batch(5)[3]
    logp = logp.masked_fill(~mask, NAN)
    weight = torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)).to(dtype) * 3.0
    weight[0, 0] = 0.0
    plain = losses.update(name, logp, old, advantage, mask)
    leaf = logp.clone().requires_grad_()
    surrogate = losses.surrogate(name, with_gradient_weights(leaf, weight), old, advantage, mask)
    losses.reduced(POLICY_LOSSES[name], surrogate, mask).backward()
    assert torch.equal(surrogate.values.nan_to_num(), plain.surrogate.values.nan_to_num())
    for flags in ("clipped", "clipped_lower", "sequence_ratio", "capped"):
        assert torch.equal(getattr(surrogate, flags), getattr(plain.surrogate, flags))
    assert leaf.grad is not None
    tolerance = 1e-12 if dtype is torch.float64 else 1e-6
    assert torch.allclose(leaf.grad[mask], (weight * plain.gradient)[mask], rtol=tolerance, atol=0)
    assert plain.gradient.any()


def test_for_geo_mean_a_weight_per_response_is_a_multiplier_outside_the_mean(
    losses: Any, mini_batch: MiniBatch
) -> None:
    logp, old, advantage, mask = mini_batch(6)
    row_weight = torch.tensor([2.0, 5.0, 0.5, 1.0, 0.0, 3.0], dtype=torch.float64)
    leaf = logp.clone().requires_grad_()
    inside = losses.surrogate(
        "geo_mean", with_gradient_weights(leaf, row_weight[:, None] * mask), old, advantage, mask
    ).values.sum()
    (by_token,) = torch.autograd.grad(inside, leaf)
    outside = (row_weight * losses.surrogate("geo_mean", leaf, old, advantage, mask).values).sum()
    (by_row,) = torch.autograd.grad(outside, leaf)
    assert torch.allclose(by_token, by_row, rtol=1e-12, atol=0)


@given(st.lists(st.floats(-1e4, 0.0, width=32), min_size=1, max_size=8))
def test_the_weighted_log_prob_is_the_log_prob_bit_for_bit(xs: list[float]) -> None:
    logp = torch.tensor([xs], requires_grad=True)
    weight = torch.full_like(logp, 1.7)
    got = with_gradient_weights(logp, weight)
    assert torch.equal(got, logp)
    assert torch.equal(torch.autograd.grad(got.sum(), logp)[0], weight)


# --- rejection


def kept(rows: Sequence[Sequence[float | None]], rule: str, low: float, high: float) -> list[list[bool]]:
    r, mask = tensors(rows)
    got = accepted(r, mask, rule=rule, low=low, high=high)
    assert not got[~mask].any()
    return got.tolist()


# Ratios 2, 1 and 1/2, 4: r = ln 2, 0 and -ln 2, 2 ln 2.
PAIR: list[list[float | None]] = [[LN2, 0.0], [-LN2, 2 * LN2]]


@pytest.mark.parametrize(
    ("rule", "high", "expected"),
    [
        # -r within log(1/3) .. log(3): ratios between 1/3 and 3
        ("token_k1", 3.0, [[True, True], [True, False]]),
        # sums ln 2 and ln 2
        ("seq_sum_k1", 2.01, [[True, True], [True, True]]),
        ("seq_sum_k1", 1.99, [[False, False], [False, False]]),
        # means ln 2 / 2: the geometric mean of the ratios is 1.414
        ("seq_mean_k1", 1.42, [[True, True], [True, True]]),
        ("seq_mean_k1", 1.41, [[False, False], [False, False]]),
        # r^2 / 2: 0.240, 0 and 0.240, 0.961
        ("token_k2", 0.5, [[True, True], [True, False]]),
        ("seq_sum_k2", 1.0, [[True, True], [False, False]]),
        ("seq_mean_k2", 0.61, [[True, True], [True, True]]),
        ("seq_mean_k2", 0.60, [[True, True], [False, False]]),
        ("seq_max_k2", 0.95, [[True, True], [False, False]]),
        ("seq_max_k2", 0.97, [[True, True], [True, True]]),
        # e^r - 1 - r: 0.307, 0 and 0.193, 1.614
        ("token_k3", 0.25, [[False, True], [True, False]]),
        ("seq_sum_k3", 1.0, [[True, True], [False, False]]),
        ("seq_mean_k3", 0.2, [[True, True], [False, False]]),
        ("seq_max_k3", 0.31, [[True, True], [False, False]]),
        ("seq_max_k3", 1.62, [[True, True], [True, True]]),
    ],
)
def test_each_rule_on_paper(rule: str, high: float, expected: list[list[bool]]) -> None:
    assert kept(PAIR, rule, 1 / high, high) == expected


def test_every_rule_has_a_worked_example_above() -> None:
    [mark] = [m for m in test_each_rule_on_paper.pytestmark if m.name == "parametrize"]  # type: ignore[attr-defined]
    assert {row[0] for row in mark.args[1]} == set(REJECTION)


def divergence(kind: str, r: float) -> float:
    return {"k1": -r, "k2": r * r / 2, "k3": math.exp(r) - 1 - r}[kind]


@pytest.mark.parametrize("rule", RULES)
@given(rows=ragged, band=st.sampled_from([(0.5, 2.0), (0.999, 1.001), (0.1, 1.5)]))
def test_each_rule_equals_its_loop(rule: str, rows: list[list[float | None]], band: tuple[float, float]) -> None:
    *over, kind = rule.split("_")
    low, high = band
    expected = []
    for row in rows:
        own = [divergence(kind, x) for x in row if x is not None]
        if over == ["token"]:
            values = own
        else:
            summary = {"sum": sum, "mean": lambda xs: sum(xs) / len(xs), "max": max}[over[1]]
            values = [summary(own)] * len(own) if own else []
        expected += [math.log(low) <= v <= math.log(high) if kind == "k1" else v <= high for v in values]
    r, mask = tensors(rows)
    got = accepted(r, mask, rule=rule, low=low, high=high)
    assert got[mask].tolist() == expected
    assert not got[~mask].any()


@pytest.mark.parametrize("rule", RULES)
def test_equal_policies_are_never_rejected(rule: str) -> None:
    assert kept([[0.0, 0.0], [0.0, None]], rule, 0.999, 1.001) == [[True, True], [True, False]]


@pytest.mark.parametrize("rule", [rule for rule in RULES if not rule.startswith("token")])
@given(rows=ragged)
def test_a_rule_over_the_response_keeps_all_of_its_tokens_or_none(rule: str, rows: list[list[float | None]]) -> None:
    r, mask = tensors(rows)
    got = accepted(r, mask, rule=rule, low=0.5, high=1.5)
    for row, own in zip(got, mask, strict=True):
        assert row[own].all() or not row[own].any()


def test_a_k1_band_is_in_ratios_and_looks_at_the_sampler_over_the_learner() -> None:
    # -r = log(mu / pi_old): a band of 0.5 .. 4 keeps a learner up to twice as sure and down to a quarter
    rows: list[list[float | None]] = [[math.log(1.99), math.log(2.01), math.log(0.26), math.log(0.24)]]
    assert kept(rows, "token_k1", 0.5, 4.0) == [[True, False, True, False]]


@given(st.floats(-1 / 128, 1 / 128, width=32))
def test_k3_is_never_negative_in_float32(x: float) -> None:
    # exp(x) - 1 - x is, for half of the small x: then a bound of 0 would keep what differs
    r, mask = torch.tensor([[x]]), torch.ones(1, 1, dtype=torch.bool)
    assert not accepted(r, mask, rule="token_k3", low=0.0, high=-1e-30).any()


@pytest.mark.parametrize("rule", RULES)
def test_a_ratio_that_is_not_a_number_is_rejected(rule: str) -> None:
    r, mask = torch.tensor([[NAN, 0.0]]), torch.ones(1, 2, dtype=torch.bool)
    assert not accepted(r, mask, rule=rule, low=0.5, high=2.0)[0, 0]
