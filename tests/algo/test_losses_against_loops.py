"""The policy losses against plain Python loops, written down a second time from the formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gmpo.algo.kl import kl_penalty
from gmpo.algo.losses import POLICY_LOSSES
from gmpo.algo.masks import AGGREGATIONS, Counts, aggregate, count

OLD = -2.0
NAN = float("nan")


@dataclass(frozen=True)
class Row:
    """One response: log-ratio of each token, None where a position is not in the mask, and its advantage."""

    cells: list[float | None]
    advantage: float

    @property
    def d(self) -> list[float]:
        return [x for x in self.cells if x is not None]


# Off the simple fractions, so that no log-ratio, sum or mean of them lies on a bound.
log_ratios = st.integers(-64, 64).map(lambda k: k / 16 + 0.001)
rows = st.lists(
    st.builds(
        Row,
        st.lists(log_ratios | log_ratios | log_ratios | st.none(), max_size=6),
        st.sampled_from([-2.0, -0.7, 0.0, 0.3, 1.0]),
    ),
    min_size=1,
    max_size=6,
)
bounds = st.sampled_from([0.1, 0.2, 0.4, 0.8])


def tensors(responses: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logp, old_logp, advantage, mask. Outside the mask stands what may not matter."""
    width = max((len(r.cells) for r in responses), default=0)
    padded = [[*r.cells, *[None] * (width - len(r.cells))] for r in responses]
    shape = (len(responses), width)
    mask = torch.tensor([[x is not None for x in r] for r in padded], dtype=torch.bool).reshape(shape)
    logp = torch.tensor([[NAN if x is None else OLD + x for x in r] for r in padded], dtype=torch.float64)
    advantage = torch.tensor([[r.advantage] for r in responses], dtype=torch.float64).expand(shape)
    return logp.reshape(shape), torch.full(shape, OLD, dtype=torch.float64), advantage, mask


def selected_by_rule(d: float) -> bool:
    """Some tokens, for the losses that take a choice."""
    return int(16 * abs(d)) % 3 == 0


# --- one function per loss, of one response: (values, derivatives by logp), or one value where the loss has one


def clipped(d: float, a: float, low: float, high: float) -> tuple[float, float]:
    """PPO's -min(rho A, clip(rho) A)."""
    rho = math.exp(d)
    bounded = min(max(rho, 1 - low), 1 + high)
    plain = -a * rho
    return (plain, plain) if rho * a <= bounded * a else (-a * bounded, 0.0)


def vanilla(row: Row, low: float, high: float) -> tuple[list[float], list[float]]:
    pairs = []
    for d in row.d:
        value, slope = clipped(d, row.advantage, low, high)
        over = row.advantage < 0 and value > -3.0 * row.advantage
        pairs.append((-3.0 * row.advantage, 0.0) if over else (value, slope))
    return [v for v, _ in pairs], [s for _, s in pairs]


def cispo(row: Row, low: float, high: float) -> tuple[list[float], list[float]]:
    weights = [min(max(math.exp(d), 1 - low), 1 + high) * row.advantage for d in row.d]
    return [-w * (OLD + d) for w, d in zip(weights, row.d, strict=True)], [-w for w in weights]


def sapo(row: Row, low: float, high: float) -> tuple[list[float], list[float]]:
    tau = 1.0 if row.advantage > 0 else 1.05
    gates = [1 / (1 + math.exp(-tau * (math.exp(d) - 1))) for d in row.d]
    values = [-row.advantage * 4 / tau * g for g in gates]
    return values, [-row.advantage * 4 * g * (1 - g) * math.exp(d) for g, d in zip(gates, row.d, strict=True)]


def gpg(row: Row, low: float, high: float) -> tuple[list[float], list[float]]:
    return [-row.advantage * (OLD + d) for d in row.d], [-row.advantage] * len(row.d)


def dppo(
    row: Row, low: float, high: float, distance: Callable[[float, float], float]
) -> tuple[list[float], list[float]]:
    values, slopes = [], []
    for d in row.d:
        p, q = math.exp(OLD + d), math.exp(OLD)
        bound = high if row.advantage > 0 else low
        away = p > q if row.advantage > 0 else p < q
        weight = 0.0 if away and distance(p, q) > bound else min(math.exp(d), 3.0)
        values.append(-row.advantage * weight * (OLD + d))
        slopes.append(-row.advantage * weight)
    return values, slopes


def dppo_tv(row: Row, low: float, high: float) -> tuple[list[float], list[float]]:
    return dppo(row, low, high, lambda p, q: abs(p - q))


def dppo_kl(row: Row, low: float, high: float) -> tuple[list[float], list[float]]:
    def divergence(p: float, q: float) -> float:
        p = min(p, math.exp(-1e-12))  # the examples hold log-probs above 0, which no policy has
        return q * math.log(q / p) + (1 - q) * math.log((1 - q) / -math.expm1(math.log(p)))

    return dppo(row, low, high, divergence)


def dro(row: Row, low: float, high: float) -> tuple[list[float], list[float]]:
    values = [0.25 * d * d - row.advantage * (OLD + d) for d in row.d]
    return values, [0.5 * d - row.advantage for d in row.d]


