"""Where a start of the program belongs: which folder it takes, what is there of its run, and where it goes on.

A folder belongs to one run. A start that would be another run takes a folder beside it, where the folder is the derived
one, and is refused where the user named it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from gmpo.build.identity import OLD, PERMISSION, Changes, compare
from gmpo.build.notes import (
    change_notes,
    damage_notes,
    elsewhere,
    extent,
    latest,
    latest_notes,
    old_notes,
    unseen_notes,
)
from gmpo.build.old_folder import old_record, recorded_run, run_in
from gmpo.build.origin import compared, continued, run_of
from gmpo.config import Resolved
from gmpo.config.schema import Trainer
from gmpo.config.schema_sft import SftTrainer
from gmpo.errors import BackendError, CheckpointError, ConfigError, DataError, GmpoError
from gmpo.records.durable import settle
from gmpo.records.run_folder import (
    CHECKPOINT,
    CONFIG,
    LATEST,
    MODEL,
    RUN,
    STATE,
    Difference,
    RunRecord,
    checkpoints,
    claimed,
    ended,
    has_model,
    holds_run,
    names_of_a_run,
    remove_empty,
)
from gmpo.training.saved import newest_whole

FOLDER = "trainer.default_local_dir"
REMEDY = f"Name another {FOLDER} for this one, or remove the folder if you do not need what it holds."
STARTING_S = 2.0
"""How long a start whose folder is locked waits for the other one to say in run.json what it is."""

NO_CHANGES = Changes((), (), ())


@dataclass(frozen=True, slots=True)
class Start:
    """What a start of the program found, and what it will do."""

    folder: Path
    record: RunRecord
    """The run as it is now, this start's leg not yet among its legs."""
    checkpoint: Path | None = None
    """What it goes on from; None begins with the base model."""
    damaged: tuple[Path, ...] = ()
    """Later checkpoints, which are not what was written."""
    done: bool = False
    """The run is finished: nothing is left to do."""
    changes: Changes = NO_CHANGES
    exact: bool = True
    """False where the continuation is known not to be bit-exact."""
    notes: tuple[str, ...] = ()
    """Lines for the user."""


class _AnotherRun(Exception):
    """The folder is not this run's; `why` follows the folder's name. `remedy` and `kind` are of the error that it
    becomes where the user named the folder."""

    def __init__(self, why: str, remedy: str = REMEDY, kind: type[GmpoError] = ConfigError) -> None:
        listed = "\n" in why
        super().__init__(f"{why}\n{remedy}" if listed else f"{why} {remedy}".rstrip())
        self.why, self.kind = why, kind


@contextmanager
def belonging(resolved: Resolved[Any], now: RunRecord) -> Iterator[Start]:
    """Find the folder of a start that would be the run `now`, and hold its lock meanwhile.

    Raises:
        ConfigError: the folder holds another run, or cannot be written to.
        CheckpointError: what the start asks for is not there, or would lose records.
        BackendError: another process writes to the folder.
    """
    named, passed = FOLDER in resolved.given, list[str]()
    for folder in candidates(resolved):
        check_writable(folder)
        with ExitStack() as stack:
            try:
                _claim(stack, folder, named, resolved, now)
                settle(folder)
                start = inspect(folder, resolved, now)
            except _AnotherRun as why:
                if named:
                    raise why.kind(f"{FOLDER}={folder} {why}") from None
                passed.append(f"{folder} {why.why}")
                continue
            lines = [passed[0], f"This run takes {folder}."] if passed else []
            yield replace(start, notes=(*lines, *start.notes))
            return


def candidates(resolved: Resolved[Any]) -> Iterator[Path]:
    """The folders that a run may take: the named one; or the derived one and those beside it."""
    trainer: Trainer | SftTrainer = resolved.config.trainer
    base = Path(trainer.default_local_dir).expanduser()
    yield base
    if FOLDER not in resolved.given:
        yield from (base.with_name(f"{base.name}-{number}") for number in count(2))


def _claim(stack: ExitStack, folder: Path, named: bool, resolved: Resolved[Any], now: RunRecord) -> None:
    try:
        stack.enter_context(claimed(folder))
    except BackendError:
        if named or _is_the_run(_starting(folder), resolved, now):
            raise
        raise _AnotherRun("is written to by another run at this moment.", "") from None


def _starting(folder: Path) -> RunRecord | None:
    """The record of the run that holds the lock, which it writes as soon as it has it; None where it does not."""
    end = time.monotonic() + STARTING_S
    while (record := recorded_run(folder)) is None and time.monotonic() < end:
        time.sleep(0.05)
    return record


def _is_the_run(then: RunRecord | None, resolved: Resolved[Any], now: RunRecord) -> bool:
    """Whether a run whose folder is locked may be this one: also where nobody knows what it is."""
    if then is None:
        return True
    starts_anew = isinstance(resolved.config.trainer, Trainer) and resolved.config.trainer.resume_mode == "disable"
    return not starts_anew and then.program == now.program and not compare(then, now, resolved).identity


