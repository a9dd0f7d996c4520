"""Alarms and updates that are not finite, in real runs: what is said, kept and left out."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from gmpo.backends.trainable import Trainable
from gmpo.errors import DivergedError

A = "actor_rollout_ref.actor"


def _equal(folder: Path) -> dict[str, Any]:
    """A reward that tells no answer from another."""
    place = folder / "equal.py"
    place.write_text("def compute_score(data_source, solution_str, ground_truth, extra_info):\n    return 0.0\n")
    return {"custom_reward_function.path": str(place)}


def test_an_alarm_stops_the_run_with_a_checkpoint_and_the_same_command_goes_on_when_it_only_warns(
    bench: Any, command: Callable[..., Any], lines: Callable[[Path], Any]
) -> None:
    settings = {**_equal(bench.folder), "trainer.total_training_steps": 3, "trainer.alarm": "stop"}
    outcome = command("train", *bench.arguments(settings))
    assert outcome.code == 70
    assert "step 1: alarm (" in outcome.out
    assert "the run ends (trainer.alarm=stop), with a checkpoint" in outcome.out
    folder = bench.folder / "run"
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "interrupted"
    assert record["reason"].startswith("step 1: alarm (")
    assert {"no_variance"} <= {alarm["name"] for alarm in record["alarms"]}
    assert (folder / "latest_checkpointed_iteration.txt").read_text() == "1"
    (first,) = lines(folder / "metrics.jsonl")
    assert first["data"]["alarm/no_variance"] == 1.0

    warned = command("train", *bench.arguments({**settings, "trainer.alarm": "warn"}))
    assert warned.code == 0
    assert [line["step"] for line in lines(folder / "metrics.jsonl")] == [1, 2, 3]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
    """Makes the gradients of some updates, counted from 0, NaN."""
    step, count = Trainable.step, 0

    def poison(which: set[int]) -> None:
        def poisoned_step(self: Trainable, number: int) -> Any:
            nonlocal count
            if count in which:
                parameter = next(p for p in self.model.parameters() if p.grad is not None)
                parameter.grad.fill_(torch.nan)  # type: ignore[union-attr]
            count += 1
            return step(self, number)

        monkeypatch.setattr(Trainable, "step", poisoned_step)

    return poison


def test_an_update_that_is_not_finite_is_left_out_and_leaves_its_answers(
    bench: Any, poisoned: Callable[[set[int]], None], lines: Callable[[Path], Any]
) -> None:
    """Two updates a step; the second one of the first step has no finite gradient: 2 problems with 4 answers."""
    poisoned({1})
    console = Console(file=io.StringIO(), width=1000)
    run = bench.train(console=console)
    assert run.finished
    assert [m["actor/skipped_updates"] for m in run.history] == [1.0, 0.0]
    file = run.folder / "samples" / "1.nonfinite.jsonl"
    assert f"answers of such an update are in {file}" in console.file.getvalue()  # type: ignore[attr-defined]
    rows = lines(file)
    assert len(rows) == 8
    assert all(row["update"] == 1 and row["output"] is not None and row["response_ids"] for row in rows)
    everything = {(row["problem"], row["output"]) for row in lines(run.folder / "samples" / "1.jsonl")}
    assert {(row["problem"], row["output"]) for row in rows} <= everything


def test_too_many_in_a_row_end_the_run_with_their_answers(
    bench: Any, poisoned: Callable[[set[int]], None], lines: Callable[[Path], Any]
) -> None:
    poisoned({2, 3})
    with pytest.raises(DivergedError, match=r"in 2 updates in a row.*2\.nonfinite\.jsonl") as error:
        bench.train({f"{A}.max_nonfinite_updates": 2})
    assert "There is no complete checkpoint" in str(error.value)
    assert {row["update"] for row in lines(bench.folder / "run" / "samples" / "2.nonfinite.jsonl")} == {1}
