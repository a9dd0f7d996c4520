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

TILE_BYTES = 224 * 2**20
"""Of z that is kept from the forward product to the backward ones. Products of few tokens are slow; more is wasted."""
BLOCK_COLUMNS, FEWEST_COLUMNS = 4096, 256
"""Part of the vocabulary in one product; it shrinks where the tokens are many."""
BLOCK_BYTES = 64 * 2**20
"""Of z in one product, where the tokens are many."""
CACHED_ELEMENTS = 64 * BLOCK_COLUMNS
"""Of z between two element-wise operations on a CPU: 1 MiB, half of a core's second-level cache."""

Entropies = Literal["none", "value", "gradient"]


class _Memory:
    """Buffers by their use, kept from call to call: fresh memory costs a page fault for every 4 KiB."""

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}

    def take(self, use: str, elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        kept = self.buffers.get(use)
        if kept is None or kept.numel() < elements:
            kept = self.buffers[use] = torch.empty(elements, dtype=dtype, device=device)
        return kept[:elements]


@dataclass(frozen=True, slots=True)
class Head:
    """`softcap(hidden weight^T + bias) / temperature`, where `softcap(x) = c tanh(x / c)`."""

    weight: Float[Tensor, "V H"] | None
    """None where the hidden states are the logits themselves. Products run in the dtype of the hidden states,
    everything behind them in float32 (float64)."""
    bias: Float[Tensor, " V"] | None = None
    """Only with a weight."""
    temperature: float = 1.0
    softcap: float | None = None
    memory: _Memory = field(default_factory=_Memory, repr=False, compare=False)

    def size(self, hidden: Tensor) -> int:
        """V."""
        return hidden.shape[1] if self.weight is None else self.weight.shape[0]


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
    entropies = None if entropy == "none" else torch.zeros(len(targets), dtype=_exact(hidden), device=hidden.device)
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
    exact, n = _exact(hidden), len(targets)
    columns = _columns(head, hidden)
    store = head.memory.take("tile", n * head.size(hidden), hidden.dtype, hidden.device)
    blocks, peaks, totals = [], [], []
    target_z = torch.empty(n, dtype=exact, device=hidden.device)
    start = 0
    for cols in columns:
        block = store[start : start + n * (cols.stop - cols.start)].view(n, -1)
        start += block.numel()
        z = _logits(head, hidden, cols, into=block)
        _pick(z, targets, cols, target_z)
        peak, total, _ = _exponentials(z, head.memory, with_product=False)
        if block.dtype != z.dtype:
            block.copy_(z)
        blocks.append(block)
        peaks.append(peak)
        totals.append(total)
    peak, shares = _joint(peaks)
    total = sum((s * t for s, t in zip(shares, totals, strict=True)), torch.zeros_like(peak))
    logp = (target_z - peak) - total.log()
    w, _ = _derivatives(loss, rows, logp, None)

    # The target's own column is left out of the products and added by itself: w (1 - p) without cancellation.
    scale = -w / total
    left_out = w * -torch.expm1(logp)
    products = torch.zeros(hidden.shape, dtype=exact, device=hidden.device)
    for cols, block, share in zip(columns, blocks, shares, strict=True):
        _zero_targets(block, targets, cols)
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
    exact = _exact(hidden)
    log_total = values.total.log()
    scale = 1.0 / values.total
    p = values.logp.exp()
    left_out = w * -torch.expm1(values.logp)
    if u is not None:
        assert values.entropy is not None
        left_out -= u * p * (values.logp + values.entropy)
        offset = -w - u * (values.entropy - log_total)
    gradient = torch.zeros(hidden.shape, dtype=exact, device=hidden.device)
    target_z = values.logp + log_total + values.peak
    for cols in _columns(head, hidden):
        z = _logits(head, hidden, cols)
        slope = None if head.softcap is None else 1.0 - (z * (head.temperature / head.softcap)) ** 2
        d = z.sub_(values.peak.unsqueeze(1))
        by_row = -w.unsqueeze(1) if u is None else offset.unsqueeze(1) - u.unsqueeze(1) * d
        g = d.exp_().mul_(by_row)
        if slope is not None:
            g *= slope
        _zero_targets(g, targets, cols)
        g = g.to(hidden.dtype)
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
    exact, n = _exact(hidden), len(targets)
    columns = _columns(head, hidden)
    target_z = torch.empty(n, dtype=exact, device=hidden.device)
    peaks, totals, products = [], [], []
    for cols in columns:
        z = _logits(head, hidden, cols)
        _pick(z, targets, cols, target_z)
        peak, total, product = _exponentials(z, head.memory, with_product=with_entropy)
        peaks.append(peak)
        totals.append(total)
        products.append(product)
    peak, shares = _joint(peaks)
    total = sum((s * t for s, t in zip(shares, totals, strict=True)), torch.zeros_like(peak))
    logp = (target_z - peak) - total.log()
    if not with_entropy:
        return _Values(logp, None, peak, total)
    # sum_v p_v (z_v - peak), each block's own peak taken into account
    mean = torch.zeros_like(peak)
    for share, own, t, product in zip(shares, peaks, totals, products, strict=True):
        assert product is not None
        mean += share * (product + t * (own - peak))
    return _Values(logp, total.log() - mean / total, peak, total)


def _logits(head: Head, hidden: Tensor, cols: slice, *, into: Tensor | None = None) -> Tensor:
    """z `[n, c]` of a block of the vocabulary, in float32 or better; in the memory of `into` if its dtype is that."""
    exact, n, width = _exact(hidden), len(hidden), cols.stop - cols.start
    if into is None or into.dtype != exact:
        z = head.memory.take("block", n * width, exact, hidden.device).view(n, width)
    else:
        z = into
    if head.weight is None:
        z.copy_(hidden[:, cols])
    else:
        weight = head.weight[cols].to(hidden.dtype).T
        if z.dtype == hidden.dtype:
            torch.mm(hidden, weight, out=z)
        else:
            low = head.memory.take("product", n * width, hidden.dtype, hidden.device).view(n, width)
            z.copy_(torch.mm(hidden, weight, out=low))
    if head.bias is not None:
        z += head.bias[cols].to(exact)
    if head.softcap is not None:
        z.div_(head.softcap).tanh_().mul_(head.softcap)
    if head.temperature != 1.0:
        z.div_(head.temperature)
    if head.weight is None or head.bias is not None:
        # An impossible token may have minus infinity: its probability is 0, and 0 times its z must be 0.
        z.clamp_(min=torch.finfo(exact).min / 4)
    return z


def _exponentials(z: Tensor, memory: _Memory, *, with_product: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """z becomes `exp(z - peak)`; returns peak, the sum and, if asked for, the sum of `exp(z - peak) (z - peak)`."""
    n, width = z.shape
    peak, total = torch.empty(n, dtype=z.dtype, device=z.device), torch.empty(n, dtype=z.dtype, device=z.device)
    product = torch.empty_like(total) if with_product else None
    step = max(1, CACHED_ELEMENTS // width) if z.device.type == "cpu" else max(1, n)
    differences = memory.take("differences", min(step, n) * width, z.dtype, z.device)
    for first in range(0, n, step):
        rows = slice(first, min(first + step, n))
        part = z[rows]
        d = differences[: part.numel()].view(part.shape)
        torch.amax(part, dim=1, out=peak[rows])
        torch.sub(part, peak[rows].unsqueeze(1), out=d)
        torch.exp(d, out=part)
        torch.sum(part, dim=1, out=total[rows])
        if product is not None:
            torch.linalg.vecdot(part, d, out=product[rows])
    return peak, total, product


def _joint(peaks: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The peak over all blocks, and each block's `exp(its peak - the peak)`."""
    peak = torch.stack(list(peaks)).amax(dim=0)
    return peak, [(own - peak).exp() for own in peaks]


def _derivatives(loss: LossOfTokens, rows: slice, logp: Tensor, entropy: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Of the loss, by log-probs and by entropies where they are given."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (logp, entropy) if x is not None]
        value = loss(rows, leaves[0], leaves[1] if entropy is not None else None)
        if not value.requires_grad:  # nothing in it depends on these tokens
            return torch.zeros_like(logp), None if entropy is None else torch.zeros_like(entropy)
        found = torch.autograd.grad(value, leaves, materialize_grads=True)
    return found[0], found[1] if entropy is not None else None


def _pick(z: Tensor, targets: Tensor, cols: slice, into: Tensor) -> None:
    """z of the targets that lie in the block."""
    here = _in_block(targets, cols)
    into[here] = z[here, targets[here] - cols.start]


def _zero_targets(block: Tensor, targets: Tensor, cols: slice) -> None:
    here = _in_block(targets, cols)
    block[here, targets[here] - cols.start] = 0.0


def _in_block(targets: Tensor, cols: slice) -> Tensor:
    here: Tensor = (targets >= cols.start) & (targets < cols.stop)
    return here.nonzero().squeeze(1)


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


def _exact(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def _columns(head: Head, hidden: Tensor) -> list[slice]:
    """Blocks of the vocabulary."""
    size = head.size(hidden)
    fitting = BLOCK_BYTES // (max(1, len(hidden)) * _exact(hidden).itemsize)
    width = min(size, max(FEWEST_COLUMNS, min(BLOCK_COLUMNS, fitting)))
    return [slice(start, min(start + width, size)) for start in range(0, size, width)]
