"""Every advantage estimator against plain Python, ragged masks with holes, empty responses and groups included."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from gmpo.algo.advantages import ADVANTAGES
from gmpo.algo.returns import whiten
from gmpo.errors import ConfigError
from gmpo.objectives import ESTIMATORS

NAN = float("nan")
NUMBERS: dict[str, Any] = {
    "normalise_by_std": True,
    "floor": 1e-8,
    "offset": 0.0,
    "gamma": 0.9,
    "lam": 0.95,
    "component_weights": (1.0, 0.5),
}


@dataclass(frozen=True)
class Answer:
    """One response: reward and critic's value of each token, None outside the mask; and its group."""

    cells: list[tuple[float, float] | None]
    group: int
    greedy: float = 0.0

    @property
    def r(self) -> list[float]:
        return [x[0] for x in self.cells if x is not None]

    @property
    def v(self) -> list[float]:
        return [x[1] for x in self.cells if x is not None]

    @property
    def total(self) -> float:
        return sum(self.r)


quarters = st.integers(-4, 4).map(lambda k: k / 4)
cells = st.lists(st.tuples(quarters, quarters) | st.tuples(quarters, quarters) | st.none(), max_size=5)
batches = st.lists(st.builds(Answer, cells, st.integers(0, 3), quarters), min_size=1, max_size=9)
factors = st.sampled_from([0.0, 0.5, 0.95, 1.0])


def estimate(name: str, answers: Sequence[Answer], dtype: torch.dtype = torch.float64, **numbers: Any) -> list[float]:
    """Advantages of the tokens in the mask, in reading order; elsewhere must stand 0."""
    width = max(len(a.cells) for a in answers)
    padded = [[*a.cells, *[None] * (width - len(a.cells))] for a in answers]
    shape = (len(answers), width)
    mask = torch.tensor([[x is not None for x in row] for row in padded], dtype=torch.bool).reshape(shape)
    rewards = torch.tensor([[x[0] if x else NAN for x in row] for row in padded], dtype=dtype).reshape(shape)
    values = torch.tensor([[x[1] if x else NAN for x in row] for row in padded], dtype=dtype).reshape(shape)
    if ESTIMATORS[name].needs_critic:
        numbers["values"] = values
    if ESTIMATORS[name].needs_greedy:
        numbers["greedy_reward"] = torch.tensor([a.greedy for a in answers], dtype=dtype)
    if ESTIMATORS[name].needs_score_norms:
        numbers["score_norm"] = values.abs()
    if ESTIMATORS[name].needs_components:
        numbers["components"] = torch.tensor([[a.total, a.greedy] for a in answers], dtype=dtype)
    group = torch.tensor([17 * a.group - 5 for a in answers])
    got = ADVANTAGES[name].fn(rewards, mask, group, **numbers)
    assert got.dtype is dtype
    assert not got[~mask].any()
    return got[mask].tolist()


# --- plain Python


def rewards_of_group(answers: Sequence[Answer], own: Answer) -> list[float]:
    return [a.total for a in answers if a.group == own.group]


def mean(xs: Sequence[float]) -> float:
    return math.fsum(xs) / len(xs)


def deviation(xs: Sequence[float]) -> float:
    """n - 1 in the denominator; 0 for a single one."""
    return math.sqrt(math.fsum((x - mean(xs)) ** 2 for x in xs) / (len(xs) - 1)) if len(xs) > 1 else 0.0


def spread(per_answer: Sequence[float], answers: Sequence[Answer]) -> list[float]:
    return [x for x, a in zip(per_answer, answers, strict=True) for _ in a.r]


def whitened(xs: list[float]) -> list[float]:
    return [(x - mean(xs)) / math.sqrt(deviation(xs) ** 2 + 1e-8) for x in xs] if xs else []


def returns(rewards: Sequence[float], gamma: float) -> list[float]:
    return [sum(gamma ** (k - t) * rewards[k] for k in range(t, len(rewards))) for t in range(len(rewards))]


