"""Kills at random moments and at named points change nothing of what a run leaves: `benchmarks/chaos.py`, in short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).parents[2] / "benchmarks" / "chaos.py"
POINTS = "|".join(
    (
        r"^os\.rename .unfinished_global_step_N$",
        r"^os\.rename .unfinished_latest",
        r"^os\.rename global_step_N$",
        r"^written .*optimizer",
        r"^sync metrics",
        r"^phase (gen|update_actor|testing|save_checkpoint)$",
        r"^reply of a grader$",
    )
)


def test_killed_and_failing_runs_end_with_the_weights_and_metrics_of_the_undisturbed_one(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    outcome = subprocess.run(
        [
            sys.executable,
            str(FILE),
            "--random",
            "4",
            "--each",
            "1",
            "--fail",
            "1",
            "--only",
            POINTS,
            "--json",
            str(table),
        ],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    points = json.loads(table.read_text())["points"]
    assert len(points) == 15
    assert all(point["kills"] + point["missed"] >= 1 and not point["wrong"] for point in points.values())
    assert sum(point["kills"] for point in points.values()) >= 12
