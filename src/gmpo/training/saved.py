"""What a checkpoint on the disk holds, and whether it is whole."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from gmpo.errors import CheckpointError
from gmpo.records.durable import is_sealed, refuse_pickles, require_sealed
from gmpo.records.run_folder import CHECKPOINT, checkpoints
from gmpo.training.state import read_state, requires_seal


def contents_of(folder: Path, allowed: Sequence[str]) -> list[str]:
    """Of what may be loaded, what the checkpoint has.

    Raises:
        CheckpointError: no weights among it: going on would restart from the base model under a later step's name.
    """
    actor = folder / "actor"
    # Ranks write a file in parts, with an index.
    there = [c for c in ("model", "optimizer") if any(actor.glob(f"{c}.safetensors*"))]
    exported = actor / "huggingface"
    if any((exported / name).is_file() for name in ("config.json", "adapter_config.json")) and any(
        exported.glob("*.safetensors")
    ):
        there.append("hf_model")
    contents = [c for c in allowed if c in there]
    if "model" not in contents and "hf_model" not in contents:
        raise CheckpointError(_no_weights(folder, allowed, [c for c in there if c != "optimizer"]))
    return contents


def _no_weights(folder: Path, allowed: Sequence[str], weights: Sequence[str]) -> str:
    key = "actor_rollout_ref.actor.checkpoint.load_contents"
    restart = "so the run would restart from the base model"
    new = "start a new run in another trainer.default_local_dir"
    if weights:
        added = f"{key}={[*weights[:1], *allowed]}"
        return (
            f"{folder} holds no weights that {key}={list(allowed)} allows to load, {restart}. Give {added}, or {new}."
        )
    return (
        f"{folder} holds no weights at all (neither actor/model.safetensors nor actor/huggingface/*.safetensors), "
        f"{restart}. Put them back from a copy, remove {folder.name} so that an earlier one is taken, or {new}."
    )


@contextmanager
def naming_an_older(folder: Path, how: str) -> Iterator[None]:
    """Compare a checkpoint with its hashes, and where it is damaged, name the newest intact one before it.

    Args:
        how: what to do to take that one; `{older}` stands for it.
    """
    try:
        require_whole(folder)
        yield
    except CheckpointError as error:
        if damage(folder) is None:
            raise
        step = folder.name.removeprefix(CHECKPOINT)
        saved = {n: p for n, p in checkpoints(folder.parent).items() if step.isdecimal() and n < int(step)}
        before, _ = newest_whole(saved)
        if before is not None:
            older = f"The newest intact checkpoint before it is {before}: {how.format(older=before)}"
        else:
            older = (
                f"There is no intact checkpoint before it in {folder.parent}: put it back from a copy, or begin again."
            )
        raise CheckpointError(f"{error}. The checkpoint {folder} is damaged. {older}") from error


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint, as a sentence without a full stop; None where nothing is."""
    try:
        require_whole(folder)
    except CheckpointError as error:
        return str(error)
    return None


def require_whole(folder: Path) -> None:
    """Compare a checkpoint with the hashes of its files. Of one that has none, from an earlier version, every file is
    opened; of weights the header and the size are read.

    Raises:
        CheckpointError: it is damaged; it names the file.
    """
    if is_sealed(folder) or requires_seal(folder):
        require_sealed(folder)
        return
    refuse_pickles(folder)
    read_state(folder)
    try:
        for file in folder.rglob("*.safetensors"):
            with safe_open(file, framework="np"):
                pass
        for file in folder.rglob("*.json"):
            json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error


def newest_whole(saved: Mapping[int, Path]) -> tuple[Path | None, dict[Path, str]]:
    """Of checkpoints by step, the newest that is whole, and what is wrong with the later ones."""
    wrong: dict[Path, str] = {}
    for step in sorted(saved, reverse=True):
        if (found := damage(saved[step])) is None:
            return saved[step], wrong
        wrong[saved[step]] = found
    return None, wrong


def step_of(folder: Path) -> int:
    """Training steps behind a checkpoint.

    Raises:
        CheckpointError: it cannot be read.
    """
    return read_state(folder)[0].step
