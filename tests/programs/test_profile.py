"""`gmpo train --profile`: its tables, and that the run is the same run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile

from gmpo.tracking.profile import tables
from gmpo.tracking.tracker import SamplePolicy, SampleWriter, StepRecord


def _row(table: str, name: str) -> list[str]:
    """The cells behind a name."""
    (line,) = (line for line in table.splitlines() if line.strip().startswith(f"{name}  "))
    return line.removeprefix(line[: line.index(name)] + name).split()


def test_phases_and_operations_have_their_calls_and_their_arithmetic(tmp_path: Path) -> None:
    writer = SampleWriter(tmp_path, SamplePolicy(0, 0), all_training=None, all_validation=None)
    step = StepRecord(1, writer)
    a, b = torch.rand(300, 500, requires_grad=True), torch.rand(500, 70)
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiler:
        with step.time("gen"):
            a @ b
        with step.time("update_actor"):
            (a @ b).sum().backward()  # one product forward; backward the gradient of `a` alone
        with step.time("gen"):
            a.detach() @ b
    phases, operations = tables(profiler, torch.device("cpu"))
    assert _row(phases, "phase gen")[-2] == "2"  # calls
    assert _row(phases, "phase update_actor")[-2] == "1"
    assert "aten::mm" not in phases
    assert _row(operations, "aten::mm")[-2:] == ["4", "84.000"]  # 4 products of 2 * 300 * 500 * 70 operations


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
        assert f"phase {phase}  " in shown
    assert "aten::mm  " in shown
    assert f"trace: {bench.folder / 'profiled' / 'profile.json'}" in shown
