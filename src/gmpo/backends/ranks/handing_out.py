"""One rank reads a model, and the others get their shards of it from that rank.

So weights are read once, however many ranks there are, and no device ever has a whole copy. (In their machine's memory
the other ranks have random ones until they are sharded.)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, PreTrainedModel

from gmpo.backends.model_files import library
from gmpo.backends.models import ModelSource, load_config, load_generation, quiet, resolve

KINDS = {"policy": AutoModelForCausalLM, "critic": AutoModelForTokenClassification}


def placeholder_model(source: ModelSource, dtype: torch.dtype, kind: str = "policy") -> PreTrainedModel:
    """The model that `load_model` reads, on the CPU, as the library makes a new one: no weight file is opened. Its
    numbers are random, and are there because a model is run to find out of which kind its head is.

    Args:
        kind: `policy`, or `critic` for one with a value head.
    """
    resolve(source.path)
    config = load_config(source)
    if kind == "critic":
        config.num_labels, config.classifier_dropout = 1, 0.0
    attention = (source.override_config or {}).get("attn_implementation", "sdpa")
    with library(f"make {source.named}"), quiet():
        made: Any = KINDS[kind].from_config(
            config, dtype=dtype, trust_remote_code=source.trust_remote_code, attn_implementation=attention
        )
    model: PreTrainedModel = made.eval()
    if kind == "policy":
        model.generation_config = load_generation(source)
    return model


def kept_whole(model: PreTrainedModel) -> dict[str, Tensor]:
    """The parameters as they are before they are sharded, by name."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def hand_out(model: PreTrainedModel, whole: dict[str, Tensor]) -> None:
    """Give every rank its shards of the first rank's tensors, one after the other; buffers whole.

    Args:
        model: sharded; whole: what `kept_whole` was before that. It is emptied, and with it the first rank's copy.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = whole.pop(name).to(parameter.device)
            if isinstance(parameter, DTensor):
                placed: Any = distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
                parameter.to_local().copy_(placed.to_local())
            else:
                dist.broadcast(tensor, 0)
                parameter.copy_(tensor)
        for buffer in model.buffers():
            sent = buffer.contiguous()
            dist.broadcast(sent, 0)
            buffer.copy_(sent)
