"""The commands for runs that are there: `gmpo runs | export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from gmpo.cli_parts import late, path_of, say


def export(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", parser=path_of, help="A run folder, a checkpoint in it, a model, an adapter."),
    ],
    out: Annotated[Path, typer.Option("--out", parser=path_of, metavar="FOLDER", help="Where the model goes; new.")],
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="Of the weights.")] = "fp32",
    step: Annotated[
        int | None, typer.Option(min=1, help="The checkpoint of a run folder: the one after this step.")
    ] = None,
) -> None:
    """Write a whole Hugging Face model: an adapter (LoRA) added to its base, or a checkpoint without an export.

    Example:

        gmpo export checkpoints/gmpo/my-run --out models/my-model --dtype bf16

    Of a run folder it takes the final model, else the newest checkpoint, which is compared with its hashes first.
    Nothing is overwritten.
    """
    console = Console()
    where = late("gmpo.build.export", "export")(folder, out, dtype=dtype, step=step)
    say(console, f"model: {where}")


def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", parser=path_of, help="A run folder, or one above.")],
    as_lines: Annotated[bool, typer.Option("--json", help="One JSON object a run, a line each.")] = False,
) -> None:
    """List the runs in a folder: status, steps, sizes, last metrics, and what is wrong with them.

    Example:

        gmpo runs checkpoints

    Nothing is changed, also of a run that is going on.
    """
    found = late("gmpo.records.overview", "runs_in")(folder)
    if as_lines:
        to_json = late("gmpo.records.overview", "as_json")
        for run in found:
            print(json.dumps(to_json(run), ensure_ascii=False))
        return
    console = Console()
    listed = [_run_line(run) for run in found]
    for line in listed or [f"{folder} holds no run (no run.json in it or in the folders below)"]:
        say(console, line)


def _run_line(run: Any) -> str:
    """A run for people, over a few lines."""
    saved = f"checkpoints {', '.join(map(str, run.checkpoints))}" if run.checkpoints else "no checkpoint"
    size = f"{run.bytes / 2**30:.1f} GiB" if run.bytes >= 2**30 else f"{run.bytes / 2**20:.1f} MiB"
    lines = [f"{run.folder}: {run.program}, {run.status}, {run.steps} of {run.total_steps} steps, {saved}, {size}"]
    if run.metrics:
        lines.append("  " + ", ".join(f"{name} {value:.4g}" for name, value in run.metrics.items()))
    return "\n".join([*lines, *(f"  ! {one}" for one in run.health)])
