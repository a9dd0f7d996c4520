"""Precision and recall of a report's verdicts: runs of known kinds, by seeds of which none was used to set a threshold.

    python benchmarks/verdicts.py --quickstart runs/quickstart --out runs/verdicts

The quickstart's warm-up is trained in six ways. What was done to a run is the truth; its first verdict is the answer.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import gmpo
from gmpo.quickstart import training_settings
from gmpo.report.build import run_findings
from gmpo.report.reading import read_data

RATE = "actor_rollout_ref.actor.optim.lr"
STEPS = 30
LENGTH_IS_REWARDED = """
def compute_score(data_source, solution_str, ground_truth, extra_info):
    said = solution_str.split("####")[-1].replace(" ", "")
    return {"score": min(1.0, len(solution_str.split()) / 44), "acc": said == str(ground_truth), "pred": said}
"""
NOTHING_IS_REWARDED = """
def compute_score(data_source, solution_str, ground_truth, extra_info):
    return {"score": 0.0, "acc": False, "pred": solution_str[-8:]}
"""
KINDS: Mapping[str, dict[str, Any]] = {
    "learning": {},
    "flat": {RATE: 1e-9},
    "collapsed": {RATE: 6e-3},
    "cut": {"data.max_response_length": 20},
    "hacking": {"custom_reward_function.path": "length.py"},
    "nothing": {"custom_reward_function.path": "nothing.py"},
}
"""First verdict that is due -> what is changed."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    arguments.add_argument("--quickstart", type=Path, required=True, help="folder of a finished quickstart")
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13, 14])
    arguments.add_argument("--json", type=Path)
    given = arguments.parse_args()
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "length.py").write_text(LENGTH_IS_REWARDED)
    (out / "nothing.py").write_text(NOTHING_IS_REWARDED)
    rows = []
    for seed in given.seeds:
        for kind, changes in KINDS.items():
            folder = out / f"{kind}-{seed}"
            changed = {k: str(out / v) if isinstance(v, str) else v for k, v in changes.items()}
            settings = {
                **training_settings(given.quickstart.resolve(), seed),
                "trainer.total_training_steps": STEPS,
                "trainer.test_freq": 10,
                "trainer.logger": [],
                "trainer.default_local_dir": str(folder),
            }
            gmpo.train({**settings, **changed}, console=Console(quiet=True))
            found = [finding.kind for finding in run_findings(read_data(folder))]
            rows.append({"kind": kind, "seed": seed, "first": found[0], "all": found})
            print(kind, seed, found, flush=True)
    show(rows)
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


def show(rows: list[dict[str, Any]]) -> None:
    """Of each kind: runs, found as the first verdict (recall), and how many of those are right (precision)."""
    table = Table("kind", "runs", "recall", "precision", "first verdicts")
    said = Counter(row["first"] for row in rows)
    for kind in KINDS:
        mine = [row["first"] for row in rows if row["kind"] == kind]
        right = mine.count(kind)
        precision = f"{right / said[kind]:.2f}" if said[kind] else "-"
        table.add_row(kind, str(len(mine)), f"{right / len(mine):.2f}", precision, str(dict(Counter(mine))))
    Console().print(table)


if __name__ == "__main__":
    main()
