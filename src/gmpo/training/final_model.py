"""The trained model as a Hugging Face folder, and what happens where it cannot be written."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from gmpo.errors import CheckpointError, UnwrittenError
from gmpo.ports import Learner
from gmpo.records.durable import UNFINISHED, exchange, sync_tree
from gmpo.records.run_folder import CHECKPOINT, MODEL, STATE, as_others, what_remains
from gmpo.training.checkpoint import WRITE_ERRORS

EXPORTED = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*chat_template*"),
)
"""What an export writes, and an older one left."""


def export(learner: Learner, folder: Path) -> Path:
    """Write the learner's model as the Hugging Face folder `folder/huggingface`, tokenizer included.

    Raises:
        CheckpointError: it cannot be written; a model that was there stays.

    Files in the folder that no export writes, for example a model card, stay there.
    """
    target, unfinished = folder / MODEL, folder / f"{UNFINISHED}export"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        learner.export(unfinished)
        as_others(unfinished)
        _keep_foreign(target, unfinished)
        sync_tree(unfinished)
        exchange(unfinished, target)
    except WRITE_ERRORS as error:
        raise CheckpointError(f"cannot write the model {target}: {error}. Make room. {what_remains(folder)}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


PATIENCE_S, RETRY_S = 600.0, 5.0
"""Seconds for which a model that can be written nowhere is held, and between two tries."""


def export_for_good(
    learner: Learner, folder: Path, step: int, *, say: Callable[[str], object], stopping: Callable[[], bool]
) -> Path:
    """`export` after the last step, whose model is lost unless it can be written.

    Where it fails and no checkpoint holds it, the model goes to another file system (the temporary folder, home, the
    working directory). Where none takes it, it is held for `PATIENCE_S` and tried again, until the user asks to stop.

    Raises:
        CheckpointError: it is not in its place; the message says where it is.
    """
    try:
        return export(learner, folder)
    except CheckpointError as error:
        if (folder / f"{CHECKPOINT}{step}" / STATE).is_file():
            raise
        failure = error
    return _rescued(learner, folder, failure, say, stopping)


@contextmanager
def model_kept(
    learner: Learner, folder: Path, *, say: Callable[[str], object], stopping: Callable[[], bool]
) -> Iterator[None]:
    """A training that ends because a checkpoint cannot be written leaves its model, as `export_for_good` would.

    Raises:
        CheckpointError: in place of the failure; the message says where the model is.
    """
    try:
        yield
    except UnwrittenError as failure:
        if (folder / f"{CHECKPOINT}{failure.step}" / STATE).is_file():
            raise
        try:
            model = export(learner, folder)
        except CheckpointError:
            model = _rescued(learner, folder, failure, say, stopping)
        raise CheckpointError(f"{failure} The model after step {failure.step} is in {model}.") from failure


def _rescued(
    learner: Learner, folder: Path, failure: CheckpointError, say: Callable[[str], object], stopping: Callable[[], bool]
) -> Path:
    """Write the model that could not be written to `folder`: elsewhere, or there once there is room."""
    for place in _elsewhere(folder):
        try:
            beside = Path(tempfile.mkdtemp(prefix=f"gmpo-{folder.name}-", dir=place))
        except OSError:
            continue
        try:
            model = export(learner, beside)
        except CheckpointError:
            shutil.rmtree(beside, ignore_errors=True)
            continue
        raise CheckpointError(f"{failure} The trained model is in {model} instead: move it to a place that stays.")
    say(
        f"warning: {failure} The trained model is nowhere else: it is held for {PATIENCE_S:g} s and tried again every "
        f"{RETRY_S:g} s. Make room now. Ctrl-C gives it up."
    )
    end, asked = time.monotonic() + PATIENCE_S, stopping()
    while time.monotonic() < end and stopping() == asked:
        with suppress(CheckpointError):
            return export(learner, folder)
        time.sleep(RETRY_S)
    raise CheckpointError(f"{failure} The trained model is lost.")


def _elsewhere(folder: Path) -> Iterator[Path]:
    """Folders on other file systems than that of `folder`, one of each."""
    seen = {folder.stat().st_dev}
    for place in (Path(tempfile.gettempdir()), Path.home(), Path.cwd()):
        with suppress(OSError):
            if (device := place.stat().st_dev) not in seen:
                seen.add(device)
                yield place


def _keep_foreign(old: Path, new: Path) -> None:
    """Copy what an export does not write, and so is somebody else's, from the older folder."""
    for place in old.glob("*"):
        if (new / place.name).exists() or any(fnmatch(place.name, pattern) for pattern in EXPORTED):
            continue
        if place.is_dir():
            shutil.copytree(place, new / place.name)
        else:
            shutil.copy2(place, new / place.name)
