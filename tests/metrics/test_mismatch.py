"""`rollout_corr/*` under verl's names: examples small enough to be computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from gmpo.metrics.mismatch import mismatch, rejection_stats, weight_stats

MASK = torch.ones(2, 4, dtype=torch.bool)


def test_weights_are_described_before_they_are_cut() -> None:
    """One token of weight e^5 among eight: 148.4 is the largest, though 2 is what multiplies the gradient."""
    r = torch.zeros(2, 4)
    r[0, 3] = 5.0
    stats = weight_stats(r, MASK, 0.5, 2.0, level="token")
    found = {name.rpartition("rollout_is_")[2]: value for name, value in stats.items()}
    assert found["max"] == pytest.approx(math.exp(5))
    assert found["mean"] == pytest.approx((7 + math.exp(5)) / 8)
    assert found["seq_max"] == pytest.approx((3 + math.exp(5)) / 4)
    assert found["ratio_fraction_high"] == 1 / 8
    # held at 2: seven ones and a two
    assert found["eff_sample_size"] == pytest.approx(81 / (8 * 11))
    assert found["std"] == pytest.approx(math.sqrt(11 / 8 - (9 / 8) ** 2))


def test_a_sequences_weight_is_that_of_its_sum() -> None:
    r = torch.full((2, 4), 0.0)
    r[1] = 0.25
    found = weight_stats(r, MASK, 0.5, 2.0, level="sequence")
    assert found["rollout_corr/rollout_is_max"] == pytest.approx(math.e)
    assert found["rollout_corr/rollout_is_seq_mean"] == pytest.approx((1 + math.e) / 2)
    assert found["rollout_corr/rollout_is_ratio_fraction_high"] == 0.5


def test_chi2_of_a_sequence_is_bounded_by_the_sum_and_not_by_its_double() -> None:
    """Sums of 15 and 0: (e^30 + 1) / 2 - 1."""
    rollout = torch.full((2, 4), -8.0)
    old = rollout.clone()
    old[0] += 3.75
    assert mismatch(old, rollout, MASK)["rollout_corr/chi2_seq"] == pytest.approx((math.exp(30) + 1) / 2 - 1)


def test_an_answer_counts_as_masked_when_it_lost_a_token() -> None:
    after = MASK.clone()
    after[0, 1] = False
    found = rejection_stats("", MASK, after)
    assert found == {
        "rollout_corr/rollout_rs_masked_fraction": 1 / 8,
        "rollout_corr/rollout_rs_seq_masked_fraction": 1 / 2,
    }
