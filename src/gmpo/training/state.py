"""What a run needs to go on besides weights and optimizer: the step, and an entry of each part that has a state.

    state.json          format, step, and by part its format number and JSON values
    state.safetensors   tensors of the parts, by `<part>/<name>`; absent where there are none

Each part of the run owns its entry and reads it again; nothing else looks into it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from gmpo.errors import CheckpointError
from gmpo.records.rollout import TOKEN_ARRAYS

FORMAT = 3
"""Of `state.json`. The first one had no number, and the keys `step`, `kl_coef`, `position` and `surplus`; the second
one had no list of files with their hashes beside it, and no entry of the validations."""
FILE, TENSORS = "state.json", "state.safetensors"
PRODUCER, GATHER, CREDIT, EVALUATION = "producer", "gather", "credit", "evaluation"
LOSSES = "losses"
"""Names of parts, as they stand in a checkpoint; the last one of fine-tuning."""


@dataclass(frozen=True, slots=True)
class PartState:
    """The entry of one part.

    Example: `PartState({"kl_coef": 0.001})`.
    """

    values: Mapping[str, Any]
    """JSON values. Floats survive JSON bit for bit."""
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    """What is too large for JSON."""
    format: int = 1
    """Of this entry; a part refuses one that it does not know."""

    def check_format(self, part: str, known: int) -> None:
        """Raises CheckpointError where the entry has another format than `known`."""
        if self.format != known:
            raise CheckpointError(
                f"the checkpoint's state of `{part}` has format {self.format}, and this version reads {known}: go on "
                "with the version that wrote it."
            )


NO_VALIDATION = PartState({"best": None})
"""What earlier formats know of the best validation."""


@dataclass(frozen=True, slots=True)
class State:
    """Everything of a run that is neither weights nor optimizer."""

    step: int
    """Training steps done."""
    parts: Mapping[str, PartState] = field(default_factory=dict)


class Stateful(Protocol):
    """A part of a run with something to remember between steps."""

    def state(self) -> PartState:
        """What it remembers, as it is now: a copy that later steps do not change."""
        ...

    def restore(self, state: PartState) -> None:
        """Go on from what `state` returned. Raises CheckpointError for anything else."""
        ...


def capture(step: int, parts: Mapping[str, Stateful]) -> State:
    """The state after `step` steps."""
    return State(step, {name: part.state() for name, part in parts.items()})


def restore(state: State, parts: Mapping[str, Stateful]) -> None:
    """Hand each part its entry.

    Raises:
        CheckpointError: the checkpoint has other parts than the run, or a part cannot read its entry.
    """
    if state.parts.keys() != parts.keys():
        raise CheckpointError(
            f"the checkpoint holds the state of {', '.join(sorted(state.parts)) or 'nothing'}, and this run has "
            f"{', '.join(sorted(parts))}: go on with the version that wrote it."
        )
    for name, part in parts.items():
        part.restore(state.parts[name])


def write_state(folder: Path, state: State, data: Mapping[str, object]) -> None:
    """Write the state into a checkpoint's folder, beside `data`, which says what problems it was made with."""
    arrays = {f"{name}/{key}": a for name, part in state.parts.items() for key, a in part.arrays.items()}
    if arrays:
        save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, folder / TENSORS)
    parts = {name: {"format": part.format, **part.values} for name, part in state.parts.items()}
    record = {"format": FORMAT, "step": state.step, "parts": parts, "data": data}
    (folder / FILE).write_text(json.dumps(record, indent=1))


def read_state(folder: Path) -> tuple[State, dict[str, object]]:
    """The state in a checkpoint's folder, and what problems it was made with.

    Raises:
        CheckpointError: it cannot be read, or a later version wrote it.
    """
    try:
        record = json.loads((folder / FILE).read_text())
        number = int(record.get("format", 1))
        if number > FORMAT:
            raise CheckpointError(
                f"{folder / FILE} has format {number}, and this version reads up to {FORMAT}: go on with the version "
                "that wrote it."
            )
        data = dict(record["data"])
        if number == 1:
            return _first_format(record), data
        arrays = load_file(folder / TENSORS) if (folder / TENSORS).is_file() else {}
        parts = {name: _part(name, dict(values), arrays) for name, values in record["parts"].items()}
        if number == 2:
            parts[EVALUATION] = NO_VALIDATION
        return State(int(record["step"]), parts), data
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {folder / FILE}: {error!r}") from error


def requires_seal(folder: Path) -> bool:
    """Whether a checkpoint was written with the hashes of its files; False where nobody can tell."""
    try:
        return int(json.loads((folder / FILE).read_text()).get("format", 1)) >= 3
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def _part(name: str, values: dict[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> PartState:
    own = {key.removeprefix(f"{name}/"): array for key, array in arrays.items() if key.startswith(f"{name}/")}
    return PartState(values, own, format=int(values.pop("format")))


def _first_format(record: Mapping[str, Any]) -> State:
    """A state of the first format, in which waiting groups stood in JSON with their tokens."""
    pieces: dict[str, list[npt.NDArray[Any]]] = {name: [np.zeros(0, dtype)] for name, dtype in TOKEN_ARRAYS.items()}

    def graded(old: Mapping[str, Any]) -> dict[str, Any]:
        completion = old["completion"]
        ids = completion["token_ids"]
        for name, dtype in TOKEN_ARRAYS.items():
            pieces[name].append(np.asarray(completion[name] if name in completion else [True] * len(ids), dtype))
        version = completion["weight_version"]
        own = {"tokens": len(ids), "weight_versions": [version, version], "finish_reason": completion["finish_reason"]}
        return {**{k: v for k, v in old.items() if k != "completion"}, **own}

    waiting = [
        {
            "problem": group["problem"],
            "graded": [graded(answer) for answer in group["graded"]],
            "baseline": None if group["baseline"] is None else graded(group["baseline"]),
        }
        for group in record["surplus"]
    ]
    arrays = {name: np.concatenate(found) for name, found in pieces.items()} if waiting else {}
    return State(
        int(record["step"]),
        {
            PRODUCER: PartState({"position": int(record["position"]), "under_way": []}),
            GATHER: PartState({"waiting": waiting}, arrays),
            CREDIT: PartState({"kl_coef": float(record["kl_coef"])}),
            EVALUATION: NO_VALIDATION,
        },
    )
