"""Records on their way between processes: every tensor as a contiguous numpy array, which Ray's object store holds once
and hands over without a copy. Torch's own pickling copies each storage, and a slice's whole storage at that."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class _Array:
    """A tensor."""

    values: npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Record:
    """A dataclass of such."""

    kind: type[Any]
    fields: dict[str, Any]


def packed(value: Any) -> Any:
    """`value` without tensors; looks into dataclasses, mappings, lists and tuples."""
    if isinstance(value, Tensor):
        return _Array(np.ascontiguousarray(value.detach().cpu().numpy()))
    if isinstance(value, Mapping):
        return {key: packed(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([packed(one) for one in value])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _Record(type(value), {f.name: packed(getattr(value, f.name)) for f in dataclasses.fields(value)})
    return value


def unpacked(value: Any) -> Any:
    """What was packed. Tensors have memory of their own: that of the object store may not be written to."""
    if isinstance(value, _Array):
        return torch.from_numpy(value.values.copy())
    if isinstance(value, _Record):
        return value.kind(**{name: unpacked(one) for name, one in value.fields.items()})
    if isinstance(value, Mapping):
        return {key: unpacked(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([unpacked(one) for one in value])
    return value
