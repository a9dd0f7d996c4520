"""Weights that diverge end the run with an error of its own, and the checkpoints before stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from safetensors.torch import load_file

RATE = "actor_rollout_ref.actor.optim.lr"


@pytest.mark.parametrize(
    ("rate", "phase"), [(1e6, "update: the gradient"), (1e18, "sampling"), (1e40, "update: the weights")]
)
def test_step_phase_cause_and_remedy_are_named_and_no_diverged_checkpoint_is_written(
    bench: Any, command: Callable[..., Any], rate: float, phase: str
) -> None:
    """A million leaves logits finite and gradients not, 1e18 the weights alone; float32 ends at 3e38."""
    steps = {"trainer.total_training_steps": 6, "trainer.save_freq": 1}
    bench.train({**steps, "trainer.total_training_steps": 1, RATE: 0.0})
    kept = (bench.folder / "run" / "global_step_1" / "actor" / "model.safetensors").read_bytes()
    outcome = command("train", *bench.arguments({**steps, RATE: rate}, run="diverges"))
    assert outcome.code == 1
    assert f", {phase}" in outcome.err
    assert "DivergedError: step " in outcome.err
    assert f"Lower {RATE}" in outcome.err
    assert "complete checkpoint" in outcome.err
    for file in (bench.folder / "diverges").rglob("model.safetensors"):
        assert all(bool(t.isfinite().all()) for t in load_file(file).values())
    assert (bench.folder / "run" / "global_step_1" / "actor" / "model.safetensors").read_bytes() == kept
