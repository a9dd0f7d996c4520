"""A program's run, opened: its folder with the lock, the record of the run, where metrics and answers go, checkpoints.

    with opened_run(resolved, opening, console=console, store=..) as run:
        if not run.done:
            ..

`train`, `sft` and a validation on its own enter it, and what comes later does too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from gmpo.build.identity import without_permission
from gmpo.build.start import FOLDER, Start, belonging
from gmpo.build.val_only import validated
from gmpo.config import Config, Resolved, SftConfig
from gmpo.config.resolved import as_tree
from gmpo.config.schema import Trainer
from gmpo.config.schema_sft import SftTrainer
from gmpo.config.tree import replace as with_setting
from gmpo.errors import ConfigError, DivergedError
from gmpo.records.activity import Activity
from gmpo.records.run_folder import METRICS, Leg, RankPlace, RunRecord, what_remains
from gmpo.tracking.console import ConsoleSink
from gmpo.tracking.environment import environment
from gmpo.tracking.folder import RunFolder, ValidationFolder
from gmpo.tracking.held import HeldRecords
from gmpo.tracking.sinks import SINKS, JsonLines, RunInfo, Sink, logger_places
from gmpo.tracking.tracker import RunTracker, SamplePolicy, SampleWriter, recording
from gmpo.training.checkpoint import Store
from gmpo.training.interrupt import Expiry, Stop

STOPPED_AT_ONCE = "Ctrl-C or SIGTERM: stopped at once, within a step"
Say = Callable[..., None]
OpenStore = Callable[[Start, Say], Store]
"""What was found, lines for the user -> the run's checkpoints."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What a program says of itself before its run is opened."""

    record: RunRecord
    """The run that it would be, see `gmpo.build.identity.describe_run`."""
    steps_per_epoch: int
    device: str
    """For people."""
    products: Mapping[str, Any]
    """The float32 matrix products in effect, and what was measured to choose them."""
    label: str
    """Of the progress bar."""


@dataclass(slots=True)
class OpenRun:
    """The run while it is open."""

    start: Start
    say: Say
    records: Path
    """Where metrics and answers go: the run folder, or the validation's own."""
    tracker: RunTracker
    writer: SampleWriter
    stop: Stop = field(default_factory=Stop)
    store: Store | None = None
    ran_on: Callable[[tuple[RankPlace, ...]], object] = lambda ranks: None
    """Told where the ranks are, for the run's record."""
    alarmed: Callable[[int, str, str], object] = lambda step, name, text: None
    """Told step, name and text of an alarm, for the run's record."""
    stopped_by: Callable[[str], object] = lambda why: None
    """Told why the run is ended, for its record."""

    @property
    def folder(self) -> Path:
        return self.start.folder

    @property
    def done(self) -> bool:
        """The run is finished, and the user knows: nothing is left to do."""
        return self.start.done


