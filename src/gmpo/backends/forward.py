"""A causal language model as the learner sees it: log-probs of responses, and a loss's way from them to the weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gmpo.backends.devices import Device
from gmpo.backends.packed import response_hidden, scatter_tokens, share_prefixes
from gmpo.backends.prefix_batches import prefix_micro_batches
from gmpo.backends.trainable import MicroBatching
from gmpo.ops.blocks import Blocks
from gmpo.ops.kernels import blocks_for
from gmpo.ops.linear_logprob import Entropies, Head, backward, token_values
from gmpo.ops.logprob import token_logprobs
from gmpo.records.batch import Batch, micro_batches

PROBE_TOLERANCE = 1e-3
"""Nats by which our reading of a model's head may differ from the model's own log-probs, in float32."""

LossOfRows = Callable[[slice, Tensor, Tensor | None], Tensor]
"""The loss of some rows of a batch, given their log-probs `[R, T]` and, where it depends on them, entropies `[R, T]`;
both are 0 where nothing was sampled."""


class TokenModel:
    """Policy or reference.

    Where its head is one of the usual kinds the logits are never held; where its attention allows it the answers to a
    prompt compute the prompt once. Both are found out here, for every model, and change no value beyond rounding.

    Args:
        temperature: divides the logits in every log-prob.
    """

    def __init__(self, model: PreTrainedModel, device: Device, *, temperature: float) -> None:
        self.model = model
        self.device = device
        self.blocks = blocks_for(device.torch)
        self.head = find_head(model, device, temperature, self.blocks)
        self.temperature = temperature
        self.separate = "its head is not one of the usual kinds" if self.head is None else share_prefixes(model, device)
        """Why every answer computes its own prompt; None if the answers of a group share it."""

    def split(self, batch: Batch, by: MicroBatching) -> list[Tensor]:
        """Row indices of the micro-batches."""
        return split(batch, by, share=self.separate is None)

    def logprobs(self, batch: Batch, *, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        """Log-probs of the sampled tokens `[B, T]` on the device, 0 elsewhere, and the entropies if asked for. Without
        gradient."""
        mask = batch.sampled_mask
        with torch.no_grad():
            outputs, head = self._outputs(batch)
            logp, entropy = token_values(head, outputs, self._targets(batch), with_entropy=with_entropy)
        return scatter_tokens(logp, mask), None if entropy is None else scatter_tokens(entropy, mask)

    def backward(self, batch: Batch, loss: LossOfRows, *, entropy: Entropies) -> Tensor | None:
        """Add the gradient of `loss` over all rows to the parameters'; returns the entropies `[B, T]` if asked for.

        Args:
            loss: is called for runs of neighbouring rows, each row once; the loss is the sum of what it returns.
            entropy: as in `gmpo.ops.linear_logprob.backward`.
        """
        mask = batch.sampled_mask
        outputs, head = self._outputs(batch)

        def of_tokens(rows: slice, logp: Tensor, ent: Tensor | None) -> Tensor:
            where = mask[rows]
            return loss(rows, scatter_tokens(logp, where), None if ent is None else scatter_tokens(ent, where))

        gradient, entropies = backward(
            head, outputs, self._targets(batch), mask.sum(1).tolist(), of_tokens, entropy=entropy
        )
        if outputs.requires_grad:
            outputs.backward(gradient)
        return None if entropies is None else scatter_tokens(entropies, mask)

    def _targets(self, batch: Batch) -> Tensor:
        return batch.response_ids[batch.sampled_mask].to(self.device.torch)

    def _outputs(self, batch: Batch) -> tuple[Tensor, Head]:
        """`[N, ..]` of the sampled tokens in the order of the mask's `nonzero()`, and the head that takes them."""
        if self.head is not None:
            hidden = response_hidden(self.model, batch, self.device, mask=batch.sampled_mask)
            return hidden.to(self.device.compute), self.head
        return self._logits(batch), Head(None, temperature=self.temperature, blocks=self.blocks)

    def _logits(self, batch: Batch) -> Tensor:
        where = self.device.torch
        ids = torch.cat([batch.prompt_ids, batch.response_ids], dim=1).to(where)
        mask = torch.cat([batch.prompt_mask, batch.response_mask], dim=1).to(where)
        with self.device.autocast():
            # The logits that predict response token t stand one position before it.
            logits = self.model(
                input_ids=ids,
                attention_mask=mask.long(),
                position_ids=(mask.long().cumsum(1) - 1).clamp(min=0),
                use_cache=False,
                logits_to_keep=batch.response_ids.shape[1] + 1,
            ).logits[:, :-1]
        kept: Tensor = logits[batch.sampled_mask.to(where)]
        return kept.float()


def split(batch: Batch, by: MicroBatching, *, share: bool) -> list[Tensor]:
    """Row indices of the micro-batches; with `share`, answers to one prompt stay together."""
    prompts, responses = batch.prompt_mask.sum(1), batch.response_mask.sum(1)
    if share:
        return prefix_micro_batches(batch.group, prompts, responses, rows=by.rows, tokens=by.tokens)
    return micro_batches(prompts, responses, rows=by.rows, tokens=by.tokens)


def find_head(model: PreTrainedModel, device: Device, temperature: float, blocks: Blocks) -> Head | None:
    """The head of `model` as we compute it, or None if that is not what the model computes itself.

    Families multiply, bound and shift their logits in ways of their own, so the reading is compared with the model.
    """
    layer = model.get_output_embeddings()
    if type(layer) is not torch.nn.Linear or model.base_model is model:
        return None
    config = model.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    if softcap is not None and scale != 1.0:
        return None

    def head(t: float) -> Head:
        return Head(layer.weight, layer.bias, t / scale, softcap, blocks)

    ids = torch.arange(1, 1 + min(8, layer.weight.shape[0] - 1), device=device.torch)
    training = model.training
    model.eval()
    with torch.no_grad():
        own = model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0]
        hidden = model.base_model(input_ids=ids.unsqueeze(0), use_cache=False).last_hidden_state[0]
    model.train(training)
    apart = token_logprobs(own, ids, temperature=1.0) - token_values(head(1.0), hidden, ids)[0]
    return head(temperature) if bool((apart.abs() <= PROBE_TOLERANCE).all()) else None
