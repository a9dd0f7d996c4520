"""Log-probs, entropies and gradients through a head in tiles: those that autograd gives through all logits."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical

from gmpo.ops import blocks, linear_logprob
from gmpo.ops.blocks import Blocks, TorchBlocks
from gmpo.ops.kernels import blocks_for
from gmpo.ops.linear_logprob import Head, token_values
from gmpo.ops.linear_loss import Entropies, LossOfTokens, linear_loss
from gmpo.ops.logprob import token_logprobs

KINDS: dict[str, type[Blocks]] = {"torch": TorchBlocks}
if sys.platform == "linux":  # Triton exists for no other; its kernels run in its interpreter, see conftest.py
    from gmpo.ops.blocks_triton import TritonBlocks

    KINDS["triton"] = TritonBlocks


@pytest.fixture(scope="module", params=list(KINDS))
def made_of(request: pytest.FixtureRequest) -> type[Blocks]:
    return KINDS[request.param]


def backward(
    head: Head, hidden: Tensor, targets: Tensor, lengths: Sequence[int], loss: LossOfTokens, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """d loss / d hidden, and the entropies if asked for; the head's gradients are in `.grad`."""
    hidden = hidden.detach().requires_grad_()
    value, ent = linear_loss(head, hidden, targets, lengths, loss, **options)
    value.backward()
    assert hidden.grad is not None
    return hidden.grad, ent


@dataclass
class Case:
    """A head over `len(targets)` tokens, and a loss `sum_i a_i logp_i^2 + b_i logp_i + c_i entropy_i`."""

    hidden: Tensor
    weight: Tensor | None
    bias: Tensor | None
    targets: Tensor
    lengths: Sequence[int]
    temperature: float = 1.0
    softcap: float | None = None
    made_of: type[Blocks] = TorchBlocks
    excluded: Tensor | None = None
    """No target is among them."""

    @property
    def factors(self) -> Tensor:
        g = torch.Generator().manual_seed(1)
        return torch.randn(3, len(self.targets), generator=g, dtype=torch.float64)

    def tiled(self, mode: Entropies, tile_bytes: int) -> tuple[Tensor, ...]:
        """Gradients by hidden states, weight and bias, those there are; then the entropies if asked for."""
        parameters = [p.detach().clone().requires_grad_() for p in (self.weight, self.bias) if p is not None]
        rest = iter(parameters)
        head = Head(
            next(rest) if self.weight is not None else None,
            next(rest) if self.bias is not None else None,
            self.temperature,
            self.softcap,
            self.made_of(),
            excluded=self.excluded,
        )
        edges = torch.tensor([0, *self.lengths]).cumsum(0).tolist()

        def loss(rows: slice, logp: Tensor, ent: Tensor | None) -> Tensor:
            a, b, c = self.factors[:, edges[rows.start] : edges[rows.stop]].to(logp.dtype)
            total = (a * logp**2 + b * logp).sum()
            return total if ent is None else total + (c * ent).sum()

        gradient, ent = backward(
            head, self.hidden, self.targets, self.lengths, loss, entropy=mode, tile_bytes=tile_bytes
        )
        found = [gradient, *(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)]
        return tuple(found) if ent is None else (*found, ent)

    def whole(self, mode: Entropies, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
        hidden = self.hidden.detach().to(dtype).requires_grad_()
        parameters = [p.detach().to(dtype).requires_grad_() for p in (self.weight, self.bias) if p is not None]
        logits = hidden if self.weight is None else hidden @ parameters[0].T
        if self.bias is not None:
            logits = logits + parameters[-1]
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        targets = self.targets
        if self.excluded is not None:
            kept = torch.tensor([v for v in range(logits.shape[1]) if v not in self.excluded.tolist()])
            logits, targets = logits[:, kept], torch.searchsorted(kept, targets)
        logp = token_logprobs(logits, targets, temperature=self.temperature)
        ent = Categorical(logits=logits / self.temperature, validate_args=False).entropy()
        a, b, c = self.factors.to(dtype)
        loss = (a * logp**2 + b * logp).sum()
        if mode == "gradient":
            loss = loss + (c * ent).sum()
        found = torch.autograd.grad(loss, [hidden, *parameters], materialize_grads=True)
        return found if mode == "none" else (*found, ent.detach())


def case(
    lengths: Sequence[int],
    vocabulary: int,
    width: int,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    bias: bool = False,
    identity: bool = False,
    temperature: float = 1.0,
    softcap: float | None = None,
    made_of: type[Blocks] = TorchBlocks,
) -> Case:
    g = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    return Case(
        normal(tokens, vocabulary if identity else width),
        None if identity else normal(vocabulary, width),
        normal(vocabulary) if bias else None,
        torch.randint(vocabulary, (tokens,), generator=g),
        lengths,
        temperature,
        softcap,
        made_of,
    )


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        assert (a.double() - b.double()).abs().max().item() <= tolerance * scale if b.numel() else a.numel() == 0


CASES = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.integers(0, 7), min_size=1, max_size=6),
        "vocabulary": st.integers(2, 40),
        "width": st.integers(1, 9),
        "temperature": st.floats(0.1, 4.0),
        "bias": st.booleans(),
        "seed": st.integers(0, 2**20),
    }
)
MODES = st.sampled_from(["none", "value", "gradient"])
HEADS = st.sampled_from(["plain", "capped", "logits"])