def over_std(a: float, std: float, asked: bool) -> float:
    return a / (std + 1e-6) if asked else a


def rloo(answers: Sequence[Answer]) -> list[float]:
    own = []
    for i, a in enumerate(answers):
        others = [b.total for j, b in enumerate(answers) if j != i and b.group == a.group]
        own.append(a.total - mean(others) if others else a.total)
    return spread(own, answers)


def reinforce_plus_plus_baseline(answers: Sequence[Answer]) -> list[float]:
    groups = [rewards_of_group(answers, a) for a in answers]
    return whitened(
        spread([a.total - mean(g) if len(g) > 1 else a.total for a, g in zip(answers, groups, strict=True)], answers)
    )


def opo(answers: Sequence[Answer]) -> list[float]:
    own = []
    for a in answers:
        group = [b for b in answers if b.group == a.group]
        tokens = sum(len(b.r) for b in group)
        own.append(a.total - (sum(len(b.r) * b.total for b in group) / tokens if tokens else 0.0))
    return spread(own, answers)


def gpg(answers: Sequence[Answer]) -> list[float]:
    alpha = len(answers) / max(1, sum(a.total != 0 for a in answers))
    return spread([alpha * (a.total - mean(rewards_of_group(answers, a))) for a in answers], answers)


def max_rl(answers: Sequence[Answer]) -> list[float]:
    own = []
    for a in answers:
        average = mean(rewards_of_group(answers, a))
        own.append((a.total - average) / average if average > 0 else 0.0)
    return spread(own, answers)


def grpo_batch_std(answers: Sequence[Answer]) -> list[float]:
    std = deviation([a.total for a in answers])
    return spread([(a.total - mean(rewards_of_group(answers, a))) / (std + 1e-6) for a in answers], answers)


def grpo_passk(answers: Sequence[Answer], normalise: bool) -> list[float]:
    own = []
    for a in answers:
        group = sorted(rewards_of_group(answers, a), reverse=True)
        wins = len(group) > 1 and a.total == group[0] > group[1]
        own.append(over_std(a.total - group[1], deviation(group), normalise) if wins else 0.0)
    return spread(own, answers)


SIMPLE: dict[str, Callable[[Sequence[Answer]], list[float]]] = {
    fn.__name__: fn for fn in (rloo, reinforce_plus_plus_baseline, opo, gpg, grpo_batch_std)
}


@pytest.mark.parametrize("name", SIMPLE)
@given(answers=batches)
def test_an_estimator_without_numbers_equals_its_loop(name: str, answers: list[Answer]) -> None:
    assert estimate(name, answers) == pytest.approx(SIMPLE[name](answers), rel=1e-10, abs=1e-10)


@given(answers=batches, normalise=st.booleans())
def test_pass_at_k_equals_its_loop(answers: list[Answer], normalise: bool) -> None:
    got = estimate("grpo_passk", answers, normalise_by_std=normalise)
    assert got == pytest.approx(grpo_passk(answers, normalise), rel=1e-12, abs=1e-12)


@given(answers=batches)
def test_the_baseline_of_a_token_is_the_energy_weighted_mean_over_the_group_at_its_place(answers: list[Answer]) -> None:
    expected = []
    for a in answers:
        for t, own in enumerate(returns(a.r, 1.0)):
            there = [b for b in answers if b.group == a.group and len(b.r) > t]
            energy = [sum(abs(v) for v in b.v[: t + 1]) for b in there]
            still = [returns(b.r, 1.0)[t] for b in there]
            if len(there) == 1:
                baseline = 0.0
            elif sum(energy) == 0:
                baseline = mean(still)
            else:
                baseline = sum(w * g for w, g in zip(energy, still, strict=True)) / sum(energy)
            expected.append(own - baseline)
    assert estimate("optimal_token_baseline", answers) == pytest.approx(expected, rel=1e-10, abs=1e-10)


