"""Group-relative advantages against plain Python, and what must leave them unchanged."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gmpo.algo.advantages import grpo
from gmpo.algo.groups import group_moments, unanimous


def advantages(rewards: list[float], group: list[int], *, std: bool = True) -> list[float]:
    """One token per response, in float64."""
    token_rewards = torch.tensor(rewards, dtype=torch.float64).reshape(-1, 1)
    mask = torch.ones(len(rewards), 1, dtype=torch.bool)
    return grpo(token_rewards, mask, torch.tensor(group, dtype=torch.long), normalise_by_std=std).squeeze(1).tolist()


def brute_force(rewards: list[float], group: list[int], *, std: bool) -> list[float]:
    result = []
    for own, g in zip(rewards, group, strict=True):
        members = [r for r, other in zip(rewards, group, strict=True) if other == g]
        if all(m == members[0] for m in members):
            result.append(0.0)
            continue
        mean = sum(members) / len(members)
        spread = math.sqrt(sum((m - mean) ** 2 for m in members) / (len(members) - 1))
        result.append((own - mean) / (spread + 1e-6) if std else own - mean)
    return result


scored = st.lists(st.tuples(st.integers(-8, 8).map(lambda k: k / 4), st.integers(0, 3)), min_size=1, max_size=14)


@given(scored, st.booleans())
def test_grpo_equals_the_brute_force_with_groups_in_any_order(pairs: list[tuple[float, int]], std: bool) -> None:
    rewards, group = [r for r, _ in pairs], [17 * g - 5 for _, g in pairs]
    assert advantages(rewards, group, std=std) == pytest.approx(
        brute_force(rewards, group, std=std), rel=1e-12, abs=1e-12
    )


def test_one_correct_answer_of_four_on_paper() -> None:
    # mean 1/4, variance (9/16 + 3/16) / 3 = 1/4, std 1/2
    scale = 1 / (0.5 + 1e-6)
    assert advantages([1, 0, 0, 0], [0] * 4) == pytest.approx([0.75 * scale] + [-0.25 * scale] * 3)
    assert advantages([1, 0, 0, 0], [0] * 4, std=False) == [0.75, -0.25, -0.25, -0.25]


@pytest.mark.parametrize("std", [True, False])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, -0.7, 1e6])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_equal_rewards_give_exactly_zero(reward: float, size: int, std: bool) -> None:
    # The mean of three times 0.1 is not 0.1 in floating point: dividing the rest by epsilon would make a signal of it.
    group = [5] * size
    assert advantages([reward] * size, group, std=std) == [0.0] * size
    token_rewards = torch.full((size, 1), reward)  # float32
    mask = torch.ones(size, 1, dtype=torch.bool)
    assert not grpo(token_rewards, mask, torch.tensor(group), normalise_by_std=std).any()


@given(scored, st.booleans())
def test_the_advantages_of_a_group_add_up_to_zero(pairs: list[tuple[float, int]], std: bool) -> None:
    got = advantages([r for r, _ in pairs], [g for _, g in pairs], std=std)
    for g in {g for _, g in pairs}:
        assert sum(a for a, (_, other) in zip(got, pairs, strict=True) if other == g) == pytest.approx(0, abs=1e-11)


@given(scored, st.booleans(), st.integers(-40, 40).map(lambda k: k / 4))
def test_a_constant_added_to_all_rewards_changes_nothing(
    pairs: list[tuple[float, int]], std: bool, shift: float
) -> None:
    rewards, group = [r for r, _ in pairs], [g for _, g in pairs]
    shifted = advantages([r + shift for r in rewards], group, std=std)
    assert shifted == pytest.approx(advantages(rewards, group, std=std), rel=1e-9, abs=1e-9)


@given(scored)
def test_a_factor_on_all_rewards_cancels_with_std_and_passes_through_without(pairs: list[tuple[float, int]]) -> None:
    rewards, group = [r for r, _ in pairs], [g for _, g in pairs]
    tenfold = [10 * r for r in rewards]
    # only epsilon, 1e-6 beside a standard deviation of at least 0.06, keeps it from cancelling exactly
    assert advantages(tenfold, group) == pytest.approx(advantages(rewards, group), rel=1e-4)
    without = [10 * a for a in advantages(rewards, group, std=False)]
    assert advantages(tenfold, group, std=False) == pytest.approx(without, rel=1e-12, abs=1e-12)


def test_token_rewards_are_summed_over_the_mask_and_the_advantage_spread_over_it() -> None:
    nan = float("nan")
    token_rewards = torch.tensor([[0.25, 0.75, nan], [-1.0, nan, nan], [0.0, 0.5, -0.5]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    got = grpo(token_rewards, mask, torch.tensor([0, 0, 0]), normalise_by_std=False)
    # rewards 1, -1, 0
    assert got.tolist() == [[1.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_an_empty_response_counts_in_its_group_with_reward_zero() -> None:
    token_rewards, mask = torch.tensor([[1.0], [5.0]]), torch.tensor([[True], [False]])
    got = grpo(token_rewards, mask, torch.tensor([0, 0]), normalise_by_std=False)
    assert got.tolist() == [[0.5], [0.0]]


def test_a_group_is_unanimous_where_it_is_in_every_reward() -> None:
    # group 0 differs in one reward alone, and their sum is equal; group 1 has both equal, group 2 one answer
    one, other = torch.tensor([1.0, 0.0, 2.0, 2.0, 5.0]), torch.tensor([0.0, 1.0, 3.0, 3.0, 5.0])
    group = torch.tensor([0, 0, 1, 1, 2])
    assert unanimous([one, other], group).tolist() == [False, False, True, True, True]
    assert unanimous([one + other], group).all()


def test_group_moments_on_paper() -> None:
    moments = group_moments(torch.tensor([1.0, 9.0, 3.0, 2.0]), torch.tensor([4, 0, 4, 4]))
    assert moments.mean.tolist() == [2.0, 9.0, 2.0, 2.0]
    assert moments.std.tolist() == [1.0, 0.0, 1.0, 1.0]
    assert moments.size.tolist() == [3, 1, 3, 3]
    assert moments.constant.tolist() == [False, True, False, False]


def test_no_responses_give_no_advantages() -> None:
    empty: Tensor = torch.zeros(0, 4)
    got = grpo(empty, torch.zeros(0, 4, dtype=torch.bool), torch.zeros(0, dtype=torch.long), normalise_by_std=True)
    assert got.shape == (0, 4)