def check_against_the_whole_logits(
    made_of: type[Blocks], sizes: dict[str, Any], kind: str, mode: Entropies, tile_bytes: int, columns: int
) -> None:
    sizes["bias"] &= kind != "logits"
    c = case(**sizes, identity=kind == "logits", softcap=1.5 if kind == "capped" else None, made_of=made_of)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_logprob, "BLOCK_COLUMNS", columns)
        patch.setattr(linear_logprob, "FEWEST_COLUMNS", 1)
        patch.setattr(blocks, "CACHED_ELEMENTS", 2 * columns)
        found = c.tiled(mode, tile_bytes)
    assert_close(found, c.whole(mode), 1e-10)


@pytest.mark.parametrize("made_of", KINDS.values(), ids=KINDS)
@settings(deadline=None, max_examples=40)
@given(CASES, st.sampled_from([None, 1.5]), MODES, st.integers(2, 5), st.integers(1, 40))
def test_ids_of_probability_0_are_as_if_they_were_not_there_under_a_softcap_too(
    made_of: type[Blocks], sizes: dict[str, Any], softcap: float | None, mode: Entropies, every: int, columns: int
) -> None:
    """Every second to fifth id is excluded: values and gradients of the logits over the others, and a gradient of 0 for
    the excluded rows."""
    c = case(**sizes, softcap=softcap, made_of=made_of)
    kept = torch.tensor([v for v in range(sizes["vocabulary"]) if v % every])
    excluded = torch.arange(0, sizes["vocabulary"], every)
    c = replace(c, targets=kept[c.targets % len(kept)], excluded=excluded)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_logprob, "BLOCK_COLUMNS", columns)
        patch.setattr(linear_logprob, "FEWEST_COLUMNS", 1)
        found = c.tiled(mode, 3000)
    assert_close(found, c.whole(mode), 1e-10)
    assert not bool(found[1][excluded].any())


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("mode", ["none", "value", "gradient"])
@pytest.mark.parametrize("made_of", KINDS.values(), ids=KINDS)
def test_blocks_in_which_no_id_is_possible_add_nothing(
    made_of: type[Blocks], mode: Entropies, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ids behind a tokenizer's, of a vocabulary padded to a round number: in float32, and in blocks of 8 the last
    two hold no other."""
    monkeypatch.setattr(linear_logprob, "BLOCK_COLUMNS", 8)
    monkeypatch.setattr(linear_logprob, "FEWEST_COLUMNS", 1)
    c = case([5, 0, 6], 40, 4, softcap=softcap, made_of=made_of, dtype=torch.float32)
    c = replace(c, targets=c.targets % 23, excluded=torch.arange(23, 40))
    for tile_bytes in (1, 6000):
        assert_close(c.tiled(mode, tile_bytes), c.whole(mode), 1e-4)


@settings(deadline=None, max_examples=150)
@given(CASES, HEADS, MODES, st.integers(1, 6000), st.integers(1, 40))
def test_tiles_and_blocks_of_any_size_give_the_gradients_of_the_whole_logits(
    sizes: dict[str, Any], kind: str, mode: Entropies, tile_bytes: int, columns: int
) -> None:
    check_against_the_whole_logits(TorchBlocks, sizes, kind, mode, tile_bytes, columns)


@pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux alone")
@settings(deadline=None, max_examples=25)
@given(CASES, HEADS, MODES, st.sampled_from([1, 1500, 6000]), st.sampled_from([7, 16, 40]))
def test_so_do_those_of_triton(
    sizes: dict[str, Any], kind: str, mode: Entropies, tile_bytes: int, columns: int
) -> None:
    """Fewer of them: its interpreter takes milliseconds for each row of a block."""
    check_against_the_whole_logits(KINDS["triton"], sizes, kind, mode, tile_bytes, columns)


@pytest.mark.parametrize("columns", [3, 4096])
def test_values_without_gradient_are_those_of_the_whole_logits(
    made_of: type[Blocks], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr(linear_logprob, "BLOCK_COLUMNS", columns)
    monkeypatch.setattr(linear_logprob, "FEWEST_COLUMNS", 1)
    c = case([5, 6], 29, 4, temperature=0.7, made_of=made_of)
    assert c.weight is not None
    logits = c.hidden @ c.weight.T
    logp, ent = token_values(Head(c.weight, temperature=0.7, blocks=made_of()), c.hidden, c.targets, with_entropy=True)
    assert ent is not None
    assert torch.allclose(logp, token_logprobs(logits, c.targets, temperature=0.7), atol=1e-12)
    assert torch.allclose(ent, Categorical(logits=logits / 0.7).entropy(), atol=1e-12)
    assert token_values(Head(c.weight, blocks=made_of()), c.hidden, c.targets)[1] is None


@pytest.mark.parametrize("mode", ["none", "value", "gradient"])
def test_the_gradient_is_the_derivative(made_of: type[Blocks], mode: Entropies) -> None:
    """Against differences of the loss, independent of autograd's opinion of the whole logits."""
    c = case([2, 1], 6, 2, temperature=1.3, bias=True, made_of=made_of)
    assert c.weight is not None
    assert c.bias is not None

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> float:
        logp, ent = token_values(Head(weight, bias, 1.3, blocks=made_of()), hidden, c.targets, with_entropy=True)
        assert ent is not None
        a, b, d = c.factors
        return float((a * logp**2 + b * logp).sum() + ((d * ent).sum() if mode == "gradient" else 0.0))

    found = c.tiled(mode, 10**6)[:3]
    inputs = [c.hidden, c.weight, c.bias]
    for i, gradient in enumerate(found):
        for place in range(gradient.numel()):
            step = torch.zeros_like(inputs[i]).flatten()
            step[place] = 1e-6
            up = [x + step.view_as(x) if j == i else x for j, x in enumerate(inputs)]
            down = [x - step.view_as(x) if j == i else x for j, x in enumerate(inputs)]
            assert float(gradient.flatten()[place]) == pytest.approx((loss(*up) - loss(*down)) / 2e-6, abs=1e-7)


def test_the_loss_is_called_with_whole_answers_each_once(made_of: type[Blocks]) -> None:
    c = case([3, 0, 2, 4], 10, 3, made_of=made_of)
    seen: list[int] = []
    sizes: list[int] = []

    def loss(rows: slice, logp: Tensor, _: Tensor | None) -> Tensor:
        seen.extend(range(rows.start, rows.stop))
        sizes.append(len(logp))
        return logp.sum()

    assert c.weight is not None
    backward(Head(c.weight, blocks=made_of()), c.hidden, c.targets, c.lengths, loss, tile_bytes=5 * 10 * 8)
    assert seen == [0, 1, 2, 3]
    assert sizes == [5, 4]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("tile_bytes", [1, 10**7], ids=["two sweeps", "one sweep"])
def test_float32_is_as_exact_as_the_whole_logits_in_float32(
    made_of: type[Blocks], scale: float, tile_bytes: int
) -> None:
    c = case([16] * 4, 500, 32, dtype=torch.float32, made_of=made_of)
    c.hidden *= scale
    exact = c.whole("value")
    plain = c.whole("value", torch.float32)
    assert c.weight is not None
    resolution = 2 * float((c.hidden @ c.weight.T).abs().max()) * torch.finfo(torch.float32).eps
    for tile, one, true in zip(c.tiled("value", tile_bytes), plain, exact, strict=True):
        allowed = 3 * (one.double() - true).abs().max() + 2e-6 * true.abs().max() + resolution
        assert (tile.double() - true).abs().max() <= allowed


def test_a_token_that_is_all_but_certain_keeps_its_small_gradient_in_bfloat16(made_of: type[Blocks]) -> None:
    """1 - p is 1e-3, below bfloat16's resolution at 1: computed as p - 1 in that dtype it would be 0 or 4e-3."""
    gap = math.log(999.0)
    hidden = torch.tensor([[1.0]], dtype=torch.bfloat16)
    weight = torch.tensor([[gap], [0.0]], dtype=torch.float32, requires_grad=True)
    rounded = float(weight.detach()[0].to(torch.bfloat16))
    left = 1.0 / (1.0 + math.exp(rounded))
    backward(Head(weight, blocks=made_of()), hidden, torch.tensor([0]), [1], lambda rows, logp, _: logp.sum())
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == pytest.approx([left, -left], rel=5e-3)


def test_bfloat16_hidden_states_have_bfloat16_products_and_float32_everything_else(made_of: type[Blocks]) -> None:
    c = case([8] * 4, 200, 16, dtype=torch.bfloat16, made_of=made_of)
    assert c.weight is not None
    logp, ent = token_values(Head(c.weight.float(), blocks=made_of()), c.hidden, c.targets, with_entropy=True)
    assert ent is not None
    assert logp.dtype == ent.dtype == torch.float32
    exact = Case(c.hidden.double(), c.weight.double(), None, c.targets, c.lengths).whole("value")
    c.weight = c.weight.float()
    found = c.tiled("value", 10**6)
    assert [x.dtype for x in found] == [torch.bfloat16, torch.float32, torch.float32]
    for a, b in zip(found, exact, strict=True):
        assert (a.double() - b).norm() <= 0.02 * b.norm()


@pytest.mark.parametrize("sparse", [False, True], ids=["dense lookup", "sparse lookup"])
@pytest.mark.parametrize("handed_over", [False, True])
def test_a_tied_head_gets_both_gradients_beside_what_is_there(
    made_of: type[Blocks], handed_over: bool, sparse: bool
) -> None:
    embedding = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    tokens, targets = torch.tensor([1, 5, 8]), torch.tensor([2, 2, 0])
    whole = token_logprobs(embedding[tokens] @ embedding.T, targets, temperature=1.0).sum()
    (expected,) = torch.autograd.grad(whole, embedding)
    embedding.grad = there = torch.full_like(embedding, 3.0)
    hidden = torch.nn.functional.embedding(tokens, embedding, sparse=sparse)
    if handed_over:
        embedding.grad = None
    value, _ = linear_loss(
        Head(embedding, blocks=made_of()),
        hidden,
        targets,
        [3],
        lambda rows, logp, _: logp.sum(),
        weight_grad=there if handed_over else None,
    )
    assert value.item() == pytest.approx(whole.item())
    value.backward()
    assert embedding.grad is not None
    assert torch.allclose(embedding.grad, expected + 3.0, atol=1e-12)


def test_a_gradient_that_is_handed_over_is_added_to_in_its_own_memory(made_of: type[Blocks]) -> None:
    """So a head's gradient is held once, however many passes add to it."""
    c = case([2, 3], 7, 3, made_of=made_of)
    assert c.weight is not None
    weight = c.weight.requires_grad_()

    def step() -> Tensor:
        there, weight.grad = weight.grad, None
        value, _ = linear_loss(
            Head(weight, blocks=made_of()),
            c.hidden,
            c.targets,
            [2, 3],
            lambda rows, logp, _: logp.sum(),
            weight_grad=there,
        )
        del there  # autograd keeps what nobody else holds
        value.backward()
        assert weight.grad is not None
        return weight.grad

    once = step().clone()
    place = weight.grad.data_ptr()  # type: ignore[union-attr]
    twice = step()
    assert twice.data_ptr() == place
    assert once.any()
    assert torch.allclose(twice, 2 * once, atol=1e-12)


def test_a_factor_before_the_loss_is_in_every_gradient(made_of: type[Blocks]) -> None:
    c = case([2, 3], 7, 3, bias=True, made_of=made_of)
    assert c.weight is not None
    assert c.bias is not None
    leaves = [x.requires_grad_() for x in (c.hidden, c.weight, c.bias)]

    def derived(factor: float, **options: Any) -> tuple[Tensor, ...]:
        head = Head(c.weight, c.bias, blocks=made_of())
        value, _ = linear_loss(head, c.hidden, c.targets, [2, 3], lambda rows, logp, _: logp.sum(), **options)
        return torch.autograd.grad(factor * value, leaves)

    assert all(torch.allclose(a, 2.5 * b) for a, b in zip(derived(2.5), derived(1.0), strict=True))
    with pytest.raises(RuntimeError, match="without a factor"):
        derived(2.5, weight_grad=torch.zeros_like(c.weight))


def test_a_gradient_is_given_away_once(made_of: type[Blocks]) -> None:
    c = case([2], 5, 3, made_of=made_of)
    assert c.weight is not None
    head = Head(c.weight.requires_grad_(), blocks=made_of())
    value, _ = linear_loss(head, c.hidden, c.targets, [2], lambda rows, logp, _: logp.sum())
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="earlier backward pass"):
        value.backward()


