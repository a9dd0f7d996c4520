"""The state of a run's parts: each reads its own entry, on disk too, and what it does not know is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from gmpo.errors import CheckpointError
from gmpo.training.state import (
    CREDIT,
    EVALUATION,
    FORMAT,
    GATHER,
    PRODUCER,
    PartState,
    State,
    capture,
    read_state,
    restore,
    write_state,
)


@dataclass
class Counter:
    """A part that remembers a number and a list of them."""

    number: float = 0.0
    many: list[int] = field(default_factory=list)

    def state(self) -> PartState:
        arrays = {"many": np.array(self.many, np.int32)} if self.many else {}
        return PartState({"number": self.number}, arrays, format=3)

    def restore(self, state: PartState) -> None:
        state.check_format("counter", known=3)
        self.number = state.values["number"]
        self.many = state.arrays["many"].tolist() if "many" in state.arrays else []


def test_every_part_goes_on_from_its_own_entry(tmp_path: Path) -> None:
    parts = {"one": Counter(0.1 + 0.2, [3, 1, 2]), "two": Counter(-1e-17), "one/more": Counter(5.0, [7])}
    write_state(tmp_path, capture(4, parts), {"rows": 12})
    state, data = read_state(tmp_path)
    assert (state.step, data) == (4, {"rows": 12})
    resumed = {name: Counter() for name in parts}
    restore(state, resumed)
    assert resumed == parts
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state.json", "state.safetensors"]


def test_without_tensors_there_is_no_file_of_them(tmp_path: Path) -> None:
    write_state(tmp_path, capture(1, {"one": Counter(2.0)}), {})
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]
    assert read_state(tmp_path)[0].parts == {"one": PartState({"number": 2.0}, {}, format=3)}


def test_what_was_captured_does_not_change_with_the_part() -> None:
    part = Counter(1.0, [1])
    state = capture(1, {"one": part})
    part.many.append(2)
    part.number = 9.0
    restore(state, {"one": part})
    assert part == Counter(1.0, [1])


def test_a_state_of_other_parts_or_of_a_later_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds the state of one, two, and this run has one"):
        restore(capture(1, {"one": Counter(), "two": Counter()}), {"one": Counter()})
    with pytest.raises(CheckpointError, match="state of `counter` has format 4, and this version reads 3"):
        restore(State(1, {"one": PartState({"number": 1.0}, format=4)}), {"one": Counter()})
    write_state(tmp_path, State(1), {})
    file = tmp_path / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": FORMAT + 1}))
    with pytest.raises(CheckpointError, match=f"has format {FORMAT + 1}, and this version reads up to {FORMAT}"):
        read_state(tmp_path)


def test_the_first_format_is_read(tmp_path: Path) -> None:
    old = {"step": 3, "kl_coef": 0.25, "position": 12, "surplus": [], "data": {"data.seed": 1}}
    (tmp_path / "state.json").write_text(json.dumps(old))
    parts = {
        PRODUCER: PartState({"position": 12, "under_way": []}),
        GATHER: PartState({"waiting": []}),
        CREDIT: PartState({"kl_coef": 0.25}),
        EVALUATION: PartState({"best": None}),
    }
    assert read_state(tmp_path) == (State(3, parts), {"data.seed": 1})
