"""Element-wise work on a block of the vocabulary, between two products with the head. Here in torch, for any device.

`gmpo.ops.blocks_triton` has the same two functions in one kernel each. Shapes: n tokens, c columns of the vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

LOWEST = -1e30
"""z of an impossible token: far below any other, while its product with a block's sum of exponentials is finite."""
CACHED_ELEMENTS = 64 * 4096
"""Elements of z that two element-wise operations on a CPU share in its cache: 1 MiB, half of a core's L2."""


LOG2_E = 1.0 / math.log(2.0)


def exponential_(x: Tensor) -> Tensor:
    """e^x in place, for x <= 0.

    On a CPU as 2^(x log2 e), with an error of x's own rounding: torch's exp is MKL's there, which takes twice as long,
    12 times where the result is 0 and 30 times where it is subnormal, as behind a low temperature or for ids that are
    left out.
    """
    return x.exp_() if x.device.type != "cpu" else x.mul_(LOG2_E).exp2_()


class Memory:
    """Buffers by their use, kept from call to call, because fresh memory costs a page fault for every 4 KiB."""

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}
        self.hosts: dict[str, tuple[Tensor, Tensor]] = {}

    def take(self, use: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised tensor, which shares its memory with the previous one for the same use."""
        elements = torch.Size(shape).numel()
        kept = self.buffers.get(use)
        if kept is None or kept.numel() < elements or kept.dtype != dtype or kept.device != device:
            kept = self.buffers[use] = torch.empty(elements, dtype=dtype, device=device)
        return kept[:elements].view(shape)

    def on_host(self, use: str, tensor: Tensor) -> Tensor:
        """A copy on the CPU of a tensor that does not change: a device is waited for once, not whenever it is read."""
        kept = self.hosts.get(use)
        if kept is None or kept[0] is not tensor:
            kept = self.hosts[use] = tensor, tensor.cpu()
        return kept[1]


@dataclass(frozen=True, slots=True)
class Curve:
    """From a product x with the head to its logit: `z = softcap(x + bias) / temperature`, where
    `softcap(y) = s tanh(y / s)`. A bias of minus infinity makes a token impossible, under a softcap too."""

    bias: Float[Tensor, " c"] | None
    temperature: float
    softcap: float | None
    bounded: bool
    """x may be minus infinity, for an impossible token. Its z is kept finite, so that probability 0 times z is 0."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Of one block, by token."""

    peak: Float[Tensor, " n"]
    """Largest z."""
    total: Float[Tensor, " n"]
    """Sum of `exp(z - peak)`."""
    product: Float[Tensor, " n"] | None
    """Sum of `exp(z - peak) (z - peak)`."""


@runtime_checkable
class Blocks(Protocol):
    """Computes in float32, or in float64 where x is float64; `targets` count from the block's first column, and may lie
    outside of it."""

    def exponentials(
        self,
        x: Float[Tensor, "n c"],
        curve: Curve,
        targets: Int[Tensor, " n"],
        target_z: Float[Tensor, " n"],
        *,
        keep: bool,
        with_product: bool,
    ) -> Sums:
        """z of the targets in this block goes into `target_z`. With `keep`, x becomes `exp(z - peak)` with 0 for the
        targets; otherwise its content is undefined afterwards."""
        ...

    def slopes(
        self,
        x: Float[Tensor, "n c"],
        curve: Curve,
        targets: Int[Tensor, " n"],
        peak: Float[Tensor, " n"],
        constant: Float[Tensor, " n"],
        by_z: Float[Tensor, " n"] | None,
    ) -> None:
        """x becomes `exp(z - peak) (constant + by_z (z - peak)) dz/dx temperature`, with 0 for the targets."""
        ...


@dataclass(frozen=True, slots=True)
class TorchBlocks:
    """On a CPU in parts of a few rows, which stay in its cache from one operation to the next."""

    memory: Memory = field(default_factory=Memory)

    def exponentials(
        self, x: Tensor, curve: Curve, targets: Tensor, target_z: Tensor, *, keep: bool, with_product: bool
    ) -> Sums:
        """See `Blocks`."""
        z = self._logits(x, curve)
        here = _inside(targets, z.shape[1])
        target_z[here] = z[here, targets[here]]
        n, width = z.shape
        peak, total = torch.empty_like(target_z), torch.empty_like(target_z)
        product = torch.empty_like(total) if with_product else None
        step = max(1, CACHED_ELEMENTS // width) if z.device.type == "cpu" else max(1, n)
        differences = self.memory.take("differences", (min(step, n), width), z.dtype, z.device)
        for first in range(0, n, step):
            rows = slice(first, min(first + step, n))
            part, d = z[rows], differences[: min(first + step, n) - first]
            torch.amax(part, dim=1, out=peak[rows])
            torch.sub(part, peak[rows].unsqueeze(1), out=d)
            exponential_(part.copy_(d))
            torch.sum(part, dim=1, out=total[rows])
            if product is not None:
                torch.linalg.vecdot(part, d, out=product[rows])
        if keep:
            if x.dtype != z.dtype:
                x.copy_(z)
            x[here, targets[here]] = 0.0
        return Sums(peak, total, product)

    def slopes(
        self, x: Tensor, curve: Curve, targets: Tensor, peak: Tensor, constant: Tensor, by_z: Tensor | None
    ) -> None:
        """See `Blocks`."""
        z = self._logits(x, curve)
        bend = None
        if curve.softcap is not None:
            # An impossible token's z is far below the bound; nothing depends on its slope.
            bend = (1.0 - (z * (curve.temperature / curve.softcap)) ** 2).clamp_(min=0.0)
        d = z.sub_(peak.unsqueeze(1))
        factor = constant.unsqueeze(1) if by_z is None else constant.unsqueeze(1) + by_z.unsqueeze(1) * d
        g = exponential_(d).mul_(factor)
        if bend is not None:
            g *= bend
        here = _inside(targets, g.shape[1])
        g[here, targets[here]] = 0.0
        if x.dtype != g.dtype:
            x.copy_(g)

    def _logits(self, x: Tensor, curve: Curve) -> Tensor:
        """z in float32 or float64, in the memory of x if it has that dtype."""
        exact = exact_dtype(x)
        if x.dtype == exact:
            z = x
        else:
            z = self.memory.take("z", tuple(x.shape), exact, x.device)
            z.copy_(x)
        if curve.bias is not None:
            z += curve.bias.to(exact)
        if curve.softcap is not None:
            z.div_(curve.softcap).tanh_().mul_(curve.softcap)
            if curve.bias is not None:
                z.masked_fill_(curve.bias == -torch.inf, -torch.inf)
        if curve.temperature != 1.0:
            z.div_(curve.temperature)
        return z.clamp_(min=LOWEST) if curve.bounded else z


def exact_dtype(x: Tensor) -> torch.dtype:
    """The dtype of log-probs: float32, or float64 if `x` is float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _inside(targets: Tensor, width: int) -> Tensor:
    """Indices of the tokens whose target is in the block."""
    here: Tensor = (targets >= 0) & (targets < width)
    return here.nonzero().squeeze(1)