def test_the_baseline_of_a_token_has_the_least_variance_and_its_weights_count_squared() -> None:
    # One token each: rewards 1 and 0, energies 0.3 and 0.1, so B = 0.75. Weight 2 on the second: 0.4, so B = 3/7. In
    # between, sum w^2 ||s||^2 (R - b)^2, the second moment of the gradient, is larger for any other b.
    rewards, energy = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.3], [0.1]])
    mask, group = torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, dtype=torch.long)
    for weights, baseline in ((None, 0.75), (torch.tensor([[1.0], [2.0]]), 3 / 7)):
        fn = ADVANTAGES["optimal_token_baseline"].fn
        got = fn(rewards, mask, group, score_norm=energy, weights=weights)
        assert got.flatten().tolist() == pytest.approx([1 - baseline, -baseline])
        scale = energy * (1.0 if weights is None else weights**2)
        moments = [float((scale * (rewards - b) ** 2).sum()) for b in (baseline - 0.01, baseline, baseline + 0.01)]
        assert moments[1] == min(moments)


def test_equal_rewards_give_exactly_zero_where_several_answers_have_a_token() -> None:
    # energies of 1e-12, whose quotient an addition to the denominator would spoil; the last two tokens stand alone
    answers = [Answer([(0.0, 1e-12)] * (n - 1) + [(0.1, 1e-12)], 0) for n in (2, 3, 5)]
    assert estimate("optimal_token_baseline", answers) == [0.0] * 8 + [0.1, 0.1]


@given(answers=batches, normalise=st.booleans(), weights=st.none() | st.tuples(quarters, quarters))
def test_gdpo_is_the_whitened_sum_of_an_advantage_for_each_reward(
    answers: list[Answer], normalise: bool, weights: tuple[float, float] | None
) -> None:
    totals = []
    for a in answers:
        total = 0.0
        for weight, reward in zip(weights or (1.0, 1.0), (lambda x: x.total, lambda x: x.greedy), strict=True):
            own = [reward(b) for b in answers if b.group == a.group]
            scale = deviation(own) + 1e-6 if normalise else 1.0
            total += weight * (reward(a) - sum(own) / len(own)) / scale
        totals.append(total)
    expected = whitened([total for a, total in zip(answers, totals, strict=True) for _ in a.r])
    got = estimate("gdpo", answers, normalise_by_std=normalise, component_weights=weights)
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_gdpo_tells_rewards_apart_that_their_sum_does_not_whatever_their_scales() -> None:
    # rewards (1, 0), (0, 1), (1, 1), (0, 0): the sum calls the first two alike. Each reward is +-0.866 of its group,
    # and weights 1 and 0.5 give 0.433, -0.433, 1.299, -1.299, whose unbiased variance is 1.25
    rewards = [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.0, 0.0)]

    def advantages(scale: float) -> list[float]:
        answers = [Answer([(one, 0.0)], 0, greedy=scale * two) for one, two in rewards]
        return estimate("gdpo", answers, normalise_by_std=True, component_weights=(1.0, 0.5))

    halves = [0.433, -0.433, 1.299, -1.299]
    assert advantages(1.0) == pytest.approx([x / math.sqrt(1.25) for x in halves], abs=1e-3)
    assert advantages(1000.0) == pytest.approx(advantages(1.0), abs=1e-5)


@given(answers=batches, gamma=factors)
def test_reinforce_plus_plus_is_the_whitened_discounted_return(answers: list[Answer], gamma: float) -> None:
    expected = whitened([g for a in answers for g in returns(a.r, gamma)])
    assert estimate("reinforce_plus_plus", answers, gamma=gamma) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(answers=batches)
