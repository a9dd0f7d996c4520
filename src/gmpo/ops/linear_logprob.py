"""Hidden states and an LM head -> log-probs, entropies and a loss's gradient, never holding the logits of all tokens.

A loss sees the head only through each token's log-prob and entropy. With w and u its derivatives by these,

    d loss / d z_v = w (1[v = target] - p_v) - u p_v (log p_v + entropy),      z = logits / temperature, p = softmax(z)

so three products of the head's size are enough, one for z and two with d loss / d z, if the loss of some answers is
known before their z is let go. `backward` therefore takes whole answers through the head, a tile at a time: z of the
tile, log-probs, the loss of its answers, gradient. An answer too long for a tile goes through twice, which costs a
fourth product. All of it happens in blocks of the vocabulary, a few of whose rows fit into the processor's cache.

Shapes: N tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gmpo.ops.blocks import Blocks, Curve, Memory, Sums, TorchBlocks, exact_dtype

TILE_BYTES = 224 * 2**20
"""Of z that is kept from the forward product to the backward ones. Products of few tokens are slow; more is wasted."""
BLOCK_COLUMNS, FEWEST_COLUMNS = 4096, 256
"""Part of the vocabulary in one product; it shrinks where the tokens are many."""
BLOCK_BYTES = 64 * 2**20
"""Of z in one product, where the tokens are many."""
Entropies = Literal["none", "value", "gradient"]


@dataclass(frozen=True, slots=True)
class Head:
    """`softcap(hidden weight^T + bias) / temperature`, where `softcap(x) = s tanh(x / s)`."""

    weight: Float[Tensor, "V H"] | None
    """None where the hidden states are the logits themselves. Products run in the dtype of the hidden states,
    everything behind them in float32 (float64)."""
    bias: Float[Tensor, " V"] | None = None
    """Only with a weight."""
    temperature: float = 1.0
    softcap: float | None = None
    blocks: Blocks = field(default_factory=TorchBlocks, repr=False, compare=False)
    memory: Memory = field(default_factory=Memory, repr=False, compare=False)

    def size(self, hidden: Tensor) -> int:
        """V."""
        return hidden.shape[1] if self.weight is None else self.weight.shape[0]

    def curve(self, columns: slice) -> Curve:
        """Of a block of the vocabulary."""
        bias = None if self.bias is None else self.bias.detach()[columns]
        return Curve(bias, self.temperature, self.softcap, bounded=self.weight is None or bias is not None)


LossOfTokens = Callable[[slice, Tensor, Tensor | None], Tensor]
"""The loss (a scalar) of the answers in the slice, given their tokens' log-probs `[n]` and, where it depends on them,
entropies `[n]`."""


@dataclass(frozen=True, slots=True)
class _Values:
    """Of n tokens. The log-sum-exp is kept in two parts, for their sum would round the smaller away."""

    logp: Tensor
    entropy: Tensor | None
    peak: Tensor
    total: Tensor
    """Sum of exp(z - peak)."""


@torch.no_grad()
def token_values(
    head: Head, hidden: Float[Tensor, "N H"], targets: Int[Tensor, " N"], *, with_entropy: bool = False
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"] | None]:
    """Natural log-probs of `targets`, and entropies in nats if asked for. Without gradient."""
    values = _values(head, hidden.detach(), targets, with_entropy=with_entropy)
    return values.logp, values.entropy


@torch.no_grad()
def backward(
    head: Head,
    hidden: Float[Tensor, "N H"],
    targets: Int[Tensor, " N"],
    lengths: Sequence[int],
    loss: LossOfTokens,
    *,
    entropy: Entropies = "none",
    tile_bytes: int = TILE_BYTES,
) -> tuple[Float[Tensor, "N H"], Float[Tensor, " N"] | None]:
    """The gradient of a loss, added to `.grad` of the head's parameters and returned for the hidden states.

    First derivatives only, and no graph is left: nothing can be derived from the results again.

    Args:
        lengths: tokens of each answer, in the order of `hidden`; their sum is N.
        loss: is called once for each of a number of runs of neighbouring answers, which together are all of them. What
            it returns for them must add up to the loss: no answer's loss depends on another's log-probs.
        entropy: "value" returns the entropies; with "gradient" the loss is given them too.
        tile_bytes: memory for z; at least one answer, or one block of the vocabulary, is held.

    Returns:
        d loss / d hidden in the dtype of `hidden`, and the entropies if asked for.
    """
    hidden = hidden.detach()
    gradient = torch.zeros_like(hidden)
    entropies = (
        None if entropy == "none" else torch.zeros(len(targets), dtype=exact_dtype(hidden), device=hidden.device)
    )
    tokens_of_tile = tile_bytes // (head.size(hidden) * hidden.element_size())
    for rows, tokens in _tiles(lengths, tokens_of_tile):
        part = hidden[tokens], targets[tokens]
        once = tokens.stop - tokens.start <= tokens_of_tile and entropy != "gradient" and head.softcap is None
        if once and head.weight is not None:
            gradient[tokens], seen = _one_sweep(head, *part, rows, loss, with_entropy=entropy == "value")
        else:
            gradient[tokens], seen = _two_sweeps(head, *part, rows, loss, entropy)
        if entropies is not None and seen is not None:
            entropies[tokens] = seen
    return gradient, entropies


def _tiles(lengths: Sequence[int], tokens_of_tile: int) -> Iterator[tuple[slice, slice]]:
    """Runs of answers, with their tokens, that fit into a tile; one that does not fit is a run of its own."""
    first = start = end = 0
    for row, length in enumerate(lengths):
        if end > start and end + length - start > tokens_of_tile:
            yield slice(first, row), slice(start, end)
            first, start = row, end
        end += length
    if end > start:
        yield slice(first, len(lengths)), slice(start, end)


def _one_sweep(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    rows: slice,
    loss: LossOfTokens,
    *,
    with_entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    """z of the whole tile is kept, as `exp(z - peak of the block)`, until the loss is known."""
    assert head.weight is not None
    exact, n = exact_dtype(hidden), len(targets)
    columns = _columns(head, hidden)
    store = head.memory.take("tile", (n * head.size(hidden),), hidden.dtype, hidden.device)
    target_z = torch.empty(n, dtype=exact, device=hidden.device)
    blocks, sums = [], []
    for cols in columns:
        block = store[n * cols.start : n * cols.stop].view(n, -1)
        _product(head, hidden, cols, into=block)
        sums.append(
            head.blocks.exponentials(
                block, head.curve(cols), targets - cols.start, target_z, keep=True, with_product=False
            )
        )
        blocks.append(block)
    peak, shares, total = _joint(sums, target_z)
    logp = (target_z - peak) - total.log()
    w, _ = _derivatives(loss, rows, logp, None)

    # The target's own column is left out of the products and added by itself: w (1 - p) without cancellation.
    scale = -w / total
    left_out = w * -torch.expm1(logp)
    products = torch.zeros(hidden.shape, dtype=exact, device=hidden.device)
    for cols, block, share in zip(columns, blocks, shares, strict=True):
        products += (block @ head.weight[cols].to(hidden.dtype)).to(exact) * share.unsqueeze(1)
        _add_head_gradient(head, cols, block, hidden, scale * share)
    entropy = None
    if with_entropy:
        # sum_v exp(z_v - peak) z_v, which the product with the head holds already, to float32's resolution of z.
        weighted = (products * hidden.to(exact)).sum(dim=1)
        if head.bias is not None:
            weighted += sum(
                share * (block.to(exact) @ head.bias[cols].to(exact))
                for cols, block, share in zip(columns, blocks, shares, strict=True)
            )
        entropy = peak + total.log() - weighted / (head.temperature * total) - logp.exp() * target_z
        entropy.clamp_(min=0.0)
    gradient = products * (scale / head.temperature).unsqueeze(1)
    _add_targets(head, hidden, targets, left_out, gradient)
    return gradient.to(hidden.dtype), entropy


def _two_sweeps(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    rows: slice,
    loss: LossOfTokens,
    entropy: Entropies,
) -> tuple[Tensor, Tensor | None]:
    """First the values, with every z let go; then z again, block by block, for the gradient."""
    values = _values(head, hidden, targets, with_entropy=entropy != "none")
    w, u = _derivatives(loss, rows, values.logp, values.entropy if entropy == "gradient" else None)
    exact = exact_dtype(hidden)
    log_total = values.total.log()
    scale = 1.0 / values.total
    p = values.logp.exp()
    left_out, constant = w * -torch.expm1(values.logp), -w
    if u is not None:
        assert values.entropy is not None
        left_out -= u * p * (values.logp + values.entropy)
        constant = constant - u * (values.entropy - log_total)
    gradient = torch.zeros(hidden.shape, dtype=exact, device=hidden.device)
    target_z = values.logp + log_total + values.peak
    for cols in _columns(head, hidden):
        g = _product(head, hidden, cols)
        head.blocks.slopes(g, head.curve(cols), targets - cols.start, values.peak, constant, None if u is None else -u)
        if head.weight is None:
            gradient[:, cols] = g.to(exact) * (scale / head.temperature).unsqueeze(1)
        else:
            gradient += (g @ head.weight[cols].to(hidden.dtype)).to(exact) * (scale / head.temperature).unsqueeze(1)
            _add_head_gradient(head, cols, g, hidden, scale)
    if head.softcap is not None:
        left_out = left_out * (1.0 - (target_z * (head.temperature / head.softcap)) ** 2)
    _add_targets(head, hidden, targets, left_out, gradient)
    return gradient.to(hidden.dtype), values.entropy


def _values(head: Head, hidden: Tensor, targets: Tensor, *, with_entropy: bool) -> _Values:
    exact, n = exact_dtype(hidden), len(targets)
    columns = _columns(head, hidden)
    target_z = torch.empty(n, dtype=exact, device=hidden.device)
    sums = [
        head.blocks.exponentials(
            _product(head, hidden, cols),
            head.curve(cols),
            targets - cols.start,
            target_z,
            keep=False,
            with_product=with_entropy,
        )
        for cols in columns
    ]
    peak, shares, total = _joint(sums, target_z)
    logp = (target_z - peak) - total.log()
    if not with_entropy:
        return _Values(logp, None, peak, total)
    # sum_v p_v (z_v - peak), each block's own peak taken into account
    mean = torch.zeros_like(peak)
    for share, own in zip(shares, sums, strict=True):
        assert own.product is not None
        mean += share * (own.product + own.total * (own.peak - peak))
    return _Values(logp, total.log() - mean / total, peak, total)


def _product(head: Head, hidden: Tensor, cols: slice, *, into: Tensor | None = None) -> Tensor:
    """x `[n, c]` of a block of the vocabulary, in the dtype of the hidden states; in `into`, or in memory that the next
    block will use again."""
    shape = len(hidden), cols.stop - cols.start
    x = head.memory.take("block", shape, hidden.dtype, hidden.device) if into is None else into
    if head.weight is None:
        return x.copy_(hidden[:, cols])
    return torch.mm(hidden, head.weight[cols].to(hidden.dtype).T, out=x)


def _joint(sums: Sequence[Sums], like: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """The peak over all blocks, each block's `exp(its peak - the peak)`, and the sum over all."""
    peak = torch.stack([own.peak for own in sums]).amax(dim=0)
    shares = [(own.peak - peak).exp() for own in sums]
    return peak, shares, sum((s * own.total for s, own in zip(shares, sums, strict=True)), torch.zeros_like(like))


