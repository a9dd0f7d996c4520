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
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from types import TracebackType

from safetensors import SafetensorError

from gmpo.data.problems import Problem
from gmpo.errors import CheckpointError, UnwrittenError
from gmpo.ports import Learner
from gmpo.records import durable
from gmpo.records.durable import UNFINISHED, exchange, remove, rename, seal, write_atomically
from gmpo.records.run_folder import (
    CHECKPOINT,
    CONFIG,
    LATEST,
    MODEL,
    Difference,
    as_others,
    has_model,
    what_remains,
)
from gmpo.training.saved import contents_of, naming_an_older
from gmpo.training.state import GATHER, PRODUCER, State, read_state, write_state

WRITE_ERRORS = (OSError, SafetensorError)
"""safetensors reports a full disk as an error of its own kind."""
DAMAGED = ".damaged"
"""Ending of the name under which a checkpoint is put aside that is not what was written."""


RESUME_FROM = "trainer.resume_from_path={older} begins with it."


class _Pending:
    """A checkpoint that is written, or being written, and not yet under its name."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.told = threading.Event()
        self.wanted = False


class Store:
    """Checkpoints below `root`. A context manager: when it ends, what was published is there, and the rest is gone.

    A checkpoint is written and sealed beside its place (`save`), and takes it once the records of its step are on the
    disk (`publish`): a run that goes on from it finds all of them.

    Args:
        save_contents, load_contents: of model, optimizer, extra, hf_model.
        resume: the `global_step_N` folder that the run goes on from; None begins at step 0.
        damaged: later checkpoints, which are damaged; they are put aside once the run goes on from `resume`.
        keep: number of newest checkpoints that stay, those of earlier processes included; None keeps all.
        behind: write in a background thread while training goes on. It costs the memory of a copy. A failure is
            reported and does not stop the run; the next checkpoint is then written before training goes on.
        settings: the run's, as YAML; each checkpoint has them.
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
        settings: str = "",
        damaged: Sequence[Path] = (),
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
        self.settings = settings
        self.damaged = damaged
        self._begun: Future[None] | None = None
        self._pending: tuple[_Pending, Callable[[], None] | None] | None = None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._drop_pending()
        self._thread.shutdown(wait=True)
        failure = self._failure()
        if failure is not None and error is None:
            raise failure

    @property
    def pending(self) -> bool:
        """A checkpoint waits for `publish`."""
        return self._pending is not None

    def save(self, learner: Learner, state: State, *, spare: int | None = None) -> None:
        """Write a checkpoint of `state`, or begin to, once the one before is written. `publish` gives it its name.

        Args:
            spare: the step of a checkpoint that stays however old it is.

        Raises:
            CheckpointError: it could not be written, and neither could the one before if that was in the background.
        """
        self._drop_pending()
        behind = self.behind and self._failure() is None
        durable.settle(self.root)
        for leftover in self.root.glob(f"{UNFINISHED}{CHECKPOINT}*"):  # of processes that were stopped while they wrote
            shutil.rmtree(leftover, ignore_errors=True)
        write, pending = learner.snapshot(self.save_contents, copy=behind), _Pending(state.step)
        if behind:
            self._begun = self._thread.submit(self._write_and_take, write, state, spare, pending)
            self._begun.add_done_callback(self._report_failure)
            self._pending = pending, None
        else:
            self._begun = None
            self._write(write, state)
            self._pending = pending, partial(self._take, state.step, spare)

    def publish(self) -> None:
        """The records of the step of the checkpoint that was saved last are on the disk: a run may go on from it.

        Raises:
            CheckpointError: it cannot take its place.
        """
        if self._pending is not None:
            (pending, take), self._pending = self._pending, None
            if take is not None:
                take()
            pending.wanted = True
            pending.told.set()

    def _drop_pending(self) -> None:
        """A checkpoint whose step was not recorded is none."""
        if self._pending is not None:
            (pending, take), self._pending = self._pending, None
            if take is not None:
                shutil.rmtree(self._unfinished(pending.step), ignore_errors=True)
            pending.told.set()

    def _failure(self) -> BaseException | None:
        """What the last write in the background failed with; waits for its end."""
        return None if self._begun is None else self._begun.exception()

    def _report_failure(self, done: Future[None]) -> None:
        if (failure := done.exception()) is not None:
            self.tell(f"warning: {failure} Training goes on, and the next checkpoint tries once more.")

    def _write_and_take(
        self, write: Callable[[Path], None], state: State, spare: int | None, pending: _Pending
    ) -> None:
        self._write(write, state)
        pending.told.wait()
        if pending.wanted:
            self._take(state.step, spare)
        else:
            shutil.rmtree(self._unfinished(state.step), ignore_errors=True)

    def _unfinished(self, step: int) -> Path:
        return self.root / f"{UNFINISHED}{CHECKPOINT}{step}"

    def _write(self, write: Callable[[Path], None], state: State) -> None:
        """All of a checkpoint, beside its place."""
        unfinished = self._unfinished(state.step)
        shutil.rmtree(unfinished, ignore_errors=True)
        with self._writing(state.step):
            unfinished.mkdir(parents=True)
            write(unfinished)
            write_state(unfinished, state, self.data)
            (unfinished / CONFIG).write_text(self.settings, encoding="utf-8")
            as_others(unfinished)
            seal(unfinished)

    def _take(self, step: int, spare: int | None) -> None:
        """The checkpoint takes its place, and the newest-step file points at it afterwards."""
        with self._writing(step):
            exchange(self._unfinished(step), self.root / f"{CHECKPOINT}{step}")
            write_atomically(self.root / LATEST, str(step))
        self._rotate(step, spare)

    def settle(self, step: int, *, spare: int | None = None) -> None:
        """What is still to do of the checkpoint that the run goes on from, where it was killed after it took its place:
        the newest-step file, and those that are too many."""
        if self.resume is not None and self.resume.parent.resolve() == self.root.resolve():
            with self._writing(step):
                write_atomically(self.root / LATEST, str(step))
            self._rotate(step, spare)

    @contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            yield
        except (*WRITE_ERRORS, CheckpointError) as error:
            shutil.rmtree(self._unfinished(step), ignore_errors=True)
            target = self.root / f"{CHECKPOINT}{step}"
            message = f"cannot write checkpoint {target}: {error}. Make room. {what_remains(self.root)}"
            raise UnwrittenError(message, step) from error

    def keep_going(self, learner: Learner, state: State, *, spare: int | None = None) -> str:
        """Have a checkpoint of `state`, whose steps are recorded, before the run ends early; says so, in a sentence."""
        folder = self.root / f"{CHECKPOINT}{state.step}"
        if self._failure() is not None or not folder.exists():
            self.save(learner, state, spare=spare)
            self.publish()
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
        for later in self.damaged:
            rename(later, _free_name(later))
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

    def _rotate(self, step: int, spare: int | None) -> None:
        """Keep the newest of the checkpoints up to `step`, and the spared one. Later ones are of a run that was left,
        and not counted."""
        if self.keep is None:
            return
        names = (p.name.removeprefix(CHECKPOINT) for p in self.root.glob(f"{CHECKPOINT}[0-9]*"))
        numbers = sorted(int(name) for name in names if name.isdecimal() and int(name) <= step)
        numbers = [number for number in numbers if number != spare or number == step]
        for number in numbers[: -self.keep]:
            try:
                remove(self.root / f"{CHECKPOINT}{number}")
            except OSError as error:
                self.tell(f"warning: cannot remove an old checkpoint: {error}")


def _free_name(damaged: Path) -> Path:
    """A name beside a damaged checkpoint that nothing has."""
    names = (f"{damaged.name}{DAMAGED}{'' if n == 1 else f'-{n}'}" for n in count(1))
    return next(place for place in map(damaged.with_name, names) if not place.exists())


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
