"""`gmpo train --profile`: what it counts, and that the run is the same run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile, record_function

from gmpo.tracking.profile import operation_costs, phase_costs, product_speed


def test_the_arithmetic_of_a_phase_is_that_of_its_products_and_of_no_other_phase() -> None:
    a, b, c = torch.rand(3, 50), torch.rand(50, 7), torch.rand(5, 3, 7)
    a.requires_grad_()
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiler:
        with record_function("phase one"):
            a @ b
        with record_function("phase two"):
            (a @ b).sum().backward()  # one product forward; backward the gradient of `a` alone
            c @ b.T[:, :50]
        with record_function("phase one"):
            a.detach() @ b
    costs = {cost.phase: cost for cost in phase_costs(profiler.events(), {"one": 1.5})}
    product = 2 * 3 * 50 * 7
    assert costs["one"].product_flop == 2 * product
    assert costs["two"].product_flop == 2 * product + 5 * 2 * 3 * 7 * 50
    assert costs["one"].peak_gib == 1.5
    assert costs["two"].peak_gib is None
    assert costs["one"].seconds > 0
    assert any(cost.name == "aten::mm" for cost in operation_costs(profiler.events()))


def test_the_speed_of_a_product_is_that_of_a_processor_and_not_of_a_unit_mistake() -> None:
    assert 1e8 < product_speed(torch.device("cpu"), size=256, repeats=2) < 1e14


def test_a_profiled_run_is_the_same_run_and_leaves_a_trace_and_a_table(
    bench: Any, same_run: Callable[[Path, Path, int], None]
) -> None:
    console = Console(record=True, quiet=False, width=100, file=(bench.folder / "out.txt").open("w"))
    bench.train({}, run="profiled", profile=True, console=console)
    bench.train({}, run="plain")
    same_run(bench.folder / "profiled", bench.folder / "plain", 2)
    trace = json.loads((bench.folder / "profiled" / "profile.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"phase gen", "phase update_actor", "aten::mm"} <= names
    shown = console.export_text()
    assert "step 2 under the profiler" in shown
    for phase in ("gen", "reward", "old_log_prob", "update_actor"):
        assert f" {phase} " in shown
    assert "floor: the matrix products alone at" in shown
