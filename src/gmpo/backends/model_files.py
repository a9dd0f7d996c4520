"""What a model folder's weight files must hold, and what they hold beyond the model."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from gmpo.errors import BackendError, GmpoError

DESCRIPTIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""Files of a model folder that are a JSON object each. Of a broken one the library says little, or takes its defaults
in silence."""
COPY_AGAIN = "Copy or download the model folder again."

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


@contextmanager
def library(what: str) -> Iterator[None]:
    """Whatever the library raises inside, which may be any exception of any of its parts, becomes one message.

    Args:
        what: was tried, for example `load the weights of model 'x'`.
    """
    try:
        yield
    except GmpoError:
        raise
    except Exception as error:
        raise BackendError(f"cannot {what}: {said_by(error)}") from error


def said_by(error: BaseException) -> str:
    """What an exception says, on one line, and of what kind it is where it says nothing or only a name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines)
    return said if " " in said else f"{type(error).__name__}: {said}" if said else type(error).__name__


def require_descriptions(folder: Path) -> None:
    """Raise BackendError where a file that describes the model or its tokenizer cannot be read."""
    for name in DESCRIPTIONS:
        file = folder / name
        if file.exists():
            _require_object(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _require_object(file: Path, changed: int) -> None:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BackendError(f"{file} cannot be read: {said_by(error)}. {COPY_AGAIN}") from error
    if not isinstance(found, dict):
        raise BackendError(f"{file} is no JSON object but a {type(found).__name__}. {COPY_AGAIN}")


def _require_headers(folder: Path) -> None:
    """Every weight file begins with the list of its tensors, and is as long as that says."""
    for file in sorted(folder.glob("*.safetensors")):
        if not file.is_file():
            raise BackendError(f"{file} is no file, where weights are looked for. {COPY_AGAIN}")
        try:
            with safe_open(file, framework="np"):
                pass
        except (OSError, SafetensorError) as error:
            raise BackendError(
                f"weight file {file} cannot be read: {said_by(error)}. It is damaged, or its copy or download broke "
                f"off. {COPY_AGAIN}"
            ) from error


def require_finite(model: nn.Module, where: str) -> None:
    """Raise BackendError for weights that are no numbers, which no training could mend."""
    held = ((name, p) for name, p in model.named_parameters() if not p.is_meta)
    # A sum is not finite where a weight is not, and seldom otherwise; it is many times as fast.
    odd = [name for name, p in held if not bool(p.detach().sum().isfinite()) and not bool(p.isfinite().all())]
    if odd:
        count = sum(int((~p.isfinite()).sum()) for name, p in model.named_parameters() if name in odd)
        named = f"{', '.join(odd[:3])}{', ..' if len(odd) > 3 else ''}"
        raise BackendError(
            f"{where}: {count} of its weights not finite, in {named}. The model diverged before it was saved, or the "
            "file is damaged: take an earlier checkpoint, or copy it again."
        )


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
    _require_headers(folder)
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
