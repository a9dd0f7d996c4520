"""Averages over response tokens: what each `loss_agg_mode` means, and that cutting a mini-batch changes nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gmpo.algo.masks import AGGREGATIONS, Counts, aggregate, count, sequence_aggregate, sequence_mean, sequence_sum

NAN = float("nan")

# Two responses of 3 and 1 tokens, and one that is empty.
VALUES = torch.tensor([[1.0, 2.0, 6.0], [4.0, NAN, NAN], [NAN, float("inf"), 7.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])


def test_counts_are_tokens_in_the_loss_and_responses_that_have_one() -> None:
    assert count(MASK) == Counts(tokens=4, sequences=2)
    assert count(torch.zeros(2, 0, dtype=torch.bool)) == Counts(tokens=0, sequences=0)


def test_a_mini_batch_without_tokens_has_denominator_one() -> None:
    assert Counts(0, 0).of("tokens") == Counts(0, 0).of("sequences") == 1
    assert Counts(8, 2).of("tokens") == 8
    assert Counts(8, 2).of("sequences") == 2


def test_sums_and_means_see_the_mask_only() -> None:
    assert sequence_sum(VALUES, MASK).tolist() == [9.0, 4.0, 0.0]
    assert sequence_mean(VALUES, MASK).tolist() == [3.0, 4.0, 0.0]


@pytest.mark.parametrize(
    ("mode", "mean"),
    [
        ("token-mean", (1 + 2 + 6 + 4) / 4),
        ("token-sum", 1 + 2 + 6 + 4),
        ("seq-mean-token-sum", (9 + 4) / 2),
        ("seq-mean-token-mean", (3 + 4) / 2),
        ("seq-mean-token-sum-norm", (9 / 10 + 4 / 10) / 2),
    ],
)
def test_each_mode_is_its_formula(mode: str, mean: float) -> None:
    assert aggregate(VALUES, MASK, mode, count(MASK), 10.0).item() == pytest.approx(mean, rel=1e-15)


def test_every_mode_has_a_worked_example_above() -> None:
    means = {"token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"}
    assert set(AGGREGATIONS) == means


def test_a_length_of_three_weighs_exactly_a_third_in_float64() -> None:
    values, mask = torch.ones(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    assert aggregate(values, mask, "seq-mean-token-mean", count(mask), 1.0).item() == pytest.approx(1.0, rel=1e-15)
    assert aggregate(values, mask, "seq-mean-token-sum-norm", count(mask), 3.0).item() == pytest.approx(1.0, rel=1e-15)


def test_a_response_value_is_averaged_over_responses_that_have_a_token() -> None:
    values = torch.tensor([1.0, 5.0, NAN], dtype=torch.float64)
    assert sequence_aggregate(values, MASK, count(MASK)).item() == 3.0


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_a_mini_batch_without_tokens_gives_exactly_zero(mode: str) -> None:
    values, mask = torch.full((2, 3), NAN), torch.zeros(2, 3, dtype=torch.bool)
    assert aggregate(values, mask, mode, count(mask), 10.0).item() == 0.0
    assert sequence_aggregate(values[:, 0], mask, count(mask)).item() == 0.0


@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=7),
    labels=st.lists(st.integers(0, 3), min_size=7, max_size=7),
    mode=st.sampled_from(sorted(AGGREGATIONS)),
    seed=st.integers(0, 10**6),
)
def test_the_shares_of_any_partition_add_up_to_the_mean(
    lengths: list[int], labels: list[int], mode: str, seed: int
) -> None:
    values = torch.randn(len(lengths), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(5) < torch.tensor(lengths).unsqueeze(1)
    whole = count(mask)
    parts = [[i for i in range(len(lengths)) if labels[i] == label] for label in range(4)]
    shares = [aggregate(values[p], mask[p], mode, whole, 7.0) for p in parts]
    total = aggregate(values, mask, mode, whole, 7.0).item()
    assert sum(share.item() for share in shares) == pytest.approx(total, rel=1e-12, abs=1e-14)
