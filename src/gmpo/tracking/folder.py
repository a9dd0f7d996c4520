"""The writing side of the run folder: the record of the run, and the settings and the environment of its legs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from gmpo.records.durable import write_atomically
from gmpo.records.run_folder import (
    CONFIG,
    ENVIRONMENT,
    LEGS,
    RUN,
    SAMPLES,
    VALIDATION,
    Leg,
    RankPlace,
    RunRecord,
    Status,
    holds_run,
    legs_kept,
    remove_empty,
    write_run,
)
from gmpo.tracking.environment import differing


class RunFolder:
    """A sink that comes first: it begins a leg of the run, and drops the answers beyond the step that the leg goes on
    from, because these steps happen again; also those in the folders elsewhere that belong to the run.

    A folder that holds nothing yet gets its record before the models are loaded, so that another start sees whose it is
    (`claim`). A start that fails before anything is recorded takes that back.

    Args:
        record: the run before this leg.
        leg: what is known of the leg before it begins; its number and its steps are set here.
        config: the complete settings as YAML.
        environment: see `gmpo.tracking.environment`.
        say: receives a line for the user where the environment means that the leg is not bit-exact.
    """

    def __init__(
        self,
        folder: Path,
        record: RunRecord,
        leg: Leg,
        *,
        config: str,
        environment: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self.record = record
        self.leg = replace(leg, number=1 + max([0, *(known.number for known in record.legs), *legs_kept(folder)]))
        self.config = config
        self.environment = environment
        self.say = say
        self.started = False
        self.stopped_by = "Ctrl-C or SIGTERM"
        """Why a run ends that is not finished."""
        self._before: bytes | None = None
        self._claimed = False

    def claim(self) -> None:
        """Say in run.json whose folder it is."""
        if holds_run(self.folder):
            return
        file = self.folder / RUN
        self._before, self._claimed = file.read_bytes() if file.is_file() else None, True
        write_run(self.folder, self.record)

    def ran_on(self, ranks: tuple[RankPlace, ...]) -> None:
        """Where the ranks of the leg are; told before it begins."""
        self.leg = replace(self.leg, ranks=ranks)

    def alarmed(self, step: int, name: str, text: str) -> None:
        """Something looks wrong."""
        alarm: dict[str, int | str] = {"step": step, "name": name, "text": text}
        self.record = replace(self.record, alarms=(*self.record.alarms, alarm))
        with suppress(OSError):  # a full disk: it is written again at the end
            self._write_record()

    def start(self, step: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        earlier = tuple(alarm for alarm in self.record.alarms if int(alarm["step"]) <= step)
        self.record = replace(self.record, alarms=earlier)
        for place in (self.folder / SAMPLES, self.folder / VALIDATION, *map(Path, self.record.outside)):
            for file in place.glob("*.jsonl"):
                if file.stem.isdecimal() and int(file.stem) > step:
                    file.unlink()
        if self.record.legs:
            self._keep_the_leg_before()
            self._compare_environments(self.folder)
        elif self.record.origin is not None:
            self._compare_environments(Path(self.record.origin).parent)
        self.leg = replace(self.leg, start=step, steps=step)
        for place in (self.folder / LEGS / str(self.leg.number), self.folder):
            write_settings(place, self.config, self.environment)
        self.started = True
        self._write_record()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics go to the other sinks; the steps that are done are counted here, and written at the end."""
        self.leg = replace(self.leg, steps=max(step, self.leg.steps))

    def close(self) -> None:
        """Nothing is open."""

    def end(self, status: Status, reason: str) -> None:
        """The leg is over. A leg that never began leaves no trace."""
        self.leg = replace(self.leg, status=status, reason=reason)
        if self.started:
            self._write_record()
            return
        shutil.rmtree(self.folder / LEGS / str(self.leg.number), ignore_errors=True)
        remove_empty([self.folder / LEGS])
        if self._claimed and self._before is None:
            for name in (CONFIG, ENVIRONMENT, RUN):
                (self.folder / name).unlink(missing_ok=True)
        elif self._claimed:
            (self.folder / RUN).write_bytes(self._before or b"")

    def _write_record(self) -> None:
        self.record = self.record.with_leg(self.leg)
        write_run(self.folder, self.record)

    def _keep_the_leg_before(self) -> None:
        """A folder of an earlier version keeps one configuration, in its root, which is about to be replaced."""
        kept = self.folder / LEGS / str(self.record.legs[-1].number)
        if not kept.exists():
            kept.mkdir(parents=True)
            for name in (CONFIG, ENVIRONMENT):
                with suppress(FileNotFoundError):
                    shutil.copyfile(self.folder / name, kept / name)

    def _compare_environments(self, before: Path) -> None:
        changes = differing(before / ENVIRONMENT, self.environment)
        if changes:
            listed = "; ".join(map(str, changes))
            self.say(f"the machine or its libraries differ, so that it is not bit for bit the same run: {listed}")
            differences = (*self.leg.differences, *changes)
            self.leg = replace(self.leg, differences=differences, exact=False)


class ValidationFolder:
    """A sink that comes first where a validation is all that is asked for: it writes its settings and environment."""

    def __init__(self, folder: Path, *, config: str, environment: Mapping[str, Any]) -> None:
        self.folder = folder
        self.config = config
        self.environment = environment

    def start(self, step: int) -> None:
        write_settings(self.folder, self.config, self.environment)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics go to the other sinks."""

    def close(self) -> None:
        """Nothing is open."""


def write_settings(folder: Path, config: str, environment: Mapping[str, Any]) -> None:
    """`config.yaml` and `environment.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CONFIG, config)
    write_atomically(folder / ENVIRONMENT, json.dumps(dict(environment), indent=1) + "\n")
