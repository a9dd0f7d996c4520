"""`gmpo runs`: what it says of runs in every state, and that it changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gmpo.records.run_folder import read_run, write_run


def _content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_every_state_is_told_and_nothing_is_changed(bench: Any, command: Callable[..., Any]) -> None:
    run = bench.train({"trainer.save_freq": 1, "trainer.default_local_dir": str(bench.folder / "all" / "one" / "done")})
    root = bench.folder / "all"
    for name in ("killed", "broken"):
        shutil.copytree(run.folder, root / name)
    record = read_run(root / "killed")
    assert record is not None
    alarm = {"step": 2, "name": "entropy", "text": "the policy says one thing"}
    leg = replace(record.legs[0], status="running")
    write_run(root / "killed", replace(record, status="running", legs=(leg,), alarms=(alarm,)))
    (root / "broken" / "run.json").write_text("{")
    before = _content(root)

    outcome = command("runs", str(root), "--json")
    assert outcome.code == 0
    found = {Path(line["folder"]).name: line for line in map(json.loads, outcome.out.splitlines())}
    assert {name: line["status"] for name, line in found.items()} == {
        "done": "finished",
        "killed": "killed",
        "broken": "unreadable",
    }
    done = found["done"]
    assert (done["program"], done["steps"], done["total_steps"], done["checkpoints"]) == ("train", 2, 2, [1, 2])
    assert done["bytes"] == sum(p.stat().st_size for p in run.folder.rglob("*") if p.is_file())
    assert done["metrics"]["critic/score/mean"] == run.history[-1]["critic/score/mean"]
    assert not done["health"] or all("alarm" in one for one in done["health"])
    assert found["killed"]["health"][:2] == [
        "it was killed; the same command goes on after step 2",
        "alarm in step 2 (entropy)",
    ]

    shown = command("runs", str(root))
    assert "done: train, finished, 2 of 2 steps, checkpoints 1, 2, " in shown.out.replace("\n", "")
    assert _content(root) == before

    empty = bench.folder / "empty"
    empty.mkdir()
    assert "holds no run" in command("runs", str(empty)).out
    assert command("runs", str(bench.folder / "nowhere")).code == 1