def test_remax_is_the_reward_still_to_come_less_that_of_the_greedy_answer(answers: list[Answer]) -> None:
    expected = [g - a.greedy for a in answers for g in returns(a.r, 1.0)]
    assert estimate("remax", answers) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(answers=batches, gamma=factors, lam=factors)
def test_gae_is_the_whitened_sum_of_discounted_temporal_differences(
    answers: list[Answer], gamma: float, lam: float
) -> None:
    advantages = []
    for a in answers:
        following = [*a.v[1:], 0.0]
        delta = [r + gamma * nxt - v for r, v, nxt in zip(a.r, a.v, following, strict=False)]
        advantages += returns(delta, gamma * lam)
    got = estimate("gae", answers, gamma=gamma, lam=lam)
    assert got == pytest.approx(whitened(advantages), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("grpo", {"normalise_by_std": True}),
        ("grpo_passk", {"normalise_by_std": True}),
        ("geo_mean", {"normalise_by_std": True, "floor": 1e-8, "offset": 2.0}),
        ("gdpo", {"normalise_by_std": True, "component_weights": None}),
        *[(name, {}) for name in ("rloo", "opo", "gpg", "grpo_batch_std", "reinforce_plus_plus_baseline")],
    ],
)
@pytest.mark.parametrize("reward", [0.1, 1 / 3, -0.7, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_groups_of_equal_rewards_give_exactly_zero(
    name: str, numbers: dict[str, Any], reward: float, dtype: torch.dtype
) -> None:
    # Three times 0.1 over three is not 0.1; what rounding leaves, divided by 1e-6 or 1e-4, would look like a signal.
    answers = [
        Answer([(reward * (1 + group), 0.0)] + [(0.0, 0.0)] * extra, group) for group in (0, 1) for extra in (0, 3, 6)
    ]
    assert not any(estimate(name, answers, dtype, **numbers))


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_no_tokens_at_all_give_no_advantages(name: str) -> None:
    numbers = {**NUMBERS, "component_weights": None}
    own = {key: numbers[key] for key in ESTIMATORS[name].numbers}
    assert estimate(name, [Answer([None, None], 0), Answer([], 0)], **own) == []


# --- on paper


def single(rewards: Sequence[float], lengths: Sequence[int] | None = None) -> list[Answer]:
    """A group of answers, the reward at the last token."""
    return [
        Answer([(0.0, 0.0)] * (n - 1) + [(r, 0.0)], 0)
        for r, n in zip(rewards, lengths or [1] * len(rewards), strict=True)
    ]


def test_rloo_compares_each_answer_with_the_mean_of_the_others() -> None:
    assert estimate("rloo", single([1, 0, 0, 0])) == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])


def test_opo_weighs_the_baseline_by_length() -> None:
    # (3 * 1 + 1 * 0) / 4 = 0.75
    assert estimate("opo", single([1, 0], [3, 1])) == pytest.approx([0.25, 0.25, 0.25, -0.75])


def test_gpg_doubles_where_half_of_the_rewards_are_zero() -> None:
    assert estimate("gpg", single([1, 0])) == pytest.approx([1.0, -1.0])


def test_pass_at_k_rewards_the_best_answer_alone_and_none_in_a_tie() -> None:
    assert estimate("grpo_passk", single([0.2, 1.0, 0.5]), normalise_by_std=False) == pytest.approx([0.0, 0.5, 0.0])
    assert estimate("grpo_passk", single([1.0, 1.0, 0.5]), normalise_by_std=False) == [0.0, 0.0, 0.0]
    assert estimate("grpo_passk", single([1.0]), normalise_by_std=True) == [0.0]


def test_the_batch_s_deviation_does_not_blow_up_an_almost_unanimous_group() -> None:
    near = [Answer([(r, 0.0)], 0) for r in (0.50, 0.51)]
    apart = [Answer([(r, 0.0)], 1) for r in (0.0, 1.0)]
    own = estimate("grpo", near + apart, normalise_by_std=True)
    batch = estimate("grpo_batch_std", near + apart)
    assert abs(own[0]) == pytest.approx(abs(own[2]), rel=1e-3)
    assert abs(batch[0]) == pytest.approx(abs(batch[2]) / 100)


