"""What policy, reference and critic share: a module that takes rows of a batch, and the loops over micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from gmpo.backends.devices import Device, out_of_memory_hint
from gmpo.backends.mini_batch import MiniBatch
from gmpo.backends.prefix_batches import prefix_micro_batches
from gmpo.backends.sequence_parallel import SequenceGroup
from gmpo.backends.trainable import MicroBatching, OptimizerStep, Trainable
from gmpo.records.batch import Batch, micro_batches

Record = TypeVar("Record")


class BatchModule(torch.nn.Module):
    """A model behind one `forward` that takes rows of a batch.

    Every parameter, the head's included, is used inside that `forward` and nowhere else. Whatever works by hooks on a
    module's call can therefore wrap this one: FSDP gathers the weights before it and reduces the gradients after it,
    provided that every process calls it equally often, with an empty batch where there are no rows.

    Args:
        separate: why every answer computes its own prompt; None if the answers of a group share it.
    """

    def __init__(self, model: PreTrainedModel, device: Device, separate: str | None) -> None:
        super().__init__()
        self.model = model
        self.device = device
        self.separate = separate
        self.agreed: Callable[[int], int] = lambda passes: passes
        """The passes that one rank needs -> those that all of them make."""
        self.group: SequenceGroup | None = None
        """The ranks that compute sequences together with this one."""

    def split(self, batch: Batch, by: MicroBatching) -> list[Tensor]:
        """Row indices of the micro-batches; where prompts are shared, answers to one prompt stay together. As many on
        every rank: the last ones may be without rows."""
        prompts, responses = batch.prompt_mask.sum(1), batch.response_mask.sum(1)
        if self.separate is None:
            parts = prefix_micro_batches(batch.group, prompts, responses, rows=by.rows, tokens=by.tokens)
        else:
            parts = micro_batches(prompts, responses, rows=by.rows, tokens=by.tokens)
        if self.group is not None:
            # What one device may hold, each rank of the group holds of a pass.
            limit = by.rows or self.group.size * (by.tokens or 0)
            costs = [len(rows) if by.rows else _tokens(batch.select(rows)) for rows in parts]
            parts = self.group.passes(parts, costs, limit)
        return parts + [torch.zeros(0, dtype=torch.long)] * (self.agreed(len(parts)) - len(parts))


def _tokens(batch: Batch) -> int:
    """Of all answers, each prompt counted once."""
    first = torch.stack([(batch.group == g).nonzero()[0, 0] for g in torch.unique(batch.group)])
    return int(batch.response_mask.sum() + batch.prompt_mask[first].sum())


def score(
    module: BatchModule, batch: Batch, by: MicroBatching, phase: str, *, outputs: int = 1, **options: Any
) -> list[Tensor]:
    """The first `outputs` results `[B, T]` of the module for the whole batch, without gradient, float32 on the CPU.

    Args:
        phase: what a message about lack of memory calls it; options: of the module's call.
    """
    module.eval()
    whole = [torch.zeros(batch.response_ids.shape) for _ in range(outputs)]
    for rows in module.split(batch, by):
        part = batch.select(rows)
        with torch.no_grad(), out_of_memory_hint(phase, by.settings):
            found = module(part, **options)
        for total, values in zip(whole, found, strict=False):
            total[rows, : values.shape[1]] = values.float().cpu()
    if isinstance(module, FSDPModule):
        module.reshard()  # of the outermost weights, which it leaves gathered for a backward pass
    return whole


def update(
    module: BatchModule,
    trainable: Trainable,
    mini: MiniBatch,
    by: MicroBatching,
    phase: str,
    accumulate: Callable[[MiniBatch], list[Record]],
) -> tuple[list[Record], OptimizerStep]:
    """One step of the optimizer on a mini-batch; returns the records of its micro-batches.

    Args:
        accumulate: adds the gradient of a micro-batch to the parameters'.
    """
    trainable.begin()
    records: list[Record] = []
    for rows in module.split(mini.batch, by):
        with out_of_memory_hint(phase, by.settings):
            records += accumulate(mini.part(rows))
    return records, trainable.step(mini.step)