def speaker(console: Console) -> Say:
    """Prints lines as they are: a bracket in a path is no markup, and no line is broken."""
    return partial(console.print, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def opened_run(
    resolved: Resolved[Any], opening: Opening, *, console: Console, store: OpenStore | None = None
) -> Iterator[OpenRun]:
    """Open the run of a program that trains, and record how it ended.

    Raises:
        ConfigError, CheckpointError, BackendError: see `gmpo.build.start.belonging`; and ConfigError where it would
            record to a place elsewhere that holds the records of another run.
    """
    say = speaker(console)
    with belonging(resolved, opening.record) as start:
        for note in start.notes:
            say(note)
        held = HeldRecords(say)
        writer = _writer(resolved.config.trainer, start.folder, held)
        if start.done:
            yield OpenRun(start, say, start.folder, RunTracker([], writer), writer)
            return
        resolved = _in_folder(resolved, start.folder)
        record = _with_places(start.record, resolved, start.folder)
        leg = Leg(
            number=0,
            start=0,
            steps=0,
            status="running",
            checkpoint=None if start.checkpoint is None else _within(start.folder, start.checkpoint),
            differences=start.changes.all,
            exact=start.exact,
        )
        folder = RunFolder(
            start.folder,
            record,
            leg,
            config=resolved.to_yaml(),
            environment=environment(opening.device, opening.products),
            say=say,
        )
        activity = Activity()
        sinks = _sinks(resolved, start.folder, opening, console, activity, held)
        with ExitStack() as stack:
            stack.enter_context(_ending(folder))
            with recording("the record of the run"):
                folder.claim()
            tracker = RunTracker([folder, *sinks], writer, activity)
            stack.enter_context(_written(held))
            stack.callback(tracker.close)
            opened = None if store is None else stack.enter_context(store(start, say))
            stop = stack.enter_context(Stop(say, _expiry(resolved.config), within=_patience(resolved.config)))
            told = (folder.ran_on, folder.alarmed, partial(setattr, folder, "stopped_by"))
            yield OpenRun(start, say, start.folder, tracker, writer, stop, opened, *told)


def _expiry(config: Config | SftConfig) -> Expiry | None:
    """When the job is ended."""
    return Expiry.of(os.environ, config.trainer.esi_redundant_time if isinstance(config, Config) else 0.0)


def _patience(config: Config | SftConfig) -> float | None:
    """Seconds that a signal waits for a step; one of fine-tuning is a single update."""
    return config.trainer.stop_within_s if isinstance(config, Config) else None


@contextmanager
def opened_validation(resolved: Resolved[Any], opening: Opening, *, console: Console) -> Iterator[OpenRun]:
    """Open a validation on its own: it has a folder of its own inside the run's, and changes nothing of the run.

    Raises: as `opened_run`.
    """
    say = speaker(console)
    with validated(resolved, opening.record) as (start, place):
        for note in start.notes:
            say(note)
        resolved = _in_folder(resolved, start.folder)
        _with_places(replace(start.record, outside=()), resolved, place)
        held = HeldRecords(say)
        writer = _writer(resolved.config.trainer, place, held)
        kept = environment(opening.device, opening.products)
        first = ValidationFolder(place, config=resolved.to_yaml(), environment=kept)
        with ExitStack() as stack:
            activity = Activity()
            sinks = _sinks(resolved, place, opening, console, activity, held)
            tracker = RunTracker([first, *sinks], writer, activity)
            stack.enter_context(_written(held))
            stack.callback(tracker.close)
            yield OpenRun(start, say, place, tracker, writer)


@contextmanager
def _written(held: HeldRecords) -> Iterator[None]:
    """Records that wait in memory are written at the end, or it says that they are lost."""
    try:
        yield
    except BaseException:
        held.close(failing=True)
        raise
    held.close()


@contextmanager
def _ending(folder: RunFolder) -> Iterator[None]:
    """Record how the run ended: finished, interrupted, or failed with the reason."""
    try:
        yield
    except KeyboardInterrupt:
        with suppress(OSError):
            folder.end("interrupted", STOPPED_AT_ONCE)
        folder.say(what_remains(folder.folder))
        raise
    except BaseException as error:
        with suppress(OSError):  # what ended the run may be a full disk
            folder.end("failed", f"{type(error).__name__}: {error}")
        if isinstance(error, DivergedError):
            raise DivergedError(f"{error} {what_remains(folder.folder)}") from error
        raise
    with recording("the record of the run"):
        if folder.leg.steps >= folder.record.total_steps:
            folder.end("finished", "")
        else:
            folder.end("interrupted", folder.stopped_by)


def _in_folder(resolved: Resolved[Any], folder: Path) -> Resolved[Any]:
    """The settings as the run keeps them, with the folder that it took."""
    resolved = without_permission(resolved)
    trainer: Trainer | SftTrainer = resolved.config.trainer
    if Path(trainer.default_local_dir).expanduser() == folder:
        return resolved
    return replace(resolved, config=with_setting(resolved.config, FOLDER, str(folder)))


def _within(folder: Path, checkpoint: Path) -> str:
    return checkpoint.name if checkpoint.parent.resolve() == folder.resolve() else str(checkpoint)


def _writer(trainer: Trainer | SftTrainer, folder: Path, held: HeldRecords) -> SampleWriter:
    """What keeps answers; supervised fine-tuning has none."""
    if isinstance(trainer, SftTrainer):
        return SampleWriter(folder, SamplePolicy(0, 0), all_training=None, all_validation=None, held=held)
    return SampleWriter(
        folder,
        SamplePolicy(groups=trainer.sample_groups, token_groups=trainer.token_record_groups),
        all_training=_place(trainer.rollout_data_dir),
        all_validation=_place(trainer.validation_data_dir),
        held=held,
    )


def _place(name: str | None) -> Path | None:
    return None if name is None else Path(name).expanduser()


def _sinks(
    resolved: Resolved[Any], folder: Path, opening: Opening, console: Console, activity: Activity, held: HeldRecords
) -> Sequence[Sink]:
    """metrics.jsonl always, then the loggers that were asked for."""
    trainer: Trainer | SftTrainer = resolved.config.trainer
    say = speaker(console)
    info = replace(_info(resolved, folder), say=say, held=held)
    sinks: list[Sink] = [JsonLines(folder / METRICS, say, held)]
    sinks += [SINKS[name](info) for name in dict.fromkeys(trainer.logger) if name != "console"]
    if "console" in trainer.logger:
        total = opening.record.total_steps
        sinks.append(
            ConsoleSink(
                console,
                label=opening.label,
                total_steps=total,
                steps_per_epoch=opening.steps_per_epoch,
                activity=activity,
            )
        )
    return sinks


def _info(resolved: Resolved[Any], folder: Path) -> RunInfo:
    trainer: Trainer | SftTrainer = resolved.config.trainer
    return RunInfo(folder, trainer.project_name, trainer.experiment_name, as_tree(resolved.config))


def _with_places(record: RunRecord, resolved: Resolved[Any], folder: Path) -> RunRecord:
    """The record with the places elsewhere to which the run records.

    Raises:
        ConfigError: one of them holds records that are not this run's.
    """
    trainer: Trainer | SftTrainer = resolved.config.trainer
    places = logger_places(_info(resolved, folder), trainer.logger, os.environ)
    if isinstance(trainer, Trainer):
        named = {"rollout_data_dir": trainer.rollout_data_dir, "validation_data_dir": trainer.validation_data_dir}
        places |= {f"trainer.{key}": Path(name).expanduser() for key, name in named.items() if name is not None}
    for name, place in places.items():
        if str(place.absolute()) not in record.outside and _holds_records(place):
            raise ConfigError(
                f"{name}={place} holds records already, which are not this run's and would be replaced or mixed with "
                "its own. Name another place, or remove what is there."
            )
    outside = {*record.outside, *(str(place.absolute()) for place in places.values())}
    return replace(
        record,
        outside=tuple(sorted(outside)),
        bookkeeping={**record.bookkeeping, FOLDER: trainer.default_local_dir},
    )


def _holds_records(place: Path) -> bool:
    if place.is_file():
        return place.stat().st_size > 0
    return any(file.stem.isdecimal() for file in place.glob("*.jsonl")) or any(place.glob("events.out.tfevents.*"))
