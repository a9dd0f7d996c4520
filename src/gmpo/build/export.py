"""A trained model as an ordinary Hugging Face folder: adapters added to their base, checkpoints of ranks joined."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from gmpo.backends.adapters import ADAPTER_CONFIG, ADAPTER_FILE, merge_adapters, put_adapters, read_adapter_config
from gmpo.backends.devices import DTYPES
from gmpo.backends.model_files import library
from gmpo.backends.models import ModelSource, load_config, load_model
from gmpo.backends.storage import MODEL_FILE, held_weights, save_huggingface, saved_in
from gmpo.backends.storage import load_model as load_weights
from gmpo.errors import CheckpointError, ConfigError
from gmpo.records.durable import UNFINISHED, rename, sync_tree
from gmpo.records.run_folder import CHECKPOINT, MODEL, as_others, checkpoints
from gmpo.training.saved import require_whole

CPU = torch.device("cpu")


DTYPES_OUT = {**DTYPES, "fp16": torch.float16}


def export(folder: Path, out: Path, *, dtype: str = "fp32", step: int | None = None) -> Path:
    """Write a whole model. It appears under its name when it is complete.

    Args:
        folder: a checkpoint (`global_step_<N>`), a run folder (its final model, else its newest checkpoint), a model
            folder, or the folder of an adapter.
        out: a folder that is not there yet, or empty.
        dtype: of the weights, fp32, bf16 or fp16; adapters are added in float32.
        step: take the checkpoint after this step, of a run folder.

    Raises:
        ConfigError: `out` holds something, or cannot be written to.
        BackendError, CheckpointError: there is no model in `folder`, it is damaged or cannot be read, or its base
            cannot; or weights are too large for fp16.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is there already: name another folder")
    described, weights = _found(folder if step is None else _checkpoint(folder, step))
    model = _with_adapter(described, weights) if (described / ADAPTER_CONFIG).is_file() else _whole(described, weights)
    with library(f"read the tokenizer of {described}"):
        tokenizer = AutoTokenizer.from_pretrained(described)
    _converted(model, dtype)
    beside = out.with_name(f"{UNFINISHED}{out.name}")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        save_huggingface(model, tokenizer, beside, held_weights(model, copy=False))
        as_others(beside)
        sync_tree(beside)
        if out.exists():
            out.rmdir()
        rename(beside, out)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise ConfigError(f"--out {out}: cannot write there: {error}. Make room, or name another folder.") from error
    return out


def _converted(model: PreTrainedModel, dtype: str) -> None:
    """Have the weights in a dtype. Raises CheckpointError for a weight that it cannot hold."""
    before = {name: bool(p.isfinite().all()) for name, p in model.named_parameters()}
    model.to(DTYPES_OUT[dtype])  # type: ignore[arg-type]  # its decorator hides the method's own annotation
    lost = [name for name, p in model.named_parameters() if before[name] and not bool(p.isfinite().all())]
    if lost:
        raise CheckpointError(f"{len(lost)} weights are too large for {dtype}, for example {lost[0]!r}: take bf16")


def _checkpoint(folder: Path, step: int) -> Path:
    saved = checkpoints(folder)
    if step not in saved:
        there = f"there are {', '.join(map(str, saved))}" if saved else "it holds none"
        raise CheckpointError(f"{folder} holds no checkpoint after step {step}: {there}")
    return saved[step]


def _found(folder: Path) -> tuple[Path, Path | None]:
    """The folder that describes the model, and the one that holds a checkpoint's weights; None where the first has
    them."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder")
    if (folder / "actor").is_dir():
        require_whole(folder)
        actor = folder / "actor"
        return actor / MODEL, actor if saved_in(actor / MODEL_FILE) else None
    if (folder / MODEL).is_dir():
        return folder / MODEL, None
    if steps := checkpoints(folder):
        return _found(steps[max(steps)])
    if any((folder / name).is_file() for name in (ADAPTER_CONFIG, "config.json")):
        return folder, None
    raise CheckpointError(f"{folder} holds no checkpoint ({CHECKPOINT}<N>), no {MODEL}/, no model and no adapter")


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
    source = ModelSource(str(described), key="FOLDER")
    if weights is None:
        return load_model(source, CPU)
    with library(f"make a model of {described}"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(load_config(source), dtype=torch.float32)
    load_weights(model, weights, "model")
    return model
