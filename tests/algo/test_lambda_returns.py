"""Generalised advantages and the targets of the value function, on three tokens that a reader can follow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gmpo.algo.advantages import gae
from gmpo.algo.returns import lambda_returns, whiten

NAN = float("nan")
ALL = torch.ones(1, 3, dtype=torch.bool)
GROUP = torch.zeros(1, dtype=torch.long)
VALUES = torch.tensor([[0.5, 0.25, 0.75]], dtype=torch.float64)
REWARDS = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)


def returns(rewards: Tensor, mask: Tensor, values: Tensor, gamma: float, lam: float) -> list[float]:
    return lambda_returns(rewards, mask, values, gamma=gamma, lam=lam)[0].tolist()


def test_three_tokens_on_paper() -> None:
    # gamma 0.5, lam 0.5, so gamma lam = 0.25
    # delta_3 = 1 - 0.75 = 0.25;  delta_2 = 0.5 * 0.75 - 0.25 = 0.125;  delta_1 = 0.5 * 0.25 - 0.5 = -0.375
    # A_3 = 0.25;  A_2 = 0.125 + 0.0625 = 0.1875;  A_1 = -0.375 + 0.046875 = -0.328125
    assert returns(REWARDS, ALL, VALUES, 0.5, 0.5) == [0.5 - 0.328125, 0.25 + 0.1875, 0.75 + 0.25]
    expected = whiten(torch.tensor([[-0.328125, 0.1875, 0.25]], dtype=torch.float64), ALL)
    got = gae(REWARDS, ALL, GROUP, values=VALUES, gamma=0.5, lam=0.5)
    assert torch.allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_lambda_one_is_the_discounted_reward_to_go_whatever_the_values() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64)
    assert returns(rewards, ALL, VALUES, 0.5, 1.0) == [1 + 1 + 1, 2 + 2, 4.0]
    assert returns(rewards, ALL, VALUES, 1.0, 1.0) == [7.0, 6.0, 4.0]


def test_lambda_zero_looks_one_step_ahead() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64)
    # r_t + gamma V_{t+1}, and nothing behind the last token
    assert returns(rewards, ALL, VALUES, 0.5, 0.0) == [1 + 0.125, 2 + 0.375, 4.0]


def test_perfect_values_leave_no_advantage() -> None:
    values = torch.tensor([[0.25, 0.5, 1.0]], dtype=torch.float64)
    for lam in (0.0, 0.7, 1.0):
        assert returns(REWARDS, ALL, values, 0.5, lam) == values[0].tolist()
        assert not gae(REWARDS, ALL, GROUP, values=values, gamma=0.5, lam=lam).any()


@given(
    holes=st.lists(st.booleans(), min_size=3, max_size=8).filter(any),
    gamma=st.sampled_from([0.5, 0.9, 1.0]),
    lam=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_positions_outside_the_mask_are_passed_over(holes: list[bool], gamma: float, lam: float, seed: int) -> None:
    """The tokens of the mask have the returns that they have when nothing stands between them."""
    mask = torch.tensor([holes])
    g = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(1, len(holes), generator=g, dtype=torch.float64) for _ in range(2))
    dense = [x[mask].unsqueeze(0) for x in (rewards, values)]
    expected = lambda_returns(dense[0], torch.ones_like(dense[0]).bool(), dense[1], gamma=gamma, lam=lam)
    dirty = [x.masked_fill(~mask, NAN) for x in (rewards, values)]
    got = lambda_returns(dirty[0], mask, dirty[1], gamma=gamma, lam=lam)
    assert got[mask].tolist() == pytest.approx(expected[0].tolist(), rel=1e-12, abs=1e-12)
    assert not got[~mask].any()
    advantages = gae(dirty[0], mask, GROUP, values=dirty[1], gamma=gamma, lam=lam)
    assert advantages.isfinite().all()
    assert not advantages[~mask].any()


def test_responses_do_not_see_each_other_before_whitening() -> None:
    rewards, values = torch.tensor([[1.0, 2.0], [5.0, 7.0]]), torch.tensor([[0.5, 0.5], [3.0, 1.0]])
    mask = torch.tensor([[True, True], [True, False]])
    both = lambda_returns(rewards, mask, values, gamma=1.0, lam=0.5)
    for row in range(2):
        alone = lambda_returns(rewards[row : row + 1], mask[row : row + 1], values[row : row + 1], gamma=1.0, lam=0.5)
        assert torch.equal(both[row : row + 1], alone)
    assert both[1].tolist() == [5.0, 0.0]
