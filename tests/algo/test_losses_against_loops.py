"""The policy losses against plain Python loops, written down a second time from the formulas."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gmpo.algo.kl import kl_penalty
from gmpo.algo.losses import POLICY_LOSSES, reduce_surrogate
from gmpo.algo.masks import AGGREGATIONS, Counts, aggregate, count


@dataclass(frozen=True)
class Row:
    """One response: log-ratio of each token and its advantage."""

    d: list[float]
    advantage: float


rows = st.lists(
    st.builds(
        Row,
        st.lists(st.floats(-4.0, 4.0, allow_subnormal=False), max_size=6),
        st.sampled_from([-2.0, -0.7, 0.0, 0.3, 1.0]),
    ),
    min_size=1,
    max_size=6,
)
bounds = st.sampled_from([0.1, 0.2, 0.4, 0.8])


def tensors(responses: list[Row]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logp (a leaf), old_logp, advantage, mask. old_logp is -2, so that differences are exact in most cases."""
    width = max((len(r.d) for r in responses), default=0)
    mask = torch.tensor([[t < len(r.d) for t in range(width)] for r in responses], dtype=torch.bool)
    mask = mask.reshape(len(responses), width)
    d = torch.zeros(mask.shape, dtype=torch.float64)
    d[mask] = torch.tensor([x for r in responses for x in r.d], dtype=torch.float64)
    old = torch.full(mask.shape, -2.0, dtype=torch.float64)
    advantage = torch.tensor([r.advantage for r in responses], dtype=torch.float64).unsqueeze(1) * mask
    return (old + d).requires_grad_(), old, advantage, mask


def geo_mean_loops(responses: list[Row], low: float, high: float) -> tuple[float, list[list[float]]]:
    """Mean over the responses that have a token of -A * (prod of bounded ratios)^(1/|o|), and dloss/dlogp."""
    counted = sum(1 for r in responses if r.d)
    loss = 0.0
    gradients: list[list[float]] = []
    for r in responses:
        gradients.append([0.0] * len(r.d))
        if not r.d:
            continue
        product = 1.0
        for x in r.d:
            if r.advantage > 0:
                product *= math.exp(min(x, high))
            elif r.advantage < 0:
                product *= math.exp(max(x, -low))
        ratio = product ** (1 / len(r.d))
        loss += -r.advantage * ratio / counted
        for t, x in enumerate(r.d):
            cut = x > high if r.advantage > 0 else x < -low
            if not cut:
                gradients[-1][t] = -r.advantage * ratio / len(r.d) / counted
    return loss, gradients


def vanilla_loops(responses: list[Row], low: float, high: float, dual: float) -> list[list[float]]:
    """-min(rho A, clip(rho) A) per token, and at most -dual * A for a negative advantage."""
    values: list[list[float]] = []
    for r in responses:
        values.append([])
        for x in r.d:
            rho = math.exp(x)
            gain = min(rho * r.advantage, min(max(rho, 1 - low), 1 + high) * r.advantage)
            if r.advantage < 0:
                gain = max(gain, dual * r.advantage)
            values[-1].append(-gain)
    return values


def mean_loops(values: list[list[float]], mode: str, scale: float) -> float:
    """`loss_agg_mode` in words: over all tokens, or over responses with a token of their sum, mean, or sum / scale."""
    if mode == "token-mean":
        flat = [v for row in values for v in row]
        return sum(flat) / len(flat) if flat else 0.0
    per_row = []
    for row in values:
        if row:
            divisor = {"seq-mean-token-sum": 1.0, "seq-mean-token-mean": len(row), "seq-mean-token-sum-norm": scale}
            per_row.append(sum(row) / divisor[mode])
    return sum(per_row) / len(per_row) if per_row else 0.0


def total(name: str, responses: list[Row], mode: str, numbers: dict[str, float]) -> tuple[float, Tensor, Tensor]:
    logp, old, advantage, mask = tensors(responses)
    entry = POLICY_LOSSES[name]
    surrogate = entry.fn(logp, old, advantage, mask, **numbers)
    loss = reduce_surrogate(
        surrogate, mask, per_sequence=entry.per_sequence, mode=mode, counts=count(mask), loss_scale=7.0
    )
    loss.backward()
    assert logp.grad is not None
    return loss.item(), logp.grad, mask


@given(rows, bounds, bounds)
def test_geo_mean_and_its_gradient_equal_the_loops(responses: list[Row], low: float, high: float) -> None:
    # -2 + d - (-2) may differ from d in the last bits: keep clear of the kinks.
    responses = [Row([x for x in r.d if min(abs(x - high), abs(x + low)) > 1e-9], r.advantage) for r in responses]
    loss, grad, mask = total("geo_mean", responses, "token-mean", {"clip_low": low, "clip_high": high})
    expected_loss, expected_grad = geo_mean_loops(responses, low, high)
    assert loss == pytest.approx(expected_loss, rel=1e-12, abs=1e-13)
    assert grad[mask].tolist() == pytest.approx([g for row in expected_grad for g in row], rel=1e-12, abs=1e-13)


