"""Weights and optimizer state on disk: safetensors and JSON, nothing that runs code when it is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gmpo.errors import CheckpointError

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
OPTIMIZER_STATE_FILE = "optimizer.json"


def held_weights(model: PreTrainedModel, *, copy: bool, keep: bool = True) -> dict[str, Tensor]:
    """The model's state on the CPU under its names, whole; tied parameters share memory.

    Sharded parameters are gathered one after the other, for which every rank makes the same call.

    Args:
        copy: into memory of its own, which further training does not change.
        keep: false takes part in the gathering and returns nothing.
    """
    held = {id(p): _held(p, copy=copy, keep=keep) for p in model.parameters()}
    state = model.state_dict(keep_vars=True)
    named = {name: held[id(t)] if id(t) in held else _held(t, copy=copy, keep=keep) for name, t in state.items()}
    return {name: t for name, t in named.items() if t is not None}


def held_moments(model: PreTrainedModel, optimizer: Optimizer, *, copy: bool, keep: bool = True) -> dict[str, Tensor]:
    """AdamW's moments of the trained parameters on the CPU under `<moment>.<parameter>`, and its step counts; the
    arguments as for the weights."""
    named = model.named_parameters()
    states = ((f"{key}.{name}", value) for name, p in named for key, value in optimizer.state.get(p, {}).items())
    found = {name: _held(torch.as_tensor(value), copy=copy, keep=keep) for name, value in states}
    return {name: t for name, t in found.items() if t is not None}


def _held(tensor: Tensor, *, copy: bool, keep: bool) -> Tensor | None:
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        whole, own = tensor.full_tensor(), tensor.to_local()
        # On one rank the whole is the shard itself.
        tensor, copy = whole, copy and whole.data_ptr() == own.data_ptr()
    return tensor.to("cpu", copy=copy).contiguous() if keep else None


class SavedTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, read one at a time when they are asked for.

    Raises:
        CheckpointError: the file cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            with safe_open(file, framework="pt") as opened:
                self.names = tuple(opened.keys())
        except (OSError, SafetensorError) as error:
            raise self._unreadable(error) from error

    def __getitem__(self, name: str) -> Tensor:
        try:
            with safe_open(self.file, framework="pt") as opened:
                found: Tensor = opened.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise self._unreadable(error) from error
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def _unreadable(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"cannot read {self.file}: {error}")


def shard_of(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's shard of a tensor that every rank has, where `like` is sharded; else the tensor, on its device."""
    there = whole.to(like.device)
    if not isinstance(like, DTensor):
        return there
    shard: Tensor = distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)
    return shard


def save_model(model: PreTrainedModel, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Of held weights every parameter once (tied ones under their first name), in the dtype it is trained in."""
    save_file({name: weights[name] for name, _ in model.named_parameters()}, folder / MODEL_FILE)


def save_optimizer(moments: Mapping[str, Tensor], extra: Mapping[str, Any], folder: Path) -> None:
    """Held moments; `extra` is any JSON the learner wants back."""
    save_file(dict(moments), folder / OPTIMIZER_FILE)
    (folder / OPTIMIZER_STATE_FILE).write_text(json.dumps(dict(extra)))


def save_huggingface(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """A Hugging Face folder: configuration, generation configuration, tokenizer and, if given, weights under the
    names of the model's state."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    if weights is not None:
        model.save_pretrained(folder, state_dict=dict(weights))
        return
    model.config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)


def load_model(model: PreTrainedModel, folder: Path, content: str) -> None:
    """Copy saved weights into `model`.

    Args:
        content: `model` (what `save_model` wrote) or `hf_model` (the folder `huggingface/`).

    Raises:
        CheckpointError: files are missing, unreadable, or of another shape.
    """
    if content == "model":
        saved: Mapping[str, Tensor] = SavedTensors(folder / MODEL_FILE)
    else:
        saved = _read_huggingface(type(model), folder / "huggingface")
    _copy(dict(model.named_parameters()), saved, folder)


def load_optimizer(model: PreTrainedModel, optimizer: Optimizer, folder: Path) -> dict[str, Any]:
    """Restore AdamW's moments; returns the JSON that was saved beside them.

    Raises:
        CheckpointError: files are missing, unreadable, or do not fit.
    """
    saved: dict[str, set[str]] = {}
    file = SavedTensors(folder / OPTIMIZER_FILE)
    for key in file:
        moment, _, name = key.partition(".")
        saved.setdefault(name, set()).add(moment)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    parameters = {name: p for name, p in model.named_parameters() if id(p) in trained}
    # AdamW has no state before its first update, and one for every trained parameter from then on.
    if saved and saved.keys() != parameters.keys():
        odd = sorted(saved.keys() ^ parameters.keys())
        raise CheckpointError(
            f"{folder}: the optimizer's state belongs to another model, see for example {odd[0]!r}; or other "
            "parameters were frozen when it was saved."
        )
    optimizer.state.clear()
    for name, moments in saved.items():
        parameter = parameters[name]
        state: dict[str, Tensor] = {}
        for moment in sorted(moments):
            value = file[f"{moment}.{name}"]
            if moment == "step":
                # It stays where AdamW keeps it: on the parameter's device when fused.
                state[moment] = value.to(parameter.device)
                continue
            if value.shape != parameter.shape:
                raise CheckpointError(
                    f"{folder}: {moment} of {name!r} is {tuple(value.shape)}, the parameter {tuple(parameter.shape)}. "
                    "The optimizer's state belongs to another model."
                )
            state[moment] = shard_of(value, parameter)
        optimizer.state[parameter] = state
    try:
        extra: dict[str, Any] = json.loads((folder / OPTIMIZER_STATE_FILE).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {folder / OPTIMIZER_STATE_FILE}: {error}") from error
    return extra


def _read_huggingface(kind: type[PreTrainedModel], folder: Path) -> dict[str, Tensor]:
    # Through the library: it may store parameters in another layout (one tensor per expert) than it computes in.
    try:
        loaded: Any = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"cannot read Hugging Face weights in {folder}: {error}") from error
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise CheckpointError(f"{folder}: no weights for {len(missing)} parameters, for example {missing[0]!r}")
    return dict(model.named_parameters())


def _copy(parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor], folder: Path) -> None:
    missing = sorted(parameters.keys() - saved.keys())
    if missing:
        raise CheckpointError(f"{folder}: no weights for {len(missing)} parameters, for example {missing[0]!r}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            value = saved[name]
            if parameter.shape != value.shape:
                raise CheckpointError(
                    f"{folder}: {name!r} is {tuple(value.shape)}, the model has {tuple(parameter.shape)}. "
                    "The checkpoint belongs to another model."
                )
            parameter.copy_(shard_of(value, parameter))
