"""Weights stored in bfloat16: a learning rate that their rounding swallows is said, once, with the share that moved."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from gmpo.tracking.rounding import SwallowedUpdates

A = "actor_rollout_ref.actor"


def trained(bench: Any, dtype: str, rate: float, **settings: Any) -> tuple[Any, list[str]]:
    """A run of 5 steps with 2 updates each, and what it said of weights that moved."""
    said = io.StringIO()
    bench.console = Console(file=said, width=1000)
    changes = {
        f"{A}.fsdp_config.model_dtype": dtype,
        f"{A}.optim.lr": rate,
        "trainer.total_training_steps": 5,
        **settings,
    }
    run = bench.train(changes)
    return run, [line for line in said.getvalue().splitlines() if "the weights moved" in line]


@pytest.mark.parametrize(("steps", "updates"), [(5, 8), (2, 4)])
def test_a_learning_rate_that_bf16_swallows_is_said_once_with_the_share(bench: Any, steps: int, updates: int) -> None:
    # a step of 1e-6 moves a weight of bf16 where it is below about 2.6e-4; they are drawn with 0.02 and more
    run, said = trained(bench, "bf16", 1e-6, **{"trainer.total_training_steps": steps})
    shares = [step["actor/weights_moved"] for step in run.history]
    assert all(0.0 < share < 0.1 for share in shares)
    (line,) = said
    mean = sum(shares[: updates // 2]) / (updates // 2)
    assert f"in the first {updates} updates at a learning rate of 1e-06, {mean:.1%} of the weights" in line
    assert "fsdp_config.model_dtype=fp32" in line
    assert f"{A}.optim.lr" in line


def test_fp32_weights_and_a_learning_rate_that_bf16_resolves_are_not_warned_about(bench: Any) -> None:
    run, said = trained(bench, "fp32", 1e-6, **{f"{A}.fsdp_config.dtype": "bf16"})
    assert not said
    assert not any("actor/weights_moved" in step for step in run.history)


def test_a_learning_rate_that_bf16_resolves_is_not_warned_about(bench: Any) -> None:
    run, said = trained(bench, "bf16", 1e-2)
    assert not said
    assert all(step["actor/weights_moved"] > 0.8 for step in run.history)


def test_a_warm_up_is_not_what_is_judged(bench: Any) -> None:
    run, said = trained(bench, "bf16", 1e-2, **{f"{A}.optim.lr_warmup_steps": 4})
    assert "actor/weights_moved" not in run.history[0], "nothing can move at learning rate 0"
    assert not said


@pytest.mark.parametrize(("at_the_peak", "warned"), [(0.9, False), (0.4, True)])
def test_the_share_is_that_of_the_updates_at_the_peak_of_the_rate(at_the_peak: float, warned: bool) -> None:
    said: list[str] = []
    sink = SwallowedUpdates(said.append)
    sink.start(0)
    rates_and_shares = [(1e-7, 0.0), (2e-7, 0.1), (1e-6, at_the_peak), (0.9e-6, at_the_peak), (0.8e-6, 0.0)]
    for step, (rate, share) in enumerate(rates_and_shares, start=1):
        sink.write(step, {"actor/weights_moved": share, "actor/lr": rate, "actor/updates": 4.0})
    sink.close()
    assert [("first 8 updates" in line, "40.0%" in line) for line in said] == [(True, True)] * warned
