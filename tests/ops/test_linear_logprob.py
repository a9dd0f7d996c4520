"""Log-probs and entropies from an LM head in tiles: the numbers and the gradients of the whole logits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gmpo.ops.linear_logprob import linear_logprob
from gmpo.ops.logprob import entropy, token_logprobs


def inputs(
    tokens: int, vocabulary: int, width: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(vocabulary, (tokens,), generator=g)


def naive(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = hidden @ weight.T
    return token_logprobs(logits, targets, temperature=temperature), entropy(logits, temperature=temperature)


def gradients(values: tuple[Tensor, Tensor | None], wrt: tuple[Tensor, Tensor], seed: int = 1) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    weights = [torch.randn(v.shape, generator=g, dtype=torch.float64).to(v.dtype) for v in values if v is not None]
    loss = sum((v * w).sum() for v, w in zip([v for v in values if v is not None], weights, strict=True))
    assert isinstance(loss, Tensor)
    return torch.autograd.grad(loss, wrt)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 17),
    st.integers(2, 40),
    st.integers(1, 9),
    st.floats(0.1, 4.0),
    st.integers(1, 4000),
    st.integers(0, 2**20),
)
def test_tiles_of_any_size_give_the_values_and_gradients_of_the_whole(
    tokens: int, vocabulary: int, width: int, temperature: float, tile_bytes: int, seed: int
) -> None:
    hidden, weight, targets = inputs(tokens, vocabulary, width, torch.float64, seed)
    expected = naive(hidden, weight, targets, temperature)
    found = linear_logprob(hidden, weight, targets, temperature=temperature, with_entropy=True, tile_bytes=tile_bytes)
    assert found[1] is not None
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)
    for a, b in zip(gradients(found, (hidden, weight)), gradients(expected, (hidden, weight)), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)


def test_without_the_entropy_the_gradient_is_that_of_the_log_probs_alone() -> None:
    hidden, weight, targets = inputs(5, 11, 4, torch.float64)
    logp, none = linear_logprob(hidden, weight, targets, temperature=0.7, tile_bytes=2 * 11 * 8)
    assert none is None
    expected = naive(hidden, weight, targets, 0.7)[0]
    for a, b in zip(
        gradients((logp, None), (hidden, weight)), gradients((expected, None), (hidden, weight)), strict=True
    ):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_the_gradients_are_the_derivatives() -> None:
    hidden, weight, targets = inputs(3, 6, 2, torch.float64)

    def values(h: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        logp, ent = linear_logprob(h, w, targets, temperature=1.3, with_entropy=True, tile_bytes=6 * 8)
        assert ent is not None
        return logp, ent

    assert torch.autograd.gradcheck(values, (hidden, weight))


def test_a_second_derivative_is_refused() -> None:
    hidden, weight, targets = inputs(3, 6, 2, torch.float64)
    logp, _ = linear_logprob(hidden, weight, targets, temperature=1.0)
    (first,) = torch.autograd.grad(logp.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(first.sum(), hidden)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_float32_is_as_exact_as_the_whole_logits_in_float32(scale: float) -> None:
    hidden, weight, targets = inputs(64, 500, 32, torch.float32)
    with torch.no_grad():
        hidden *= scale
    exact = naive(hidden.detach().double(), weight.detach().double(), targets, 1.0)
    whole = naive(hidden, weight, targets, 1.0)
    tiled = linear_logprob(hidden, weight, targets, temperature=1.0, with_entropy=True, tile_bytes=7 * 500 * 4)
    assert tiled[1] is not None
    for tile, plain, true in zip(tiled, whole, exact, strict=True):
        assert (tile.double() - true).abs().max() <= 2 * (plain.double() - true).abs().max() + 1e-6
    assert all(bool(g.isfinite().all()) for g in gradients(tiled, (hidden, weight)))


def test_bfloat16_inputs_give_float32_values_close_to_the_exact_ones_of_the_same_numbers() -> None:
    hidden, weight, targets = inputs(32, 200, 16, torch.bfloat16)
    logp, ent = linear_logprob(hidden, weight, targets, temperature=1.0, with_entropy=True, tile_bytes=5 * 200 * 4)
    assert ent is not None
    assert logp.dtype == ent.dtype == torch.float32
    exact = naive(hidden.detach().double(), weight.detach().double(), targets, 1.0)
    assert (logp.double() - exact[0]).abs().max() < 0.1
    grads = gradients((logp, ent), (hidden, weight))
    assert [g.dtype for g in grads] == [torch.bfloat16] * 2


def test_a_tied_head_gets_both_of_its_gradients() -> None:
    embedding = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    tokens, targets = torch.tensor([1, 5, 8]), torch.tensor([2, 2, 0])
    tiled, _ = linear_logprob(embedding[tokens], embedding, targets, temperature=1.0, tile_bytes=9 * 8)
    whole = token_logprobs(embedding[tokens] @ embedding.T, targets, temperature=1.0)
    (a,), (b,) = torch.autograd.grad(tiled.sum(), embedding), torch.autograd.grad(whole.sum(), embedding)
    assert torch.allclose(a, b, atol=1e-12)


def test_an_impossible_token_of_the_vocabulary_makes_no_nan() -> None:
    hidden = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[0.0], [1.0], [-math.inf]], dtype=torch.float64)
    logp, ent = linear_logprob(hidden, weight, torch.tensor([0, 1]), temperature=1.0, with_entropy=True)
    assert ent is not None
    p = 1 / (1 + math.e)
    assert logp.tolist() == pytest.approx([math.log(p), math.log(1 - p)])
    assert ent.tolist() == pytest.approx([-(p * math.log(p) + (1 - p) * math.log(1 - p))] * 2)


def test_no_tokens_are_no_work() -> None:
    hidden, weight, targets = inputs(0, 5, 3, torch.float32)
    logp, ent = linear_logprob(hidden, weight, targets, temperature=1.0, with_entropy=True)
    assert ent is not None
    assert logp.shape == ent.shape == (0,)
    (gradient,) = torch.autograd.grad(logp.sum() + ent.sum(), weight)
    assert not gradient.any()
