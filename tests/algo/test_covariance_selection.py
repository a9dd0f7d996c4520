"""Which tokens Clip-Cov and KL-Cov choose: the covariance by hand, how many, which of equals, and from where."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gmpo.algo.token_losses import covariance, select_clip_cov, select_kl_cov

MiniBatch = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
BAND = {"clip_low": 0.2, "clip_high": 0.2}
EVERYTHING = {**BAND, "cov_low": -math.inf, "cov_high": math.inf}
TOKENS = 15
"""Of the mini-batches below."""


def noise(mask: Tensor, seed: int = 0) -> Tensor:
    return torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens_of(mask: Tensor) -> list[tuple[int, int]]:
    return [(int(i), int(t)) for i, t in mask.nonzero()]


def covariances(logp: Tensor, advantage: Tensor, mask: Tensor) -> dict[tuple[int, int], float]:
    """(A - mean A)(logp - mean logp) of each token, in plain Python."""
    where = tokens_of(mask)
    a = [advantage[w].item() for w in where]
    x = [logp[w].item() for w in where]
    mean_a, mean_x = math.fsum(a) / len(a), math.fsum(x) / len(x)
    return {w: (p - mean_a) * (q - mean_x) for w, p, q in zip(where, a, x, strict=True)}


def chosen(selected: Tensor) -> set[tuple[int, int]]:
    return set(tokens_of(selected))


def test_covariance_on_paper() -> None:
    # A: 1, 1, -2, mean 0; logp: -1, -2, -3, mean -2
    logp = torch.tensor([[-1.0, -2.0, float("nan")], [-3.0, float("nan"), 0.0]])
    advantage = torch.tensor([[1.0, 1.0, float("nan")], [-2.0, float("nan"), 0.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert covariance(logp, advantage, mask).tolist() == [[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]
    assert covariance(logp, advantage, torch.zeros_like(mask)).tolist() == [[0.0] * 3] * 2


@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0]))
def test_kl_cov_chooses_the_largest_covariances(mini_batch: MiniBatch, seed: int, share: float) -> None:
    logp, old, advantage, mask = mini_batch(seed)
    cov = covariances(logp, advantage, mask)
    number = max(1, int(share * TOKENS))
    expected = set(sorted(cov, key=lambda w: -cov[w])[:number])
    assert chosen(select_kl_cov(logp, old, advantage, mask, noise(mask), kl_cov_share=share)) == expected


@given(
    seed=st.integers(0, 10**6),
    share=st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0]),
    low=st.sampled_from([-1.0, 0.0, 0.3]),
    high=st.sampled_from([0.5, 2.0]),
)
def test_clip_cov_chooses_the_smallest_noise_in_the_band_that_the_clip_leaves_alone(
    mini_batch: MiniBatch, seed: int, share: float, low: float, high: float
) -> None:
    logp, old, advantage, mask = mini_batch(seed)
    cov, d, draw = covariances(logp, advantage, mask), logp - old, noise(mask, seed)
    candidates = []
    for w in cov:
        ratio, a = math.exp(d[w].item()), advantage[w].item()
        is_cut = ratio > 1.2 if a > 0 else ratio < 0.8
        if low < cov[w] < high and not is_cut:
            candidates.append(w)
    expected = set(sorted(candidates, key=lambda w: draw[w].item())[: max(1, int(share * TOKENS))])
    numbers = {**BAND, "clip_cov_share": share, "cov_low": low, "cov_high": high}
    assert chosen(select_clip_cov(logp, old, advantage, mask, draw, **numbers)) == expected


@pytest.mark.parametrize(("share", "number"), [(0.0002, 1), (0.0, 1), (0.2, 3), (0.199, 2), (1.0, 15)])
def test_the_number_is_the_share_of_all_tokens_rounded_down_and_at_least_one(
    mini_batch: MiniBatch, share: float, number: int
) -> None:
    _, old, advantage, mask = mini_batch(0)  # the first update: nothing is cut
    by_kl = select_kl_cov(old, old, advantage, mask, noise(mask), kl_cov_share=share)
    by_clip = select_clip_cov(old, old, advantage, mask, noise(mask), **EVERYTHING, clip_cov_share=share)
    assert int(by_kl.sum()) == int(by_clip.sum()) == number


def test_no_more_are_chosen_than_there_are_candidates(mini_batch: MiniBatch) -> None:
    logp, old, advantage, mask = mini_batch(0)
    impossible = {**BAND, "cov_low": 1e6, "cov_high": 2e6}
    assert not select_clip_cov(logp, old, advantage, mask, noise(mask), **impossible, clip_cov_share=1.0).any()
    assert chosen(select_kl_cov(logp, old, advantage, mask, noise(mask), kl_cov_share=1.0)) == set(tokens_of(mask))


def test_of_equals_the_earlier_are_chosen() -> None:
    # two kinds of token: covariances 0.25, 0.25, 0.25, 0.25
    logp = torch.tensor([[-1.0, -2.0], [-1.0, -2.0]])
    advantage = torch.tensor([[0.5, -0.5], [0.5, -0.5]])
    mask = torch.ones(2, 2, dtype=torch.bool)
    picked = select_kl_cov(logp, logp, advantage, mask, noise(mask), kl_cov_share=0.75)
    assert picked.tolist() == [[True, True], [True, False]]
    same = torch.full((2, 2), 0.5)
    picked = select_clip_cov(logp, logp, advantage, mask, same, **EVERYTHING, clip_cov_share=0.5)
    assert picked.tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov"])
def test_a_mini_batch_without_tokens_chooses_none(losses: Any, mini_batch: MiniBatch, name: str) -> None:
    logp, old, advantage, mask = mini_batch(0)
    assert not losses.selected(name, logp, old, advantage, torch.zeros_like(mask))["selected"].any()


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov"])
@given(seed=st.integers(0, 10**6), padding=st.integers(0, 4))
def test_padding_and_what_stands_in_it_never_matter(
    losses: Any, mini_batch: MiniBatch, name: str, seed: int, padding: int
) -> None:
    logp, old, advantage, mask = mini_batch(seed)
    wider = [
        torch.nn.functional.pad(x.masked_fill(~mask, float("nan")), (0, padding), value=float("nan"))
        for x in (logp, old, advantage)
    ]
    wide_mask = torch.nn.functional.pad(mask, (0, padding))
    narrow = losses.selected(name, logp, old, advantage, mask)["selected"]
    wide = losses.selected(name, *wider, wide_mask)["selected"]
    assert chosen(wide) == chosen(narrow)


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov"])
@given(seed=st.integers(0, 10**6), order=st.permutations(range(6)))
def test_the_choice_follows_the_responses_whatever_their_order(
    losses: Any, mini_batch: MiniBatch, name: str, seed: int, order: Sequence[int]
) -> None:
    tensors = mini_batch(seed)
    there = losses.selected(name, *tensors)["selected"]
    assert torch.equal(losses.selected(name, *(x[list(order)] for x in tensors))["selected"], there[list(order)])


def test_a_choice_from_parts_is_another_one_so_it_has_to_come_from_the_whole(
    losses: Any, mini_batch: MiniBatch
) -> None:
    tensors = mini_batch(0)
    for name in ("clip_cov", "kl_cov"):
        whole = losses.selected(name, *tensors)["selected"]
        parts = [losses.selected(name, *(x[rows] for x in tensors))["selected"] for rows in ([0, 1, 2], [3, 4, 5])]
        assert not torch.equal(torch.cat(parts), whole), name
