"""A model's weights as a `WeightSource`, and the way from any source into a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gmpo.errors import BackendError
from gmpo.ports import WeightSource


@dataclass(frozen=True, slots=True)
class LiveWeights:
    """The weights of a model in this process. Who shares the process may read the model itself and copy nothing."""

    model: PreTrainedModel
    version: int

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The entries of the state dict: they share the model's memory and change with it."""
        yield from self.model.state_dict().items()


def copy_weights(source: WeightSource, model: PreTrainedModel) -> None:
    """Copy the weights of `source` into `model`, converted to its dtype and device.

    Raises:
        BackendError: a name or a shape differs, or a tensor is missing; `model` is then a mixture of old and new.
    """
    own = model.state_dict()
    missing = dict.fromkeys(own)
    with torch.no_grad():
        for name, tensor in source.tensors():
            if name not in own or own[name].shape != tensor.shape:
                here = "no such tensor" if name not in own else f"shape {list(own[name].shape)}"
                raise BackendError(
                    f"weights of step {source.version}: {name} comes with shape {list(tensor.shape)}, and the "
                    f"sampler's model has {here}. Sampler and learner must hold the same architecture."
                )
            own[name].copy_(tensor)
            missing.pop(name, None)
    if missing:
        raise BackendError(
            f"weights of step {source.version}: {len(missing)} tensors of the sampler's model did not come, the first "
            f"is {next(iter(missing))}. Sampler and learner must hold the same architecture."
        )