def test_a_frozen_head_gets_no_gradient(made_of: type[Blocks]) -> None:
    c = case([2], 5, 3, made_of=made_of)
    assert c.weight is not None
    gradient, _ = backward(Head(c.weight, blocks=made_of()), c.hidden, c.targets, [2], lambda rows, logp, _: logp.sum())
    assert gradient.any()
    assert c.weight.grad is None


def test_a_loss_that_ignores_its_tokens_has_no_gradient(made_of: type[Blocks]) -> None:
    c = case([2, 3], 5, 3, made_of=made_of)
    assert c.weight is not None
    gradient, _ = backward(
        Head(c.weight, blocks=made_of()), c.hidden, c.targets, [2, 3], lambda rows, logp, _: torch.tensor(1.0)
    )
    assert not gradient.any()


def test_an_impossible_token_of_the_vocabulary_makes_no_nan(made_of: type[Blocks]) -> None:
    bias = torch.tensor([0.0, 1.0, -math.inf], dtype=torch.float64)
    head = Head(torch.zeros(3, 1, dtype=torch.float64), bias, blocks=made_of())
    logp, ent = token_values(head, torch.ones(2, 1, dtype=torch.float64), torch.tensor([0, 1]), with_entropy=True)
    assert ent is not None
    p = 1 / (1 + math.e)
    assert logp.tolist() == pytest.approx([math.log(p), math.log(1 - p)])
    assert ent.tolist() == pytest.approx([-(p * math.log(p) + (1 - p) * math.log(1 - p))] * 2)


