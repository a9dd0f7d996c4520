"""A causal language model as the learner sees it: log-probs of responses, and a loss's way from them to the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gmpo.backends.devices import Device
from gmpo.backends.mini_batch import stand_in
from gmpo.backends.packed import TiedWeight, response_hidden, scatter_tokens, share_prefixes
from gmpo.backends.passes import BatchModule
from gmpo.backends.structure import additions
from gmpo.ops.blocks import Blocks
from gmpo.ops.kernels import blocks_for
from gmpo.ops.linear_logprob import Head, token_score_norms, token_values
from gmpo.ops.linear_loss import Entropies, linear_loss
from gmpo.ops.logprob import token_logprobs
from gmpo.records.batch import Batch

PROBE_TOLERANCE = 1e-3
"""Nats by which our reading of a model's head may differ from the model's own log-probs, in float32; in a shorter dtype
twice the spacing of the largest logit comes on top."""

LossOfRows = Callable[[slice, Tensor, Tensor | None], Tensor]
"""The loss of some rows of a batch, given their log-probs `[R, T]` and, where it depends on them, entropies `[R, T]`;
both are 0 where nothing was sampled."""


class PolicyModule(BatchModule):
    """Policy or reference.

    Where its head is one of the usual kinds the logits are never held; where its attention allows it the answers to a
    prompt compute the prompt once. Both are found out here, for every model, and change no value beyond rounding.

    Args:
        temperature: divides the logits in every log-prob.
        excluded: ids that the policy never says, ascending: their probability is 0, and they have no gradient.
    """

    def __init__(
        self, model: PreTrainedModel, device: Device, *, temperature: float, excluded: Tensor | None = None
    ) -> None:
        blocks = blocks_for(device.torch)
        head = find_head(model, device, temperature, blocks)
        excluded = None if excluded is None else excluded.to(device.torch)
        if head is not None and excluded is not None:
            head = replace(head, excluded=excluded)
        separate = "its head is not one of the usual kinds" if head is None else share_prefixes(model, device)
        super().__init__(model, device, separate)
        self.excluded = excluded
        self.takes_hidden = head is not None
        # Without weights: they are read in every pass, since sharding exchanges a module's parameters.
        self.head = (
            replace(head, weight=None, bias=None) if head else Head(None, temperature=temperature, blocks=blocks)
        )

    def forward(
        self,
        batch: Batch,
        loss: LossOfRows | None = None,
        *,
        entropy: Entropies = "none",
        score_norms: bool = False,
    ) -> tuple[Tensor | None, ...]:
        """Without a loss: log-probs of the sampled tokens `[B, T]` on the device, 0 elsewhere, without gradient.
        With one: the loss over all rows, a scalar with gradient. And the entropies `[B, T]` if asked for.

        With a loss and gradients enabled, `backward()` of the loss must follow, without a factor and before the next
        call: the gradient that the head's weight has from earlier calls is taken into it and comes back only then.

        Args:
            loss: is called for runs of neighbouring rows, each row once; the loss is the sum of what it returns.
            entropy: as in `gmpo.ops.linear_loss.linear_loss`.
            score_norms: without a loss, a third result: `gmpo.ops.linear_logprob.token_score_norms`.
        """
        mask = batch.sampled_mask
        targets = batch.response_ids[mask].to(self.device.torch)
        if loss is None:
            with torch.no_grad():
                outputs, head = self._outputs(batch)
                logp, entropies = token_values(head, outputs, targets, with_entropy=entropy != "none")
                found = [logp, entropies, *([token_score_norms(head, outputs, targets, logp)] if score_norms else [])]
            return tuple(None if one is None else scatter_tokens(one, mask) for one in found)

        def of_tokens(rows: slice, logp: Tensor, ent: Tensor | None) -> Tensor:
            where = mask[rows]
            return loss(rows, scatter_tokens(logp, where), None if ent is None else scatter_tokens(ent, where))

        outputs, head = self._outputs(batch)
        value, entropies = linear_loss(
            head,
            outputs,
            targets,
            mask.sum(1).tolist(),
            of_tokens,
            entropy=entropy,
            weight_grad=self._handed_over(),
        )
        return value, None if entropies is None else scatter_tokens(entropies, mask)

    def _outputs(self, batch: Batch) -> tuple[Tensor, Head]:
        """`[N, ..]` of the sampled tokens in the order of the mask's `nonzero()`, and the head that takes them."""
        if not self.takes_hidden:
            return self._logits(batch), self.head
        layer: Any = self.model.get_output_embeddings()
        embedding: Any = self.model.get_input_embeddings()
        tied = TiedWeight(embedding) if embedding.weight is layer.weight and layer.weight.grad is not None else None
        hidden = response_hidden(self.model, batch, self.device, mask=batch.sampled_mask, tied=tied, group=self.group)
        weight = layer.weight if tied is None else tied.weight
        return hidden.to(self.device.compute), replace(self.head, weight=weight, bias=layer.bias)

    def _handed_over(self) -> Tensor | None:
        """The gradient that the head's weight has from earlier micro-batches, taken from it until autograd brings it
        back.

        The head adds to it and returns the sum: a gradient as large as the vocabulary is held once, and not once more
        for every micro-batch. A weight that FSDP has gathered for this pass has none.
        """
        layer: Any = self.model.get_output_embeddings() if self.takes_hidden else None
        if layer is None or not layer.weight.requires_grad or not torch.is_grad_enabled():
            return None
        grad: Tensor | None
        grad, layer.weight.grad = layer.weight.grad, None
        return grad

    def _logits(self, batch: Batch) -> Tensor:
        if not bool(batch.sampled_mask.any()):
            return self._logits(stand_in())[:0]
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
        kept: Tensor = logits[batch.sampled_mask.to(where)].float()
        return kept if self.excluded is None else kept.index_fill(1, self.excluded, -torch.inf)


def find_head(model: PreTrainedModel, device: Device, temperature: float, blocks: Blocks) -> Head | None:
    """The head of `model` as we compute it, or None if that is not what the model computes itself.

    Families multiply, bound and shift their logits in ways of their own, so the reading is compared with the model.
    """
    layer = model.get_output_embeddings()
    if type(layer) is not torch.nn.Linear or model.base_model is model:
        return None
    # Both are read past their modules, where an adapter that begins at zero would be left out.
    if additions(layer) or additions(model.get_input_embeddings()):
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
    # Two products of the same short numbers may round each logit, the target's and the others', to either neighbour.
    spacing = float(own.abs().max()) * torch.finfo(own.dtype).eps if own.dtype.itemsize < 4 else 0.0
    return head(temperature) if bool((apart.abs() <= PROBE_TOLERANCE + 2.0 * spacing).all()) else None
