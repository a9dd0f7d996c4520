"""Weights and optimizer state on disk: safetensors and JSON, nothing that runs code when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gmpo.errors import CheckpointError

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
OPTIMIZER_STATE_FILE = "optimizer.json"


def held_weights(model: PreTrainedModel, *, copy: bool) -> dict[str, Tensor]:
    """The model's state on the CPU under its names; tied parameters share memory.

    Args:
        copy: into memory of its own, which further training does not change.
    """
    held = {id(p): _held(p, copy=copy) for p in model.parameters()}
    state = model.state_dict(keep_vars=True)
    return {name: held[id(t)] if id(t) in held else _held(t, copy=copy) for name, t in state.items()}


def held_moments(model: PreTrainedModel, optimizer: Optimizer, *, copy: bool) -> dict[str, Tensor]:
    """AdamW's moments of the trained parameters on the CPU under `<moment>.<parameter>`, and its step counts; `copy` as
    for the weights."""
    named = model.named_parameters()
    states = ((f"{key}.{name}", value) for name, p in named for key, value in optimizer.state.get(p, {}).items())
    return {name: _held(torch.as_tensor(value), copy=copy) for name, value in states}


def _held(tensor: Tensor, *, copy: bool) -> Tensor:
    return tensor.detach().to("cpu", copy=copy).contiguous()


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
        saved: Mapping[str, Tensor] = _read(folder / MODEL_FILE)
    else:
        saved = _read_huggingface(type(model), folder / "huggingface")
    _copy(dict(model.named_parameters()), saved, folder)


def load_optimizer(model: PreTrainedModel, optimizer: Optimizer, folder: Path) -> dict[str, Any]:
    """Restore AdamW's moments; returns the JSON that was saved beside them.

    Raises:
        CheckpointError: files are missing, unreadable, or do not fit.
    """
    saved: dict[str, dict[str, Tensor]] = {}
    for key, value in _read(folder / OPTIMIZER_FILE).items():
        moment, _, name = key.partition(".")
        saved.setdefault(name, {})[moment] = value
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
    for name, state in saved.items():
        parameter = parameters[name]
        for moment, value in state.items():
            if moment != "step" and value.shape != parameter.shape:
                raise CheckpointError(
                    f"{folder}: {moment} of {name!r} is {tuple(value.shape)}, the parameter {tuple(parameter.shape)}. "
                    "The optimizer's state belongs to another model."
                )
        # The step count stays where AdamW keeps it: on the parameter's device when fused.
        optimizer.state[parameter] = {moment: value.to(parameter.device) for moment, value in state.items()}
    try:
        extra: dict[str, Any] = json.loads((folder / OPTIMIZER_STATE_FILE).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {folder / OPTIMIZER_STATE_FILE}: {error}") from error
    return extra


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error


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
            if parameter.shape != saved[name].shape:
                raise CheckpointError(
                    f"{folder}: {name!r} is {tuple(saved[name].shape)}, the model has {tuple(parameter.shape)}. "
                    "The checkpoint belongs to another model."
                )
            parameter.copy_(saved[name])