def test_a_token_infinitely_behind_its_neighbours_block_makes_no_nan(
    made_of: type[Blocks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its block's share of the sum is 0 in float32."""
    monkeypatch.setattr(linear_logprob, "BLOCK_COLUMNS", 2)
    monkeypatch.setattr(linear_logprob, "FEWEST_COLUMNS", 1)
    weight = torch.tensor([[1.0], [0.0], [-500.0], [-500.0]], requires_grad=True)
    gradient, ent = backward(
        Head(weight, blocks=made_of()),
        torch.ones(1, 1),
        torch.tensor([3]),
        [1],
        lambda rows, logp, _: logp.sum(),
        entropy="value",
    )
    assert ent is not None
    p = 1 / (1 + math.exp(-1.0))
    # the target's row less the mean of all rows
    assert gradient.item() == pytest.approx(-500.0 - p)
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == pytest.approx([-p, p - 1, 0.0, 1.0])
    assert ent.item() == pytest.approx(-(p * math.log(p) + (1 - p) * math.log(1 - p)), abs=1e-5)


def test_no_tokens_are_no_work(made_of: type[Blocks]) -> None:
    c = case([0, 0], 5, 3, made_of=made_of)
    assert c.weight is not None
    logp, ent = token_values(Head(c.weight, blocks=made_of()), c.hidden, c.targets, with_entropy=True)
    assert ent is not None
    assert logp.shape == ent.shape == (0,)
    gradient, _ = backward(
        Head(c.weight, blocks=made_of()), c.hidden, c.targets, [0, 0], lambda rows, logp, _: logp.sum()
    )
    assert gradient.shape == (0, 3)


def test_a_gpu_gets_the_kernels_and_a_cpu_torchs_operations() -> None:
    assert type(blocks_for(torch.device("cpu"))) is TorchBlocks
    assert type(blocks_for(torch.device("cuda"))) is KINDS.get("triton", TorchBlocks)