def check_writable(folder: Path, key: str = FOLDER) -> None:
    """Fail before the model is loaded rather than at the first record. No folder is left behind. `key` names it."""
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"{key}={folder}: cannot write there: {error}. Name a folder that can be written to."
        ) from error
    finally:
        remove_empty(new)


def inspect(folder: Path, resolved: Resolved[Any], now: RunRecord) -> Start:
    """What a start would do in this folder."""
    trainer: Trainer | SftTrainer = resolved.config.trainer
    asked = asked_checkpoint(resolved)
    _refuse_files_of_the_user(folder, resolved)
    if not holds_run(folder):
        return Start(folder, now) if asked is None else _fork(folder, asked, resolved, now)
    then = ended(_read(folder, resolved, now))
    if isinstance(trainer, Trainer) and trainer.resume_mode == "disable":
        raise _AnotherRun(
            f"holds a run ({extent(folder, then)}), and trainer.resume_mode=disable starts a new one, whose "
            "checkpoints would mix with those.",
            "Name another folder, or remove this one.",
        )
    if asked is not None and asked.parent.resolve() == folder.resolve():
        _refuse_to_lose(folder, asked, then)
    elif asked is not None and then.origin != str(asked):
        raise _AnotherRun(
            f"holds another run ({extent(folder, then)}), which did not begin with {asked}.",
            "Name another folder, or trainer.resume_mode=auto to go on here.",
        )
    if then.program != now.program:
        raise _AnotherRun(f"holds a run of `gmpo {then.program}` ({extent(folder, then)}).")
    changes = compare(then, now, resolved)
    done = then.status == "finished" and has_model(folder) and then.steps >= now.total_steps
    if changes.identity and (done or not trainer.allow_changed_config):
        permission = _permission(folder, then, changes, done=done)
        raise _AnotherRun(_changed_message(folder, then, changes), f"{REMEDY}{permission}")
    now = continued(now, then)
    record = replace(
        now, steps=then.steps, legs=then.legs, origin=then.origin, outside=then.outside, alarms=then.alarms
    )
    start = Start(folder, record, changes=changes, exact=not changes.identity and not changes.inexact)
    if done:
        note = f"{folder} holds this run, which is finished after {then.steps} steps: nothing is left to do."
        return replace(start, done=True, notes=(*old_notes(folder, then), note))
    return _going_on(start, then, named=asked is not None)


def _refuse_files_of_the_user(folder: Path, resolved: Resolved[Any]) -> None:
    """A run writes to names that are its own: what lies there without a run would be replaced or deleted."""
    a_run = holds_run(folder) and (folder / CONFIG).is_file()
    if a_run or (folder / RUN).exists() or checkpoints(folder):
        return
    trainer: Trainer | SftTrainer = resolved.config.trainer
    further = [f"{trainer.experiment_name}.jsonl"] if "file" in trainer.logger else []
    if found := names_of_a_run(folder, further):
        raise _AnotherRun(
            f"holds no run (no {RUN}), and a run would replace or mix with what is there: {', '.join(found)}.",
            f"Name another {FOLDER}, or move these away.",
        )


def _read(folder: Path, resolved: Resolved[Any], now: RunRecord) -> RunRecord:
    """The record of the run in the folder. Where it cannot be read, but its settings can, they tell whether it is this
    run, which must not begin again beside its own checkpoints."""
    try:
        return run_in(folder)
    except (DataError, CheckpointError) as error:
        with suppress(CheckpointError):
            if _is_the_run(old_record(folder), resolved, now):
                raise error
        raise _AnotherRun(f"holds a run whose record cannot be read: {error}", "", type(error)) from error


def _fork(folder: Path, asked: Path, resolved: Resolved[Any], now: RunRecord) -> Start:
    """A run of its own that begins with the checkpoint of another one, see `gmpo.build.origin`."""
    then = run_of(asked)
    changes, exact, notes = compared(asked, then, now, resolved)
    record = replace(continued(now, then), origin=str(asked))
    notes += [*old_notes(asked.parent, then), *unseen_notes(now)]
    return Start(folder, record, checkpoint=asked, changes=changes, exact=exact, notes=tuple(notes))


