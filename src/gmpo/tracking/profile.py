"""`gmpo train --profile`: one step under torch's profiler: torch's own tables, a trace, and where its memory is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.text import Text
from torch.profiler import ProfilerActivity, profile

from gmpo.ports import Step, Tracker
from gmpo.tracking.memory_profile import held, memory_table, peak, resident_now

TRACE = "profile.json"
SETTLED = 3
"""The step after the start that is profiled: the first ones pay for what is done once."""
SHOWN = 15
"""Rows of a table."""


class Profiled:
    """A `Tracker` that passes everything on and profiles one step.

    Args:
        folder: where the trace goes, to be opened in chrome://tracing or ui.perfetto.dev.
        show: receives the tables.
        last_step: the last step of the run: a short run is profiled at its end.
    """

    def __init__(
        self, tracker: Tracker, folder: Path, *, device: torch.device, show: Callable[[Text], None], last_step: int
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

    def sync(self) -> None:
        self.tracker.sync()

    def validation(self, step: int, metrics: Mapping[str, float]) -> None:
        self.tracker.validation(step, metrics)

    @contextmanager
    def step(self, number: int) -> Iterator[Step]:
        if number != self._chosen:
            with self.tracker.step(number) as rec:
                yield rec
            return
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
        before, resident = held(self.device), resident_now()
        settings: dict[str, Any] = {"activities": activities, "with_flops": True, "profile_memory": True}
        with profile(**settings) as profiler, self.tracker.step(number) as rec:
            yield rec
        trace = self.folder / TRACE
        profiler.export_chrome_trace(str(trace))
        phases, operations = tables(profiler, self.device)
        self.show(
            Text(
                f"step {number} under the profiler, which slows small operations down: its phases\n{phases}\n"
                f"operations by the time they take themselves\n{operations}\n"
                f"{memory_table(before, resident, peak(profiler, self.device))}\n"
                f"trace: {trace} (open it in ui.perfetto.dev)",
                no_wrap=True,
                overflow="ignore",
            )
        )


def tables(profiler: profile, device: torch.device) -> tuple[str, str]:
    """Torch's tables of the phases by total time, and of the operations by the time they take themselves."""
    averages = profiler.key_averages()
    phases = averages.table(sort_by="cpu_time_total", top_level_events_only=True, row_limit=SHOWN)
    # On CUDA an operation's time on the CPU is that of its launch.
    own_time = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return phases, averages.table(sort_by=own_time, row_limit=SHOWN)
