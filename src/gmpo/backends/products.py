"""Which float32 matrix product the CPU runs.

torch has two, its default (MKL) and oneDNN's, which on some processors is much faster. On processors with matrix units
for bfloat16 the second computes in bfloat16 under the same name, and log-probs lose four digits. So it is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

ALLOWED = 4.0
"""The other product may be so many times less accurate than the default: both are then float32's rounding."""


@dataclass(frozen=True, slots=True)
class Product:
    """The product in effect, and what was measured to choose it."""

    precision: str
    """`highest` (the default product) or `medium` (oneDNN's), as in `torch.set_float32_matmul_precision`."""
    errors: tuple[float, float] | None = None
    """Largest error of the default and of oneDNN's product, relative to the result's root mean square; None where
    nothing was measured."""

    def __str__(self) -> str:
        if self.errors is None:
            return f"float32 products: {self.precision}"
        default, other = (f"{error:.0e}" for error in self.errors)
        if self.precision == "medium":
            return f"float32 products: oneDNN's (error {other}, the default's {default})"
        return f"float32 products: the default (error {default}; oneDNN's would have {other})"


def use_product(setting: str, device: torch.device) -> Product:
    """Put a product into effect for this process.

    Args:
        setting: `highest`, `medium`, or `auto`: on a CPU oneDNN's product where its error is that of float32, else the
            default. The choice depends on the processor alone and never on a timing, so a resumed run has the same.
    """
    if setting == "auto" and device.type == "cpu":
        errors = product_error("highest"), product_error("medium")
        product = Product("medium" if errors[1] <= ALLOWED * errors[0] else "highest", errors)
    else:
        product = Product("highest" if setting == "auto" else setting)
    torch.set_float32_matmul_precision(product.precision)
    return product


def product_error(precision: str) -> float:
    """Largest error of a product `[128, 1024] x [1024, 256]` of normal numbers against float64, relative to the root
    mean square of the result."""
    before = torch.get_float32_matmul_precision()
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(128, 1024, generator=generator), torch.randn(1024, 256, generator=generator)
    exact = a.double() @ b.double()
    try:
        torch.set_float32_matmul_precision(precision)
        found = (a @ b).double()
    finally:
        torch.set_float32_matmul_precision(before)
    return float((found - exact).abs().max() / exact.square().mean().sqrt())
