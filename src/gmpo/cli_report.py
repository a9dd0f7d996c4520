"""The commands that look at runs: `gmpo report | watch`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gmpo.cli_parts import late, path_of, say


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", parser=path_of, help="Run folders; several are compared.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", parser=path_of, metavar="FILE", help="The HTML file; RUN/report.html when it is not given."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print verdicts and figures as JSON.")] = False,
) -> None:
    """Make one HTML file of a run, or of several: verdict, curves, ratios, samples. It opens from disk.

    Example:

        gmpo report runs/quickstart/run

    Also while the run goes on, and after a crash. With several runs, and no --out, the file is report.html here. With
    --json and no --out no file is made. The panels are explained in docs/report.md.
    """
    read, write = late("gmpo.report.build", "read_report"), late("gmpo.report.build", "write_report")
    made = read(runs, answers=out is not None or not as_json)
    if as_json:
        print(json.dumps(late("gmpo.report.build", "summary")(made), ensure_ascii=False, indent=1))
    if out is not None or not as_json:
        file = out or (made.runs[0].folder / "report.html" if len(runs) == 1 else Path("report.html"))
        size = write(made, file)
        say(Console(stderr=as_json), f"{file} ({size / 1e6:.1f} MB)")


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", parser=path_of, help="A run folder.")],
    once: Annotated[bool, typer.Option("--once", help="Show the present state and end.")] = False,
) -> None:
    """Show a run in the terminal while it goes on: verdict, sparklines, ratio band, newest samples, time left.

    Example:

        gmpo watch runs/quickstart/run

    It reads the run folder and nothing else, so it may run anywhere that sees the folder; Ctrl-C ends it, and not the
    run. A run that is over is shown once.
    """
    late("gmpo.report.watch", "watch")(run, console=Console(), once=once)
