"""The learning rate as a function of the training step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

SHAPES: Mapping[str, Callable[[float, float, float], float]] = {
    "constant": lambda progress, floor, cycles: 1.0,
    "linear": lambda progress, floor, cycles: floor + (1.0 - floor) * (1.0 - progress),
    "cosine": lambda progress, floor, cycles: (
        floor + (1.0 - floor) * max(0.0, 0.5 * (1.0 + math.cos(2.0 * math.pi * cycles * progress)))
    ),
}
"""`lr_scheduler_type` -> multiplier after warm-up, from the share of the remaining steps that is done (0..1)."""


def linear(step: int, *, start: float, end: float, total_steps: int) -> float:
    """From `start` at step 0 to `end` at the last step, `total_steps - 1`."""
    return start + (end - start) * min(1.0, step / max(1, total_steps - 1))


def learning_rate(
    step: int,
    *,
    peak: float,
    shape: str,
    warmup_steps: int,
    total_steps: int,
    min_ratio: float = 0.0,
    cycles: float = 0.5,
) -> float:
    """Learning rate of training step `step` (0-based): `step / warmup_steps` of the peak, then the shape.

    As in verl it changes once per training step, not per optimizer update, and the first step of a warm-up runs at 0.

    Args:
        peak: rate at the end of the warm-up.
        min_ratio: floor of `cosine` and `linear`, as a share of the peak.
        cycles: number of cosine waves; 0.5 falls once to the floor.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * SHAPES[shape](min(1.0, progress), min_ratio, cycles)
