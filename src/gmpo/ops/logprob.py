"""Logits -> log-probs of given tokens, in float32 or better whatever the logits' dtype."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def token_logprobs(
    logits: Float[Tensor, "*B V"], targets: Int[Tensor, "*B"], *, temperature: float
) -> Float[Tensor, "*B"]:
    """Natural log-probs of `targets` under `softmax(logits / temperature)`."""
    scaled = logits.float() / temperature if logits.dtype != torch.float64 else logits / temperature
    chosen = scaled.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return chosen - torch.logsumexp(scaled, dim=-1)
