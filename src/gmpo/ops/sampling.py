"""Drawing a token from logits by one uniform number per row.

One number per token, drawn from the answer's own stream, makes an answer independent of its neighbours in the batch;
`torch.multinomial` shares one generator among all rows and is slower on large vocabularies. Temperature is applied
first, then top-k, then top-p on what top-k left, as in vLLM.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gmpo.ops.blocks import exponential_

CANDIDATES = 64
"""How many of the most probable tokens top-p looks at first; eight times as many while they do not suffice."""


def sample(
    logits: Float[Tensor, "B V"], uniform: Float[Tensor, " B"], *, temperature: float, top_k: int, top_p: float
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """Tokens, and their log-probs under the distribution they are drawn from. The logits are overwritten.

    Args:
        temperature: > 0.
        top_k: -1 keeps all. Ties at the k-th place are all kept.
        top_p: in (0, 1]; 1 keeps all. The fewest most probable tokens whose probability reaches it, at least one.
    """
    z = logits if temperature == 1.0 else logits.div_(temperature)
    truncate(z, top_k=top_k, top_p=top_p)
    peak = z.amax(dim=-1, keepdim=True)
    weights = exponential_(z.sub_(peak))
    token, chosen, total = draw(weights, uniform)
    return token, chosen.log() - total.log().to(chosen.dtype)


def truncate(z: Float[Tensor, "B V"], *, top_k: int, top_p: float) -> Float[Tensor, "B V"]:
    """Minus infinity, in place, on what top-k and top-p leave out: no full sort of the vocabulary."""
    vocabulary = z.shape[-1]
    if 0 < top_k < vocabulary:
        threshold = z.topk(top_k, dim=-1).values[:, -1:]
        z.masked_fill_(z < threshold, -torch.inf)
    if top_p < 1.0:
        total = torch.logsumexp(z, dim=-1, keepdim=True)
        count = min(CANDIDATES, vocabulary)
        while True:
            best, order = z.topk(count, dim=-1)
            probs = (best - total).exp()
            reach = probs.cumsum(dim=-1)
            if count == vocabulary or bool((reach[:, -1] >= top_p).all()):
                break
            count = min(8 * count, vocabulary)
        kept = reach - probs < top_p
        chosen = best.masked_fill(~kept, -torch.inf)
        z.fill_(-torch.inf).scatter_(1, order, chosen)
    return z


def draw(
    weights: Float[Tensor, "B V"], uniform: Float[Tensor, " B"]
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, " B"]]:
    """The token at which the running sum of `weights` passes `uniform` (in [0, 1)) of their total, by inversion.

    A running sum over a whole vocabulary in float32 loses small weights, so the vocabulary is cut into about sqrt(V)
    blocks: the block is drawn first, then the token within it, with running sums in float64. A token of weight 0 is
    never drawn.

    Returns:
        tokens, their weights, and the total of each row (float64). Where weights are NaN the total is, and the token is
        any one of the vocabulary.
    """
    vocabulary = weights.shape[1]
    size = math.isqrt(vocabulary - 1) + 1
    whole = vocabulary // size * size
    sums = weights[:, :whole].unflatten(1, (-1, size)).sum(dim=-1)
    if whole < vocabulary:
        sums = torch.cat([sums, weights[:, whole:].sum(dim=-1, keepdim=True)], dim=1)
    reach = sums.cumsum(dim=-1, dtype=torch.float64)
    target = uniform.double().unsqueeze(1) * reach[:, -1:]
    block = torch.searchsorted(reach, target, right=True).clamp(max=reach.shape[1] - 1)
    start = torch.where(block > 0, reach.gather(1, (block - 1).clamp(min=0)), 0.0)
    places = block * size + torch.arange(size, device=weights.device)
    own = weights.gather(1, places.clamp(max=vocabulary - 1)).masked_fill(places >= vocabulary, 0.0)
    inside = own.cumsum(dim=-1, dtype=torch.float64)
    # Rounding may leave the target at or above the block's sum: then the block's last possible token is meant.
    target = torch.minimum(target - start, inside[:, -1:] * (1.0 - 1e-15))
    offset = torch.searchsorted(inside, target, right=True).clamp(max=size - 1)
    token = places.gather(1, offset).squeeze(1).clamp(max=vocabulary - 1)  # weights of NaN lead beyond
    return token, own.gather(1, offset).squeeze(1), reach[:, -1]
