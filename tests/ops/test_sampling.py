"""Drawing by one uniform number: exact inversion, truncation on paper, frequencies."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

from gmpo.ops import sampling
from gmpo.ops.sampling import draw, sample, truncate

LARGEST = 1.0 - 2.0**-53
"""Largest double below 1."""


def probabilities(probs: list[float], *, temperature: float = 1.0, top_k: int = -1, top_p: float = 1.0) -> list[float]:
    logits = torch.tensor([probs], dtype=torch.float64).log().float()
    got = truncated_logprobs(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    return got.exp()[0].tolist()


def truncated_logprobs(logits: Tensor, *, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Of the distribution that is drawn from."""
    return torch.log_softmax(truncate(logits.clone() / temperature, top_k=top_k, top_p=top_p), -1)


def drawn_from(logprobs: Tensor, uniform: Tensor) -> Tensor:
    return draw(logprobs.exp(), uniform)[0]


def inverse(logprobs: Tensor, uniform: float) -> tuple[int, Fraction]:
    """The token whose share of [0, 1) holds `uniform`, in exact arithmetic over the float32 probabilities, and the
    distance to the nearest border between tokens."""
    weights = [Fraction(p) for p in logprobs.exp().tolist()]
    total = sum(weights)
    target = Fraction(uniform) * total
    reach, chosen, nearest = Fraction(0), None, Fraction(1)
    for token, weight in enumerate(weights):
        reach += weight
        if chosen is None and reach > target:
            chosen = token
        if reach < total:
            nearest = min(nearest, abs(reach - target) / total)
    assert chosen is not None
    return chosen, nearest


# --- draw


