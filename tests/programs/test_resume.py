"""A run that ends early goes on as though it had not: bit for bit, in another process, however it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import gmpo

STEPS, ANSWERS = 4, 16
"""Steps of the whole run, answers graded in each."""

REWARD = '''"""The share of digits; from a given call on it waits while a file exists. One worker grades, in order."""
import os
import time

calls = 0


def compute_score(data_source, solution_str, ground_truth, extra_info, hold, wait_from):
    global calls
    calls += 1
    while calls >= wait_from and os.path.exists(hold):
        time.sleep(0.01)
    words = solution_str.split()
    return sum(word.isdigit() for word in words) / max(1, len(words))
'''

SCHEDULED = {
    "actor_rollout_ref.actor.shuffle": True,
    "actor_rollout_ref.actor.optim.lr_scheduler_type": "cosine",
    "actor_rollout_ref.actor.optim.lr_warmup_steps": 1,
    "algorithm.use_kl_in_reward": True,
    "algorithm.kl_ctrl.type": "adaptive",
    "algorithm.kl_ctrl.kl_coef": 0.05,
    "algorithm.kl_ctrl.target_kl": 0.001,
    "algorithm.kl_ctrl.horizon": 100,
    "trainer.total_training_steps": STEPS,
    "trainer.sample_groups": -1,
    "trainer.token_record_groups": 4,
    "reward_model.grader_timeout_s": 60,
}
"""All that has state over steps: schedule, order of problems and mini-batches, the KL coefficient, AdamW's moments."""


@dataclass
class Process:
    """`gmpo train` in a process of its own, which waits in the step after `holds_after` until the file `hold` goes."""

    folder: Path
    config: Path
    hold: Path
    started: subprocess.Popen[bytes]

    @property
    def output(self) -> str:
        return self.folder.with_suffix(".out").read_text()

    def wait_until(self, what: Callable[[], bool], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert self.started.poll() is None, f"the process has ended:\n{self.output}"
            assert time.monotonic() < end, f"nothing happened within {seconds} s:\n{self.output}"
            time.sleep(0.01)

    def has_recorded(self, step: int) -> bool:
        file = self.folder / "metrics.jsonl"
        return file.is_file() and len(file.read_text().splitlines()) >= step

    def workers(self) -> list[int]:
        """Process ids of its graders: their last argument is the id of the process that they grade for."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:  # it has ended meanwhile
                    continue
                if any(b"gmpo.rewards.worker" in w for w in words) and str(self.started.pid).encode() in words:
                    found.append(int(entry.name))
        return found

    def interrupt(self) -> None:
        self.started.send_signal(signal.SIGINT)

    def end(self, seconds: float = 60.0) -> int:
        code = self.started.wait(seconds)
        deadline = time.monotonic() + 5
        while self.workers() and time.monotonic() < deadline:
            time.sleep(0.01)
        return code


Start = Callable[..., Process]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, story_model: Path) -> Any:
    from gmpo.data.stories import story_rows

    return None