def clip_cov(row: Row, low: float, high: float) -> tuple[list[float], list[float]]:
    pairs = [(0.0, 0.0) if selected_by_rule(d) else clipped(d, row.advantage, low, high) for d in row.d]
    return [v for v, _ in pairs], [s for _, s in pairs]


def kl_cov(row: Row, low: float, high: float) -> tuple[list[float], list[float]]:
    plain = [-row.advantage * math.exp(d) for d in row.d]
    coefs = [0.1 if selected_by_rule(d) else 0.0 for d in row.d]
    values = [p + c * abs(d) for p, c, d in zip(plain, coefs, row.d, strict=True)]
    return values, [p + math.copysign(c, d) for p, c, d in zip(plain, coefs, row.d, strict=True)]


def gspo_token(row: Row, low: float, high: float) -> tuple[list[float], list[float]]:
    value, slope = clipped(sum(row.d) / len(row.d), row.advantage, low, high)
    return [value] * len(row.d), [slope] * len(row.d)


def gspo(row: Row, low: float, high: float) -> tuple[float, list[float]]:
    value, slope = clipped(sum(row.d) / len(row.d), row.advantage, low, high)
    return value, [slope / len(row.d)] * len(row.d)


def bounded_by_sign(row: Row, low: float, high: float) -> list[tuple[float, bool]]:
    """Each token's log-ratio after the log clip, and whether it was left alone."""
    if row.advantage > 0:
        return [(min(d, high), d <= high) for d in row.d]
    if row.advantage < 0:
        return [(max(d, -low), d >= -low) for d in row.d]
    return [(0.0, False) for _ in row.d]


def geo_mean(row: Row, low: float, high: float) -> tuple[float, list[float]]:
    tokens = bounded_by_sign(row, low, high)
    value = -row.advantage * math.prod(math.exp(m) for m, _ in tokens) ** (1 / len(tokens))
    return value, [value / len(tokens) if free else 0.0 for _, free in tokens]


def power_mean(row: Row, low: float, high: float) -> tuple[float, list[float]]:
    """The harmonic mean, p = -1."""
    tokens = bounded_by_sign(row, low, high)
    inverse = [1 / math.exp(m) for m, _ in tokens]
    value = -row.advantage * len(tokens) / sum(inverse)
    return value, [value * x / sum(inverse) if free else 0.0 for x, (_, free) in zip(inverse, tokens, strict=True)]


LOOPS: dict[str, Callable[[Row, float, float], tuple[Any, list[float]]]] = {
    fn.__name__: fn
    for fn in (
        vanilla,
        geo_mean,
        power_mean,
        gspo,
        gspo_token,
        cispo,
        sapo,
        gpg,
        dppo_tv,
        dppo_kl,
        dro,
        clip_cov,
        kl_cov,
    )
}


A_MEAN_OF_THEIR_OWN = {"gspo_token", "sapo"}
"""Per token, but defined as the mean over responses of the mean over tokens."""


def reduced(name: str, responses: list[Row], mode: str, scale: float, low: float, high: float) -> tuple[float, Tensor]:
    """The mini-batch loss and its gradient, `loss_agg_mode` written out."""
    present = [r for r in responses if r.d]
    tokens, sequences = sum(len(r.d) for r in present), len(present)
    loss, gradient = 0.0, []
    for row in present:
        divisor = {
            "token-mean": tokens,
            "token-sum": 1,
            "seq-mean-token-sum": sequences,
            "seq-mean-token-mean": sequences * len(row.d),
            "seq-mean-token-sum-norm": sequences * scale,
        }["seq-mean-token-mean" if name in A_MEAN_OF_THEIR_OWN else mode]
        value, slopes = LOOPS[name](row, low, high)
        if isinstance(value, float):
            divisor = sequences
        loss += (value if isinstance(value, float) else sum(value)) / divisor
        gradient += [s / divisor for s in slopes]
    return loss, torch.tensor(gradient, dtype=torch.float64)


def test_every_loss_has_a_loop() -> None:
    assert set(LOOPS) == set(POLICY_LOSSES)


@pytest.mark.parametrize("name", POLICY_LOSSES)
@given(responses=rows, low=bounds, high=bounds, mode=st.sampled_from(sorted(AGGREGATIONS)))
def test_every_loss_and_its_gradient_equal_the_loops_under_every_aggregation(
    losses: Any, name: str, responses: list[Row], low: float, high: float, mode: str
) -> None:
    logp, old, advantage, mask = tensors(responses)
    more: dict[str, Any] = {"clip_low": low, "clip_high": high} if "clip_low" in losses.numbers[name] else {}
    if POLICY_LOSSES[name].select is not None:
        cells = [selected_by_rule(d) for r in responses for d in r.d]
        more["selected"] = torch.zeros_like(mask).masked_scatter(mask, torch.tensor(cells, dtype=torch.bool))
    got = losses.update(name, logp, old, advantage, mask, mode=mode, **more)
    loss, gradient = reduced(name, responses, mode, 8.0, low, high)
    assert got.loss == pytest.approx(loss, rel=1e-12, abs=1e-13)
    assert torch.allclose(got.gradient[mask], gradient, rtol=1e-11, atol=1e-13)
    assert not got.gradient[~mask].any()


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