def test_discounting_on_paper() -> None:
    # returns 0.25, 0.5, 1: mean 7/12, unbiased variance 7/48
    [got] = [estimate("reinforce_plus_plus", single([1], [3]), gamma=0.5)]
    assert got == pytest.approx([(g - 7 / 12) / math.sqrt(7 / 48 + 1e-8) for g in (0.25, 0.5, 1.0)])


# --- whitening


@given(st.lists(st.floats(-10.0, 10.0, allow_subnormal=False), min_size=2, max_size=12))
def test_whitened_tokens_have_mean_zero_and_variance_one(xs: list[float]) -> None:
    values = torch.tensor([[*xs, NAN]], dtype=torch.float64)
    mask = values.isfinite()
    got = whiten(values, mask)[mask]
    assert got.mean().item() == pytest.approx(0.0, abs=1e-9)
    variance = deviation(xs) ** 2
    assert got.var().item() == pytest.approx(variance / (variance + 1e-8), abs=1e-9)


def test_a_single_token_is_whitened_to_zero_and_none_to_nothing() -> None:
    assert whiten(torch.tensor([[3.0, 7.0]]), torch.tensor([[True, False]])).tolist() == [[0.0, 0.0]]
    assert whiten(torch.tensor([[3.0]]), torch.tensor([[False]])).tolist() == [[0.0]]


# --- what never matters


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
@given(answers=batches, order=st.permutations(range(9)))
def test_the_order_of_the_rows_never_matters(name: str, answers: list[Answer], order: Sequence[int]) -> None:
    numbers = {**NUMBERS, "offset": 50.0}
    own = {key: numbers[key] for key in ESTIMATORS[name].numbers}
    if name == "max_rl":
        assume(all(a.total >= 0 for a in answers))
    places = [i for i in order if i < len(answers)]

    def rows(flat: Sequence[float], of: Sequence[Answer]) -> list[list[float]]:
        left = iter(flat)
        return [[next(left) for _ in a.r] for a in of]

    moved = [answers[i] for i in places]
    there, back = rows(estimate(name, answers, **own), answers), rows(estimate(name, moved, **own), moved)
    for i, row in zip(places, back, strict=True):
        assert row == pytest.approx(there[i], rel=1e-9, abs=1e-9)


def test_tensors_of_no_rows_give_tensors_of_no_rows() -> None:
    empty: Tensor = torch.zeros(0, 3)
    none, rows = torch.zeros(0, 3, dtype=torch.bool), torch.zeros(0, dtype=torch.long)
    for name in ("rloo", "reinforce_plus_plus_baseline", "opo", "gpg", "grpo_batch_std"):
        assert ADVANTAGES[name].fn(empty, none, rows).shape == (0, 3), name
    assert ADVANTAGES["grpo_passk"].fn(empty, none, rows, normalise_by_std=True).shape == (0, 3)


def test_max_rl_divides_by_the_groups_mean_and_refuses_negative_rewards() -> None:
    """One of four right: (1 - 1/4) / (1/4) = 3 and -1, where three of four give 1/3 and -1. Its mean is the gradient of
    log of the pass rate p for 0/1 rewards: a right answer weighs (1 - p) / p, a wrong one -1."""
    assert estimate("max_rl", single([1, 0, 0, 0])) == pytest.approx([3.0, -1.0, -1.0, -1.0])
    assert estimate("max_rl", single([1, 1, 1, 0])) == pytest.approx([1 / 3, 1 / 3, 1 / 3, -1.0])
    assert estimate("max_rl", single([0, 0])) == [0.0, 0.0]
    with pytest.raises(ConfigError, match="divides by a group's mean reward"):
        estimate("max_rl", single([1, -1]))
