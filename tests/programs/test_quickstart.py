"""What the quickstart ends with: figures of the run that was made, commands that run, all of it in 80 columns."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gmpo.quickstart import how_to_go_on, notes, summarise, table
from gmpo.records.run_folder import read_metrics

SECONDS = {"prepare": 1.4, "warm-up": 62.4, "train": 42.2}


@pytest.fixture
def arguments(bench: Any) -> list[str]:
    rows = bench.write_rows(name="test.parquet")
    found: list[str] = bench.arguments({"data.val_files": rows, "trainer.test_freq": 1})
    return found


def _shown(*things: Any) -> str:
    out = io.StringIO()
    console = Console(file=out, width=80)
    for thing in things:
        console.print(thing)
    return out.getvalue()


def test_the_end_says_what_was_measured_and_its_commands_run(
    bench: Any, command: Callable[..., Any], arguments: list[str]
) -> None:
    assert command("train", *arguments).code == 0
    run = bench.folder / "run"
    summary = json.loads(json.dumps(summarise(run, 1, 11, SECONDS)))
    first, *_, last = [one.values for one in read_metrics(run)]
    assert summary["verdict"] == "no difference that can be told: the 95 % intervals overlap"
    assert list(summary["pass@1_curve"]) == ["0", "1", "2"]
    shown = _shown(table(summary))
    for values in (first, last):
        assert f"{values['val/pass@1']:.3f} ({values['val/pass@1_low']:.3f}-{values['val/pass@1_high']:.3f})" in shown
    assert f"{first['val/response_length/mean']:.1f}" in shown
    assert "106 s: data and model 1, warm-up 62, GMPO with its evaluations 42" in notes(summary)
    text = how_to_go_on(bench.folder, run / "huggingface", run, run / "report.html")
    commands = [shlex.split(part) for part in _commands(text)]
    assert [words[:3] for words in commands] == [["gmpo", "train", "--config"]] * 2
    evaluated, other = (command(*words[1:]) for words in commands)
    assert evaluated.code == other.code == 0
    assert "validated, nothing was trained; figures and answers: " in evaluated.out
    assert "done after 2 steps" in other.out
    assert "val/pass@1" in (bench.folder / "evaluation" / "val_only" / "1" / "metrics.jsonl").read_text()
    assert (bench.folder / "grpo" / "huggingface" / "model.safetensors").is_file()


def _commands(text: str) -> list[str]:
    lines = iter(text.splitlines())
    found = []
    for line in lines:
        if line.startswith("  gmpo "):
            words = line
            while words.endswith("\\"):
                words = words[:-1] + next(lines)
            found.append(words)
    return found


def test_the_end_fits_80_columns(bench: Any) -> None:
    bench.train({"trainer.test_freq": 1}, val_rows=bench.rows)
    summary = summarise(bench.folder / "run", 1, 11, SECONDS)
    summary |= {"problems": 512, "pass@1_curve": dict.fromkeys((0, 20, 40, 60, 80), 0.25)}
    out = Path("runs/quickstart")
    texts = [*notes(summary), how_to_go_on(out, out / "run/huggingface", out / "run", out / "run/report.html")]
    whole = _shown(table(summary)) + "\n".join(texts)
    assert "after 80 steps" in whole
    assert max(map(len, whole.splitlines())) <= 80
    assert "seconds" not in whole
