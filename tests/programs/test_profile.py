"""`gmpo train --profile`: its tables, and that the run is the same run."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM

from gmpo.tracking.memory_profile import held, memory_table, peak
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


def test_every_byte_at_the_peak_of_a_step_has_an_operation(tmp_path: Path) -> None:
    """A and its square, 4 MB each, and 2 MB that are gone when the third is there."""
    writer = SampleWriter(tmp_path, SamplePolicy(0, 0), all_training=None, all_validation=None)
    step = StepRecord(1, writer)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        with step.time("gen"):
            a = torch.ones(1000, 1000)
            torch.zeros(500, 1000)
        with step.time("update_actor"):
            b = a @ a
            del a
        with step.time("adv"):
            c = b[:10].clone()
    found = peak(profiler, torch.device("cpu"))
    assert found is not None
    assert found.phase == "update_actor"
    assert found.total == 8_000_000
    assert list(found.parts) == [("aten::ones", 4_000_000, 1), ("aten::mm", 4_000_000, 1)]
    table = memory_table({"weights": 3 * 2**20, "moments": 0}, 10 * 2**20, found)
    assert table.splitlines() == [
        "held when the step began: 10 MiB of the process",
        "         3.0  weights",
        "         7.0  libraries and what the allocator keeps",
        "at the peak, in phase update_actor: 7.6 MiB more, by operation",
        "         3.8  aten::ones (1)",
        "         3.8  aten::mm (1)",
    ]
    assert c.shape == (10, 1000)


def test_what_is_held_is_told_by_what_it_is() -> None:
    """A layer of 256 x 256 that is trained, one that is frozen, and a tensor: more than there was, in KiB."""
    where = torch.device("cpu")
    gc.collect()  # what earlier tests left is not to go in between
    before = held(where)
    trained = torch.nn.Linear(256, 256, bias=False)
    frozen = torch.nn.Linear(128, 256, bias=False).requires_grad_(False)
    optimizer = torch.optim.AdamW(trained.parameters())
    batch = torch.ones(64, 256)
    trained(batch).sum().backward()
    optimizer.step()
    more = {name: (size - before[name]) // 1024 for name, size in held(where).items()}
    assert more == {"weights": 256, "frozen weights": 128, "gradients": 256, "moments": 512, "other tensors": 64}
    assert frozen.weight.shape == (256, 128)


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
    assert re.search(r"aten::\w+  +\d", shown), "which ones lead depends on the machine"
    sizes = {name: float(size.replace(",", "")) for size, name in re.findall(r"^ +([\d,.]+)  ([a-z ]+)$", shown, re.M)}
    weights = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(bench.model).parameters()) * 4 / 2**20
    # It is the process's: another test's model may be there as well. The test before counts one exactly.
    assert sizes["weights"] >= weights - 0.06
    # The optimizer has made its moments, and gradients are kept from update to update.
    assert sizes["gradients"] >= weights - 0.06
    assert sizes["moments"] >= 2 * weights - 0.06
    assert "at the peak, in phase update_actor: " in shown
    assert f"trace: {bench.folder / 'profiled' / 'profile.json'}" in shown
