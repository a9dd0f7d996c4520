"""Progress on the console: a live line on a terminal, one line a step elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from datetime import timedelta

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from gmpo.metrics.conclusion import pass_rate
from gmpo.records.activity import Activity
from gmpo.records.rollout import Group

SHOWN = {
    "train/loss": "loss",
    "critic/score/mean": "reward",
    "val/pass@1": "pass@1",
    "actor/entropy": "entropy",
    "response_length/mean": "length",
    "perf/throughput": "tok/s",
    "actor/pg_loss": "loss",
}
"""Metric -> its short name on the console."""

LINE = (
    "train/loss",
    "val/loss",
    "val/pass@1",
    "critic/score/mean",
    "rollout/all_wrong_groups",
    "rollout/all_right_groups",
    "response_length/mean",
    "actor/entropy",
    "actor/grad_norm",
    "actor/pg_clipfrac",
    "perf/throughput",
    "timing_s/step",
)
"""What a plain line shows, under full names so that a log file can be searched for them."""

LINES = 100
"""Plain lines in a run, about, beside those with validation metrics and those of a long silence."""

SILENCE_S, LONGEST_SILENCE_S = 30.0, 300.0
"""Seconds without a plain line after which one says what the run is doing; twice as many each time, up to a limit."""


class ConsoleSink:
    """Progress of a run of `total_steps` steps in epochs of `steps_per_epoch`: a bar that is redrawn on a terminal,
    plain lines in a file or a pipe."""

    def __init__(
        self, console: Console, *, label: str, total_steps: int, steps_per_epoch: int, activity: Activity
    ) -> None:
        self.console = console
        self.activity = activity
        self.step = 0
        self.printed = threading.Event()
        self.closed = False
        self.watch = threading.Thread(target=self._watch, name="gmpo-console", daemon=True)
        self.total_steps = total_steps
        self.steps_per_epoch = max(1, steps_per_epoch)
        self.live = console.is_terminal
        self.every = max(1, total_steps // LINES)
        self.latest: dict[str, float] = {}
        self.first, self.began = 0, time.monotonic()
        self.progress = Progress(
            TextColumn(f"[bold]{label}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[shown]}"),
            TextColumn("{task.fields[activity]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self.live,
            transient=False,
        )
        self.task = self.progress.add_task(label, total=total_steps, shown="", activity=activity)

    def start(self, step: int) -> None:
        self.first, self.began, self.step = step, time.monotonic(), step
        self.progress.update(self.task, completed=step)
        self.progress.start()
        if not self.live and not self.watch.is_alive():
            self.watch.start()

    def _watch(self) -> None:
        """Break long silences, until the sink is closed."""
        silence = SILENCE_S
        while not self.closed:
            if self.printed.wait(silence):
                self.printed.clear()
                silence = SILENCE_S
            else:
                self.say_activity()
                silence = min(2 * silence, LONGEST_SILENCE_S)

    def say_activity(self) -> None:
        """A plain line with what the run is doing, if it is doing anything."""
        if doing := str(self.activity):
            of = f"/{self.total_steps}" if self.total_steps else ""
            line = f"after step {self.step}{of} - {doing}"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.step = step
        self.latest.update({name: metrics[name] for name in SHOWN if name in metrics})
        if self.live:
            self.progress.update(self.task, completed=step, shown=self._epoch(step) + " " + _short(self.latest))
        elif (
            step % self.every == 0 or step in (1, self.total_steps) or any(name.startswith("val/") for name in metrics)
        ):
            shown = " - ".join(f"{name}:{_shown(name, metrics)}" for name in LINE if name in metrics)
            line = f"{self._where(step)} - {shown}"
            self.console.print(line, highlight=False, soft_wrap=True)
            self.printed.set()

    def _where(self, step: int) -> str:
        """Of a validation on its own, which makes no step, only whose it is."""
        if self.total_steps == 0:
            return f"validation after step {step}"
        return f"step:{step}/{self.total_steps} - {self._epoch(step)}{self._left(step)}"

    def _left(self, step: int) -> str:
        """The time that the steps to come will take at the pace so far."""
        done, rest = step - self.first, self.total_steps - step
        if done <= 0 or rest <= 0:
            return ""
        return f" - left {timedelta(seconds=round((time.monotonic() - self.began) / done * rest))}"

    def _epoch(self, step: int) -> str:
        if self.total_steps == 0:
            return ""
        epochs = -(-self.total_steps // self.steps_per_epoch)
        return f"epoch {max(1, -(-step // self.steps_per_epoch))} of {epochs}"

    def close(self) -> None:
        self.closed = True
        self.printed.set()
        self.progress.stop()


def sample_panel(group: Group, step: int) -> Panel:
    """A problem with its first answer and grade, for `trainer.log_val_generations`."""
    graded = group.graded[0]
    question = "\n".join(message["content"] for message in group.problem.prompt)
    return Panel(
        Text.assemble((question, "dim"), "\n", graded.text),
        title=f"validation after step {step}: {graded.grade.verdict}, reward {graded.reward:g}",
        subtitle=f"expected {group.problem.ground_truth}, found {graded.grade.pred}",
        title_align="left",
        subtitle_align="left",
    )


def _shown(name: str, metrics: Mapping[str, float]) -> str:
    return pass_rate(metrics) if name == "val/pass@1" else _number(metrics[name])


def _short(metrics: Mapping[str, float]) -> str:
    return " ".join(f"{SHOWN[name]} {_number(value)}" for name, value in metrics.items())


def _number(value: float) -> str:
    """Three significant digits, thousands as k: `0.437`, `1.43k`, `0.00613`, `6.1e-05`."""
    if abs(value) >= 1_000:
        return f"{value / 1000:.3g}k" if abs(value) < 1e6 else f"{value:.3g}"
    return f"{value:.3g}"
