"""The run in a folder, also where an earlier version of gmpo wrote it, or its run.json is lost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gmpo.build.identity import OLD
from gmpo.config import Resolved, load, load_sft
from gmpo.config.layers import read_yaml
from gmpo.config.roles import by_role
from gmpo.errors import CheckpointError, ConfigError, DataError
from gmpo.records.run_folder import (
    CONFIG,
    ENVIRONMENT,
    LEGS,
    RUN,
    Leg,
    Program,
    RunRecord,
    Status,
    checkpoints,
    has_model,
    holds_run,
    legs_kept,
    read_run,
    recorded_steps,
)

OLD_VERSION = "0.1.0"
"""The last version whose run folders have no run.json."""
LOST = f"{RUN} was lost: how it ended, and after how many steps, is not known"


def run_in(folder: Path) -> RunRecord:
    """The record of the run that a folder holds.

    Raises:
        DataError: it cannot be read.
        CheckpointError: an earlier version wrote the folder, and this one does not take its settings.
    """
    return read_run(folder) or old_record(folder)


def recorded_run(folder: Path) -> RunRecord | None:
    """The record of the run that a folder holds, if there is any that can be read."""
    try:
        return run_in(folder) if holds_run(folder) else read_run(folder)
    except (DataError, CheckpointError):
        return None


def old_record(folder: Path) -> RunRecord:
    """The run of a folder without run.json, from its config.yaml. Legs are known where a later version kept them.

    Raises:
        CheckpointError: there is none, or this version does not take its settings.
    """
    file, numbers = folder / CONFIG, legs_kept(folder)
    if not file.is_file():
        raise CheckpointError(
            f"{folder} holds a run, but neither run.json nor {CONFIG}, which say what it is. Bring one of them back, "
            "or name another trainer.default_local_dir, in which a new run can begin with a checkpoint of this folder "
            "(trainer.resume_mode=resume_path)."
        )
    try:
        tree: Mapping[Any, Any] = read_yaml(file)
        program: Program = "train" if "actor_rollout_ref" in tree else "sft"
        resolved: Resolved[Any] = (
            load(file=file, rows=True, val_rows=True) if program == "train" else load_sft(file=file, rows=True)
        )
    except ConfigError as error:
        holds = f"a run of gmpo {OLD_VERSION} or earlier (no {RUN})" if not numbers else f"a run whose {RUN} is lost"
        remedy = f"gmpo {OLD_VERSION} goes on with it" if not numbers else f"{LEGS}/ has copies of {CONFIG}"
        raise CheckpointError(
            f"{folder} holds {holds}, whose settings this version cannot read. {remedy}; a new run needs another "
            f"trainer.default_local_dir.\n{error}"
        ) from error
    settings = by_role(resolved)
    steps = max([recorded_steps(folder), *checkpoints(folder)])
    status: Status = "finished" if has_model(folder) else "interrupted"
    places = (settings["bookkeeping"].get(f"trainer.{key}") for key in ("rollout_data_dir", "validation_data_dir"))
    return RunRecord(
        program=program,
        status=status,
        steps=steps,
        total_steps=steps,
        identity=settings["identity"],
        execution=settings["execution"],
        bookkeeping=settings["bookkeeping"],
        idle=settings["idle"],
        content={},
        origin=_origin(folder, tree, numbers),
        legs=_legs(folder, numbers, steps, status),
        outside=tuple(str(Path(place).expanduser().absolute()) for place in places if place),
        gmpo=_version(folder) if numbers else OLD_VERSION,
        format=OLD,
    )


def _legs(folder: Path, numbers: Sequence[int], steps: int, status: Status) -> tuple[Leg, ...]:
    if not numbers:
        return (Leg(1, start=0, steps=steps, status=status, gmpo=OLD_VERSION),)
    last = Leg(numbers[-1], start=0, steps=steps, status=status, reason=LOST, gmpo=_version(folder))
    return (
        *(
            Leg(n, start=0, steps=0, status="interrupted", reason=LOST, gmpo=_version(folder / LEGS / str(n)))
            for n in numbers[:-1]
        ),
        last,
    )


def _origin(folder: Path, tree: Mapping[Any, Any], numbers: Sequence[int]) -> str | None:
    """The checkpoint of another run that the first start was asked to begin with."""
    if numbers:
        with suppress(ConfigError):
            tree = read_yaml(folder / LEGS / str(numbers[0]) / CONFIG)
    trainer = tree["trainer"] if isinstance(tree.get("trainer"), Mapping) else {}
    if trainer.get("resume_mode") != "resume_path" or not trainer.get("resume_from_path"):
        return None
    asked = Path(trainer["resume_from_path"]).expanduser().absolute()
    return None if asked.parent.resolve() == folder.resolve() else str(asked)


def _version(place: Path) -> str:
    """Of gmpo, as environment.json names it."""
    try:
        return str(json.loads((place / ENVIRONMENT).read_text())["gmpo"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"
