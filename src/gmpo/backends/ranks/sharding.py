"""Parameters sharded over the ranks by FSDP2, and whole again for a sampler."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from gmpo.backends.devices import Device
from gmpo.backends.passes import BatchModule
from gmpo.backends.sequence_parallel import SequenceGroup
from gmpo.errors import BackendError


def make_mesh(device: torch.device, world: int, size: int) -> DeviceMesh:
    """The ranks as FSDP2 takes them.

    Args:
        size: ranks that share one copy of the parameters (`fsdp_size`); -1 or the whole world is all of them. Fewer
            make groups, each with a copy (HSDP).
    """
    if size in (-1, world):
        return init_device_mesh(device.type, (world,))
    return init_device_mesh(device.type, (world // size, size), mesh_dim_names=("replicate", "shard"))


def sequence_group(device: torch.device, world: int, rank: int, size: int) -> SequenceGroup | None:
    """The ranks that compute sequences together with this one: `size` neighbours; None where each computes its own."""
    if size == 1:
        return None
    mesh = init_device_mesh(device.type, (world // size, size), mesh_dim_names=("data", "sequence"))
    return SequenceGroup(mesh.get_group("sequence"), size, rank % size)


def shard(module: BatchModule, mesh: DeviceMesh, device: Device, group: SequenceGroup | None = None) -> None:
    """Shard each layer of the model, and what is left with the module that calls it.

    Gradients are summed over the ranks and not averaged: the denominators of the loss are those of all ranks. Where
    products run in a shorter dtype, weights are gathered in it and gradients are reduced in float32.

    Args:
        group: ranks that compute sequences together.

    Raises:
        BackendError: the model's layers are not where they are looked for, or its sequences cannot be divided.
    """
    if group is not None and module.separate is not None:
        raise BackendError(
            f"ulysses_sequence_parallel_size={group.size}: sequences are divided where the answers to a prompt share "
            f"it, and here they do not: {module.separate}. Set it to 1."
        )
    module.group = group
    layers = getattr(module.model.base_model, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise BackendError(
            f"{type(module.model).__name__} keeps its layers in another place than `layers`, so this version cannot "
            "shard it. Train it in one process: trainer.n_gpus_per_node=1."
        )
    short = device.compute if device.compute is not torch.float32 else None
    policy = MixedPrecisionPolicy(param_dtype=short, reduce_dtype=torch.float32 if short is not None else None)
    parts: list[torch.nn.Module] = [*layers, module]
    for part in parts:
        fully_shard(part, mesh=mesh, mp_policy=policy)  # type: ignore[arg-type]
    for inner in module.modules():
        if isinstance(inner, FSDPModule):
            inner.set_gradient_divide_factor(1.0)
            inner.set_force_sum_reduction_for_comms(True)
    where = device.torch

    def agreed(passes: int) -> int:
        """The most that a rank needs: a pass gathers weights from all ranks, so all make equally many."""
        most = torch.tensor([passes], device=where)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    module.agreed = agreed


@dataclass(frozen=True, slots=True)
class GatheredWeights:
    """A sharded policy's weights as a `WeightSource`: whole tensors, one at a time, which every rank must ask for."""

    model: PreTrainedModel
    version: int

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Under their Hugging Face names."""
        seen: dict[int, Tensor] = {}
        state: dict[str, Any] = self.model.state_dict(keep_vars=True)
        shared = len({id(t) for t in state.values()}) < len(state)
        for name, tensor in state.items():
            if id(tensor) not in seen:
                detached = tensor.detach()
                whole = detached.full_tensor() if isinstance(detached, DTensor) else detached
                if not shared:
                    yield name, whole
                    continue
                seen[id(tensor)] = whole
            yield name, seen[id(tensor)]
