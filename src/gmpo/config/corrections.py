"""`rollout_rs` and `rollout_rs_threshold`, which are texts of verl's, as typed rules of rejection."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gmpo.config.schema import Config
from gmpo.objectives import REJECTIONS, Rejection


def rejections(config: Config) -> tuple[Rejection, ...]:
    """What `algorithm.rollout_correction` of a loaded configuration rejects; nothing when `rollout_rs` is null."""
    correction = config.algorithm.rollout_correction
    return parse_rejections(correction.rollout_rs, correction.rollout_rs_threshold)


def band(threshold: object) -> tuple[float, float] | None:
    """The band of a `rollout_is_threshold` in verl's form of IcePop, `"0.5_5.0"`; None for any other value."""
    parts = threshold.split("_") if isinstance(threshold, str) else []
    try:
        low, high = (float(part) for part in parts)
    except ValueError:
        return None
    return low, high


def parse_rejections(rules: Sequence[str], thresholds: str | None) -> tuple[Rejection, ...]:
    """Pair each rule with its threshold; a single threshold is shared.

    Args:
        thresholds: `"0.01"`, `"0.5_2.0"`, or one of these per rule with commas.

    Raises:
        ValueError: what is wrong with the thresholds, worded to follow their key.
    """
    if not rules:
        return ()
    if thresholds is None:
        raise ValueError("must be given with rollout_rs, like 0.999_1.001 for seq_mean_k1 or 0.01 for seq_mean_k3")
    if len(set(rules)) < len(rules):
        raise ValueError(f"cannot be paired: rollout_rs names an option twice ({', '.join(rules)})")
    texts = [text.strip() for text in thresholds.split(",")]
    if len(texts) not in (1, len(rules)):
        raise ValueError(
            f"has {len(texts)} bounds for the {len(rules)} options of rollout_rs; give one for all or one each"
        )
    shared = texts * len(rules) if len(texts) == 1 else texts
    return tuple(_rejection(rule, text) for rule, text in zip(rules, shared, strict=True))


def _rejection(rule: str, text: str) -> Rejection:
    try:
        bounds = [float(number) for number in text.split("_")]
    except ValueError:
        bounds = []
    if not 1 <= len(bounds) <= 2 or not all(math.isfinite(bound) for bound in bounds):
        raise ValueError(f"holds {text!r} for {rule}, which is neither a number nor a band lower_upper such as 0.5_2.0")
    if not REJECTIONS[rule].two_sided:
        if len(bounds) == 2 or bounds[0] <= 0:
            raise ValueError(f"holds {text} for {rule}, which takes one upper bound above 0")
        return Rejection(rule, 0.0, bounds[0])
    if len(bounds) == 1 and bounds[0] <= 1:
        raise ValueError(f"holds {text} for {rule}: a single number u stands for the ratios 1/u to u and must exceed 1")
    low, high = bounds if len(bounds) == 2 else (1 / bounds[0], bounds[0])
    if not 0 < low <= 1 <= high or low == high:
        raise ValueError(f"holds {text} for {rule}: a band of ratios must hold 1, where the two policies agree")
    return Rejection(rule, low, high)
