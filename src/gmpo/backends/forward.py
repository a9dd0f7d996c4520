"""One forward pass of a causal language model over prompt-and-response rows: log-probs of the responses."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gmpo.backends.devices import Device
from gmpo.batch import Batch
from gmpo.ops.logprob import entropy, token_logprobs


def response_logprobs(
    model: PreTrainedModel,
    batch: Batch,
    device: Device,
    *,
    temperature: float,
    entropies: Literal["none", "value", "gradient"],
) -> tuple[Tensor, Tensor | None]:
    """Log-probs `[B, T]` of the response tokens on `device`, and the entropy `[B, T]` of each position if asked for.

    Logits are computed for response positions only. Gradients flow unless the caller switched them off; through the
    entropy only with `entropies="gradient"`.
    """
    where = device.torch
    ids = torch.cat([batch.prompt_ids, batch.response_ids], dim=1).to(where)
    mask = torch.cat([batch.prompt_mask, batch.response_mask], dim=1).to(where)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    width = batch.response_ids.shape[1]
    with device.autocast():
        # The logits that predict response token t stand one position before it.
        logits = model(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=positions,
            use_cache=False,
            logits_to_keep=width + 1,
        ).logits[:, :-1]
    logp = token_logprobs(logits, batch.response_ids.to(where), temperature=temperature)
    if entropies == "none":
        return logp, None
    return logp, entropy(logits if entropies == "gradient" else logits.detach(), temperature=temperature)