def _going_on(start: Start, then: RunRecord, *, named: bool) -> Start:
    """The unfinished run from its newest checkpoint that is whole, or from its beginning where it has none. One that
    the user `named` is taken or fails."""
    folder, notes = start.folder, [*change_notes(start.changes, then)]
    saved = checkpoints(folder)
    notes += [*old_notes(folder, then), *unseen_notes(start.record)]
    exact = start.exact and then.format != OLD
    if saved:
        notes += latest_notes(folder, max(saved))
        whole, damaged = (None, {}) if named else newest_whole(saved)
        taken = max(saved) if whole is None else int(whole.name.removeprefix(CHECKPOINT))
        notes += [] if whole is None else damage_notes(damaged, whole)
        if then.steps > taken:
            notes.append(
                f"The records of steps {taken + 1} to {then.steps} are replaced{elsewhere(then)}: these steps "
                "happen again."
            )
        later = tuple(damaged) if whole is not None else ()
        return replace(start, checkpoint=saved[taken], damaged=later, exact=exact, notes=tuple(notes))
    if (folder / LATEST).is_file():
        raise CheckpointError(
            f"{folder / LATEST} names step {latest(folder)}, but there is no complete {CHECKPOINT}N in {folder}. "
            f"Bring it back, or name another {FOLDER}."
        )
    if then.status == "finished":
        raise _AnotherRun(
            f"holds a finished run ({extent(folder, then)}) without a checkpoint to go on from"
            " (trainer.save_freq was off). "
            + (f"{folder / MODEL} can be the model.path of a new run." if has_model(folder) else "")
        )
    if start.changes.identity and then.program == "train":
        raise _AnotherRun(
            f"holds a run ({extent(folder, then)}) without a checkpoint, so that there is nothing that changed "
            "settings could go on from."
        )
    if then.steps:
        lost = f"records of steps 1 to {then.steps}{' and the model so far' * has_model(folder)}"
        notes.append(
            f"{folder} holds no checkpoint of this run: it begins again, and its {lost} are replaced{elsewhere(then)}."
        )
    origin = None if then.origin is None else Path(then.origin)
    return replace(start, checkpoint=origin, exact=exact, notes=tuple(notes))


LISTED = 5
"""Most checkpoints that a message lists."""


def asked_checkpoint(resolved: Resolved[Any]) -> Path | None:
    """What `trainer.resume_from_path` names, if it is asked for."""
    trainer: Trainer | SftTrainer = resolved.config.trainer
    if isinstance(trainer, SftTrainer) or trainer.resume_mode != "resume_path":
        return None
    folder = Path(trainer.resume_from_path or "").expanduser().absolute()
    try:
        if (folder / STATE).is_file():
            return folder
        raise CheckpointError(
            f"trainer.resume_from_path={folder}: no checkpoint there (no {STATE}). {_there_are(folder.parent)}"
        )
    except OSError as error:
        raise CheckpointError(f"trainer.resume_from_path={folder}: cannot be reached: {error.strerror}.") from error


def _there_are(folder: Path) -> str:
    """The newest checkpoints of a run folder."""
    if not folder.is_dir():
        return f"There is no folder {folder}."
    names = [path.name for path in reversed(checkpoints(folder).values())]
    if not names:
        return f"{folder} holds no complete checkpoint; trainer.resume_mode=auto begins where there is none."
    more = f" and {len(names) - LISTED} older" if len(names) > LISTED else ""
    return f"{folder} holds {', '.join(names[:LISTED])}{more}."


def _refuse_to_lose(folder: Path, asked: Path, then: RunRecord) -> None:
    step = int(asked.name.removeprefix(CHECKPOINT))
    later = [path.name for number, path in checkpoints(folder).items() if number > step]
    if later:
        raise _AnotherRun(
            f"holds trainer.resume_from_path={asked} and later ones: going on from there in the same folder would "
            f"replace {', '.join(later)} and the records of steps {step + 1} to {max(then.steps, step + 1)}.",
            f"Name another {FOLDER}, and the run goes on there from this checkpoint; or remove the later ones first.",
            CheckpointError,
        )


def _changed_message(folder: Path, then: RunRecord, changes: Changes) -> str:
    listed = "".join(f"\n  {difference}" for difference in (*changes.identity, *_places(changes)))
    return f"holds another run ({extent(folder, then)}). What differs, then -> now:{listed}"


def _permission(folder: Path, then: RunRecord, changes: Changes, *, done: bool) -> str:
    """The remedy that is left where changed settings could go on in the folder: from a checkpoint, and to more steps.
    Unfinished fine-tuning without a checkpoint begins again."""
    new_critic = any(difference.key == "critic.enable" and difference.now for difference in changes.identity)
    saved = bool(checkpoints(folder))
    if new_critic or (not saved and (then.program == "train" or then.status == "finished")):
        return ""
    if not saved:
        return f" {PERMISSION}=True begins again here all the same: it replaces what is there, and records the change."
    how = f"with more than its {then.steps} steps goes on" if done else "goes on"
    return f" {PERMISSION}=True {how} here all the same, and the change is recorded."


def _places(changes: Changes) -> list[Difference]:
    """The paths of what differs in content."""
    differing = {d.key.rpartition(" ")[2] for d in changes.identity}
    return [d for d in changes.other if d.key in differing]