@given(rows, bounds, bounds, st.sampled_from([1.5, 3.0]), st.sampled_from(sorted(AGGREGATIONS)))
def test_vanilla_equals_the_loops_under_every_aggregation(
    responses: list[Row], low: float, high: float, dual: float, mode: str
) -> None:
    numbers = {"clip_low": low, "clip_high": high, "clip_dual": dual}
    loss, _, _ = total("vanilla", responses, mode, numbers)
    expected = mean_loops(vanilla_loops(responses, low, high, dual), mode, 7.0)
    assert loss == pytest.approx(expected, rel=1e-12, abs=1e-13)


# --- agreement with the published code


def official(new: list[float], old: list[float], advantage: float, cliprange: float) -> float:
    """The authors' loss of one response: the log-ratio turned by the sign of A, the larger of it and its clamp, turned
    back, averaged and exponentiated. A = 0 counts as positive there."""
    sign = -1.0 if advantage >= 0 else 1.0
    terms = []
    for a, b in zip(new, old, strict=True):
        turned = sign * (a - b)
        held = sign * max(-cliprange, min(cliprange, a - b))
        terms.append(sign * max(turned, held))
    return -advantage * math.exp(sum(terms) / len(terms))


@given(
    st.lists(st.tuples(st.floats(-5.0, 0.0), st.floats(-5.0, 0.0)), min_size=1, max_size=8),
    st.sampled_from([-1.5, -0.2, 0.0, 0.9]),
    bounds,
)
def test_geo_mean_agrees_with_the_authors_single_response_code(
    pairs: list[tuple[float, float]], advantage: float, cliprange: float
) -> None:
    new, old = torch.tensor(pairs, dtype=torch.float64).t().unsqueeze(1)
    mask = torch.ones_like(new, dtype=torch.bool)
    surrogate = POLICY_LOSSES["geo_mean"].fn(
        new, old, torch.full_like(new, advantage), mask, clip_low=cliprange, clip_high=cliprange
    )
    expected = official([a for a, _ in pairs], [b for _, b in pairs], advantage, cliprange)
    assert surrogate.values.item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


@given(rows)
def test_without_clipping_the_geometric_mean_never_exceeds_the_arithmetic_one(responses: list[Row]) -> None:
    gains = [Row(r.d, abs(r.advantage)) for r in responses]
    wide = {"clip_low": 1e9, "clip_high": 1e9}
    geometric, _, _ = total("geo_mean", gains, "token-mean", wide)
    arithmetic, _, _ = total("vanilla", gains, "seq-mean-token-mean", {**wide, "clip_dual": 3.0})
    assert abs(geometric) <= abs(arithmetic) * (1 + 1e-12)


# --- cutting a mini-batch


@given(
    responses=rows,
    labels=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    name=st.sampled_from(sorted(POLICY_LOSSES)),
    mode=st.sampled_from(sorted(AGGREGATIONS)),
)
def test_any_partition_into_micro_batches_has_the_same_loss_and_gradient(
    responses: list[Row], labels: list[int], name: str, mode: str
) -> None:
    """The KL and an entropy-like term included; every part is cut to its own width and one of them may be empty."""
    numbers = {"clip_low": 0.3, "clip_high": 0.3} | ({"clip_dual": 3.0} if name == "vanilla" else {})

    def share(part: list[Row], counts: Counts) -> tuple[float, list[Tensor]]:
        logp, old, advantage, mask = tensors(part)
        entry = POLICY_LOSSES[name]
        loss = reduce_surrogate(
            entry.fn(logp, old, advantage, mask, **numbers),
            mask,
            per_sequence=entry.per_sequence,
            mode=mode,
            counts=counts,
            loss_scale=7.0,
        )
        loss = loss + 0.3 * aggregate(kl_penalty(logp, old - 0.1, "k3"), mask, mode, counts, 7.0)
        loss = loss - 0.1 * aggregate(-logp.exp() * logp, mask, mode, counts, 7.0)
        loss.backward()
        assert logp.grad is not None
        return loss.item(), [g[m] for g, m in zip(logp.grad, mask, strict=True)]

    counts = count(tensors(responses)[3])
    whole_loss, whole_grad = share(responses, counts)
    loss, grad = 0.0, list(whole_grad)
    for label in range(3):
        members = [i for i in range(len(responses)) if labels[i] == label]
        if not members:
            continue
        part_loss, part_grad = share([responses[i] for i in members], counts)
        loss += part_loss
        for i, g in zip(members, part_grad, strict=True):
            grad[i] = g
    assert loss == pytest.approx(whole_loss, rel=1e-12, abs=1e-13)
    whole = torch.cat(whole_grad)
    assert (torch.cat(grad) - whole).norm() <= 1e-12 * whole.norm()