def _derivatives(loss: LossOfTokens, rows: slice, logp: Tensor, entropy: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Of the loss, by log-probs and by entropies where they are given."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (logp, entropy) if x is not None]
        value = loss(rows, leaves[0], leaves[1] if entropy is not None else None)
        if not value.requires_grad:  # nothing in it depends on these tokens
            return torch.zeros_like(logp), None if entropy is None else torch.zeros_like(entropy)
        found = torch.autograd.grad(value, leaves, materialize_grads=True)
    return found[0], found[1] if entropy is not None else None


def _add_head_gradient(head: Head, cols: slice, g: Tensor, hidden: Tensor, scale: Tensor) -> None:
    """The gradient of the head's block, where `g` times `scale` by row is d loss / d z."""
    of_logits = scale / head.temperature
    weight, bias = head.weight, head.bias
    if weight is not None and weight.requires_grad:
        total = _grad(weight)[cols]
        scaled = (hidden.to(of_logits.dtype) * of_logits.unsqueeze(1)).to(hidden.dtype)
        if total.dtype == g.dtype:
            total.addmm_(g.T, scaled)
        else:
            total += (g.T @ scaled).to(total.dtype)
    if bias is not None and bias.requires_grad:
        _grad(bias)[cols] += (of_logits @ g.to(of_logits.dtype)).to(bias.dtype)


def _add_targets(head: Head, hidden: Tensor, targets: Tensor, left_out: Tensor, gradient: Tensor) -> None:
    """Add what the targets' own columns, left out of the products, contribute: `left_out` is their d loss / d z."""
    of_logits = left_out / head.temperature
    if head.weight is None:
        gradient[torch.arange(len(targets), device=targets.device), targets] += of_logits
        return
    own = head.weight.detach().index_select(0, targets).to(gradient.dtype)
    gradient += own * of_logits.unsqueeze(1)
    if head.weight.requires_grad:
        rows = hidden.to(of_logits.dtype) * of_logits.unsqueeze(1)
        _grad(head.weight).index_add_(0, targets, rows.to(head.weight.dtype))
    if head.bias is not None and head.bias.requires_grad:
        _grad(head.bias).index_add_(0, targets, of_logits.to(head.bias.dtype))


def _grad(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    grad: Tensor = parameter.grad
    return grad


def _columns(head: Head, hidden: Tensor) -> list[slice]:
    """Blocks of the vocabulary."""
    size = head.size(hidden)
    fitting = BLOCK_BYTES // (max(1, len(hidden)) * exact_dtype(hidden).itemsize)
    width = min(size, max(FEWEST_COLUMNS, min(BLOCK_COLUMNS, fitting)))
    return [slice(start, min(start + width, size)) for start in range(0, size, width)]
