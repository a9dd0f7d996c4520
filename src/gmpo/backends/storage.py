"""Weights and optimizer state on disk: safetensors and JSON, nothing that runs code when it is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gmpo.backends.adapters import ADAPTER_FILE, adapter_config, is_adapter, names_in_file, save_adapter
from gmpo.backends.ranks.dealing import deal
from gmpo.errors import CheckpointError

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
OPTIMIZER_STATE_FILE = "optimizer.json"


@dataclass(frozen=True, slots=True)
class Share:
    """Of the tensors of a checkpoint, those that one of several ranks keeps and writes: whole ones, about as many bytes
    each."""

    rank: int = 0
    ranks: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def owners(self, model: PreTrainedModel) -> dict[str, int]:
        """The rank that keeps each parameter: the same on all ranks."""
        named = saved_parameters(model)
        dealt = deal([p.numel() * p.element_size() for p in named.values()], self.ranks)
        names = list(named)
        return {names[i]: rank for rank, items in enumerate(dealt) for i in items}

    def file(self, whole: str, rank: int) -> str:
        """The name of a rank's part of a file."""
        stem, _, ending = whole.rpartition(".")
        return whole if self.ranks == 1 else f"{stem}-{rank + 1:05d}-of-{self.ranks:05d}.{ending}"


ALONE = Share()


