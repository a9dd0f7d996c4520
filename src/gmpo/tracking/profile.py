"""`gmpo train --profile`: one step under torch's profiler, and where its time and memory went.

The floor of a phase is the time its matrix products would take at the speed of a large square product on this device:
what is above it is everything else (memory traffic, small products, attention, Python).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

from gmpo.ports import Step, Tracker, Update
from gmpo.records.batch import Batch
from gmpo.records.rollout import Group

PRODUCTS = frozenset({"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"})
"""Operations whose arithmetic is counted. Fused attention is not: its share is small beside the layers' products."""
TRACE = "profile.json"
SETTLED = 3
"""The step after the start that is profiled: the first ones pay for what is done once."""
SHOWN_OPERATIONS = 12
_PREFIX = "phase "


@dataclass(frozen=True, slots=True)
class PhaseCost:
    """What one phase of the step cost."""

    phase: str
    seconds: float
    product_flop: float
    """Arithmetic of the matrix products, 2 x rows x inner x columns each."""
    peak_gib: float | None
    """Highest resident memory while it ran (of the device on CUDA), or None where the system does not tell."""


@dataclass(frozen=True, slots=True)
class OperationCost:
    """An operation, without what it calls."""

    name: str
    calls: int
    seconds: float


class Profiled:
    """A `Tracker` that passes everything on and profiles one step.

    Args:
        folder: where the trace goes, to be opened in chrome://tracing or ui.perfetto.dev.
        show: receives the tables.
        last_step: the last step of the run: a short run is profiled at its end.
    """

    def __init__(
        self, tracker: Tracker, folder: Path, *, device: torch.device, show: Callable[[Any], None], last_step: int
    ) -> None:
        self.tracker = tracker
        self.folder = folder
        self.device = device
        self.show = show
        self.last_step = last_step
        self._chosen = 0

    def start(self, step: int) -> None:
        self.tracker.start(step)
        self._chosen = min(step + SETTLED, self.last_step)

    def validation(self, step: int, metrics: Mapping[str, float]) -> None:
        self.tracker.validation(step, metrics)

    @contextmanager
    def step(self, number: int) -> Iterator[Step]:
        if number != self._chosen:
            with self.tracker.step(number) as rec:
                yield rec
            return
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
        with profile(activities=activities, with_flops=True) as profiler, self.tracker.step(number) as rec:
            phases = PhaseRecorder(rec, self.device)
            yield phases
        trace = self.folder / TRACE
        profiler.export_chrome_trace(str(trace))
        costs = phase_costs(profiler.events(), phases.peaks)
        self.show(report(number, costs, operation_costs(profiler.events()), product_speed(self.device), trace))


class PhaseRecorder:
    """A `Step` that marks its phases in the trace and measures the memory of each."""

    def __init__(self, step: Step, device: torch.device) -> None:
        self.step = step
        self.device = device
        self.peaks: dict[str, float | None] = {}

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        _reset_peak(self.device)
        with self.step.time(phase), record_function(_PREFIX + phase):
            yield
        peak = _peak_gib(self.device)
        before = self.peaks.get(phase)
        self.peaks[phase] = peak if before is None or peak is None else max(before, peak)

    def add(self, metrics: Mapping[str, float]) -> None:
        self.step.add(metrics)

    def samples(self, groups: Sequence[Group], batch: Batch, minis: Sequence[Batch], updates: Sequence[Update]) -> None:
        self.step.samples(groups, batch, minis, updates)


def phase_costs(events: Sequence[Any], peaks: Mapping[str, float | None]) -> list[PhaseCost]:
    """The phases in the order in which they began; one that was entered several times is summed."""
    ranges: dict[str, list[Any]] = {}
    for event in events:
        if event.name.startswith(_PREFIX):
            ranges.setdefault(event.name.removeprefix(_PREFIX), []).append(event.time_range)
    products = [(event.time_range.start, float(event.flops)) for event in events if event.name in PRODUCTS]
    costs = []
    for phase, spans in ranges.items():
        flop = sum(f for start, f in products if any(s.start <= start <= s.end for s in spans))
        seconds = sum(span.elapsed_us() for span in spans) / 1e6
        costs.append(PhaseCost(phase, seconds, flop, peaks.get(phase)))
    return costs


def operation_costs(events: Sequence[Any]) -> list[OperationCost]:
    """The operations that took most time of their own, most expensive first."""
    total: dict[str, list[float]] = {}
    for event in events:
        if not event.name.startswith(_PREFIX):
            entry = total.setdefault(event.name, [0.0, 0.0])
            entry[0] += 1
            entry[1] += max(event.self_cpu_time_total, getattr(event, "self_device_time_total", 0)) / 1e6
    costs = [OperationCost(name, int(calls), seconds) for name, (calls, seconds) in total.items()]
    return sorted(costs, key=lambda cost: cost.seconds, reverse=True)[:SHOWN_OPERATIONS]


def product_speed(device: torch.device, size: int = 1024, repeats: int = 5) -> float:
    """Floating-point operations per second of a square float32 product in the current precision: the best of a few."""
    a, b = torch.rand(size, size, device=device), torch.rand(size, size, device=device)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product = a @ b
        float(product[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def report(
    step: int, phases: Sequence[PhaseCost], operations: Sequence[OperationCost], speed: float, trace: Path
) -> RenderableType:
    """Two tables for people: phases against their floor, and the costliest operations."""
    by_phase = Table(title=f"step {step} under the profiler", title_justify="left", box=None)
    by_phase.add_column("phase")
    for column in ("seconds", "products GFLOP", "floor s", "x floor", "peak GiB"):
        by_phase.add_column(column, justify="right")
    for cost in phases:
        floor = cost.product_flop / speed
        by_phase.add_row(
            cost.phase,
            f"{cost.seconds:.3f}",
            f"{cost.product_flop / 1e9:.2f}",
            f"{floor:.3f}",
            f"{cost.seconds / floor:.1f}" if floor > 0 else "-",
            "?" if cost.peak_gib is None else f"{cost.peak_gib:.2f}",
        )
    by_operation = Table(title="costliest operations, without what they call", title_justify="left", box=None)
    by_operation.add_column("operation")
    by_operation.add_column("calls", justify="right")
    by_operation.add_column("seconds", justify="right")
    for operation in operations:
        by_operation.add_row(operation.name, f"{operation.calls:,}", f"{operation.seconds:.3f}")
    floor_line = (
        f"floor: the matrix products alone at {speed / 1e9:.0f} GFLOP/s, the speed of a 1024 x 1024 product here. The "
        f"profiler itself slows small operations down.\ntrace: {trace} (open it in ui.perfetto.dev)"
    )
    return Lines(by_phase, "", by_operation, "", floor_line)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: peak resident memory counts from now on
    except OSError:
        return


def _peak_gib(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) / 2**20 if found else None
