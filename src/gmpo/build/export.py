"""A trained model as an ordinary Hugging Face folder: adapters added to their base, checkpoints of ranks joined."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from gmpo.backends.adapters import ADAPTER_CONFIG, ADAPTER_FILE, merge_adapters, put_adapters, read_adapter_config
from gmpo.backends.devices import DTYPES
from gmpo.backends.model_files import library
from gmpo.backends.models import ModelSource, load_config, load_model
from gmpo.backends.storage import MODEL_FILE, held_weights, save_huggingface, saved_in
from gmpo.backends.storage import load_model as load_weights
from gmpo.errors import CheckpointError, ConfigError
from gmpo.records.run_folder import CHECKPOINT, MODEL

CPU = torch.device("cpu")


def export(folder: Path, out: Path, *, dtype: str = "fp32") -> Path:
    """Write a whole model.

    Args:
        folder: a checkpoint (`global_step_<N>`), a run folder (its final model, else its newest checkpoint), or the
            folder of an adapter.
        out: a folder that is not there yet, or empty.
        dtype: of the weights, fp32 or bf16; adapters are added in float32.

    Raises:
        ConfigError: `out` holds something.
        BackendError, CheckpointError: there is no model in `folder`, it cannot be read, or its base cannot.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is there already: name another folder")
    described, weights = _found(folder)
    model = _with_adapter(described, weights) if (described / ADAPTER_CONFIG).is_file() else _whole(described, weights)
    with library(f"read the tokenizer of {described}"):
        tokenizer = AutoTokenizer.from_pretrained(described)
    model.to(DTYPES[dtype])  # type: ignore[arg-type]  # its decorator hides the method's own annotation
    save_huggingface(model, tokenizer, out, held_weights(model, copy=False))
    return out


def _found(folder: Path) -> tuple[Path, Path | None]:
    """The folder that describes the model, and the one that holds a checkpoint's weights; None where the first has
    them."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder")
    if (folder / "actor").is_dir():
        actor = folder / "actor"
        return actor / MODEL, actor if saved_in(actor / MODEL_FILE) else None
    if (folder / ADAPTER_CONFIG).is_file():
        return folder, None
    if (folder / MODEL).is_dir():
        return _found_final(folder / MODEL)
    steps = [p for p in folder.glob(f"{CHECKPOINT}*") if p.name.removeprefix(CHECKPOINT).isdecimal()]
    if steps:
        return _found(max(steps, key=lambda p: int(p.name.removeprefix(CHECKPOINT))))
    if (folder / "config.json").is_file():
        return _found_final(folder)
    raise CheckpointError(f"{folder} holds no checkpoint ({CHECKPOINT}<N>), no {MODEL}/ and no adapter")


def _found_final(folder: Path) -> tuple[Path, None]:
    if not (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(f"{folder} is a whole model already: copy it")
    return folder, None


def _with_adapter(described: Path, weights: Path | None) -> PreTrainedModel:
    config = read_adapter_config(described)
    base = ModelSource(
        str(config.base_model_name_or_path), key=f"base_model_name_or_path in {described / ADAPTER_CONFIG}"
    )
    model = load_model(base, CPU)
    put_adapters(model, config)
    if weights is not None:
        load_weights(model, weights, "model")
    elif not (described / ADAPTER_FILE).is_file():
        raise CheckpointError(f"{described} is without {ADAPTER_FILE}")
    else:
        load_weights(model, described, "adapter")
    merge_adapters(model)
    return model


def _whole(described: Path, weights: Path | None) -> PreTrainedModel:
    if weights is None:
        raise CheckpointError(
            f"{described.parent} holds no {MODEL_FILE}; its {MODEL}/ is a model already, if it has weights"
        )
    source = ModelSource(str(described), key="FOLDER")
    with library(f"make a model of {described}"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(load_config(source), dtype=torch.float32)
    load_weights(model, weights, "model")
    return model
