"""The loss of tokens behind an LM head and its gradient, made in tiles that never hold the logits of all tokens.

A loss sees the head only through each token's log-prob and entropy. With w and u its derivatives by these,

    d loss / d z_v = w (1[v = target] - p_v) - u p_v (log p_v + entropy),      z = logits / temperature, p = softmax(z)

so three products of the head's size are enough, one for z and two with d loss / d z, if the loss of some answers is
known before their z is let go. The forward pass therefore takes whole answers through the head, a tile at a time: z of
the tile, log-probs, the loss of its answers, gradient. The backward pass hands autograd what was made. An answer too
long for a tile goes through twice, which costs a fourth product.

Shapes: N tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gmpo.ops.blocks import exact_dtype
from gmpo.ops.linear_logprob import Head, block_product, columns_of, joined_sums, larger, values_of

TILE_BYTES = 224 * 2**20
"""Of z that is kept from the forward product to the backward ones; `ON_GPU` times as much there. Products of few tokens
are slow; more is wasted."""
Entropies = Literal["none", "value", "gradient"]

LossOfTokens = Callable[[slice, Tensor, Tensor | None], Tensor]
"""The loss (a scalar) of the answers in the slice, given their tokens' log-probs `[n]` and, where it depends on them,
entropies `[n]`."""


def linear_loss(
    head: Head,
    hidden: Float[Tensor, "N H"],
    targets: Int[Tensor, " N"],
    lengths: Sequence[int],
    loss: LossOfTokens,
    *,
    entropy: Entropies = "none",
    tile_bytes: int | None = None,
    weight_grad: Float[Tensor, "V H"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " N"] | None]:
    """The loss, a scalar with gradient by hidden states, weight and bias; and the entropies `[N]` if asked for.

    First derivatives only, once: what the forward pass has made is given away by the backward pass.

    Args:
        lengths: tokens of each answer, in the order of `hidden`; their sum is N.
        loss: is called once for each of a number of runs of neighbouring answers, which together are all of them. What
            it returns for them must add up to the loss: no answer's loss depends on another's log-probs.
        entropy: "value" returns the entropies; with "gradient" the loss is given them too.
        tile_bytes: memory for z, None for `TILE_BYTES`; at least one answer, or one block of the vocabulary, is held.
        weight_grad: gradient that the weight has already. It is overwritten: this one's is added to it and the sum goes
            to autograd, which saves a buffer of V x H. The loss must then be derived as it is, without a factor.
    """
    if tile_bytes is None:
        tile_bytes = larger(hidden) * TILE_BYTES
    settings = _Settings(head, targets, lengths, loss, entropy, tile_bytes, weight_grad)
    value, entropies = _LinearLoss.apply(hidden, head.weight, head.bias, settings)
    return value, None if entropy == "none" else entropies


@dataclass(frozen=True, slots=True)
class _Settings:
    """Arguments of `linear_loss` that have no gradient."""

    head: Head
    targets: Tensor
    lengths: Sequence[int]
    loss: LossOfTokens
    entropy: Entropies
    tile_bytes: int
    weight_grad: Tensor | None


class _LinearLoss(torch.autograd.Function):
    """Hidden states, weight and bias -> loss and entropies. All gradients are made in the forward pass, while the
    logits of a tile are there."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor | None, bias: Tensor | None, s: _Settings) -> Any:
        _, of_weight, of_bias, _ = ctx.needs_input_grad
        exact, where = exact_dtype(hidden), hidden.device
        totals = _Totals(
            loss=torch.zeros((), dtype=exact, device=where),
            weight=None if weight is None or not of_weight else _zeros_or(s.weight_grad, weight),
            bias=None if bias is None or not of_bias else torch.zeros_like(bias),
        )
        gradient = torch.zeros_like(hidden)
        entropies = torch.zeros(0 if s.entropy == "none" else len(s.targets), dtype=exact, device=where)
        tokens_of_tile = s.tile_bytes // (s.head.size(hidden) * hidden.element_size())
        for rows, tokens in _tiles(s.lengths, tokens_of_tile):
            part = hidden[tokens], s.targets[tokens]
            once = tokens.stop - tokens.start <= tokens_of_tile and s.entropy != "gradient" and s.head.softcap is None
            if once and weight is not None:
                found, seen = _one_sweep(s.head, *part, rows, s.loss, totals, with_entropy=s.entropy == "value")
            else:
                found, seen = _two_sweeps(s.head, *part, rows, s.loss, totals, s.entropy)
            gradient[tokens] = found
            if s.entropy != "none" and seen is not None:
                entropies[tokens] = seen
        ctx.made = gradient, totals.weight, totals.bias
        ctx.added = s.weight_grad is not None
        ctx.mark_non_differentiable(entropies)
        return totals.loss, entropies

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, factor: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.made is None:
            raise RuntimeError("the gradient of linear_loss was given away by an earlier backward pass")
        made, ctx.made = (
            ctx.made,
            None,
        )  # no reference stays, so that autograd may keep the buffer instead of copying it
        if float(factor) != 1.0:
            if ctx.added:
                raise RuntimeError("with weight_grad the loss is derived as it is, without a factor")
            made = tuple(None if x is None else x.mul_(factor) for x in made)
        return (*made, None)


