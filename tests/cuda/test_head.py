"""The head on a GPU, by Triton's kernels and by torch's operations: the values of all logits on the CPU in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

from gmpo.ops import linear_logprob
from gmpo.ops.blocks import Blocks, TorchBlocks
from gmpo.ops.kernels import blocks_for
from gmpo.ops.linear_logprob import Head, token_score_norms, token_values
from gmpo.ops.linear_loss import Entropies, linear_loss

pytestmark = pytest.mark.cuda
GPU = torch.device("cuda")
KINDS = ("triton", "torch")


def blocks_of(kind: str) -> Blocks:
    return TorchBlocks() if kind == "torch" else blocks_for(GPU)


@dataclass(frozen=True)
class Shape:
    """Tokens of each answer, and the head over them. All numbers are odd, so that nothing is a multiple of a block."""

    lengths: tuple[int, ...] = (1, 37, 0, 63, 5)
    vocabulary: int = 5003
    width: int = 77
    temperature: float = 1.0
    softcap: float | None = None
    bias: bool = False
    padding: int = 0
    """So many last ids are excluded."""


SHAPES = {
    "plain": Shape(),
    "narrower than a warp": Shape(vocabulary=3, width=1),
    "one token": Shape(lengths=(1,), vocabulary=1009),
    "temperature": Shape(temperature=0.7),
    "padded vocabulary": Shape(padding=131),
    "bias and temperature": Shape(bias=True, temperature=1.3),
    "softcap": Shape(softcap=3.0, temperature=0.7, vocabulary=1009),
    "softcap, padded vocabulary": Shape(softcap=3.0, padding=131),
    "Qwen2.5's vocabulary": Shape(lengths=(40, 41), vocabulary=151_936, width=64, padding=271),
}


@dataclass(frozen=True)
class Inputs:
    shape: Shape
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    factors: Tensor
    """`[3, N]`: the loss is the sum of a logp^2 + b logp + c entropy."""


def drawn(shape: Shape, dtype: torch.dtype) -> Inputs:
    """Logits of standard deviation 2. What is drawn in a short dtype is the same number in float64."""
    g = torch.Generator().manual_seed(0)
    n = sum(shape.lengths)

    def normal(scale: float, *sizes: int) -> Tensor:
        return (scale * torch.randn(sizes, generator=g, dtype=torch.float64)).to(dtype).double()

    return Inputs(
        shape,
        normal(1.0, n, shape.width),
        normal(2.0 / shape.width**0.5, shape.vocabulary, shape.width),
        normal(0.5, shape.vocabulary) if shape.bias else None,
        torch.randint(shape.vocabulary - shape.padding, (n,), generator=g),
        torch.randn(3, n, generator=g, dtype=torch.float64) / n * torch.tensor([[0.1], [1.0], [1.0]]),
    )


def plain(x: Inputs, mode: Entropies) -> dict[str, Tensor]:
    s = x.shape
    leaves = [t.clone().requires_grad_() for t in (x.hidden, x.weight, x.bias) if t is not None]
    z = leaves[0] @ leaves[1].T
    if x.bias is not None:
        z = z + leaves[2]
    if s.softcap is not None:
        z = s.softcap * torch.tanh(z / s.softcap)
    z = z[:, : s.vocabulary - s.padding] / s.temperature
    every = torch.log_softmax(z, -1)
    logp = every.gather(1, x.targets.unsqueeze(1)).squeeze(1)
    entropy = Categorical(logits=z, validate_args=False).entropy()
    a, b, c = x.factors
    loss = (a * logp**2 + b * logp).sum()
    if mode == "gradient":
        loss = loss + (c * entropy).sum()
    found = torch.autograd.grad(loss, leaves)
    norms = 1.0 - 2.0 * logp.exp() + every.exp().square().sum(-1)
    values = {"loss": loss, "logp": logp, "entropy": entropy, "norm": norms}
    return {
        k: v.detach() for k, v in {**values, **dict(zip(("hidden", "weight", "bias"), found, strict=False))}.items()
    }


def on_gpu(x: Inputs, kind: str, dtype: torch.dtype, mode: Entropies, **options: Any) -> dict[str, Tensor]:
    """Hidden states in `dtype`; weights are float32 under bfloat16, as in a run."""
    held = torch.float64 if dtype == torch.float64 else torch.float32
    hidden = x.hidden.to(GPU, dtype).requires_grad_()
    weight = x.weight.to(GPU, held).requires_grad_()
    bias = None if x.bias is None else x.bias.to(GPU, held).requires_grad_()
    s, targets = x.shape, x.targets.to(GPU)
    excluded = torch.arange(s.vocabulary - s.padding, s.vocabulary, device=GPU) if s.padding else None
    head = Head(weight, bias, s.temperature, s.softcap, blocks_of(kind), excluded=excluded)
    edges = torch.tensor([0, *s.lengths]).cumsum(0).tolist()
    factors = x.factors.to(GPU)

    def loss(rows: slice, logp: Tensor, entropy: Tensor | None) -> Tensor:
        a, b, c = factors[:, edges[rows.start] : edges[rows.stop]].to(logp.dtype)
        total = (a * logp**2 + b * logp).sum()
        return total if entropy is None else total + (c * entropy).sum()

    value, entropy = linear_loss(head, hidden, targets, s.lengths, loss, entropy=mode, **options)
    value.backward()
    assert entropy is not None
    logp, scored = token_values(head, hidden, targets, with_entropy=True)
    assert scored is not None
    found = {"loss": value.detach(), "logp": logp, "entropy": entropy, "scored entropy": scored}
    found["norm"] = token_score_norms(head, hidden, targets, logp)
    found |= {n: p.grad for n, p in (("hidden", hidden), ("weight", weight), ("bias", bias)) if p is not None}
    if s.padding:
        assert not bool(found["weight"][s.vocabulary - s.padding :].any()), "an id that is never said has a gradient"
    return {name: tensor.double().cpu() for name, tensor in found.items()}


def compared(found: dict[str, Tensor], expected: dict[str, Tensor], *, nats: float, relative: float) -> list[str]:
    """What is too far away: values by their largest difference, gradients by that of their norms."""
    said = []
    for name, got in found.items():
        want = expected[name.removeprefix("scored ")]
        gradient = name in ("hidden", "weight", "bias")
        apart = float((got - want).norm() / want.norm()) if gradient else float((got - want).abs().max())
        if not apart <= (relative if gradient else nats):
            said.append(f"{name} is {apart:.2e} apart")
    return said


@pytest.mark.parametrize("tile_bytes", [None, 1], ids=["a tile", "no tile"])
@pytest.mark.parametrize("mode", ["value", "gradient"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SHAPES)
def test_float32_has_the_values_of_all_logits(name: str, kind: str, mode: Entropies, tile_bytes: int | None) -> None:
    x = drawn(SHAPES[name], torch.float32)
    found = on_gpu(x, kind, torch.float32, mode, tile_bytes=tile_bytes)
    assert compared(found, plain(x, mode), nats=3e-5, relative=1e-5) == []


@pytest.mark.parametrize("mode", ["value", "gradient"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SHAPES)
def test_bfloat16_has_them_to_the_rounding_of_its_logits(name: str, kind: str, mode: Entropies) -> None:
    # A logit of up to 8 is rounded by up to 2^-6 = 0.016; a temperature of 0.7 divides the error as it does the logit.
    x = drawn(SHAPES[name], torch.bfloat16)
    found = on_gpu(x, kind, torch.bfloat16, mode)
    assert compared(found, plain(x, mode), nats=0.05, relative=0.02) == []


@pytest.mark.parametrize("mode", ["value", "gradient"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["temperature", "softcap, padded vocabulary", "bias and temperature"])
def test_float64_has_them_to_its_own_rounding(name: str, kind: str, mode: Entropies) -> None:
    x = drawn(SHAPES[name], torch.float64)
    assert compared(on_gpu(x, kind, torch.float64, mode), plain(x, mode), nats=1e-11, relative=1e-11) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [1, 7, 130, 1021])
def test_blocks_of_any_width_give_the_same(kind: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("BLOCK_COLUMNS", columns), ("FEWEST_COLUMNS", 1), ("ON_GPU", 1)):
        monkeypatch.setattr(linear_logprob, name, value)
    x = drawn(replace(SHAPES["softcap, padded vocabulary"], vocabulary=1501), torch.float32)
    assert compared(on_gpu(x, kind, torch.float32, "gradient"), plain(x, "gradient"), nats=3e-5, relative=1e-5) == []


def test_kernels_on_another_stream_give_the_same() -> None:
    x = drawn(SHAPES["padded vocabulary"], torch.float32)
    here = on_gpu(x, "triton", torch.float32, "gradient")
    with torch.cuda.stream(torch.cuda.Stream()):
        there = on_gpu(x, "triton", torch.float32, "gradient")
    assert compared(there, here, nats=1e-5, relative=1e-6) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_that_is_there_is_added_to_and_rows_without_tokens_are_no_work(kind: str) -> None:
    def gradient(lengths: Sequence[int], there: Tensor | None) -> Tensor:
        weight = x.weight.to(GPU, torch.float32).requires_grad_()
        hidden = x.hidden[: sum(lengths)].to(GPU, torch.bfloat16)
        head = Head(weight, blocks=blocks_of(kind))
        targets = x.targets[: sum(lengths)].to(GPU)
        value, _ = linear_loss(head, hidden, targets, lengths, lambda rows, logp, _: logp.sum(), weight_grad=there)
        value.backward()
        assert weight.grad is not None
        return weight.grad

    x = drawn(Shape(), torch.bfloat16)
    alone = gradient((20, 30), None)
    there = torch.ones_like(alone)
    both = gradient((20, 30), there)
    assert torch.allclose(both - 1.0, alone, rtol=1e-3, atol=1e-4)
    assert not bool(gradient((0, 0), None).any())
