"""Log-probs from logits, against sums written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gmpo.ops.logprob import token_logprobs


def log_softmax(logits: list[float], temperature: float) -> list[float]:
    scaled = [x / temperature for x in logits]
    highest = max(scaled)
    total = math.fsum(math.exp(x - highest) for x in scaled)
    return [x - highest - math.log(total) for x in scaled]


vectors = st.lists(st.floats(-30.0, 30.0, width=32), min_size=1, max_size=40)
temperatures = st.sampled_from([0.3, 0.7, 1.0, 2.0])


@given(vectors, temperatures)
def test_log_probs_equal_the_loops(logits: list[float], temperature: float) -> None:
    expected = log_softmax(logits, temperature)
    every_token = torch.arange(len(logits))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        rows = torch.tensor(logits, dtype=dtype).expand(len(logits), -1)
        got = token_logprobs(rows, every_token, temperature=temperature)
        assert got.tolist() == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_two_tokens_on_paper() -> None:
    # e^(ln 3) : e^0 = 3 : 1; at temperature 1/2 it is 9 : 1
    logits = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    one, half = (token_logprobs(logits, torch.tensor([0]), temperature=t).item() for t in (1.0, 0.5))
    assert math.exp(one) == pytest.approx(0.75)
    assert math.exp(half) == pytest.approx(0.9)


def test_a_certain_token_has_log_prob_zero_however_large_the_logits() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    assert token_logprobs(logits, torch.tensor([0]), temperature=1.0).item() == 0.0
    assert token_logprobs(logits, torch.tensor([1]), temperature=1.0).item() == -2e4


def test_logits_in_bfloat16_are_summed_in_float32() -> None:
    logits = torch.randn(2, 5, 5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.randint(0, 5000, (2, 5), generator=torch.Generator().manual_seed(1))
    exact = torch.log_softmax(logits.double(), -1)
    got = token_logprobs(logits, targets, temperature=1.0)
    assert got.dtype is torch.float32
    assert torch.allclose(got.double(), exact.gather(-1, targets.unsqueeze(-1)).squeeze(-1), atol=1e-5)


def test_gradients_agree_with_finite_differences() -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    targets = torch.tensor([0, 3, 1])
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, targets, temperature=0.7), logits)
