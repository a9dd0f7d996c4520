"""Hidden states and an LM head -> log-probs and entropies, without ever holding the logits of all tokens.

Tokens go through the head in tiles of rows. The forward pass keeps the log-sum-exp of each token's logits;
the backward pass makes the tile's logits again and turns them, in place, into their gradient: for weights w on the
log-prob and u on the entropy of a token,

    d loss / d logit_v = ( w (1[v = target] - p_v) - u p_v (log p_v + entropy) ) / temperature

so a pass of both costs four products of the size of the head's, where holding all logits would cost three, and the
memory of one tile, where holding them costs several times N x V numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

TILE_BYTES = 96 * 2**20
"""Float32 logits of a tile: large enough for products at full speed, small beside any model that needs tiles."""


def linear_logprob(
    hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    targets: Int[Tensor, " N"],
    *,
    temperature: float,
    with_entropy: bool = False,
    tile_bytes: int = TILE_BYTES,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"] | None]:
    """Natural log-probs of `targets` under `softmax(hidden weight^T / temperature)`, and the entropies if asked for.

    Products run in the dtype of `hidden` and `weight`, everything behind them in float32 (float64 for float64 inputs).
    Gradients flow to `hidden` and `weight`, through log-probs and entropies alike; first derivatives only.

    Args:
        tile_bytes: bound on the memory of the logits that are held at a time; at least one token is.
    """
    logp, entropy = _LinearLogprob.apply(hidden, weight, targets, temperature, with_entropy, tile_bytes)
    return logp, entropy if with_entropy else None


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        with_entropy: bool,
        tile_bytes: int,
    ) -> tuple[Tensor, Tensor]:
        count = len(targets)
        exact = _accumulation(hidden.dtype)
        # The log-sum-exp in two parts, the largest logit and the rest: their sum would round the rest away.
        logp, peak, rest = (torch.empty(count, dtype=exact, device=hidden.device) for _ in range(3))
        entropy = torch.empty(count if with_entropy else 0, dtype=exact, device=hidden.device)
        for rows in _tiles(count, weight.shape[0], exact, tile_bytes):
            logits = _logits(hidden[rows], weight, temperature, exact)
            peak[rows] = logits.amax(dim=1)
            logits.sub_(peak[rows].unsqueeze(1))
            rest[rows] = torch.logsumexp(logits, dim=1)
            log_probs = logits.sub_(rest[rows].unsqueeze(1))
            logp[rows] = log_probs.gather(1, targets[rows].unsqueeze(1)).squeeze(1)
            if with_entropy:
                entropy[rows] = _entropy(log_probs)
        ctx.save_for_backward(hidden, weight, targets, peak, rest, entropy)
        ctx.temperature, ctx.with_entropy, ctx.tile_bytes = temperature, with_entropy, tile_bytes
        return logp, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(
        ctx: Any, of_logp: Tensor, of_entropy: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        hidden, weight, targets, peak, rest, entropy = ctx.saved_tensors
        exact = rest.dtype
        d_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if ctx.needs_input_grad[1] else None
        for rows in _tiles(len(targets), weight.shape[0], exact, ctx.tile_bytes):
            log_probs = _logits(hidden[rows], weight, ctx.temperature, exact)
            log_probs.sub_(peak[rows].unsqueeze(1)).sub_(rest[rows].unsqueeze(1))
            w = of_logp[rows].to(exact).unsqueeze(1)
            u = of_entropy[rows].to(exact).unsqueeze(1) if ctx.with_entropy else None
            gradient = _logit_gradient(log_probs, targets[rows], w, u, entropy[rows] if ctx.with_entropy else None)
            product = gradient.div_(ctx.temperature).to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[rows] = product @ weight
            if d_weight is not None:
                d_weight += (product.T @ hidden[rows]).to(exact)
        return d_hidden, None if d_weight is None else d_weight.to(weight.dtype), None, None, None, None


def _logit_gradient(log_probs: Tensor, targets: Tensor, w: Tensor, u: Tensor | None, entropy: Tensor | None) -> Tensor:
    """`w (onehot - p) - u p (log p + entropy)`, with as few arrays of the tile's size as there can be."""
    probs = log_probs.exp() if u is not None else log_probs.exp_()
    if u is None:
        gradient = probs.mul_(-w)
    else:
        assert entropy is not None
        # A logit of -inf has probability 0 and adds nothing: 0 x -inf must not become NaN.
        inner = log_probs.add_(entropy.unsqueeze(1)).mul_(u).add_(w).neg_()
        gradient = probs.mul_(inner.nan_to_num_(neginf=0.0, posinf=0.0))
    gradient.scatter_add_(1, targets.unsqueeze(1), w)
    return gradient


def _logits(hidden: Tensor, weight: Tensor, temperature: float, exact: torch.dtype) -> Tensor:
    return (hidden @ weight.T).to(exact).div_(temperature)


def _entropy(log_probs: Tensor) -> Tensor:
    """`-sum p log p`; uses the log-probs up."""
    probs = log_probs.exp()
    return -probs.mul_(log_probs.nan_to_num_(neginf=0.0)).sum(dim=1)


def _accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _tiles(count: int, vocabulary: int, dtype: torch.dtype, tile_bytes: int) -> list[slice]:
    size = max(1, tile_bytes // (vocabulary * dtype.itemsize))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