@given(
    vocabulary=st.integers(1, 1000),
    seed=st.integers(0, 10**6),
    uniforms=st.lists(st.floats(0.0, LARGEST), min_size=1, max_size=4),
    spread=st.sampled_from([0.1, 1.0, 5.0]),
    holes=st.booleans(),
)
@example(vocabulary=1, seed=0, uniforms=[0.0, LARGEST], spread=1.0, holes=False)
@example(vocabulary=2, seed=0, uniforms=[0.0, LARGEST], spread=1.0, holes=False)
@example(vocabulary=1000, seed=0, uniforms=[0.0, LARGEST], spread=5.0, holes=True)
def test_the_drawn_token_is_the_one_whose_share_holds_the_uniform_number(
    vocabulary: int, seed: int, uniforms: list[float], spread: float, holes: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(len(uniforms), vocabulary, generator=generator)
    if holes:
        logits[torch.rand(logits.shape, generator=generator) < 0.5] = -torch.inf
        logits[:, seed % vocabulary] = 0.0
    logprobs = torch.log_softmax(logits, -1)
    drawn = drawn_from(logprobs, torch.tensor(uniforms, dtype=torch.float64)).tolist()
    for row, uniform, token in zip(logprobs, uniforms, drawn, strict=True):
        expected, distance = inverse(row, uniform)
        assume(uniform == 0.0 or distance > 1e-12)
        assert token == expected


def test_shares_of_a_half_a_quarter_and_a_quarter() -> None:
    logprobs = torch.tensor([0.5, 0.25, 0.25]).log().expand(6, 3)
    uniform = torch.tensor([0.0, 0.4999, 0.5001, 0.7499, 0.7501, 0.9999])
    assert drawn_from(logprobs, uniform).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("possible", [[0], [9], [0, 9], [4, 5], [3], [2, 3, 7]])
@pytest.mark.parametrize("uniform", [0.0, 1e-300, 0.5, LARGEST])
def test_a_token_of_probability_zero_is_never_drawn(possible: list[int], uniform: float) -> None:
    logits = torch.full((1, 10), -torch.inf)
    logits[0, possible] = torch.linspace(0.0, 1.0, len(possible))
    token = drawn_from(torch.log_softmax(logits, -1), torch.tensor([uniform], dtype=torch.float64)).item()
    assert token in possible
    if uniform in (0.0, LARGEST):
        assert token == (possible[0] if uniform == 0.0 else possible[-1])


def test_a_vanishing_tail_is_not_drawn_by_rounding() -> None:
    # e^-110 is zero in float32: the tokens after the first are impossible.
    logprobs = torch.tensor([[0.0] + [-110.0] * 99])
    assert drawn_from(logprobs, torch.tensor([LARGEST], dtype=torch.float64)).item() == 0


def test_sums_that_round_differently_do_not_lead_behind_the_last_possible_token() -> None:
    # Added one by one, 1e-16 vanishes beside 1; added up first, 49 of them do not: the block's two sums differ.
    logprobs = torch.full((1, 10_000), -torch.inf)
    logprobs[0, 0], logprobs[0, 1:50] = 0.0, math.log(2.0**-53)
    assert drawn_from(logprobs, torch.tensor([LARGEST], dtype=torch.float64)).item() < 50


def test_a_vocabulary_of_152_thousand_equal_tokens_is_divided_equally() -> None:
    # Each has 6.6e-6. A running sum in float32 resolves 6e-8, and 1e-9 beside a border it names the neighbour.
    vocabulary = 151_936
    tokens = torch.tensor([0, 1, 389, 390, 75_967, 75_968, 151_000, 151_934, 151_935])
    logprobs = torch.full((1, vocabulary), -math.log(vocabulary)).expand(len(tokens), -1)
    middle = (tokens.double() + 0.5) / vocabulary
    assert drawn_from(logprobs, middle).tolist() == tokens.tolist()
    assert drawn_from(logprobs, tokens.double() / vocabulary + 1e-9).tolist() == tokens.tolist()
    assert drawn_from(logprobs, (tokens.double() + 1) / vocabulary - 1e-9).tolist() == tokens.tolist()


def test_rare_tokens_behind_a_likely_one_keep_their_share() -> None:
    # The last of 152 thousand tokens has probability one half; the others share the rest.
    vocabulary = 151_936
    logits = torch.zeros(1, vocabulary)
    logits[0, -1] = math.log(vocabulary - 1)
    logprobs = torch.log_softmax(logits, -1).expand(4, -1)
    share = 0.5 / (vocabulary - 1)
    uniform = torch.tensor([0.5 * share, 100_000.5 * share, 0.5 - 0.5 * share, 0.5 + 0.5 * share], dtype=torch.float64)
    assert drawn_from(logprobs, uniform).tolist() == [0, 100_000, vocabulary - 2, vocabulary - 1]


def test_frequencies_pass_a_chi_square_test() -> None:
    draws = 40_000
    probs = torch.tensor([0.3, 0.05, 0.0, 0.25, 0.01, 0.14, 0.2, 0.05])
    uniform = torch.rand(draws, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = torch.bincount(drawn_from(probs.log().expand(draws, -1), uniform), minlength=8).double()
    expected = probs.double() * draws
    possible = probs > 0
    assert counts[~possible].sum() == 0
    statistic = ((counts - expected) ** 2 / expected)[possible].sum().item()
    assert statistic < 22.5  # 6 degrees of freedom: exceeded once in a thousand seeds


def test_each_row_depends_on_its_own_number_only() -> None:
    logprobs = torch.log_softmax(torch.randn(5, 50, generator=torch.Generator().manual_seed(3)), -1)
    uniform = torch.rand(5, generator=torch.Generator().manual_seed(4))
    together = drawn_from(logprobs, uniform)
    alone = [drawn_from(logprobs[i : i + 1], uniform[i : i + 1]).item() for i in range(5)]
    assert together.tolist() == alone


# --- the whole


@given(
    seed=st.integers(0, 10**6),
    vocabulary=st.integers(2, 400),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    top_k=st.sampled_from([-1, 1, 5, 50]),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
)
def test_a_sampled_token_has_its_log_prob_under_the_truncated_distribution(
    seed: int, vocabulary: int, temperature: float, top_k: int, top_p: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(6, vocabulary, generator=generator)
    uniform = torch.rand(6, generator=generator, dtype=torch.float64)
    distribution = truncated_logprobs(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    token, logprob = sample(logits.clone(), uniform, temperature=temperature, top_k=top_k, top_p=top_p)
    assert logprob.tolist() == pytest.approx(distribution.gather(1, token.unsqueeze(1)).flatten().tolist(), abs=2e-6)
    for row, number, got in zip(distribution, uniform.tolist(), token.tolist(), strict=True):
        expected, distance = inverse(row, number)
        assert got == expected or distance < 1e-6


def test_logits_of_any_size_do_not_overflow() -> None:
    token, logprob = sample(
        torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([0.5], dtype=torch.float64), temperature=1.0, top_k=-1, top_p=1.0
    )
    assert (token.item(), logprob.item()) == (0, 0.0)


def test_nan_logits_give_a_log_prob_that_is_not_finite() -> None:
    _, logprob = sample(
        torch.full((1, 5), math.nan), torch.tensor([0.5], dtype=torch.float64), temperature=1.0, top_k=-1, top_p=1.0
    )
    assert not logprob.isfinite().item()


# --- truncation


@pytest.mark.parametrize("candidates", [1, 3, 64])
@given(seed=st.integers(0, 10**6), top_p=st.floats(0.01, 0.999), spread=st.sampled_from([0.1, 2.0, 6.0]))
def test_top_p_from_a_few_candidates_is_that_of_the_whole_order(
    candidates: int, seed: int, top_p: float, spread: float
) -> None:
    logits = spread * torch.randn(4, 100, generator=torch.Generator().manual_seed(seed))
    probs, order = torch.softmax(logits.double(), -1).sort(descending=True)
    before = probs.cumsum(-1) - probs
    assume(bool(((before - top_p).abs() > 1e-6).all()))
    kept = torch.zeros(4, 100, dtype=torch.bool).scatter(1, order, before < top_p)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "CANDIDATES", candidates)
        assert torch.equal(truncate(logits.clone(), top_k=-1, top_p=top_p).isfinite(), kept)


def test_nothing_is_left_out_by_default() -> None:
    assert probabilities([0.5, 0.3, 0.2]) == pytest.approx([0.5, 0.3, 0.2], rel=1e-6)


def test_temperature_divides_the_logits() -> None:
    # squares of 3 : 1 are 9 : 1
    assert probabilities([0.75, 0.25], temperature=0.5) == pytest.approx([0.9, 0.1], rel=1e-6)


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [(1, [0, 1, 0, 0]), (2, [0, 4 / 7, 3 / 7, 0]), (4, [0.1, 0.4, 0.3, 0.2]), (99, [0.1, 0.4, 0.3, 0.2])],
)
def test_top_k_keeps_the_k_most_probable_and_shares_out_the_rest(top_k: int, expected: list[float]) -> None:
    assert probabilities([0.1, 0.4, 0.3, 0.2], top_k=top_k) == pytest.approx(expected, rel=1e-6)


def test_ties_at_the_k_th_place_are_all_kept() -> None:
    assert probabilities([0.25, 0.25, 0.25, 0.125, 0.125], top_k=2) == pytest.approx([1 / 3] * 3 + [0, 0], rel=1e-6)


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (0.45, [0, 1, 0, 0]),
        (0.5, [0, 1, 0, 0]),  # 0.5 is reached by one token
        (0.51, [0, 2 / 3, 1 / 3, 0]),
        (0.75, [0, 2 / 3, 1 / 3, 0]),
        (0.76, [1 / 7, 4 / 7, 2 / 7, 0]),  # of the two at 0.125 the first
        (1.0, [0.125, 0.5, 0.25, 0.125]),
    ],
)
def test_top_p_keeps_the_fewest_most_probable_tokens_that_reach_p(top_p: float, expected: list[float]) -> None:
    got = probabilities([0.125, 0.5, 0.25, 0.125], top_p=top_p)
    if top_p == 0.76:  # which of two equal tokens is kept is open
        got[0], got[3] = max(got[0], got[3]), min(got[0], got[3])
    assert got == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("top_p", [1e-9, 0.001])
