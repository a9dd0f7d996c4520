"""The run in a folder, also where an earlier version of gmpo wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gmpo.build.identity import OLD
from gmpo.config import Resolved, load, load_sft
from gmpo.config.layers import read_yaml
from gmpo.config.roles import by_role
from gmpo.errors import CheckpointError, ConfigError
from gmpo.records.run_folder import (
    CONFIG,
    Leg,
    Program,
    RunRecord,
    Status,
    checkpoints,
    has_model,
    read_metrics,
    read_run,
)

OLD_VERSION = "0.1.0"
"""The last version whose run folders have no run.json."""


def run_in(folder: Path) -> RunRecord:
    """The record of the run that a folder holds.

    Raises:
        DataError: it cannot be read.
        CheckpointError: an earlier version wrote the folder, and this one does not take its settings.
    """
    return read_run(folder) or old_record(folder)


def old_record(folder: Path) -> RunRecord:
    """The run of a folder without run.json, from its config.yaml.

    Raises:
        CheckpointError: there is none, or this version does not take its settings.
    """
    file = folder / CONFIG
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
        raise CheckpointError(
            f"{folder} holds a run of gmpo {OLD_VERSION} or earlier (no run.json), whose settings this version cannot "
            f"read. gmpo {OLD_VERSION} goes on with it; a new run needs another trainer.default_local_dir.\n{error}"
        ) from error
    settings = by_role(resolved)
    steps = max([0, *checkpoints(folder), *(line.step for line in read_metrics(folder))])
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
        legs=(Leg(1, start=0, steps=steps, status=status, gmpo=OLD_VERSION),),
        outside=tuple(str(Path(place).expanduser().absolute()) for place in places if place),
        gmpo=OLD_VERSION,
        format=OLD,
    )
