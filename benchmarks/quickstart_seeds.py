"""The quickstart over several seeds: pass@1 before and after, seconds by phase, and the picture in the README.

    python benchmarks/quickstart_seeds.py --out runs/seeds --seeds 2 3 4 --json seeds.json --svg quickstart.svg

A seed whose folder holds a summary already is not run again. The picture needs matplotlib.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peers
from rich.console import Console
from rich.table import Table

from gmpo.quickstart import quickstart


def run(out: Path, seed: int) -> dict[str, Any]:
    """Summary of the quickstart with `seed`, made below `out` if it is not there."""
    folder = out / f"seed{seed}"
    file = folder / "summary.json"
    if not file.is_file():
        quickstart(folder, seed=seed, console=Console(quiet=True))
    summary: dict[str, Any] = json.loads(file.read_text())
    return summary


def table(summaries: Sequence[dict[str, Any]]) -> Table:
    shown = Table("seed", "before (95 %)", "after (95 %)", "rise", "warm-up s", "train s", "all s")
    for s in summaries:
        (a, b), (c, d) = s["pass@1_before_interval"], s["pass@1_after_interval"]
        seconds = s["seconds"]
        whole = sum(seconds[k] for k in ("prepare", "warm-up", "train"))
        shown.add_row(
            str(s["seed"]),
            f"{s['pass@1_before']:.3f} ({a:.3f}-{b:.3f})",
            f"{s['pass@1_after']:.3f} ({c:.3f}-{d:.3f})",
            f"{s['pass@1_after'] - s['pass@1_before']:+.3f}",
            f"{seconds['warm-up']:.0f}",
            f"{seconds['train']:.0f}",
            f"{whole:.0f}",
        )
    return shown


def draw(summaries: Sequence[dict[str, Any]], file: Path) -> None:
    """pass@1 on held-out problems against training steps, one line a seed, with 95 % intervals at both ends."""
    plt = importlib.import_module("matplotlib.pyplot")
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    for s in summaries:
        steps = [int(k) for k in s["pass@1_curve"]]
        (line,) = axes.plot(steps, list(s["pass@1_curve"].values()), marker="o", label=f"seed {s['seed']}")
        for step, key in ((steps[0], "before"), (steps[-1], "after")):
            low, high = s[f"pass@1_{key}_interval"]
            axes.vlines(step, low, high, color=line.get_color(), alpha=0.5)
    axes.set(xlabel="GMPO steps (32 problems x 8 answers, 4 updates each)", ylabel="pass@1, held-out", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    arguments = parser.parse_args()
    summaries = [run(arguments.out, seed) for seed in arguments.seeds]
    Console().print(table(summaries))
    if arguments.json:
        peers.record(arguments.json, summaries)
    if arguments.svg:
        draw(summaries, arguments.svg)


if __name__ == "__main__":
    main()
