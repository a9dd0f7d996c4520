"""Sums and means over the response tokens that count, and the one place that says what a loss is averaged over.

A mini-batch loss is `sum over its responses / D`, where the denominator D counts tokens or sequences **of the whole
mini-batch**, over every micro-batch and rank. Whoever splits the mini-batch counts D first, so the split cannot change
the gradient.

Shapes: B responses, T response positions. `mask` is true on the tokens that take part in the loss; it may have holes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Unit = Literal["tokens", "sequences", "one"]


@dataclass(frozen=True, slots=True)
class Counts:
    """What a mini-batch holds, counted over all its micro-batches and ranks before any backward pass.

    Example: two responses of 3 and 5 tokens and one without any give `Counts(tokens=8, sequences=2)`.
    """

    tokens: int
    """Tokens in the loss."""
    sequences: int
    """Responses with at least one token in the loss."""

    def of(self, unit: Unit) -> int:
        """The denominator for `unit`; at least 1, so that a mini-batch without any token gives a loss of exactly 0."""
        return max(1, {"tokens": self.tokens, "sequences": self.sequences, "one": 1}[unit])


def count(mask: Bool[Tensor, "B T"]) -> Counts:
    """Tokens, and responses with at least one token, of `mask`."""
    lengths = mask.sum(dim=1)
    return Counts(tokens=int(lengths.sum()), sequences=int((lengths > 0).sum()))


def last_token(mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """True on the last token of each response that is in the mask, wherever its holes are; nowhere if it has none."""
    return mask & (mask.flip(1).cumsum(dim=1).flip(1) == 1)


def quantile(values: Float[Tensor, " N"], share: float) -> Tensor:
    """As `torch.quantile` (linear between neighbours), which takes 16.7 million values at most."""
    ordered = values.sort().values
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return torch.lerp(ordered[low], ordered[high], place - low)


def sequence_sum(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Sum over the response's tokens. What stands outside the mask is dropped even where it is not finite."""
    return values.masked_fill(~mask, 0.0).sum(dim=1)


def sequence_mean(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Mean over the response's tokens; 0 for a response without any."""
    return sequence_sum(values, mask) / mask.sum(dim=1).clamp(min=1)


@dataclass(frozen=True, slots=True)
class Aggregation:
    """How per-token values become one number: `sum_i row_weight_i * sum_t value_it / D`."""

    unit: Unit
    """What the denominator D counts."""
    row_weight: Callable[[Bool[Tensor, "B T"], float], Float[Tensor, " B"]]
    """`(mask, loss_scale) -> [B]` weight of each response's token sum, in float64."""


def _ones(mask: Bool[Tensor, "B T"], loss_scale: float) -> Float[Tensor, " B"]:
    return torch.ones(mask.shape[0], dtype=torch.float64, device=mask.device)


def _one_over_length(mask: Bool[Tensor, "B T"], loss_scale: float) -> Float[Tensor, " B"]:
    return 1.0 / mask.sum(dim=1).clamp(min=1).double()


def _one_over_scale(mask: Bool[Tensor, "B T"], loss_scale: float) -> Float[Tensor, " B"]:
    return torch.full((mask.shape[0],), 1.0 / loss_scale, dtype=torch.float64, device=mask.device)


AGGREGATIONS: Mapping[str, Aggregation] = {
    # every token counts alike, long responses weigh more (DAPO, arXiv 2503.14476 eq. 8)
    "token-mean": Aggregation("tokens", _ones),
    # the sum itself: the step grows with the mini-batch, which only a bound on the gradient's norm takes back
    "token-sum": Aggregation("one", _ones),
    "seq-mean-token-sum": Aggregation("sequences", _ones),
    # every response counts alike (GRPO, arXiv 2402.03300 eq. 3)
    "seq-mean-token-mean": Aggregation("sequences", _one_over_length),
    # a constant length, so that no length is favoured (Dr.GRPO, arXiv 2503.20783 section 3.2)
    "seq-mean-token-sum-norm": Aggregation("sequences", _one_over_scale),
}
"""`loss_agg_mode` -> how token values are averaged. verl's seq-mean-token-sum-norm leaves out the mean over sequences,
so its gradient grows with the batch and gradient clipping undoes it unevenly; here it is a mean like the others."""


def aggregate(
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    mode: str,
    counts: Counts,
    loss_scale: float,
) -> Float[Tensor, ""]:
    """This micro-batch's share of the mini-batch mean of `values` under `mode`.

    Args:
        counts: of the whole mini-batch, so that the shares of its micro-batches add up to the mean.
        loss_scale: L of `seq-mean-token-sum-norm` (`loss_scale_factor`, else `max_response_length`), in tokens.
    """
    entry = AGGREGATIONS[mode]
    weight = entry.row_weight(mask, loss_scale).to(values.dtype)
    return (sequence_sum(values, mask) * weight).sum() / counts.of(entry.unit)


def sequence_aggregate(values: Float[Tensor, " B"], mask: Bool[Tensor, "B T"], counts: Counts) -> Float[Tensor, ""]:
    """This micro-batch's share of the mean of per-response `values` over responses with a token in the loss."""
    return values.masked_fill(~mask.any(dim=1), 0.0).sum() / counts.of("sequences")
