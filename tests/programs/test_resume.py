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
from gmpo.errors import BackendError

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
    "reward_model.grader_timeout_s": 1200,
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

    def wait_until(self, what: Callable[[], bool], seconds: float = 600.0) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert self.started.poll() is None, f"the process has ended:\n{self.output}"
            assert time.monotonic() < end, f"nothing happened within {seconds} s:\n{self.output}"
            time.sleep(0.01)

    def has_recorded(self, step: int) -> bool:
        file = self.folder / "metrics.jsonl"
        return file.is_file() and len(file.read_text().splitlines()) >= step

    def has_saved(self, step: int) -> bool:
        file = self.folder / "latest_checkpointed_iteration.txt"
        return file.is_file() and file.read_text() == str(step)

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

    def end(self, seconds: float = 600.0) -> int:
        code = self.started.wait(seconds)
        deadline = time.monotonic() + 600
        while self.workers() and time.monotonic() < deadline:
            time.sleep(0.01)
        return code


@dataclass(frozen=True)
class Ends:
    """The processes, which start at the same time, and the run that nobody disturbed."""

    whole: Path
    interrupted: Process
    killed: Process
    stopped_at_once: Process
    given_up: Process


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory, new_bench: Callable[[Path], Any]) -> Iterator[Ends]:
    bench = new_bench(tmp_path_factory.mktemp("resume"))
    reward = bench.folder / "reward.py"
    reward.write_text(REWARD)

    def config(name: str, holds_after: int, changes: dict[str, Any]) -> tuple[Path, Path]:
        hold, file = bench.folder / f"{name}.hold", bench.folder / f"{name}.yaml"
        wait_from = holds_after * ANSWERS + 1
        own = {
            "data.train_files": [bench.write_rows()],
            "custom_reward_function.path": str(reward),
            "custom_reward_function.reward_kwargs": {"hold": str(hold), "wait_from": wait_from},
        }
        file.write_text(yaml.safe_dump(bench.settings({**SCHEDULED, **own, **changes}, run=name)))
        return file, hold

    def start(name: str, holds_after: int, changes: dict[str, Any]) -> Process:
        file, hold = config(name, holds_after, changes)
        hold.touch()
        folder = bench.folder / name
        started = subprocess.Popen(
            [sys.executable, "-m", "gmpo", "train", "--config", str(file)],
            stdout=folder.with_suffix(".out").open("wb"),
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return Process(folder, file, hold, started)

    processes = [
        start("interrupted", 1, {}),
        start("killed", 3, {"trainer.save_freq": 2}),
        start("stopped-at-once", 2, {"trainer.save_freq": 1}),
        start("given-up", 2, {"trainer.stop_within_s": 0.2}),
    ]
    try:
        whole, _ = config("whole", STEPS, {})
        gmpo.train(whole, console=bench.console)
        yield Ends(bench.folder / "whole", *processes)
    finally:
        for process in processes:
            process.started.kill()


def _go_on(process: Process) -> gmpo.Run:
    """The same run in this process, which knows nothing of the other but its files."""
    process.hold.unlink(missing_ok=True)
    return gmpo.train(process.config)


def test_after_ctrl_c_the_step_is_finished_saved_and_the_run_goes_on_bit_for_bit(
    ends: Ends, same_run: Callable[[Path, Path, int], None]
) -> None:
    process = ends.interrupted
    process.wait_until(lambda: process.has_recorded(1))
    assert len(process.workers()) == 1
    process.interrupt()
    process.wait_until(lambda: "Stopping after this step. Ctrl-C again stops at once." in process.output)
    process.hold.unlink()  # Until now the second step waited for its grades.
    assert process.end() == 130
    assert "stopped after 2 of 4 steps; the same command goes on from there" in process.output
    assert "Traceback" not in process.output
    assert process.workers() == []
    assert (process.folder / "latest_checkpointed_iteration.txt").read_text() == "2"

    run = _go_on(process)
    assert [m["training/global_step"] for m in run.history] == [3, 4]
    assert run.finished
    same_run(process.folder, ends.whole, STEPS)


def test_after_kill_9_the_run_goes_on_from_its_last_checkpoint_bit_for_bit(
    ends: Ends, same_run: Callable[[Path, Path, int], None]
) -> None:
    process = ends.killed
    process.wait_until(lambda: process.has_recorded(3) and process.has_saved(2))
    with pytest.raises(BackendError, match="another run writes there at this moment"):
        gmpo.train(process.config)
    process.started.kill()
    process.end()
    assert process.workers() == []

    run = _go_on(process)
    # The third step was recorded but not saved: it is done again and recorded once.
    assert [m["training/global_step"] for m in run.history] == [3, 4]
    same_run(process.folder, ends.whole, STEPS)


def test_a_second_ctrl_c_stops_at_once_and_the_newest_complete_checkpoint_remains(
    ends: Ends, same_run: Callable[[Path, Path, int], None]
) -> None:
    process = ends.stopped_at_once
    process.wait_until(lambda: process.has_recorded(2))
    process.interrupt()
    process.wait_until(lambda: "Stopping after this step" in process.output)
    process.interrupt()
    # The file `hold` is still there, and a grader waits for it: the run ends because nobody waits for the grades.
    assert process.end() == 130
    assert "stopped at once" in process.output
    assert "The newest complete checkpoint is " in process.output
    assert "Traceback" not in process.output
    assert process.workers() == []
    assert (process.folder / "latest_checkpointed_iteration.txt").read_text() == "2"
    assert not (process.folder / "huggingface").exists()

    assert [m["training/global_step"] for m in _go_on(process).history] == [3, 4]
    same_run(process.folder, ends.whole, STEPS)


def test_a_step_whose_grading_hangs_is_given_up_in_time_and_the_run_goes_on_bit_for_bit(
    ends: Ends, same_run: Callable[[Path, Path, int], None]
) -> None:
    process = ends.given_up
    process.wait_until(lambda: process.has_recorded(2))
    process.started.send_signal(signal.SIGTERM)
    # The file `hold` is still there: without the limit the third step would wait for ever.
    assert process.end() == 143
    assert "0.2 s have passed (trainer.stop_within_s): this step is given up while it samples" in process.output
    assert "stopped after 2 of 4 steps; the same command goes on from there" in process.output
    assert process.workers() == []
    assert (process.folder / "latest_checkpointed_iteration.txt").read_text() == "2"

    assert [m["training/global_step"] for m in _go_on(process).history] == [3, 4]
    same_run(process.folder, ends.whole, STEPS)


def test_the_whole_run_has_state_that_a_resumed_one_could_lose(ends: Ends, lines: Callable[[Path], Any]) -> None:
    """The theorems above are about something: rate, KL coefficient and moments all change from step to step."""
    steps = [line["data"] for line in lines(ends.whole / "metrics.jsonl")]
    rates = [s["actor/lr"] for s in steps]
    assert rates[0] == 0.0
    assert rates[1] == 1e-2
    assert rates[1] > rates[2] > rates[3] > 0
    coefficients = [s["actor/reward_kl_penalty_coeff"] for s in steps]
    assert coefficients[0] == 0.05
    assert len(set(coefficients)) == STEPS
    seen = [sample["problem"] for s in range(1, 4) for sample in lines(ends.whole / "samples" / f"{s}.jsonl")]
    assert list(dict.fromkeys(seen)) != sorted(set(seen), key=lambda name: int(name.split(":")[1]))
