"""What a run needs and this disk, machine or version has not: found out without network, torch or running user code."""

from __future__ import annotations

import ast
import importlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from gmpo.config import Config, Resolved
from gmpo.config.resolved import Note
from gmpo.errors import ConfigError, DataError

MODEL = "actor_rollout_ref.model.path"


def not_here(resolved: Resolved[Config]) -> list[Note]:
    """What keeps `gmpo train` from starting, with the key that it belongs to; empty where it could."""
    config = resolved.config
    return [
        *_model(MODEL, config.actor_rollout_ref.model.source, config.actor_rollout_ref.model.tokenizer_path is None),
        *(_model("critic.model.path", config.critic.model.source, False) if config.critic.enable else ()),
        *_data(config),
        *_functions(config),
        *_scorers(config),
        *_device(config),
        *(note for note in resolved.unavailable if note.path != MODEL),
    ]


def _model(key: str, path: str, tokenizer: bool) -> Iterator[Note]:
    if not path:
        yield Note(key, "is not given; name a Hugging Face model folder or a hub name")
        return
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if path.count("/") == 1 and not path.startswith(("/", ".", "~")):
            if not _cached(path):
                yield Note(key, "is no folder here, and not in the hub's cache: it would be downloaded")
        else:
            yield Note(key, "there is no such folder")
        return
    if not (folder / "config.json").is_file():
        yield Note(key, "the folder has no config.json, so it is no model")
    elif not any(file.stem != "adapter_model" for file in folder.glob("*.safetensors")) and not any(
        folder.glob("pytorch_model*.bin")
    ):
        yield Note(key, "the folder has no weights (*.safetensors)")
    if any(folder.glob("adapter_*")):
        yield Note(key, "the folder holds an adapter; merge it into its base model first")
    if tokenizer and not any((folder / name).is_file() for name in _TOKENIZERS):
        yield Note(key, "the folder has no tokenizer; actor_rollout_ref.model.tokenizer_path may name another")


_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model", "spiece.model", "vocab.txt")


def _cached(name: str) -> bool:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    return any((cache / f"models--{name.replace('/', '--')}" / "snapshots").glob("*/config.json"))


def _data(config: Config) -> Iterator[Note]:
    data = config.data
    if not data.train_files and not config.trainer.val_only:
        yield Note("data.train_files", "is not given")
    files_given = data.train_files or data.val_files
    # Reading tables takes longer to import than all the rest of a check.
    load_problems = importlib.import_module("gmpo.data.problems").load_problems if files_given else None
    for key, files in (("data.train_files", data.train_files), ("data.val_files", data.val_files)):
        for file in files:
            try:
                assert load_problems is not None
                load_problems([file], prompt_key=data.prompt_key, data_source_key=data.reward_fn_key)
            except DataError as error:
                yield Note(key, str(error))


def _functions(config: Config) -> Iterator[Note]:
    own = config.custom_reward_function
    named = [("custom_reward_function.path", own.path, own.name)] if own.path is not None else []
    named += [("reward_model.extra_rewards", extra.path, extra.name) for extra in config.reward_model.extra_rewards]
    for key, path, name in named:
        file = Path(path).expanduser()
        if not file.is_file():
            yield Note(key, f"there is no file {file}")
            continue
        try:
            tree = ast.parse(file.read_text("utf-8"))
        except (OSError, SyntaxError, ValueError) as error:
            yield Note(key, f"{file} cannot be read as Python: {error}")
            continue
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assigned = any(isinstance(node, ast.Assign | ast.Import | ast.ImportFrom) for node in tree.body)
        if name not in defined and not assigned:
            yield Note(key, f"{file} defines no function {name}; it has {', '.join(sorted(defined)) or 'none'}")


def _scorers(config: Config) -> Iterator[Note]:
    """Names of scorers that there are not."""
    reward = config.reward_model
    named = [("reward_model.scorer", reward.scorer)] if reward.scorer is not None else []
    named += [("reward_model.scorers", name) for name in reward.scorers.values()]
    if not named or config.custom_reward_function.path is not None:
        return
    known = importlib.import_module("gmpo.rewards.scorers").named_scorer  # late, as above
    for key, name in named:
        try:
            known(name)
        except ConfigError as error:
            yield Note(key, str(error))


def _device(config: Config) -> Iterator[Note]:
    asked = config.trainer.device or "auto"
    if asked.startswith("cuda") and shutil.which("nvidia-smi") is None and not Path("/proc/driver/nvidia").exists():
        yield Note("trainer.device", "there is no CUDA device on this machine")
