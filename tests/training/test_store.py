"""Checkpoints behind the training: when they are written, and what becomes of a failure."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gmpo.errors import CheckpointError
from gmpo.training.checkpoint import Store
from gmpo.training.state import State

WAIT_S = 30.0


class Weights:
    """A number in place of a model: what training changes, and a checkpoint must hold as it was."""

    def __init__(self) -> None:
        self.value = 0
        self.may_write = threading.Event()
        self.may_write.set()
        self.failures = 0
        """So many of the next writes fail."""
        self.writers: list[str] = []

    def snapshot(self, contents: Sequence[str], *, copy: bool) -> Callable[[Path], None]:
        kept = self.value

        def write(folder: Path) -> None:
            assert self.may_write.wait(WAIT_S)
            self.writers.append(threading.current_thread().name)
            if self.failures:
                self.failures -= 1
                raise OSError("no space left")
            (folder / "weights").write_text(str(kept if copy else self.value))

        return write


def _store(root: Path, told: list[str], *, behind: bool = True, keep: int | None = None) -> Any:
    lists = {"save_contents": ("model",), "load_contents": ("model",)}
    return Store(root, **lists, resume=None, keep=keep, behind=behind, data={}, tell=told.append)


def _written(root: Path) -> dict[str, str]:
    return {p.parent.name: p.read_text() for p in root.glob("global_step_*/weights")}


def test_training_goes_on_while_a_checkpoint_is_written_and_the_checkpoint_is_of_its_own_step(tmp_path: Path) -> None:
    learner, told = Weights(), list[str]()
    with _store(tmp_path, told) as store:
        learner.may_write.clear()
        learner.value = 1
        store.save(learner, State(1))
        store.publish()
        learner.value = 2  # reached although nothing can be written yet
        assert not (tmp_path / "latest_checkpointed_iteration.txt").exists()
        learner.may_write.set()
        store.save(learner, State(2))
        assert _written(tmp_path)["global_step_1"] == "1"  # one at a time: the first is there before the second begins
        store.publish()
    assert _written(tmp_path) == {"global_step_1": "1", "global_step_2": "2"}
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "2"
    assert told == []
    assert threading.current_thread().name not in learner.writers


def test_without_behind_a_checkpoint_is_there_when_save_returns(tmp_path: Path) -> None:
    learner = Weights()
    with _store(tmp_path, [], behind=False) as store:
        store.save(learner, State(1))
        assert _written(tmp_path) == {}
        store.publish()
        assert _written(tmp_path) == {"global_step_1": "0"}
        learner.failures = 1
        with pytest.raises(CheckpointError, match=r"global_step_2: no space left"):
            store.save(learner, State(2))
    assert set(learner.writers) == {threading.current_thread().name}


def test_after_a_failure_the_next_checkpoint_is_waited_for_and_a_later_one_is_written_behind_again(
    tmp_path: Path,
) -> None:
    learner, told = Weights(), list[str]()
    with _store(tmp_path, told) as store:
        learner.failures = 1
        for step in (1, 2, 3):
            store.save(learner, State(step))
            store.publish()
    assert sorted(_written(tmp_path)) == ["global_step_2", "global_step_3"]
    here = threading.current_thread().name
    assert [name == here for name in learner.writers] == [False, True, False]
    assert len(told) == 1
    assert "global_step_1: no space left" in told[0]


def test_a_second_failure_in_a_row_is_an_error(tmp_path: Path) -> None:
    learner, told = Weights(), list[str]()
    with _store(tmp_path, told) as store:
        learner.failures = 2
        store.save(learner, State(1))
        with pytest.raises(CheckpointError, match="global_step_2"):
            store.save(learner, State(2))
    assert "global_step_1" in told[0]


def test_the_last_checkpoints_failure_is_an_error_at_the_end_that_hides_no_other(tmp_path: Path) -> None:
    learner, told = Weights(), list[str]()
    learner.failures = 2
    with pytest.raises(CheckpointError, match="global_step_1"), _store(tmp_path, told) as store:
        store.save(learner, State(1))

    def fails() -> None:
        with _store(tmp_path, told) as store:
            store.save(learner, State(2))
            raise KeyError("the cause")

    with pytest.raises(KeyError, match="the cause"):
        fails()
    assert "global_step_2" in told[-1]


def test_old_checkpoints_go_only_when_the_new_one_is_complete(tmp_path: Path) -> None:
    learner = Weights()
    with _store(tmp_path, [], keep=1, behind=False) as store:
        store.save(learner, State(1))
        store.publish()
        learner.failures = 1
        with pytest.raises(CheckpointError):
            store.save(learner, State(2))
    assert sorted(_written(tmp_path)) == ["global_step_1"]
    with _store(tmp_path, [], keep=1) as store:
        store.save(learner, State(2))
        store.publish()
    assert sorted(_written(tmp_path)) == ["global_step_2"]


@pytest.mark.parametrize("behind", [True, False])
def test_a_checkpoint_whose_step_was_not_recorded_never_gets_its_name(tmp_path: Path, behind: bool) -> None:
    learner = Weights()
    with _store(tmp_path, [], behind=behind) as store:
        store.save(learner, State(1))
        store.publish()
        store.save(learner, State(2))  # and its records could not be written
    assert sorted(_written(tmp_path)) == ["global_step_1"]
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "1"
    assert not list(tmp_path.glob(".unfinished*"))


def test_the_spared_checkpoint_stays_beside_the_newest(tmp_path: Path) -> None:
    learner = Weights()
    with _store(tmp_path, [], keep=1, behind=False) as store:
        for step in (1, 2, 3, 4):
            store.save(learner, State(step), spare=2 if step < 4 else 3)
            store.publish()
            expected = {1: [1], 2: [2], 3: [2, 3], 4: [3, 4]}[step]
            assert sorted(_written(tmp_path)) == [f"global_step_{n}" for n in expected]
