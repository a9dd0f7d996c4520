"""Which float32 matrix product the CPU runs, and where.

torch has two, its default (MKL) and oneDNN's. On some processors the second is twice as fast; on some with matrix units
for bfloat16 it computes in bfloat16 under the same name, and log-probs lose four digits; and torch's attention kernel,
which calls a product of its own for each small tile, is up to 30 times slower under it for short sequences. So error
and time are measured, for the products of the model at hand, and attention has a choice of its own by length.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig

ALLOWED = 4.0
"""The other product may be so many times less accurate than the default: both are then float32's rounding."""
GAIN = 1.2
"""The other product is taken where it is so many times faster: a choice that the clock's noise does not turn around."""
NARROW = 64
"""Models of fewer channels are not timed: nothing is to be gained, and their runs are the same wherever they start."""
UPDATE_ROWS, DECODE_ROWS = 1024, 64
"""Tokens of a product in an update, and rows of a decoding step."""
LENGTHS = (128, 256, 512, 1024, 2048)
"""Of sequences, at which attention is timed."""
FLOPS = 5e8
"""Of one timed call, at most: about ten milliseconds. Fewer rows are taken then."""
SECONDS = 0.2
"""After so long, the timing of one shape is not repeated any more."""
REPEATS = 5

Seconds = tuple[float, float]
"""Of the default and of oneDNN's product."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """The products of a model that most of its time goes into."""

    products: tuple[tuple[int, int, int], ...]
    """Inputs, outputs, and how many there are of these."""
    heads: int
    key_heads: int
    head_width: int
    layers: int
    longest: int
    """Tokens of a sequence at most."""
    apart: bool
    """Attention has its own choice; otherwise the library runs it under the same as all products."""


@dataclass(frozen=True, slots=True)
class Product:
    """The products in effect, and what was measured to choose them."""

    precision: str
    """`highest` (the default product) or `medium` (oneDNN's), as in `torch.set_float32_matmul_precision`."""
    attention_from: int | None = None
    """Sequences of this length and longer attend in oneDNN's product; None: all in the default."""
    errors: tuple[float, float] | None = field(default=None, compare=False)
    """Largest error of the default and of oneDNN's product, relative to the result's root mean square; None where
    nothing was measured."""
    seconds: Mapping[str, Seconds] = field(default_factory=dict, compare=False)
    """What was timed, by name."""

    def __str__(self) -> str:
        said = "float32 products: " + ("oneDNN's" if self.precision == "medium" else "the default")
        if self.attention_from is None:
            return said
        return f"{said}, attention oneDNN's from {self.attention_from} tokens"

    @property
    def kept(self) -> dict[str, Any]:
        """What a run keeps of the choice; see `from_kept`."""
        return {"precision": self.precision, "attention_from": self.attention_from}

    def report(self) -> dict[str, Any]:
        """The choice and its measurements: error relative to the result, milliseconds and their ratio."""
        found: dict[str, Any] = dict(self.kept)
        if self.errors is not None:
            found["errors"] = {"default": self.errors[0], "onednn": self.errors[1]}
        for name, (default, other) in self.seconds.items():
            found[name] = {
                "default_ms": round(default * 1e3, 3),
                "onednn_ms": round(other * 1e3, 3),
                "gain": round(default / other, 2),
            }
        return found


_in_attention: int | None = None
"""`Product.attention_from` of the process."""


def use_product(
    setting: str, device: torch.device, shapes: Shapes | None = None, kept: Mapping[str, Any] | None = None
) -> Product:
    """Put products into effect for this process.

    Args:
        setting: `highest`, `medium` (attention stays with the default), or `auto`: on a CPU oneDNN's product where its
            error is that of float32 and it is faster, else the default.
        shapes: what is timed; without, the default is taken.
        kept: the choice of the run that goes on (`Product.kept`), which is taken again as long as this processor's
            oneDNN is as accurate as float32.
    """
    if setting != "auto" or device.type != "cpu":
        product = Product("highest" if setting == "auto" else setting)
    else:
        product = _chosen(shapes, kept)
    take_product(product)
    return product


def take_product(product: Product) -> None:
    """Put a choice into effect for this process that was made in another one."""
    global _in_attention
    torch.set_float32_matmul_precision(product.precision)
    _in_attention = product.attention_from


def _chosen(shapes: Shapes | None, kept: Mapping[str, Any] | None) -> Product:
    errors = product_error("highest"), product_error("medium")
    if errors[1] > ALLOWED * errors[0]:
        return Product("highest", None, errors)
    if kept is not None:
        return Product(str(kept["precision"]), kept["attention_from"], errors)
    if shapes is None or min(width for width, _, _ in shapes.products) < NARROW:
        return Product("highest", None, errors)
    seconds = measured(shapes, torch.get_num_threads())
    total = seconds["products"]
    faster = [(length, seconds[name]) for length in LENGTHS if (name := f"attention of {length} tokens") in seconds]
    attention_from = None
    for length, (default, other) in reversed(faster):
        if default < GAIN * other:
            break
        attention_from = length
    return Product("medium" if total[0] >= GAIN * total[1] else "highest", attention_from, errors, seconds)


@contextmanager
def attention_product(length: int) -> Iterator[None]:
    """Attention over sequences of `length` tokens runs in the product that was chosen for it."""
    other = _in_attention is not None and length >= _in_attention
    with product_of("medium" if other else "highest"):
        yield


@contextmanager
def product_of(precision: str) -> Iterator[None]:
    """The product of this precision inside, what was in effect after."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def product_error(precision: str) -> float:
    """Largest error of a product `[128, 1024] x [1024, 256]` of normal numbers against float64, relative to the root
    mean square of the result."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(128, 1024, generator=generator), torch.randn(1024, 256, generator=generator)
    exact = a.double() @ b.double()
    with product_of(precision):
        found = (a @ b).double()
    return float((found - exact).abs().max() / exact.square().mean().sqrt())


def shapes_of(config: PretrainedConfig, longest: int, *, apart: bool) -> Shapes | None:
    """The products of a decoder by its configuration; None where it does not have the usual names."""
    text: Any = config.get_text_config()
    hidden, heads = getattr(text, "hidden_size", None), getattr(text, "num_attention_heads", None)
    if not isinstance(hidden, int) or not isinstance(heads, int):
        return None
    keys = getattr(text, "num_key_value_heads", None) or heads
    width = getattr(text, "head_dim", None) or hidden // heads
    layers = getattr(text, "num_hidden_layers", None) or 1
    inner = getattr(text, "moe_intermediate_size", None) or getattr(text, "intermediate_size", None) or 4 * hidden
    vocabulary = getattr(text, "vocab_size", None) or hidden
    if not all(isinstance(n, int) for n in (keys, width, layers, inner, vocabulary)):
        return None
    counts: dict[tuple[int, int], int] = {}
    for inputs, outputs, count in (
        (hidden, heads * width, layers),
        (hidden, keys * width, 2 * layers),
        (heads * width, hidden, layers),
        (hidden, inner, 2 * layers),
        (inner, hidden, layers),
        (hidden, vocabulary, 1),
    ):
        counts[inputs, outputs] = counts.get((inputs, outputs), 0) + count
    products = tuple((inputs, outputs, count) for (inputs, outputs), count in counts.items())
    return Shapes(products, heads, keys, width, layers, longest, apart)


@lru_cache(maxsize=8)
def measured(shapes: Shapes, threads: int) -> Mapping[str, Seconds]:
    """Seconds under both products, the best of some calls in turn: `products` for a token of sampling and update, over
    all that it passes, and attention with its derivatives by length.

    Args:
        threads: of torch; it is part of what is measured.
    """
    generator = torch.Generator().manual_seed(0)
    default = other = 0.0
    for inputs, outputs, count in shapes.products:
        columns = min(outputs, 16384)  # a larger head is taken in tiles
        for part, most in (("update", UPDATE_ROWS), ("decoding", DECODE_ROWS)):
            rows = min(most, max(16, int(FLOPS / (2 * inputs * columns))))
            seconds = _in_turn(_linear(rows, inputs, columns, generator, derivatives=part == "update"))
            share = count * outputs / columns / rows
            default, other = default + share * seconds[0], other + share * seconds[1]
    found: dict[str, Seconds] = {}
    lengths = [n for n in LENGTHS if n <= max(shapes.longest, LENGTHS[0])]
    for length in lengths if shapes.apart else lengths[:1]:
        seconds = _in_turn(_attention(length, shapes, generator))
        if shapes.apart:
            found[f"attention of {length} tokens"] = seconds
        else:
            default += shapes.layers * seconds[0] / length
            other += shapes.layers * seconds[1] / length
    return {"products": (default, other), **found}


def _linear(
    rows: int, inputs: int, outputs: int, generator: torch.Generator, *, derivatives: bool
) -> Callable[[], object]:
    x, weight = torch.randn(rows, inputs, generator=generator), torch.randn(outputs, inputs, generator=generator)
    if not derivatives:
        return lambda: F.linear(x, weight)
    grad = torch.randn(rows, outputs, generator=generator)
    return lambda: (F.linear(x, weight), grad @ weight, grad.T @ x)


def _attention(length: int, shapes: Shapes, generator: torch.Generator) -> Callable[[], object]:
    def states(heads: int) -> Tensor:
        return torch.randn(1, heads, length, shapes.head_width, generator=generator, requires_grad=True)

    query, key, value = states(shapes.heads), states(shapes.key_heads), states(shapes.key_heads)

    def call() -> None:
        with torch.enable_grad():
            grouped = shapes.heads != shapes.key_heads
            out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
        torch.autograd.grad(out, (query, key, value), torch.ones_like(out))

    return call


def _in_turn(call: Callable[[], object]) -> Seconds:
    """The best of some calls under each product, after one that is not counted."""
    best = {"highest": float("inf"), "medium": float("inf")}
    end = time.perf_counter() + SECONDS
    for repeat in range(1 + REPEATS):
        for precision in best:
            with product_of(precision):
                start = time.perf_counter()
                call()
                took = time.perf_counter() - start
            if repeat:
                best[precision] = min(best[precision], took)
        if repeat and time.perf_counter() > end:
            break
    return best["highest"], best["medium"]
