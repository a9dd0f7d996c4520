"""Hidden states that predict response tokens, from packed rows that share their prompts or from padded rows.

A micro-batch goes through the model's own code as one sequence (`prefix_layout`), so nothing is padding and the answers
to one prompt compute it once, with the values and gradients of separate rows. Models for which that is not established
take padded rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from gmpo.backends.devices import Device
from gmpo.backends.mini_batch import stand_in
from gmpo.backends.models import ModelSource
from gmpo.backends.prefix_attention import LAYOUT, NAME, PLAIN
from gmpo.backends.prefix_layout import prefix_layout
from gmpo.backends.sequence_parallel import SequenceGroup, why_heads_stay
from gmpo.backends.structure import additions
from gmpo.errors import BackendError
from gmpo.records.batch import Batch

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"})
"""`model_type` of models whose tokens meet in full attention only, by the library's attention interface."""


def share_prefixes(model: PreTrainedModel, device: Device) -> str | None:
    """Let `response_hidden` pack the rows of `model` if that is exact for it.

    Switches the model to an attention implementation that equals `sdpa` in every other call.

    Returns:
        None where rows are packed from now on, else why they are not; the model is left alone then.
    """
    reason = why_separate(model, device)
    if reason is None:
        model.set_attn_implementation(NAME)
    return reason


def why_separate(model: PreTrainedModel, device: Device) -> str | None:
    """Why rows of this model cannot share a prompt; None if they can."""
    config = model.config
    if additions(model.get_input_embeddings()):
        return "its embedding was altered from outside, and is read past its module"
    if not type(model).__module__.startswith("transformers.models."):
        return f"{type(model).__name__} is not a model of transformers itself"
    if reason := why_family_separate(config):
        return reason
    if config._attn_implementation not in (PLAIN, NAME):
        return f"its attention implementation is {config._attn_implementation!r} and not {PLAIN!r}"
    if device.torch.type != "cpu":
        return f"the attention kernel is for the CPU and the model is on {device.torch.type!r}"
    return None


def why_family_separate(config: Any) -> str | None:
    """Why rows of the models of this configuration cannot share a prompt; None if they can."""
    if config.model_type not in FAMILIES:
        return f"its model_type {config.model_type!r} is none of {', '.join(sorted(FAMILIES))}"
    if not only_full_attention(config):
        return "some of its layers do not attend to the whole context (sliding window)"
    return None


def require_divisible(config: PretrainedConfig, size: int, source: ModelSource, key: str) -> None:
    """Whether `size` ranks can compute sequences of this model together.

    Args:
        key: the setting that asks for it.

    Raises:
        BackendError: they cannot; says why.
    """
    reason = why_family_separate(config)
    if reason is None:
        text: Any = config.get_text_config()
        heads = text.num_attention_heads
        reason = why_heads_stay(heads, getattr(text, "num_key_value_heads", None) or heads, size)
    if reason is not None:
        raise BackendError(f"{key}={size}: the sequences of {source.named} cannot be divided: {reason}.")