@dataclass(slots=True)
class _Totals:
    """What the tiles add up to, of the kinds that are needed."""

    loss: Tensor
    weight: Tensor | None
    bias: Tensor | None

    def add(self, head: Head, cols: slice, g: Tensor, hidden: Tensor, scale: Tensor) -> None:
        """The gradient of the head's block, where `g` times `scale` by row is d loss / d z."""
        of_logits = scale / head.temperature
        if self.weight is not None:
            total = self.weight[cols]
            scaled = (hidden.to(of_logits.dtype) * of_logits.unsqueeze(1)).to(hidden.dtype)
            if total.dtype == g.dtype:
                total.addmm_(g.T, scaled)
            else:
                total += (g.T @ scaled).to(total.dtype)
        if self.bias is not None:
            self.bias[cols] += (of_logits @ g.to(of_logits.dtype)).to(self.bias.dtype)

    def add_targets(self, head: Head, hidden: Tensor, targets: Tensor, left_out: Tensor, gradient: Tensor) -> None:
        """What the targets' own columns, left out of the products, contribute to head and hidden states: `left_out` is
        their d loss / d z, `gradient` d loss / d hidden."""
        of_logits = left_out / head.temperature
        if head.weight is None:
            gradient[torch.arange(len(targets), device=targets.device), targets] += of_logits
            return
        own = head.weight.detach().index_select(0, targets).to(gradient.dtype)
        gradient += own * of_logits.unsqueeze(1)
        if self.weight is not None:
            rows = hidden.to(of_logits.dtype) * of_logits.unsqueeze(1)
            self.weight.index_add_(0, targets, rows.to(self.weight.dtype))
        if self.bias is not None:
            self.bias.index_add_(0, targets, of_logits.to(self.bias.dtype))


def _zeros_or(there: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if there is None else there


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
    totals: _Totals,
    *,
    with_entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    """z of the whole tile is kept, as `exp(z - peak of the block)`, until the loss is known.

    Softmax and gradient need the peak over the whole vocabulary, which is known after the last block. What is kept is
    therefore relative to its own block's peak, and each token's factor `share` to the joint one is put into the
    products' scale: no second pass over z.
    """
    assert head.weight is not None
    exact, n = exact_dtype(hidden), len(targets)
    columns = columns_of(head, hidden)
    store = head.memory.take("tile", (n * head.size(hidden),), hidden.dtype, hidden.device)
    target_z = torch.empty(n, dtype=exact, device=hidden.device)
    blocks, sums = [], []
    for cols in columns:
        block = store[n * cols.start : n * cols.stop].view(n, -1)
        block_product(head, hidden, cols, into=block)
        sums.append(
            head.blocks.exponentials(
                block, head.curve(cols), targets - cols.start, target_z, keep=True, with_product=False
            )
        )
        blocks.append(block)
    peak, shares, total = joined_sums(sums, target_z)
    logp = (target_z - peak) - total.log()
    w, _ = _derivatives(loss, rows, totals, logp, None)

    # The target's own column is left out of the products and added by itself: as w - w p it would cancel to rounding
    # where the target is all but certain; -expm1(log p) is 1 - p exactly.
    scale = -w / total
    left_out = w * -torch.expm1(logp)
    products = torch.zeros(hidden.shape, dtype=exact, device=hidden.device)
    for cols, block, share in zip(columns, blocks, shares, strict=True):
        products += (block @ head.weight[cols].to(hidden.dtype)).to(exact) * share.unsqueeze(1)
        totals.add(head, cols, block, hidden, scale * share)
    entropy = None
    if with_entropy:
        # sum_v exp(z_v - peak) z_v is needed, and z is gone. As z_v = hidden . weight_v, it is hidden times the product
        # with the head that is there already, to float32's resolution of z.
        weighted = (products * hidden.to(exact)).sum(dim=1)
        if head.bias is not None:
            weighted += sum(
                share * (block.to(exact) @ head.bias[cols].to(exact))
                for cols, block, share in zip(columns, blocks, shares, strict=True)
            )
        entropy = peak + total.log() - weighted / (head.temperature * total) - logp.exp() * target_z
        entropy.clamp_(min=0.0)
    gradient = products * (scale / head.temperature).unsqueeze(1)
    totals.add_targets(head, hidden, targets, left_out, gradient)
    return gradient.to(hidden.dtype), entropy


def _two_sweeps(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    rows: slice,
    loss: LossOfTokens,
    totals: _Totals,
    entropy: Entropies,
) -> tuple[Tensor, Tensor | None]:
    """First the values, with every z let go; then z again, block by block, for the gradient."""
    values = values_of(head, hidden, targets, with_entropy=entropy != "none")
    w, u = _derivatives(loss, rows, totals, values.logp, values.entropy if entropy == "gradient" else None)
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
    for cols in columns_of(head, hidden):
        g = block_product(head, hidden, cols)
        head.blocks.slopes(g, head.curve(cols), targets - cols.start, values.peak, constant, None if u is None else -u)
        if head.weight is None:
            gradient[:, cols] = g.to(exact) * (scale / head.temperature).unsqueeze(1)
        else:
            gradient += (g @ head.weight[cols].to(hidden.dtype)).to(exact) * (scale / head.temperature).unsqueeze(1)
            totals.add(head, cols, g, hidden, scale)
    if head.softcap is not None:
        left_out = left_out * (1.0 - (target_z * (head.temperature / head.softcap)) ** 2)
    totals.add_targets(head, hidden, targets, left_out, gradient)
    return gradient.to(hidden.dtype), values.entropy


def _derivatives(
    loss: LossOfTokens, rows: slice, totals: _Totals, logp: Tensor, entropy: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Of the loss, by log-probs and by entropies where they are given; its value goes into the totals."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (logp, entropy) if x is not None]
        value = loss(rows, leaves[0], leaves[1] if entropy is not None else None)
        totals.loss += value.detach()
        if not value.requires_grad:  # nothing in it depends on these tokens
            return torch.zeros_like(logp), None if entropy is None else torch.zeros_like(entropy)
        found = torch.autograd.grad(value, leaves, materialize_grads=True)
    return found[0], found[1] if entropy is not None else None
