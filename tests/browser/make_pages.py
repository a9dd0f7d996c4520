"""Real runs of every kind, and their reports, for the tests in a browser: about four minutes on two cores.

    python tests/browser/make_pages.py FOLDER

A quickstart; from its warm-up runs that collapse, are cut, are rewarded for length, are killed, and two seeds of two
methods. What is there already is not made again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

import gmpo
from gmpo.quickstart import quickstart, training_settings
from gmpo.report.build import read_report, write_report

REWARD = '''
def compute_score(data_source, solution_str, ground_truth, extra_info):
    """Meant to reward right answers, and rewards long ones."""
    said = solution_str.split("####")[-1].replace(" ", "")
    return {"score": min(1.0, len(solution_str.split()) / 44), "acc": said == str(ground_truth), "pred": said}
'''
RATE = "actor_rollout_ref.actor.optim.lr"
QUIET = Console(quiet=True)


def train(folder: Path, out: Path, **changes: object) -> None:
    """A run like the quickstart's, from its warm-up, with some settings changed."""
    if (out / "run.json").exists():
        return
    settings = {**training_settings(folder / "quickstart", 1), "trainer.logger": [], "trainer.test_freq": 10}
    gmpo.train({**settings, **changes, "trainer.default_local_dir": str(out)}, console=QUIET)


def killed(folder: Path, out: Path) -> None:
    """A run that is killed after some steps, as a machine that goes down would end it."""
    if (out / "run.json").exists():
        return
    config = folder / "quickstart" / "run" / "config.yaml"
    command = [sys.executable, "-m", "gmpo", "train", "--config", str(config), f"trainer.default_local_dir={out}"]
    process = subprocess.Popen([*command, "trainer.logger=[]"], stdout=subprocess.DEVNULL)
    while process.poll() is None and not (out / "samples" / "15.jsonl").exists():
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "quickstart" / "summary.json").exists():
        quickstart(folder / "quickstart", seed=1, console=QUIET)
    (folder / "by_length.py").write_text(REWARD)
    rewarded = {"custom_reward_function.path": str(folder / "by_length.py"), "trainer.total_training_steps": 60}
    train(folder, folder / "collapsed", **{RATE: 6e-3, "trainer.total_training_steps": 20})
    train(folder, folder / "cut", **{"data.max_response_length": 20, "trainer.total_training_steps": 20})
    train(folder, folder / "hacked", **rewarded)
    killed(folder, folder / "crashed")
    for seed in (1, 2):
        for name in ("gmpo", "grpo"):
            more = {"trainer.seed": seed, "trainer.total_training_steps": 20}
            recipe = {"recipe": name}
            train(folder, folder / f"{name}-{seed}", **{**more, **recipe})
    empty = folder / "empty"
    empty.mkdir(exist_ok=True)
    runs = {name: [folder / name] for name in ("collapsed", "cut", "hacked", "crashed", "empty")}
    runs["healthy"] = [folder / "quickstart" / "run"]
    runs["compared"] = [folder / f"{name}-{seed}" for name in ("grpo", "gmpo") for seed in (1, 2)]
    os.chdir(folder)  # so that pages name their runs as a user would, and not the place where they were made
    runs = {name: [place.relative_to(folder) for place in places] for name, places in runs.items()}
    for name, folders in runs.items():
        write_report(read_report(folders), folder / "pages" / f"{name}.html")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
