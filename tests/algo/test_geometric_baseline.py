"""The geometric mean of a group's rewards as baseline: on paper, its invariances, and the rewards that it refuses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gmpo.algo.advantages import geo_mean, grpo
from gmpo.errors import ConfigError

FLOOR = 1e-8


def advantages(
    rewards: Sequence[float],
    group: Sequence[int] | None = None,
    *,
    std: bool = False,
    floor: float = FLOOR,
    offset: float = 0.0,
) -> list[float]:
    """One token per response, in float64."""
    token_rewards = torch.tensor(rewards, dtype=torch.float64).reshape(-1, 1)
    mask = torch.ones(len(rewards), 1, dtype=torch.bool)
    groups = torch.tensor(group or [0] * len(rewards))
    got = geo_mean(token_rewards, mask, groups, normalise_by_std=std, floor=floor, offset=offset)
    return got.squeeze(1).tolist()


def grouped(rewards: st.SearchStrategy[float]) -> st.SearchStrategy[list[tuple[float, int]]]:
    return st.lists(st.tuples(rewards, st.integers(0, 2)), min_size=1, max_size=10)


positive = grouped(st.floats(1e-3, 1e3))
"""Rewards above the floor, also after the factors below."""


def test_the_worked_example() -> None:
    rewards = [10.0, 10.0, 10.0, 1000.0]
    baseline = math.prod(rewards) ** (1 / 4)
    assert baseline == pytest.approx(31.62, abs=5e-3)
    assert advantages(rewards) == pytest.approx([-1.151, -1.151, -1.151, 3.454], abs=5e-4)
    assert advantages(rewards) == pytest.approx([math.log(r / baseline) for r in rewards], rel=1e-12)
    # where the arithmetic mean as baseline gives
    token_rewards, mask = torch.tensor([rewards]).T, torch.ones(4, 1, dtype=torch.bool)
    arithmetic = grpo(token_rewards, mask, torch.zeros(4, dtype=torch.long), normalise_by_std=False)
    assert arithmetic.squeeze(1).tolist() == [-247.5, -247.5, -247.5, 742.5]


@given(
    pairs=grouped(st.integers(0, 8).map(lambda k: k / 4)),
    std=st.booleans(),
    floor=st.sampled_from([1e-8, 0.3]),
    offset=st.sampled_from([0.0, 0.25]),
)
def test_it_equals_the_loop(pairs: list[tuple[float, int]], std: bool, floor: float, offset: float) -> None:
    expected = []
    for own, g in pairs:
        logs = [math.log(max(r + offset, floor)) for r, other in pairs if other == g]
        baseline = math.fsum(logs) / len(logs)
        a = math.log(max(own + offset, floor)) - baseline
        if std and len(logs) > 1:
            a /= math.sqrt(math.fsum((x - baseline) ** 2 for x in logs) / (len(logs) - 1)) + 1e-6
        expected.append(a if max(logs) > min(logs) else 0.0)
    got = advantages([r for r, _ in pairs], [g for _, g in pairs], std=std, floor=floor, offset=offset)
    assert got == pytest.approx(expected, rel=1e-11, abs=1e-11)


@given(pairs=positive, std=st.booleans(), factor=st.sampled_from([1e-3, 0.1, 7.0, 1e4]))
def test_a_factor_on_all_rewards_changes_nothing(pairs: list[tuple[float, int]], std: bool, factor: float) -> None:
    rewards, group = [r for r, _ in pairs], [g for _, g in pairs]
    scaled = advantages([factor * r for r in rewards], group, std=std)
    assert scaled == pytest.approx(advantages(rewards, group, std=std), rel=1e-6, abs=1e-6 if std else 1e-12)


@given(pairs=positive, std=st.booleans())
def test_the_advantages_of_a_group_add_up_to_zero(pairs: list[tuple[float, int]], std: bool) -> None:
    got = advantages([r for r, _ in pairs], [g for _, g in pairs], std=std)
    for g in {g for _, g in pairs}:
        assert sum(a for a, (_, other) in zip(got, pairs, strict=True) if other == g) == pytest.approx(0, abs=1e-9)


@given(pairs=positive, std=st.booleans())
def test_it_is_grpo_on_the_logs_of_the_rewards(pairs: list[tuple[float, int]], std: bool) -> None:
    rewards, group = [r for r, _ in pairs], torch.tensor([g for _, g in pairs])
    logs = torch.tensor(rewards, dtype=torch.float64).log().reshape(-1, 1)
    expected = grpo(logs, torch.ones(len(rewards), 1, dtype=torch.bool), group, normalise_by_std=std)
    assert advantages(rewards, group.tolist(), std=std) == pytest.approx(expected.squeeze(1).tolist(), abs=1e-12)


@given(st.lists(st.floats(0.01, 100.0), min_size=2, max_size=6))
def test_a_raised_reward_raises_its_advantage_by_less_the_larger_it_is_already(rewards: list[float]) -> None:
    once, twice = list(rewards), list(rewards)
    once[0], twice[0] = rewards[0] + 1.0, rewards[0] + 2.0
    before, after, later = (advantages(x)[0] for x in (rewards, once, twice))
    assert after > before
    assert later - after < after - before


def test_a_reward_of_zero_has_the_log_of_the_floor_so_the_floor_sets_the_scale() -> None:
    # one of four correct: log 1 = 0 against log floor; A = (0.75, -0.25) * log(1 / floor)
    for floor, scale in ((1e-8, math.log(1e8)), (1e-2, math.log(1e2))):
        assert advantages([1, 0, 0, 0], floor=floor) == pytest.approx([0.75 * scale] + [-0.25 * scale] * 3)
    # with the standard deviation the scale cancels: grpo's numbers
    assert advantages([1, 0, 0, 0], std=True) == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-5)


def test_the_offset_is_added_before_the_log() -> None:
    assert advantages([-1.0, 1.0], offset=3.0) == pytest.approx([-math.log(2) / 2, math.log(2) / 2])


def test_a_reward_that_is_exactly_minus_the_offset_is_taken_at_the_floor() -> None:
    assert advantages([-1.0, 0.0], offset=1.0, floor=0.01) == pytest.approx([math.log(0.01) / 2, -math.log(0.01) / 2])


def test_the_reward_is_the_sum_over_the_mask() -> None:
    rewards = torch.tensor([[1.0, 3.0, -9.0], [2.0, float("nan"), float("nan")]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    got = geo_mean(rewards, mask, torch.tensor([0, 0]), normalise_by_std=False, floor=FLOOR, offset=0.0)
    half = math.log(2) / 2
    assert got.tolist() == [pytest.approx([half, half, 0.0]), pytest.approx([-half, 0.0, 0.0])]


def test_a_negative_reward_is_refused_with_range_offset_and_alternative() -> None:
    with pytest.raises(ConfigError) as caught:
        advantages([-0.5, 1.0, 0.25], offset=0.125)
    message = str(caught.value)
    assert "algorithm.adv_estimator=geo_mean" in message
    assert "from -0.375 to 1.125" in message
    assert "algorithm.geo_mean_offset=0.125" in message
    assert "above 0.5" in message
    assert "adv_estimator=grpo" in message
    advantages([-0.5, 1.0, 0.25], offset=0.51)  # the advice helps