def official_sequence_clip(new: list[float], old: list[float], advantage: float, cliprange: float) -> float:
    """Their variant that clamps the sum, then divides by the length."""
    sign = -1.0 if advantage >= 0 else 1.0
    total = sum(new) - sum(old)
    held = sign * max(sign * total, sign * max(-cliprange, min(cliprange, total)))
    return -advantage * math.exp(held / len(new))


def official_without_norm(new: list[float], old: list[float], advantage: float, cliprange: float) -> float:
    """Their variant without the 1/|o|."""
    kept = [min(a - b, cliprange) if advantage >= 0 else max(a - b, -cliprange) for a, b in zip(new, old, strict=True)]
    return -advantage * math.exp(sum(kept))


@pytest.mark.parametrize(
    ("published", "switches"),
    [
        (official, {}),
        (official_sequence_clip, {"clip_level": "sequence"}),
        (official_without_norm, {"length_norm": False}),
    ],
    ids=["token clip", "sequence clip", "without norm"],
)
@given(
    pairs=st.lists(st.tuples(st.floats(-2.0, 0.0), st.floats(-2.0, 0.0)), min_size=1, max_size=8),
    advantage=st.sampled_from([-1.5, -0.2, 0.0, 0.9]),
    cliprange=bounds,
)
def test_geo_mean_agrees_with_the_authors_single_response_code(
    losses: Any,
    published: Callable[..., float],
    switches: dict[str, Any],
    pairs: list[tuple[float, float]],
    advantage: float,
    cliprange: float,
) -> None:
    new, old = torch.tensor(pairs, dtype=torch.float64).t().unsqueeze(1)
    mask = torch.ones_like(new, dtype=torch.bool)
    a = torch.full_like(new, advantage)
    got = losses.surrogate("geo_mean", new, old, a, mask, clip_low=cliprange, clip_high=cliprange, **switches)
    expected = published([a for a, _ in pairs], [b for _, b in pairs], advantage, cliprange)
    assert got.values.item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


@given(responses=rows)
def test_without_clipping_the_geometric_mean_never_exceeds_the_arithmetic_one(
    losses: Any, responses: list[Row]
) -> None:
    logp, old, advantage, mask = tensors([Row(r.cells, abs(r.advantage)) for r in responses])
    wide = {"clip_low": 1e9, "clip_high": 1e9}
    geometric = losses.update("geo_mean", logp, old, advantage, mask, **wide).loss
    arithmetic = losses.update("vanilla", logp, old, advantage, mask, **wide).loss
    assert abs(geometric) <= abs(arithmetic) * (1 + 1e-12)


# --- cutting a mini-batch


@pytest.mark.parametrize("mode", AGGREGATIONS)
@pytest.mark.parametrize("name", POLICY_LOSSES)
@given(responses=rows, labels=st.lists(st.integers(0, 2), min_size=6, max_size=6))
@settings(max_examples=25)
def test_any_partition_into_micro_batches_has_the_same_loss_and_gradient(
    losses: Any, name: str, mode: str, responses: list[Row], labels: list[int]
) -> None:
    """The KL and an entropy-like term included; every part is cut to its own width and one of them may be empty. What
    couples the tokens of a mini-batch is chosen from all of it."""
    chosen = losses.selected(name, *tensors(responses))

    def share(part: list[int], counts: Counts) -> tuple[float, list[Tensor]]:
        logp, old, advantage, mask = tensors([responses[i] for i in part])
        logp.requires_grad_()
        selected = {key: value[part][:, : mask.shape[1]] for key, value in chosen.items()}
        surrogate = losses.surrogate(name, logp, old, advantage, mask, choose=False, **selected)
        loss = losses.reduced(POLICY_LOSSES[name], surrogate, mask, mode, counts)
        loss = loss + 0.3 * aggregate(kl_penalty(logp, old - 0.1, "k3"), mask, mode, counts, 7.0)
        loss = loss - 0.1 * aggregate(-logp.exp() * logp, mask, mode, counts, 7.0)
        loss.backward()
        assert logp.grad is not None
        return loss.item(), [g[m] for g, m in zip(logp.grad, mask, strict=True)]

    everything = list(range(len(responses)))
    counts = count(tensors(responses)[3])
    whole_loss, whole_gradient = share(everything, counts)
    loss, gradient = 0.0, list(whole_gradient)
    for label in range(3):
        members = [i for i in everything if labels[i] == label]
        if not members:
            continue
        part_loss, part_gradient = share(members, counts)
        loss += part_loss
        for i, g in zip(members, part_gradient, strict=True):
            gradient[i] = g
    assert loss == pytest.approx(whole_loss, rel=1e-12, abs=1e-13)
    whole = torch.cat(whole_gradient)
    assert (torch.cat(gradient) - whole).norm() <= 1e-12 * whole.norm()
