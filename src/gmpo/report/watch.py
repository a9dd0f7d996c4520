"""A run in the terminal: the verdict, curves as sparklines, the band of log-ratios, newest answers, time left."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gmpo.records.run_folder import SAMPLES, VALIDATION
from gmpo.report.build import run_findings
from gmpo.report.ratio import bounds_of
from gmpo.report.reading import RunData, modified, read_answers, read_data
from gmpo.report.wording import sentences

BARS = "▁▂▃▄▅▆▇█"
EVERY_S = 2.0
"""Seconds between two looks at the files; a picture is made anew only when they changed."""
NEWEST = 3
COLOURS = {"good": "green", "note": "yellow", "bad": "red"}
CURVES: Sequence[tuple[str, str]] = (
    ("critic/score/mean", "reward"),
    ("val/pass@1", "pass@1"),
    ("train/loss", "loss"),
    ("val/loss", "held-out loss"),
    ("reward/completed_share", "right and ended"),
    ("rollout/zero_variance_groups", "groups alike"),
    ("actor/entropy", "entropy"),
    ("response_length/mean", "tokens an answer"),
    ("response_length/clip_ratio", "cut at the limit"),
    ("actor/grad_norm", "gradient norm"),
    ("perf/throughput", "tokens/s"),
)
"""Metric -> its name in the picture."""


def watch(folder: Path, *, console: Console, once: bool = False) -> None:
    """Show a run until it is over, or once where it is, where `once` asks for that, or where nobody looks (a pipe).

    Raises:
        DataError: there is no run folder.
    """
    data = read_data(folder)
    if once or data.status != "running" or not console.is_terminal:
        console.print(picture(data, console.width))
        return
    seen = modified(data.folder)
    with Live(picture(data, console.width), console=console, refresh_per_second=1, vertical_overflow="crop") as live:
        while data.status == "running":
            time.sleep(EVERY_S)
            now = modified(data.folder)
            # A run that was killed changes no file: whether its lock is free is looked up each time.
            data = read_data(folder)
            if now != seen or data.status != "running":
                seen = now
                live.update(picture(data, console.width), refresh=True)


def picture(data: RunData, width: int) -> RenderableType:
    """The whole state of a run, in `width` columns."""
    parts: list[RenderableType] = [_head(data)]
    for finding in run_findings(data):
        words, colour = sentences(finding)["en"], COLOURS[finding.level]
        text = Text.assemble((words["title"], f"bold {colour}"), "  ", words["evidence"])
        if words["advice"]:
            text.append(f"\n  try: {words['advice']}", style="dim")
        parts.append(text)
    for notice in dict.fromkeys(data.notices):
        parts.append(Text(f"note: {notice}", style="yellow"))
    parts += [_curves(data, width), *_ratio(data, width), *_newest(data, width)]
    return Group(*parts)


def sparkline(values: Sequence[float | None], width: int) -> str:
    """The values as bars from their least to their greatest; more than `width` are averaged in equal parts, and a blank
    stands where there is none.

    Example: `sparkline([0, 1, 2, 3], 4) == "▁▃▆█"`.
    """
    finite = [v if v is not None and math.isfinite(v) else None for v in values]
    if len(finite) > width:
        parts = [finite[k * len(finite) // width : (k + 1) * len(finite) // width] for k in range(width)]
        finite = [_mean([v for v in part if v is not None]) for part in parts]
    known = [v for v in finite if v is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    place = {v: round((v - low) / span * (len(BARS) - 1)) if span > 0 else 3 for v in known}
    return "".join(" " if v is None else BARS[place[v]] for v in finite)


def time_left(data: RunData) -> float | None:
    """Seconds that the steps to come will take at the pace of the newest ten, validations and checkpoints included."""
    steps = [m for m in data.history if "timing_s/step" in m][-10:]
    rest = data.total_steps - data.step
    if data.status != "running" or not steps or rest <= 0:
        return None
    aside = ("timing_s/step", "timing_s/testing", "timing_s/save_checkpoint")
    return sum(m.get(name, 0.0) for m in steps for name in aside) / len(steps) * rest


def band(low: float, q1: float, q99: float, high: float, bounds: tuple[float, float], width: int) -> str:
    """Quantiles of log-ratios on a line from below the lower bound to above the upper: `|` the bounds, `·` 0, `─` from
    0.1 to 99.9 %, `━` from 1 to 99 %; `<` and `>` where they go beyond the line."""
    edge = 1.25 * max(bounds)
    cells = [" "] * width

    def place(x: float) -> int:
        return round((min(max(x, -edge), edge) / edge + 1) / 2 * (width - 1))

    for sign, a, b in (("─", low, high), ("━", q1, q99)):
        cells[place(a) : place(b) + 1] = [sign] * (place(b) + 1 - place(a))
    for bound in (-bounds[0], bounds[1]):
        if math.isfinite(bound):
            cells[place(bound)] = "|"
    cells[place(0.0)] = "·"
    cells[0], cells[-1] = ("<" if low < -edge else cells[0]), (">" if high > edge else cells[-1])
    return "".join(cells)


def _head(data: RunData) -> Text:
    colour = {"finished": "green", "running": "cyan", "failed": "red"}.get(data.status, "yellow")
    text = Text.assemble((str(data.folder), "bold"), "  ", (data.status, f"bold {colour}"))
    text.append(f"  step {data.step} of {data.total_steps}")
    if (left := time_left(data)) is not None:
        text.append(f"  left {timedelta(seconds=round(left))}")
    return text


def _curves(data: RunData, width: int) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    table.add_column(justify="right", style="dim")
    room = max(10, min(80, width - 46))
    for name, label in CURVES:
        rows = [m for m in data.history if name in m]
        values = [m[name] for m in rows if math.isfinite(m[name])]
        if not values:
            continue
        change = values[-1] - values[0]
        table.add_row(label, Text(sparkline(values, room), style="cyan"), f"{values[-1]:.4g}", f"{change:+.3g}")
    return table


def _ratio(data: RunData, width: int) -> list[RenderableType]:
    bounds = bounds_of(data)
    rows = [m for m in data.history if "actor/log_ratio/q0.1" in m]
    if not rows or bounds is None or not all(map(math.isfinite, bounds)):
        return []
    last = rows[-1]
    low, q1, q99, high = (last[f"actor/log_ratio/{q}"] for q in ("q0.1", "q1", "q99", "q99.9"))
    line = band(low, q1, q99, high, bounds, max(21, min(81, width - 30)))
    cut = [last.get(f"actor/clip_share/{sign}", 0.0) for sign in ("positive", "negative")]
    said = f"0.1-99.9 %: {low:.2g} to {high:.2g}, bounds {-bounds[0]:.2g} and {bounds[1]:.2g}, "
    said += f"cut {cut[0]:.2%} (A > 0), {cut[1]:.2%} (A < 0)"
    return [Text.assemble("log-ratios  ", (line, "magenta")), Text(f"            {said}", style="dim")]


def _newest(data: RunData, width: int) -> list[RenderableType]:
    for kind in (SAMPLES, VALIDATION):
        step, rows = _last(data, kind)
        if rows:
            lines = [_line(row, width - 4) for row in rows[:NEWEST]]
            return [Panel(Group(*lines), title=f"{kind} of step {step}", title_align="left")]
    return []


def _last(data: RunData, kind: str) -> tuple[int, Sequence[Mapping[str, Any]]]:
    files = [int(p.stem) for p in (data.folder / kind).glob("*.jsonl") if p.stem.isdecimal()]
    if not files:
        return 0, ()
    return next(((step, rows) for step, rows in read_answers(data, kind, only=max(files))), (0, ()))


def _line(row: Mapping[str, Any], width: int) -> Text:
    colour = {"correct": "green", "wrong": "red"}.get(str(row.get("verdict")), "yellow")
    head = f"{row.get('verdict')} {row.get('reward', 0):g}  "
    text = " ".join(str(row["output"]).split())
    room = max(10, width - len(head))
    shown = text if cell_len(text) <= room else set_cell_size(text, room - 1) + "…"
    return Text.assemble((head, colour), shown)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