def only_full_attention(config: Any) -> bool:
    """Every layer attends to the whole context."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return all(kind == "full_attention" for kind in kinds)
    return getattr(config, "sliding_window", None) is None or not getattr(config, "use_sliding_window", True)


def packs(model: PreTrainedModel) -> bool:
    """Whether `share_prefixes` took effect on this model."""
    return bool(model.config._attn_implementation == NAME)


def response_hidden(
    model: PreTrainedModel,
    batch: Batch,
    device: Device,
    *,
    mask: Tensor,
    tied: TiedWeight | None = None,
    group: SequenceGroup | None = None,
) -> Tensor:
    """The last hidden states `[N, H]` that predict the tokens of `mask` `[B, T]`, in the order of its `nonzero()`.

    They are what the model's head takes; the head itself is not run. Without any token the model runs all the same, on
    a row that stands in, and the result has no rows: where it is sharded, every process must call it equally often.

    Args:
        tied: looks packed tokens up where the head shares the embedding's weight.
        group: ranks that compute the rows of all of them together; each passes its own and gets its own.

    Raises:
        ValueError: a row of the mask has no prompt.
    """
    mask = mask.cpu()
    if not bool(mask.any()):
        other = stand_in()
        return response_hidden(model, other, device, mask=other.sampled_mask, group=group)[:0]
    if packs(model):
        return _packed(model, batch, device, mask, tied, group)
    return _padded(model, batch, device, mask)


def _packed(
    model: PreTrainedModel,
    batch: Batch,
    device: Device,
    mask: Tensor,
    tied: TiedWeight | None,
    group: SequenceGroup | None,
) -> Tensor:
    layout = prefix_layout(batch.prompt_ids, batch.prompt_mask, batch.response_ids, mask)
    slices = None if group is None else group.joined(layout).to(device.torch)
    layout = layout.to(device.torch)
    ids, positions = layout.ids, layout.positions
    if slices is not None:
        ids, positions = slices.of(slices.layout.ids), slices.of(slices.layout.positions)
    # With a ready mask of four dimensions the library makes none, which would be [S, S]. An empty one fits no scores:
    # attention that took it instead of the layout would fail.
    nothing = torch.empty(1, 1, 0, 0, device=device.torch)
    with device.autocast():
        hidden: Tensor = model.base_model(
            inputs_embeds=(_embedded(model, ids) if tied is None else tied.embedded(ids)).unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            attention_mask=nothing,
            use_cache=False,
            **{LAYOUT: slices or layout},
        ).last_hidden_state
    own = hidden[0] if slices is None else slices.own(hidden[0])
    return own.index_select(0, layout.predictors)


def _embedded(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Embeddings whose gradient has the rows of these tokens only.

    torch's own is as large as the vocabulary, made anew and added in every pass. A sparse one is added to a dense
    `.grad` alike; where there is none yet it would stay sparse, so then it is torch's own. That is also the case of a
    weight that FSDP has gathered for this pass, whose reduction needs a dense gradient.
    """
    layer: Any = model.get_input_embeddings()
    sparse = layer.weight.grad is not None
    found: Tensor = F.embedding(ids, layer.weight, layer.padding_idx, sparse=sparse)
    return found


class TiedWeight:
    """The weight that embedding and head share, during one pass: gradient of the lookup goes into the head's.

    Left to autograd, the sum of the head's dense and the lookup's sparse gradient would be a new tensor of V x H.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.weight: Tensor = layer.weight
        """For the head, after the lookup."""

    def embedded(self, ids: Tensor) -> Tensor:
        """The rows of `ids`."""
        rows: Tensor
        rows, self.weight = _TiedLookup.apply(self.layer.weight, ids, self.layer.padding_idx)
        return rows


class _TiedLookup(torch.autograd.Function):
    """Weight `[V, H]`, ids `[S]` -> rows `[S, H]` and the weight, whose gradient takes up that of the rows."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding: int | None) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(ids)
        ctx.padding = padding
        return weight.index_select(0, ids), weight.view_as(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, of_rows: Tensor, of_weight: Tensor) -> tuple[Tensor, None, None]:
        (ids,) = ctx.saved_tensors
        if ctx.padding is not None:
            of_rows = of_rows.masked_fill((ids == ctx.padding).unsqueeze(1), 0.0)
        # In place: the head made this tensor for us alone.
        return of_weight.index_add_(0, ids, of_rows.to(of_weight.dtype)), None, None


def _padded(model: PreTrainedModel, batch: Batch, device: Device, mask: Tensor) -> Tensor:
    where = device.torch
    if not bool(batch.prompt_mask[mask.any(dim=1)].any(dim=1).all()):
        raise ValueError("a row has no prompt token, so nothing predicts the first token of its response")
    ids = torch.cat([batch.prompt_ids, batch.response_ids], dim=1).to(where)
    real = torch.cat([batch.prompt_mask, batch.response_mask], dim=1).to(where)
    positions = (real.long().cumsum(1) - 1).clamp(min=0)
    with device.autocast():
        hidden: Tensor = model.base_model(
            input_ids=ids, attention_mask=real.long(), position_ids=positions, use_cache=False
        ).last_hidden_state
    # What predicts response token t stands one position before it.
    before = batch.prompt_ids.shape[1] - 1
    return hidden[:, before : before + mask.shape[1]][mask.to(where)]


def scatter_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """`[N]` values of the tokens of `mask` `[B, T]` at their places, 0 elsewhere; gradients flow to `values`."""
    mask = mask.to(values.device)
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
