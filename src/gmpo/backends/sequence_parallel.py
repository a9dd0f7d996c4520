"""Sequences that several ranks compute together: each holds a slice of the places, and in attention some of the heads
over all places (DeepSpeed-Ulysses, arXiv 2309.14509).

Every rank of a group brings a micro-batch of its own and takes back the hidden states of its own rows. In between the
micro-batches of the group stand behind one another on one axis, which is cut into equal slices. So whoever deals rows,
counts or computes a loss knows nothing of it, and the longest answer of one rank is held by all of them.

Shapes: U ranks of a group, S places of their joint axis, C = ceil(S / U) places of a slice, H heads of width D.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from gmpo.backends.prefix_layout import PrefixLayout


@dataclass(frozen=True, slots=True)
class SequenceGroup:
    """The ranks that compute sequences together, and which of them this one is."""

    handle: dist.ProcessGroup
    size: int
    rank: int

    def joined(self, own: PrefixLayout) -> Slices:
        """The layouts of all ranks of the group as one; a collective call.

        Args:
            own: the layout of this rank's rows, on the CPU.
        """
        layouts: list[Any] = [None] * self.size
        dist.all_gather_object(layouts, own, group=self.handle)
        return Slices(self, PrefixLayout.joined(layouts), tuple(len(layout.ids) for layout in layouts))

    def passes(self, parts: Sequence[Tensor], costs: Sequence[int], limit: int) -> list[Tensor]:
        """This rank's rows in each pass of the group, of which some may be without; a collective call.

        Args:
            parts: its micro-batches, and what each of them costs.
            limit: what a pass of the group may cost, where it is not a single micro-batch that costs more.
        """
        known: list[Any] = [None] * self.size
        dist.all_gather_object(known, list(costs), group=self.handle)
        # Each into the first pass with room, the dearest first: the same on all ranks.
        pieces = [(cost, rank, i) for rank, own in enumerate(known) for i, cost in enumerate(own)]
        loads: list[int] = []
        rows: list[list[Tensor]] = []
        for cost, rank, i in sorted(pieces, key=lambda piece: -piece[0]):
            place = next((p for p, load in enumerate(loads) if load + cost <= limit), len(loads))
            if place == len(loads):
                loads.append(0)
                rows.append([])
            loads[place] += cost
            if rank == self.rank:
                rows[place].append(parts[i])
        return [torch.cat(own) if own else torch.zeros(0, dtype=torch.long) for own in rows]


@dataclass(frozen=True, slots=True)
class Slices:
    """A joint layout and this rank's slice of it."""

    group: SequenceGroup
    layout: PrefixLayout
    counts: tuple[int, ...]
    """Places of each rank's own rows, in the order in which they stand."""

    @property
    def width(self) -> int:
        """C; the last slice is padded to it with places that nothing reads."""
        return -(-sum(self.counts) // self.group.size)

    def to(self, device: torch.device) -> Slices:
        return Slices(self.group, self.layout.to(device), self.counts)

    def of(self, whole: Tensor) -> Tensor:
        """`[S]` -> this rank's slice `[C]`."""
        width = self.width
        padded = F.pad(whole, (0, width * self.group.size - len(whole)))
        return padded[self.group.rank * width : (self.group.rank + 1) * width]

    def heads(self, x: Tensor) -> Tensor:
        """A slice with all heads `[C, H, D]` -> all places with a share of the heads `[S, H / U, D]`."""
        u, (c, h, d) = self.group.size, x.shape
        sent = x.view(c, u, h // u, d).transpose(0, 1).reshape(u * c, h // u, d)
        whole: Tensor = _Exchange.apply(sent, [c] * u, [c] * u, self.group.handle)
        return whole[: sum(self.counts)]

    def places(self, x: Tensor) -> Tensor:
        """What `heads` did, back: `[S, H / U, D]` -> `[C, H, D]`."""
        u, c, (_, h, d) = self.group.size, self.width, x.shape
        sent = F.pad(x, (0, 0, 0, 0, 0, u * c - len(x)))
        got: Tensor = _Exchange.apply(sent, [c] * u, [c] * u, self.group.handle)
        return got.view(u, c, h, d).transpose(0, 1).reshape(c, u * h, d)

    def own(self, x: Tensor) -> Tensor:
        """A slice `[C, ..]` of all rows -> the places `[S_own, ..]` of this rank's own rows."""
        me, width = self.group.rank, self.width
        starts = [sum(self.counts[:r]) for r in range(self.group.size)]
        spans = [(start, start + count) for start, count in zip(starts, self.counts, strict=True)]
        cuts = [(r * width, (r + 1) * width) for r in range(self.group.size)]
        sends = [_overlap(cuts[me], span) for span in spans]
        takes = [_overlap(cut, spans[me]) for cut in cuts]
        found: Tensor = _Exchange.apply(x[: sum(sends)], sends, takes, self.group.handle)
        return found


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> int:
    return max(0, min(one[1], other[1]) - max(one[0], other[0]))


class _Exchange(torch.autograd.Function):
    """Rows to and from every rank of a group; the gradient goes the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sends: list[int], takes: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.way = sends, takes, group
        got = x.new_empty(sum(takes), *x.shape[1:])
        dist.all_to_all_single(got, x.contiguous(), takes, sends, group=group)
        return got

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        sends, takes, group = ctx.way
        back = grad.new_empty(sum(sends), *grad.shape[1:])
        dist.all_to_all_single(back, grad.contiguous(), sends, takes, group=group)
        return back, None, None, None


def key_copies(key_heads: int, size: int) -> int:
    """How often every key head is repeated, so that each of `size` ranks has equally many.

    Example: 4 key heads need none for 2 and 4 ranks, and 2 for 8.
    """
    return size // math.gcd(key_heads, size)


def why_heads_stay(heads: int, key_heads: int, size: int) -> str | None:
    """Why so many heads cannot be dealt to `size` ranks, queries with their keys; None if they can."""
    if heads % size == 0 and heads % (key_heads * key_copies(key_heads, size)) == 0:
        return None
    fits = [n for n in range(2, heads + 1) if not heads % n and not heads % (key_heads * key_copies(key_heads, n))]
    possible = f"possible are {', '.join(map(str, fits))}" if fits else "no number of ranks is possible"
    return f"{heads} attention heads ({key_heads} of keys) do not go to {size} ranks in equal parts; {possible}"
