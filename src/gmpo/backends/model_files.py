"""What a model folder's weight files must hold, and what they hold beyond the model."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from torch import nn

from gmpo.errors import BackendError

INDEXES = {"model.safetensors": "model.safetensors.index.json", "pytorch_model.bin": "pytorch_model.bin.index.json"}
"""A weight file, and the index of its parts where it is cut; the library takes the first of the four that is there."""
_ADAPTER = re.compile(r"lora_|base_layer|modules_to_save|lokr_|hada_|ia3_|adapter")
_COMPUTED = re.compile(
    r"rotary_emb|\b(inv_freq|cos_cached|sin_cached|masked_bias|causal_mask|position_ids|(attn|attention)\.bias)$"
)
"""Buffers that older versions of the library saved and that a model makes itself."""
_WRAPPER = re.compile(r"^(module\.|_orig_mod\.|_fsdp_wrapped_module\.|base_model\.model\.)+")


def adapters_in(folder: Path) -> list[str]:
    """Names of the adapter's files in a model folder."""
    names = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
    return [name for name in names if (folder / name).is_file()]


def require_weights(folder: Path) -> None:
    """Raise BackendError for a local model folder without weights, with parts of them missing, or with some that would
    be left out."""
    if adapters := adapters_in(folder):
        raise BackendError(
            f"model folder {folder} holds an adapter ({', '.join(adapters)}), which would be left out: only whole "
            "models are trained. Merge it into its base model first (peft: "
            "model.merge_and_unload().save_pretrained(FOLDER)), or "
            "move the adapter's files elsewhere to train the base model alone."
        )
    if not folder.is_dir():
        return
    _require_parts(folder)
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        raise BackendError(
            f"model folder {folder} has no weights (*.safetensors). It may hold only the configuration and tokenizer "
            "of a checkpoint that was saved without 'hf_model' in save_contents."
        )


def _require_parts(folder: Path) -> None:
    """The files that the index in use names."""
    for whole, name in INDEXES.items():
        if (folder / whole).is_file():
            return
        if not (index := folder / name).is_file():
            continue
        try:
            named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackendError(
                f"{index} is no index of weight files ({error!r}). Copy or download the model folder again."
            ) from error
        if missing := [part for part in named if not (folder / part).is_file()]:
            raise BackendError(
                f"model folder {folder}: {len(missing)} of the {len(named)} weight files that {name} names are not "
                f"there: {', '.join(missing[:3])}{', ..' if len(missing) > 3 else ''}. The copy or download broke off: "
                "copy them, or download the model again."
            )
        return


def without_place(model: nn.Module, base: nn.Module, keys: Iterable[str], where: str, *, shortened: bool) -> list[str]:
    """What the weight files hold beyond the model, a sentence each.

    A weight inside one of the model's own parts would be lost: it belongs to an adapter, to another architecture, or to
    the model under another name. A part beside them (a value head, a tower for images) is left out.

    Args:
        base: the part without its head, or the model itself.
        keys: names in the files that the model has not.
        where: names the model in messages.
        shortened: the settings give it fewer layers than the files hold.

    Raises:
        BackendError: a weight would be lost.
    """
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}.keys()
    modules = {name for name, module in model.named_modules() if module not in (model, base)}
    beside, computed, lost = [], [], []
    for key in sorted(keys):
        if _ADAPTER.search(key):
            raise BackendError(
                f"{where}: its weight files hold an adapter that is not merged, for example {key!r}, which would be "
                "left out: only whole models are trained. Merge it into its base model first (peft: "
                "model.merge_and_unload().save_pretrained(FOLDER))."
            )
        if _COMPUTED.search(key):
            computed.append(key)
        elif _WRAPPER.sub("", key) in own or (_inside(key, modules) and not shortened):
            lost.append(key)
        else:
            beside.append(key)
    if lost:
        raise BackendError(
            f"{where}: {type(model).__name__} has no place for {len(lost)} weights of its files, for example "
            f"{lost[0]!r}, which would be left out. config.json describes another model than the one that was saved "
            "(layers, biases, model_type), or the names were changed on the way: correct config.json, or save the "
            "model again with save_pretrained."
        )
    said = []
    if beside:
        said.append(
            f"{len(beside)} weights of the model's files are left out, for {type(model).__name__} has no such part: "
            f"{', '.join(beside[:3])}{', ..' if len(beside) > 3 else ''}"
        )
    if computed:
        said.append(f"{len(computed)} saved buffers, which the model computes itself, are not read: {computed[0]}")
    return said


def _inside(key: str, modules: Collection[str]) -> bool:
    """Whether a name lies in one of the modules."""
    parts = key.split(".")
    return any(".".join(parts[:end]) in modules for end in range(1, len(parts)))
