"""Checkpoints of a run, in verl's folder names:

    <root>/latest_checkpointed_iteration.txt     the newest step, written last
    <root>/global_step_<N>/state.json            step, state of the parts (`training.state`), data it belongs to
    <root>/global_step_<N>/actor/, critic/       what the learner wrote

A checkpoint appears under its name only when it is complete: it is written beside it and renamed. Training goes on
from a copy meanwhile, if so set. Random streams and the order of problems are functions of seed and position, so there
is nothing of them to save but the position.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from safetensors import SafetensorError, safe_open

from gmpo.data.problems import Problem
from gmpo.errors import CheckpointError, UnwrittenError
from gmpo.ports import Learner
from gmpo.records.run_folder import (
    CHECKPOINT,
    LATEST,
    MODEL,
    UNFINISHED,
    Difference,
    as_others,
    checkpoints,
    has_model,
    what_remains,
)
from gmpo.training.state import GATHER, PRODUCER, State, read_state, write_state

WRITE_ERRORS = (OSError, SafetensorError)
"""safetensors reports a full disk as an error of its own kind."""


RESUME_FROM = "trainer.resume_from_path={older} begins with it."


class Store:
    """Checkpoints below `root`. A context manager: when it ends, what was begun is written.

    Args:
        save_contents, load_contents: of model, optimizer, extra, hf_model.
        resume: the `global_step_N` folder that the run goes on from; None begins at step 0.
        keep: number of newest checkpoints that stay, those of earlier processes included; None keeps all.
        behind: write in a background thread while training goes on. It costs the memory of a copy. A failure is
            reported and does not stop the run; the next checkpoint is then written before training goes on.
        data: what the position in the data means depends on these (rows, batch size, seed ..); a checkpoint made under
            other values is refused, because it would mean other problems.
        other_settings: the run goes on under settings that make it another one. Groups that wait in the checkpoint were
            sampled under the settings of then, and are dropped.
        other_data: go on under other `data`, too: at the same position of the new stream, which is said.
        tell: receives a line for the user: where the run goes on, and what is missing for an exact continuation.
    """

    def __init__(
        self,
        root: Path,
        *,
        save_contents: Sequence[str],
        load_contents: Sequence[str],
        resume: Path | None,
        keep: int | None,
        behind: bool,
        data: Mapping[str, int | bool | str],
        tell: Callable[[str], None],
        other_settings: bool = False,
        other_data: bool = False,
    ) -> None:
        self.root = root
        self.save_contents = save_contents
        self.load_contents = load_contents
        self.resume = resume
        self.keep = keep
        self.behind = behind
        self.data = dict(data)
        self.tell = tell
        self.other_settings = other_settings
        self.other_data = other_data
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._begun: Future[None] | None = None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        failure = self._failure()
        if failure is not None and error is None:
            raise failure

    def save(self, learner: Learner, state: State) -> None:
        """Write a checkpoint of `state`, or begin to, once the one before is written.

        Raises:
            CheckpointError: it could not be written, and neither could the one before if that was in the background.
        """
        behind = self.behind and self._failure() is None
        for leftover in self.root.glob(f"{UNFINISHED}*"):  # of processes that were stopped while they wrote
            shutil.rmtree(leftover, ignore_errors=True)
        write = learner.snapshot(self.save_contents, copy=behind)
        if behind:
            self._begun = self._thread.submit(self._write, write, state)
            self._begun.add_done_callback(self._report_failure)
        else:
            self._begun = None
            self._write(write, state)

    def _failure(self) -> BaseException | None:
        """What the last write in the background failed with; waits for its end."""
        return None if self._begun is None else self._begun.exception()

    def _report_failure(self, done: Future[None]) -> None:
        if (failure := done.exception()) is not None:
            self.tell(f"warning: {failure} Training goes on, and the next checkpoint tries once more.")

    def _write(self, write: Callable[[Path], None], state: State) -> None:
        """The newest-step file points at the checkpoint afterwards."""
        target = self.root / f"{CHECKPOINT}{state.step}"
        unfinished = self.root / f"{UNFINISHED}{target.name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            unfinished.mkdir(parents=True)
            write(unfinished)
            write_state(unfinished, state, self.data)
            as_others(unfinished)
            exchange(unfinished, target)
            latest = self.root / f"{UNFINISHED}{LATEST}"
            latest.write_text(str(state.step))
            os.replace(latest, self.root / LATEST)
        except WRITE_ERRORS as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            message = f"cannot write checkpoint {target}: {error}. Make room. {what_remains(self.root)}"
            raise UnwrittenError(message, state.step) from error
        self._rotate(state.step)

    def keep_going(self, learner: Learner, state: State) -> str:
        """Have a checkpoint of `state` before the run ends early; says so, in a sentence."""
        folder = self.root / f"{CHECKPOINT}{state.step}"
        if self._failure() is not None or not folder.exists():
            self.save(learner, state)
            if (failure := self._failure()) is not None:
                raise failure
        return f"{folder} holds the run after step {state.step}; the same command goes on from there."

    def restore(self, learner: Learner) -> State | None:
        """Load the checkpoint that `resume` names into `learner`; None where the run starts anew.

        Raises:
            CheckpointError: it is incomplete, unreadable, or belongs to another run.
        """
        folder = self.resume
        if folder is None:
            return None
        inside = folder.parent.resolve() == self.root.resolve()
        how = f"move {folder.name} away, and the run goes on from it." if inside else RESUME_FROM
        with naming_an_older(folder, how):
            state, data = read_state(folder)
            if data != self.data and not self.other_data:
                raise CheckpointError(_other_data(folder, data, self.data))
            if data != self.data or self.other_settings:
                state = self._changed(state, data)
            contents = contents_of(folder, self.load_contents)
            learner.load(folder, contents)
        self.tell(f"going on after step {state.step} from {folder}")
        if "optimizer" not in contents:
            self.tell(
                f"warning: {folder.name}: the weights are resumed and no optimizer state (load_contents is "
                f"{list(self.load_contents)}, of which it holds {contents}): AdamW's moments start at zero. Save and "
                "load ['model','optimizer','extra'] for an exact resume."
            )
        return state

    def _changed(self, state: State, data: Mapping[str, object]) -> State:
        """The state for a run of other settings: without what was sampled under those of then."""
        parts = dict(state.parts)
        if data != self.data and PRODUCER in parts:
            position = parts[PRODUCER].values.get("position")
            parts[PRODUCER] = replace(parts[PRODUCER], values={**parts[PRODUCER].values, "under_way": []})
            self.tell(
                "warning: other data or batches make another stream of problems; it goes on at the same position "
                f"({position}) of the new one, so that problems may come again or be left out. Then -> now:\n"
                + _listed(data, self.data)
            )
        if GATHER in parts and (waiting := parts[GATHER].values.get("waiting")):
            parts[GATHER] = replace(parts[GATHER], values={**parts[GATHER].values, "waiting": []}, arrays={})
            self.tell(f"warning: {len(waiting)} groups that waited were sampled under the settings of then: dropped")
        return replace(state, parts=parts)

    def _rotate(self, step: int) -> None:
        """Keep the newest of the checkpoints up to `step`. Later ones are of a run that was left, and not counted."""
        if self.keep is None:
            return
        names = (p.name.removeprefix(CHECKPOINT) for p in self.root.glob(f"{CHECKPOINT}[0-9]*"))
        numbers = sorted(int(name) for name in names if name.isdecimal() and int(name) <= step)
        for number in numbers[: -self.keep]:
            try:
                shutil.rmtree(self.root / f"{CHECKPOINT}{number}")
            except OSError as error:
                self.tell(f"warning: cannot remove an old checkpoint: {error}")


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
    """Where reading a damaged checkpoint fails, name the newest intact one before it.

    Args:
        how: what to do to take that one; `{older}` stands for it.
    """
    try:
        yield
    except CheckpointError as error:
        if _intact(folder):
            raise
        step = folder.name.removeprefix(CHECKPOINT)
        before = [p for n, p in checkpoints(folder.parent).items() if step.isdecimal() and n < int(step) and _intact(p)]
        if before:
            older = f"The newest intact checkpoint before it is {before[-1]}: {how.format(older=before[-1])}"
        else:
            older = (
                f"There is no intact checkpoint before it in {folder.parent}: put it back from a copy, or begin again."
            )
        raise CheckpointError(f"{error}. The checkpoint {folder} is damaged. {older}") from error


def _intact(folder: Path) -> bool:
    """Whether every file of a checkpoint can be opened; of weights the header and the size are read."""
    try:
        read_state(folder)
        for file in folder.rglob("*.safetensors"):
            with safe_open(file, framework="np"):
                pass
        for file in folder.rglob("*.json"):
            json.loads(file.read_text(encoding="utf-8"))
        contents_of(folder, ("model", "hf_model"))
    except (OSError, ValueError, SafetensorError, CheckpointError):
        return False
    return True


def step_of(folder: Path) -> int:
    """Training steps behind a checkpoint.

    Raises:
        CheckpointError: it cannot be read.
    """
    return read_state(folder)[0].step


def exchange(new: Path, target: Path) -> None:
    """Rename `new` to `target`. An older `target` is put aside first and removed last."""
    old = target.with_name(f"{UNFINISHED}old_{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)


def content_hash(problems: Iterable[Problem]) -> str:
    """Tells data sets apart by what they ask in which order, and what they expect; the files' place plays no part."""
    digest = hashlib.sha256()
    for problem in problems:
        asked = [problem.data_source, [dict(message) for message in problem.prompt], problem.ground_truth]
        digest.update(json.dumps(asked).encode())
    return digest.hexdigest()[:16]


def _other_data(folder: Path, then: Mapping[str, object], now: Mapping[str, object]) -> str:
    return (
        f"{folder} was made with other data or batches, so its position would mean other problems. Then -> now:\n"
        f"{_listed(then, now)}\nUse the same settings to go on, or start a new run in another "
        f"trainer.default_local_dir{_weights_of(folder)}. trainer.allow_changed_config=True goes on at the same "
        "position of the new stream."
    )


def _weights_of(folder: Path) -> str:
    """Where a model folder with a checkpoint's weights is, or those of a later step; nothing without one."""
    own, model = folder / "actor" / "huggingface", folder.parent / MODEL
    if any(own.glob("*.safetensors")):
        return f" (its model.path can be {own}, the weights of this checkpoint)"
    if has_model(folder.parent):
        return f" (its model.path can be {model}, the run's final model)"
    return ""


def _listed(then: Mapping[str, object], now: Mapping[str, object]) -> str:
    """What differs, a line each."""
    differing = (key for key in {**now, **then} if then.get(key) != now.get(key))
    return "\n".join(f"  {Difference(key, then.get(key), now.get(key))}" for key in differing)
