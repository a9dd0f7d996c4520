"""Drawing a token from logits by one uniform number per row.

One number per token, drawn from the answer's own stream, is what makes an answer independent of its neighbours in the
batch; `torch.multinomial` shares one generator among all rows and is slower on large vocabularies.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def truncated_logprobs(
    logits: Float[Tensor, "B V"], *, temperature: float, top_k: int, top_p: float
) -> Float[Tensor, "B V"]:
    """Log-probs of the distribution that is sampled from; -inf on what top-k and top-p leave out.

    Temperature first, then top-k, then top-p on what top-k left, as in vLLM. Ties at the k-th place are all kept; top-p
    keeps the fewest most probable tokens whose probability reaches `top_p`, always at least one.

    Args:
        temperature: > 0.
        top_k: -1 keeps all.
        top_p: in (0, 1]; 1 keeps all.
    """
    scaled = logits.float() / temperature
    if 0 < top_k < scaled.shape[-1]:
        threshold = scaled.topk(top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < threshold, -torch.inf)
    if top_p < 1.0:
        ordered, order = scaled.sort(dim=-1, descending=True)
        probs = torch.softmax(ordered, dim=-1)
        before = probs.cumsum(dim=-1) - probs
        dropped = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= top_p)
        scaled = scaled.masked_fill(dropped, -torch.inf)
    return torch.log_softmax(scaled, dim=-1)


def draw(logprobs: Float[Tensor, "B V"], uniform: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The token at which the cumulative probability passes `uniform` (in [0, 1)), by inversion.

    A cumulative sum over a whole vocabulary in float32 loses small probabilities, so the vocabulary is cut into about
    sqrt(V) blocks: the block is drawn first, then the token within it, with running sums in float64. A token of
    probability 0 is never drawn.
    """
    rows, vocabulary = logprobs.shape
    size = math.isqrt(vocabulary - 1) + 1
    blocks = torch.nn.functional.pad(logprobs.exp(), (0, -vocabulary % size)).view(rows, -1, size)
    reach = blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target = uniform.double().unsqueeze(1) * reach[:, -1:]
    block = torch.searchsorted(reach, target, right=True).clamp(max=reach.shape[1] - 1)
    start = torch.where(block > 0, reach.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block.unsqueeze(-1).expand(-1, -1, size)).squeeze(1).cumsum(dim=-1, dtype=torch.float64)
    # Rounding may leave the target at or above the block's sum: then the block's last possible token is meant.
    target = torch.minimum(target - start, inside[:, -1:] * (1.0 - 1e-15))
    offset = torch.searchsorted(inside, target, right=True).clamp(max=size - 1)
    return (block * size + offset).squeeze(1)
