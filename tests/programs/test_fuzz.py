"""What is mutated at random is taken, or refused with an error of gmpo's own: `benchmarks/fuzz.py`, in short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"


def test_mutated_input_ends_in_no_traceback_and_no_wrong_success(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    outcome = subprocess.run(
        [sys.executable, str(FILE), "--cases", "300", "--seed", "1", "--json", str(table)],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    kinds = json.loads(table.read_text())["kinds"]
    assert sum(kind["refused"] + kind["taken"] for kind in kinds.values()) == 300
    assert all(kind["refused"] for kind in kinds.values())
