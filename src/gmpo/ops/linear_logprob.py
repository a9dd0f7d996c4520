"""Hidden states and an LM head -> log-probs and entropies, never holding the logits of all tokens.

The work is done in blocks of the vocabulary, a few of whose rows fit into the processor's cache. A loss behind the same
head, and its gradient, are in `gmpo.ops.linear_loss`.

Shapes: N tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gmpo.ops.blocks import Blocks, Curve, Memory, Sums, TorchBlocks, exact_dtype

BLOCK_COLUMNS, FEWEST_COLUMNS = 4096, 256
"""Part of the vocabulary in one product; it shrinks where the tokens are many."""
BLOCK_BYTES = 64 * 2**20
"""Of z in one product, where the tokens are many."""
ON_GPU = 4
"""Times as much of all sizes there, where a product must be worth its launches."""


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
    excluded: Int[Tensor, " E"] | None = None
    """Ids of probability 0, ascending."""

    def size(self, hidden: Tensor) -> int:
        """V."""
        return hidden.shape[1] if self.weight is None else self.weight.shape[0]

    def _closing(self, columns: slice) -> Tensor:
        assert self.excluded is not None
        return torch.zeros(columns.stop - columns.start, device=self.excluded.device)

    def curve(self, columns: slice) -> Curve:
        """Of a block of the vocabulary."""
        bias = None if self.bias is None else self.bias.detach()[columns]
        if self.excluded is not None:
            ids = self.memory.on_host("excluded", self.excluded)
            first, last = torch.searchsorted(ids, ids.new_tensor([columns.start, columns.stop])).tolist()
            if first < last:
                bias = self._closing(columns) if bias is None else bias.clone()
                bias[self.excluded[first:last] - columns.start] = -torch.inf
        return Curve(bias, self.temperature, self.softcap, bounded=self.weight is None or bias is not None)


@dataclass(frozen=True, slots=True)
class Values:
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
    values = values_of(head, hidden.detach(), targets, with_entropy=with_entropy)
    return values.logp, values.entropy


@torch.no_grad()
def token_score_norms(
    head: Head, hidden: Float[Tensor, "N H"], targets: Int[Tensor, " N"], logp: Float[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """`||d log p(target) / d z||^2 = 1 - 2 p(target) + sum_v p_v^2`, z the logits divided by the temperature.

    With the log-probs p' at half the temperature `sum_v p_v^2 = p(target)^2 / p'(target)`: both have the same factor
    exp(2 z), and the sum over the vocabulary is that of p'.

    Args:
        logp: log-probs of the targets, as of `token_values`.
    """
    sharper, _ = token_values(replace(head, temperature=head.temperature / 2), hidden, targets)
    return (1.0 - 2.0 * logp.exp() + (2.0 * logp - sharper).exp()).clamp(min=0.0)


def values_of(head: Head, hidden: Tensor, targets: Tensor, *, with_entropy: bool) -> Values:
    """What `token_values` returns, with the log-sum-exp that a gradient needs."""
    exact, n = exact_dtype(hidden), len(targets)
    columns = columns_of(head, hidden)
    target_z = torch.empty(n, dtype=exact, device=hidden.device)
    sums = [
        head.blocks.exponentials(
            block_product(head, hidden, cols),
            head.curve(cols),
            targets - cols.start,
            target_z,
            keep=False,
            with_product=with_entropy,
        )
        for cols in columns
    ]
    peak, shares, total = joined_sums(sums, target_z)
    logp = (target_z - peak) - total.log()
    if not with_entropy:
        return Values(logp, None, peak, total)
    # sum_v p_v (z_v - peak), each block's own peak taken into account
    mean = torch.zeros_like(peak)
    for share, own in zip(shares, sums, strict=True):
        assert own.product is not None
        mean += share * (own.product + own.total * (own.peak - peak))
    return Values(logp, total.log() - mean / total, peak, total)


def block_product(head: Head, hidden: Tensor, cols: slice, *, into: Tensor | None = None) -> Tensor:
    """x `[n, c]` of a block of the vocabulary, in the dtype of the hidden states; in `into`, or in memory that the next
    block will use again."""
    shape = len(hidden), cols.stop - cols.start
    x = head.memory.take("block", shape, hidden.dtype, hidden.device) if into is None else into
    if head.weight is None:
        return x.copy_(hidden[:, cols])
    return torch.mm(hidden, head.weight[cols].to(hidden.dtype).T, out=x)


def joined_sums(sums: Sequence[Sums], like: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """The peak over all blocks, each block's `exp(its peak - the peak)`, and the sum over all."""
    peak = torch.stack([own.peak for own in sums]).amax(dim=0)
    shares = [(own.peak - peak).exp() for own in sums]
    return peak, shares, sum((s * own.total for s, own in zip(shares, sums, strict=True)), torch.zeros_like(like))


def larger(hidden: Tensor) -> int:
    """The factor of sizes where these hidden states are."""
    return ON_GPU if hidden.device.type == "cuda" else 1


def columns_of(head: Head, hidden: Tensor) -> list[slice]:
    """Blocks of the vocabulary."""
    size = head.size(hidden)
    times = larger(hidden)
    fitting = times * BLOCK_BYTES // (max(1, len(hidden)) * exact_dtype(hidden).itemsize)
    width = min(size, max(FEWEST_COLUMNS, min(times * BLOCK_COLUMNS, fitting)))
    return [slice(start, min(start + width, size)) for start in range(0, size, width)]