def test_top_p_always_keeps_one_token(top_p: float) -> None:
    assert probabilities([0.2, 0.5, 0.3], top_p=top_p) == [0.0, 1.0, 0.0]


def test_top_p_counts_what_top_k_and_temperature_left() -> None:
    # 4 : 3 are 0.571 and 0.429 after top_k = 2: 0.5 is reached by the first alone. Without top_k it is 0.4.
    assert probabilities([0.1, 0.4, 0.3, 0.2], top_k=2, top_p=0.5) == pytest.approx([0, 1, 0, 0])
    assert probabilities([0.1, 0.4, 0.3, 0.2], top_p=0.5) == pytest.approx([0, 4 / 7, 3 / 7, 0], rel=1e-6)
    # At temperature 1/2 the shares of 0.75 and 0.25 are 0.9 and 0.1.
    assert probabilities([0.75, 0.25], temperature=0.5, top_p=0.8) == [1.0, 0.0]


@given(
    st.lists(st.floats(-5.0, 5.0, width=32), min_size=1, max_size=30),
    st.sampled_from([-1, 1, 3, 100]),
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    st.sampled_from([0.5, 1.0, 1.7]),
)
def test_what_is_left_keeps_its_proportions_and_adds_up_to_one(
    logits: list[float], top_k: int, top_p: float, temperature: float
) -> None:
    row = torch.tensor([logits])
    got = truncated_logprobs(row, temperature=temperature, top_k=top_k, top_p=top_p)[0].double()
    kept = got > -torch.inf
    assert got.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    # every kept token is at least as probable as every dropped one
    if (~kept).any():
        assert row[0][kept].min() >= row[0][~kept].max()
    offset = got[kept] - row[0].double()[kept] / temperature
    assert (offset - offset[0]).abs().max() < 1e-4
