"""A rank that dies or hangs ends the run; it is named, and the checkpoint to go on from."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LONG = {
    "trainer.total_training_steps": 100_000,
    "trainer.total_epochs": 100_000,
    "trainer.save_freq": 1,
    "trainer.max_actor_ckpt_to_keep": 2,
    "trainer.n_gpus_per_node": 2,
    "actor_rollout_ref.nccl_timeout": 30,
}


def started(bench: Any) -> tuple[subprocess.Popen[str], Path]:
    """A run with two ranks that has made two steps; and its folder."""
    words = bench.arguments({**LONG, "trainer.logger": "[console]"})
    process = subprocess.Popen(
        [sys.executable, "-m", "gmpo", "train", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    folder = bench.folder / "run"
    wait_for(lambda: (folder / "global_step_2").is_dir() or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    return process, folder


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that are a rank, among all that the run started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes().decode()
            environment = (folder / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if name.startswith("ray::Rank") and f"GMPO_DRIVER={process.pid}\0" in environment + "\0":
            found.append(int(folder.name))
    return found


@pytest.mark.parametrize(("sent", "said"), [(signal.SIGKILL, "died"), (signal.SIGSTOP, "no sign of life for 30 s")])
def test_a_rank_that_is_lost_is_named_with_phase_step_and_checkpoint(
    bench: Any, sent: signal.Signals, said: str
) -> None:
    process, folder = started(bench)
    ranks = ranks_of(process)
    assert len(ranks) == 2
    os.kill(ranks[1], sent)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in err
    flat = " ".join(err.split())
    named = re.search(r"rank (\d) \(process (\d+) on \S+\) (died|has given \D+30 s) while (.+?) step (\d+)", flat)
    assert named, flat
    assert int(named[2]) == ranks[1]
    assert said in flat
    newest = re.search(r"The newest complete checkpoint is (\S+):", flat)
    assert newest, flat
    assert Path(newest[1]).parent == folder
    assert not ranks_of(process), "no process is left"


def test_a_signal_to_the_driver_ends_the_run_with_a_checkpoint(bench: Any) -> None:
    process, folder = started(bench)
    ranks = ranks_of(process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143
    step = int((folder / "latest_checkpointed_iteration.txt").read_text())
    assert step >= 2
    assert (folder / f"global_step_{step}" / "actor" / "model.safetensors.index.json").is_file()
    (leg,) = json.loads((folder / "run.json").read_text())["legs"]
    assert [(one["rank"], one["host"]) for one in leg["ranks"]] == [(i, socket.gethostname()) for i in range(2)]
    assert {one["pid"] for one in leg["ranks"]} == set(ranks)
    assert not list(folder.glob(".nodes-*"))
    wait_for(lambda: not ranks_of(process))
