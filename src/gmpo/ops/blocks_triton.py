"""`gmpo.ops.blocks` in Triton, for GPUs: each function reads and writes its block once, in one kernel.

One program per row of the block, which fits into its registers. Import this module only where Triton is installed; with
`TRITON_INTERPRET=1` in the environment the kernels run on a CPU, slowly, which is how they are tested.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gmpo.ops.blocks import LOWEST, Curve, Sums, exact_dtype

_EXACT = {torch.float32: tl.float32, torch.float64: tl.float64}
_VALUES_OF_WARP = 512
"""Columns for each warp of a program."""


class TritonBlocks:
    """See `gmpo.ops.blocks.Blocks`."""

    def exponentials(
        self, x: Tensor, curve: Curve, targets: Tensor, target_z: Tensor, *, keep: bool, with_product: bool
    ) -> Sums:
        """See `gmpo.ops.blocks.Blocks`."""
        sums = torch.empty((3 if with_product else 2, len(x)), dtype=target_z.dtype, device=x.device)
        product = sums[-1] if with_product else None
        _launch(
            _exponentials, x, curve, targets, target_z, sums[0], sums[1], product, KEEP=keep, WITH_PRODUCT=with_product
        )
        return Sums(sums[0], sums[1], product)

    def slopes(
        self, x: Tensor, curve: Curve, targets: Tensor, peak: Tensor, constant: Tensor, by_z: Tensor | None
    ) -> None:
        """See `gmpo.ops.blocks.Blocks`."""
        _launch(_slopes, x, curve, targets, peak, constant, by_z, HAS_BY_Z=by_z is not None)


def _launch(kernel: Any, x: Tensor, curve: Curve, *by_token: Tensor | None, **flags: bool) -> None:
    n, width = x.shape
    if n == 0:
        return
    columns = triton.next_power_of_2(width)
    exact = exact_dtype(x)
    # A tensor that is None still needs a pointer; the kernel does not read it.
    kernel[(n,)](
        x,
        x if curve.bias is None else curve.bias.contiguous(),
        *(x if t is None else t.contiguous() for t in by_token),
        stride=x.stride(0),
        width=width,
        # Constants, because a float argument of a kernel is a float32: too coarse for float64, and its range too small.
        TEMPERATURE=float(curve.temperature),
        SOFTCAP=float(curve.softcap or 0.0),
        LOWEST=LOWEST,
        HAS_BIAS=curve.bias is not None,
        HAS_SOFTCAP=curve.softcap is not None,
        BOUNDED=curve.bounded,
        EXACT=_EXACT[exact],
        COLUMNS=columns,
        **flags,
        num_warps=min(16, max(1, columns // _VALUES_OF_WARP)),
    )


@triton.jit  # type: ignore[untyped-decorator]
def _logits(  # type: ignore[no-untyped-def]
    x,
    bias,
    columns,
    inside,
    TEMPERATURE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    LOWEST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BOUNDED: tl.constexpr,
    EXACT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """z of a row and the softcap's slope there; z beyond the row's end is minus infinity."""
    z = tl.load(x + columns, mask=inside, other=0.0).to(EXACT)
    if HAS_BIAS:
        z += tl.load(bias + columns, mask=inside, other=0.0).to(EXACT)
    bend = tl.full([COLUMNS], 1.0, EXACT)
    if HAS_SOFTCAP:
        # tanh by an exponential that cannot overflow, because not every backend of Triton has tanh.
        impossible = z == float("-inf")
        e = tl.exp(tl.abs(z) * (-2.0 / SOFTCAP))
        size = (1 - e) / (1 + e)
        bend = 1 - size * size
        z = tl.where(impossible, z, tl.where(z < 0, -size, size) * SOFTCAP)
    z = z / TEMPERATURE
    if BOUNDED:
        z = tl.maximum(z, LOWEST)
    return tl.where(inside, z, float("-inf")), bend


@triton.jit  # type: ignore[untyped-decorator]
def _exponentials(  # type: ignore[no-untyped-def]
    x,
    bias,
    targets,
    target_z,
    peaks,
    totals,
    products,
    stride,
    width,
    TEMPERATURE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    LOWEST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BOUNDED: tl.constexpr,
    EXACT: tl.constexpr,
    COLUMNS: tl.constexpr,
    KEEP: tl.constexpr,
    WITH_PRODUCT: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # row * stride may exceed 32 bits
    columns = tl.arange(0, COLUMNS)
    inside = columns < width
    own = x + row * stride
    z, _ = _logits(
        own, bias, columns, inside, TEMPERATURE, SOFTCAP, LOWEST, HAS_BIAS, HAS_SOFTCAP, BOUNDED, EXACT, COLUMNS
    )
    target = tl.load(targets + row)
    is_target = columns == target
    here = (target >= 0) & (target < width)
    tl.store(target_z + row, tl.sum(tl.where(is_target & inside, z, 0.0), axis=0), mask=here)
    peak = tl.max(z, axis=0)
    d = tl.where(inside, z - peak, 0.0)
    e = tl.where(inside, tl.exp(d), 0.0)
    tl.store(peaks + row, peak)
    tl.store(totals + row, tl.sum(e, axis=0))
    if WITH_PRODUCT:
        tl.store(products + row, tl.sum(e * d, axis=0))
    if KEEP:
        tl.store(own + columns, tl.where(is_target, 0.0, e).to(x.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _slopes(  # type: ignore[no-untyped-def]
    x,
    bias,
    targets,
    peaks,
    constants,
    by_z,
    stride,
    width,
    TEMPERATURE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    LOWEST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BOUNDED: tl.constexpr,
    EXACT: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_BY_Z: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # row * stride may exceed 32 bits
    columns = tl.arange(0, COLUMNS)
    inside = columns < width
    own = x + row * stride
    z, bend = _logits(
        own, bias, columns, inside, TEMPERATURE, SOFTCAP, LOWEST, HAS_BIAS, HAS_SOFTCAP, BOUNDED, EXACT, COLUMNS
    )
    d = tl.where(inside, z - tl.load(peaks + row), 0.0)
    factor = tl.load(constants + row)
    if HAS_BY_Z:
        factor = factor + tl.load(by_z + row) * d
    g = tl.exp(d) * factor * bend
    g = tl.where(columns == tl.load(targets + row), 0.0, g)
    tl.store(own + columns, g.to(x.dtype.element_ty), mask=inside)
