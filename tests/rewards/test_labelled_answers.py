"""The figures on labelled model outputs, when `GMPO_DATA` or `shared/data` beside the repository holds them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gmpo.rewards.scorers import scorer_for
from gmpo.rewards.verdict import Verdict

DATA = Path(os.environ.get("GMPO_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
OUTPUTS = DATA / "model_outputs_dev.parquet"


def labels_met(rows: list[dict[str, Any]], method: str) -> int:
    score = scorer_for("openai/gsm8k").score
    return sum(
        (score(row["prediction"], row["gold"], {}, method=method).verdict is Verdict.CORRECT) == row["expected"]
        for row in rows
    )


@pytest.mark.skipif(not OUTPUTS.exists(), reason="the labelled outputs are not here; set GMPO_DATA to their folder")
def test_the_gsm8k_rules_meet_these_labels_of_2630_solutions() -> None:
    rows = [r for r in pq.read_table(OUTPUTS).to_pylist() if r["source"].startswith("openai/grade-school-math")]
    assert len(rows) == 2630
    assert [labels_met(rows, m) for m in ("strict", "flexible", "flexible_no_commas")] == [1613, 2623, 2630]


def test_the_three_rules_differ_on_three_kinds_of_solution() -> None:
    rows = [
        {"prediction": "<<3*2200=6600>>6600.\nA: 6600", "gold": "6,600", "expected": True},
        {"prediction": "2 * 9 = 18\nA: 18", "gold": "18", "expected": True},
        {"prediction": "2 * 9 = 18\nA: 17", "gold": "18", "expected": False},
    ]
    assert [labels_met(rows, m) for m in ("strict", "flexible", "flexible_no_commas")] == [1, 2, 3]
