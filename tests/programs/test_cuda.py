"""Programs on a GPU: a first step like the CPU's, runs in bfloat16, with a critic and resumed, and their memory."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import gmpo
from gmpo.data.stories import demonstration_rows

pytestmark = pytest.mark.cuda
A, R = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
FP32 = {f"{A}.fsdp_config.dtype": "fp32"}
CRITIC = {"algorithm.adv_estimator": "gae", f"{A}.policy_loss.loss_mode": "vanilla",
          "critic.model.enable_gradient_checkpointing": False, "critic.optim.lr": 1e-2}  # fmt: skip
SAME = ("critic/score/mean", "response_length/mean", "actor/pg_loss", "actor/grad_norm", "actor/entropy")


def on(device: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"trainer.device": device, **(changes or {})}


@pytest.mark.parametrize("changes", [{}, CRITIC], ids=["gmpo", "ppo with a critic"])
def test_the_first_step_in_float32_is_that_of_the_cpu(bench: Any, changes: dict[str, Any]) -> None:
    here, there = (bench.train(on(d, FP32 | changes), run=d).history for d in ("cpu", "cuda"))
    critic = ("critic/vf_loss", "critic/grad_norm") if changes else ()
    for name in (*SAME, *critic):
        assert name in here[0]
        assert there[0][name] == pytest.approx(here[0][name], rel=1e-3, abs=1e-5), name
    assert there[0].keys() - here[0].keys() <= {"perf/max_memory_allocated_gb", "perf/max_memory_reserved_gb"}


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_bfloat16_on_the_command_line_trains_and_tells_the_memory(
    bench: Any, lines: Callable[[Path], list[dict[str, Any]]], weights: str
) -> None:
    changes = {f"{A}.fsdp_config.model_dtype": weights, "trainer.total_training_steps": 3}
    settings = bench.arguments(on("cuda", changes))
    done = subprocess.run(
        [sys.executable, "-m", "gmpo", "train", *settings], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [line["data"] for line in lines(bench.folder / "run" / "metrics.jsonl")]
    assert len(steps) == 3
    for step in steps:
        assert all(math.isfinite(step[name]) for name in SAME)
        assert step["actor/grad_norm"] > 0.0
        assert 0.0 < step["perf/max_memory_allocated_gb"] <= step["perf/max_memory_reserved_gb"]
        # What the sampler drew has the learner's log-probs, to the rounding of bfloat16.
        assert step["training/rollout_probs_diff_mean"] <= 0.01


def test_a_resumed_run_is_the_run_that_nobody_stopped(
    bench: Any, weights: Callable[[Path], dict[str, torch.Tensor]], record_property: Callable[[str, object], None]
) -> None:
    """To rounding: torch adds up some gradients in any order on a GPU. Whether bit for bit is told."""
    changes = on("cuda", {**FP32, "trainer.save_freq": 2, f"{A}.optim.lr": 1e-3})
    whole = bench.train({**changes, "trainer.total_training_steps": 4}, run="whole")
    bench.train({**changes, "trainer.total_training_steps": 2})
    resumed = bench.train({**changes, "trainer.total_training_steps": 4})
    assert [m["training/global_step"] for m in resumed.history] == [3, 4]
    for one, other in zip(whole.history[2:], resumed.history, strict=True):
        for name in SAME:
            assert other[name] == pytest.approx(one[name], rel=1e-2, abs=1e-4), name
    one, other = (weights(run.model) for run in (whole, resumed))
    assert all(torch.allclose(one[name], other[name], rtol=1e-3, atol=2e-4) for name in one)
    exact = all(torch.equal(one[name], other[name]) for name in one)
    record_property("a resumed run on this device", "equal bit for bit" if exact else "equal to rounding")


def test_a_checkpoint_of_one_device_goes_on_on_the_other(bench: Any) -> None:
    changes = {**FP32, "trainer.save_freq": 2}
    bench.train({**on("cuda", changes), "trainer.total_training_steps": 2})
    resumed = bench.train({**on("cpu", changes), "trainer.total_training_steps": 3})
    assert [m["training/global_step"] for m in resumed.history] == [3]
    assert math.isfinite(resumed.history[0]["actor/grad_norm"])


def test_supervised_learning_has_the_loss_of_the_cpu_and_lowers_it(bench: Any) -> None:
    rows, losses = demonstration_rows(8, seed=0), []
    for device in ("cpu", "cuda"):
        settings = {
            "model.path": str(bench.model),
            "data.train_batch_size": 8,
            "data.max_length": 96,
            "optim.lr": 1e-2,
            "trainer.total_training_steps": 6,
            "trainer.device": device,
            "trainer.default_local_dir": str(bench.folder / f"sft-{device}"),
            "trainer.logger": [],
        }
        run = gmpo.sft(settings, rows=rows, console=Console(quiet=True))
        losses.append([m["train/loss"] for m in run.history])
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-2), "bfloat16 against float32"
    assert losses[1][-1] < 0.8 * losses[1][0]


def test_the_profiler_orders_operations_by_their_time_on_the_device(bench: Any) -> None:
    bench.console = Console(file=(said := io.StringIO()), width=300)
    assert bench.train(on("cuda", {"trainer.total_training_steps": 3}), profile=True).finished
    assert "operations by the time they take themselves" in said.getvalue()
