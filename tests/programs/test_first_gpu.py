"""What a new machine runs first, rehearsed on the CPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

FILE = Path(__file__).parents[2] / "benchmarks" / "first_gpu.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("first_gpu", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["first_gpu"] = module
    spec.loader.exec_module(module)
    return module


def started(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(FILE), *words], capture_output=True, text=True, timeout=600)


def test_a_machine_without_a_device_is_told_so_and_nothing_is_written(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    done = started("--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "torch sees no CUDA device here; --device cpu rehearses" in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_rehearsal_on_the_cpu_passes_and_says_what_it_left_out(tmp_path: Path) -> None:
    only = ("smoke", "parity", "learn", "tests", "bench")
    done = started("--device", "cpu", "--out", str(tmp_path), "--only", *only)
    text = (tmp_path / "report.md").read_text()
    assert done.returncode == 0, text
    assert "What was run passed. Left out: tests." in text
    for name in only:
        assert f"| {name} | {'left out' if name == 'tests' else 'passed'} |" in text
    assert "- torch " + torch.__version__.partition("+")[0] in text
    assert (tmp_path / "cuda.json").is_file()


def test_a_part_that_fails_or_hangs_is_named_and_the_others_run(script: ModuleType) -> None:
    def part(name: str, code: str, limit: float = 60.0) -> object:
        return script.Part(name, [sys.executable, "-c", code], limit)

    outcomes = [
        script.run(part("first", "print('before'); raise SystemExit(3)")),
        script.run(part("second", "import os; os.abort()")),
        script.run(part("third", "import time; print('begun', flush=True); time.sleep(600)", 2.0)),
        script.run(part("fourth", "print('fine')")),
    ]
    assert [o.result for o in outcomes] == ["FAILED", "FAILED", "FAILED", "passed"]
    text = script.report(outcomes, ["- about"])
    assert "Failed: first, second, third." in text
    assert "before\nexit status 3" in text
    assert "begun\nnot done after 2 s" in text


def test_what_differs_and_what_does_not_learn_is_a_failure(script: ModuleType) -> None:
    one = dict.fromkeys(script.COMPARED, 2.0)
    script.compare(one, {**one, "actor/pg_loss": 2.0019}, ("a", "b"), 1e-3)
    for wrong in (2.0021, float("nan")):
        with pytest.raises(script.PartFailed, match=r"differ by more than 0\.001 in actor/pg_loss"):
            script.compare(one, {**one, "actor/pg_loss": wrong}, ("a", "b"), 1e-3)
    flat = [{"critic/score/mean": 0.3}] * 20
    with pytest.raises(script.PartFailed, match=r"from 0\.30 to 0\.30"):
        script.rises(flat)