def saved_parameters(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """What a checkpoint holds of a model, each once: the adapters where it has such, else everything."""
    adapted = adapter_config(model) is not None
    return {name: p for name, p in model.named_parameters() if is_adapter(name) or not adapted}


def held_weights(
    model: PreTrainedModel, *, copy: bool, keep: Callable[[str], bool] = lambda name: True
) -> dict[str, Tensor]:
    """The model's state on the CPU under its names, whole; tied parameters share memory.

    Sharded parameters are gathered one after the other, for which every rank makes the same call.

    Args:
        copy: into memory of its own, which further training does not change.
        keep: whether to keep a parameter or buffer of this (first) name; the others are only gathered.
    """
    saved = saved_parameters(model)
    held = {id(p): _held(p, copy=copy, keep=keep(name)) for name, p in saved.items()}
    state = saved if adapter_config(model) else model.state_dict(keep_vars=True)
    named = {name: held[id(t)] if id(t) in held else _held(t, copy=copy, keep=keep(name)) for name, t in state.items()}
    return {name: t for name, t in named.items() if t is not None}


def held_moments(
    model: PreTrainedModel, optimizer: Optimizer, *, copy: bool, keep: Callable[[str], bool] = lambda name: True
) -> dict[str, Tensor]:
    """AdamW's moments of the trained parameters on the CPU under `<moment>.<parameter>`, and its step counts; the
    arguments as for the weights."""
    found = {
        f"{key}.{name}": _held(torch.as_tensor(value), copy=copy, keep=keep(name))
        for name, p in model.named_parameters()
        for key, value in optimizer.state.get(p, {}).items()
    }
    return {name: t for name, t in found.items() if t is not None}


def shard_of(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's shard of a tensor that every rank has, where `like` is sharded; else the tensor, on its device."""
    there = whole.to(like.device)
    if not isinstance(like, DTensor):
        return there
    shard: Tensor = distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)
    return shard


def _held(tensor: Tensor, *, copy: bool, keep: bool) -> Tensor | None:
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        whole, own = tensor.full_tensor(), tensor.to_local()
        # On one rank the whole is the shard itself.
        tensor, copy = whole, copy and whole.data_ptr() == own.data_ptr()
    return tensor.to("cpu", copy=copy).contiguous() if keep else None


class SavedTensors:
    """The tensors of a safetensors file, or of the files that its index names; read one at a time when asked for.

    Raises:
        CheckpointError: a file cannot be read, or does not hold what the index says.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.files = self._indexed() if not file.exists() and index_of(file).exists() else self._listed(file)

    def _listed(self, file: Path) -> dict[str, Path]:
        with self._reading(file), safe_open(file, framework="pt") as opened:
            return dict.fromkeys(opened.keys(), file)

    def _indexed(self) -> dict[str, Path]:
        index = index_of(self.file)
        with self._reading(index):
            named = {str(n): self.file.parent / str(f) for n, f in json.loads(index.read_text())["weight_map"].items()}
        there = {name: file for file in sorted(set(named.values())) for name in self._listed(file)}
        if lost := sorted(name for name, file in named.items() if there.get(name) != file):
            raise CheckpointError(f"cannot read {self.file}: {named[lost[0]].name} is without {lost[0]!r}")
        return named

    @property
    def names(self) -> Sequence[str]:
        return tuple(self.files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, which is not read."""
        file = self.files[name]
        with self._reading(file), safe_open(file, framework="pt") as opened:
            return tuple(opened.get_slice(name).get_shape())

    def like(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor on the device of another one of its shape; where that is sharded, this rank's shard, of which
        nothing else is read."""
        file = self.files[name]
        with self._reading(file), safe_open(file, framework="pt") as opened:
            if not isinstance(tensor, DTensor):
                found: Tensor = opened.get_tensor(name)
                return found.to(tensor.device)
            rows = own_rows(tensor)
            part = (opened.get_tensor(name) if rows is None else opened.get_slice(name)[rows]).to(tensor.device)
        mesh, placements = tensor.device_mesh, tensor.placements
        return DTensor.from_local(
            part.contiguous(), mesh, placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
        )

    @contextmanager
    def _reading(self, file: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise CheckpointError(f"cannot read {file}: {error}") from error


def own_rows(tensor: DTensor) -> slice | None:
    """The rows of a tensor that this rank holds; None where it holds all.

    Raises:
        CheckpointError: it is sharded in another way than FSDP2 shards.
    """
    cuts = [(dim, p) for dim, p in enumerate(tensor.placements) if not p.is_replicate()]
    if not cuts:
        return None
    (dim, placement), *more = cuts
    if more or not placement.is_shard(0):
        raise CheckpointError(f"a parameter is sharded as {tensor.placements}, of which a checkpoint is not read")
    mesh = tensor.device_mesh
    # As torch.chunk: all shards but the last ones have the same number of rows.
    size = -(-tensor.shape[0] // mesh.size(dim))
    start = min(mesh.get_local_rank(dim) * size, tensor.shape[0])
    return slice(start, min(start + size, tensor.shape[0]))


def index_of(file: Path) -> Path:
    """The index beside a file that was written in parts, as the library names it."""
    return file.with_name(f"{file.name}.index.json")


def saved_in(file: Path) -> bool:
    """Whether a file is there, whole or in parts."""
    return file.is_file() or index_of(file).is_file()


def save_model(model: PreTrainedModel, weights: Mapping[str, Tensor], folder: Path, share: Share = ALONE) -> None:
    """Of held weights every parameter once (tied ones under their first name), in the dtype it is trained in: the
    parameters of this rank's share, and on the first rank the index of all."""
    names = {name: name for name in saved_parameters(model)}
    _save(names, weights, folder / MODEL_FILE, share.owners(model), share)


def save_optimizer(
    model: PreTrainedModel,
    optimizer: Optimizer,
    moments: Mapping[str, Tensor],
    extra: Mapping[str, Any],
    folder: Path,
    share: Share = ALONE,
) -> None:
    """Held moments, as the weights; `extra` is any JSON the learner wants back."""
    parameter = {f"{key}.{name}": name for name, p in model.named_parameters() for key in optimizer.state.get(p, {})}
    _save(parameter, moments, folder / OPTIMIZER_FILE, share.owners(model), share)
    if share.first:
        (folder / OPTIMIZER_STATE_FILE).write_text(json.dumps(dict(extra)))


def _save(
    parameter: Mapping[str, str], held: Mapping[str, Tensor], file: Path, owners: Mapping[str, int], share: Share
) -> None:
    """The tensors of this rank; `parameter` names that of each tensor of the file."""
    own = {name: held[name] for name, of in parameter.items() if owners[of] == share.rank}
    if own or share.first:  # a small model may have nothing for some ranks
        save_file(own, file.with_name(share.file(file.name, share.rank)))
    if share.ranks > 1 and share.first:
        named = {name: share.file(file.name, owners[of]) for name, of in parameter.items()}
        index_of(file).write_text(json.dumps({"metadata": {"format": "pt"}, "weight_map": named}, indent=1))


def save_huggingface(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """A Hugging Face folder: configuration, generation configuration, tokenizer and, if given, weights under the
    names of the model's state. Of a model with adapters the folder of the adapter, as peft writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    if adapter_config(model):
        save_adapter(model, weights, folder)
        return
    if weights is not None:
        model.save_pretrained(folder, state_dict=dict(weights))
        return
    model.config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)


def load_model(model: PreTrainedModel, folder: Path, content: str) -> None:
    """Copy saved weights into `model`.

    Args:
        content: `model` (what `save_model` wrote), `hf_model` (the folder `huggingface/`), or `adapter` (the folder
            itself is that of an adapter).

    Raises:
        CheckpointError: files are missing, unreadable, or of another shape.
    """
    parameters = saved_parameters(model)
    if content == "model":
        saved = SavedTensors(folder / MODEL_FILE)
        shapes = {name: saved.shape(name) for name in saved.names if name in parameters}
        _copy(parameters, shapes, saved.like, folder)
        return
    if adapter_config(model):
        names = names_in_file(list(parameters))
        saved = SavedTensors((folder if content == "adapter" else folder / "huggingface") / ADAPTER_FILE)
        shapes = {name: saved.shape(of) for name, of in names.items() if of in saved.files}
        _copy(parameters, shapes, lambda name, like: saved.like(names[name], like), folder)
        return
    exported = _read_huggingface(type(model), folder / "huggingface")
    whole = {name: tuple(value.shape) for name, value in exported.items()}
    _copy(parameters, whole, lambda name, like: shard_of(exported[name], like), folder)


def load_optimizer(model: PreTrainedModel, optimizer: Optimizer, folder: Path) -> dict[str, Any]:
    """Restore AdamW's moments; returns the JSON that was saved beside them.

    Raises:
        CheckpointError: files are missing, unreadable, or do not fit.
    """
    saved: dict[str, set[str]] = {}
    file = SavedTensors(folder / OPTIMIZER_FILE)
    for key in file.names:
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
            key = f"{moment}.{name}"
            if moment == "step":
                # It stays where AdamW keeps it: on the parameter's device when fused.
                state[moment] = file.like(key, torch.empty((), device=parameter.device))
                continue
            if (shape := file.shape(key)) != tuple(parameter.shape):
                raise CheckpointError(
                    f"{folder}: {moment} of {name!r} is {shape}, the parameter {tuple(parameter.shape)}. "
                    "The optimizer's state belongs to another model."
                )
            state[moment] = file.like(key, parameter)
        optimizer.state[parameter] = state
    try:
        extra: dict[str, Any] = json.loads((folder / OPTIMIZER_STATE_FILE).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {folder / OPTIMIZER_STATE_FILE}: {error}") from error
    return extra


def _read_huggingface(kind: type[PreTrainedModel], folder: Path) -> dict[str, Tensor]:
    # Through the library: it may store parameters in another layout (one tensor per expert) than it computes in.
    try:
        loaded: Any = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"cannot read Hugging Face weights in {folder}: {error}") from error
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise CheckpointError(f"{folder}: no weights for {len(missing)} parameters, for example {missing[0]!r}")
    return dict(model.named_parameters())


def _copy(
    parameters: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str, Tensor], Tensor],
    folder: Path,
) -> None:
    missing = sorted(parameters.keys() - shapes.keys())
    if missing:
        raise CheckpointError(f"{folder}: no weights for {len(missing)} parameters, for example {missing[0]!r}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if tuple(parameter.shape) != shapes[name]:
                raise CheckpointError(
                    f"{folder}: {name!r} is {shapes[name]}, the model has {tuple(parameter.shape)}. "
                    "The checkpoint belongs to another model."
                )
            parameter.copy_(read(name, parameter))
