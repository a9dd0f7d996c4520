"""`gmpo verl SCRIPT.sh`: real scripts under a real shell, and what arrives at the trainer."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from gmpo.verl_script import trainer_arguments

ARRIVES = "algorithm.adv_estimator=grpo \"data.train_files=['$HOME/a b.parquet']\" actor_rollout_ref.model.path=$MODEL"
LAUNCHES: Mapping[str, str] = {
    "module": "python3 -m verl.trainer.main_ppo",
    "unbuffered": "python -u -m verl.trainer.main_ppo",
    "full path": f"{sys.executable} -m verl.trainer.main_ppo",
    "variable": f"PYTHON={sys.executable}\n$PYTHON -m verl.trainer.main_ppo",
    "array": 'LAUNCH=(uv run --frozen --all-packages --extra vllm python3)\n"${LAUNCH[@]}" -m verl.trainer.main_ppo',
    "torchrun": "torchrun --nproc_per_node=8 -m verl.trainer.main_ppo",
    "ray": "ray job submit --address=http://127.0.0.1:8265 -- python3 -m verl.trainer.main_ppo",
    "file": "python3 verl/trainer/main_ppo.py",
    "dapo recipe": "python3 -m recipe.dapo.main_dapo",
    "background": "nohup python3 -m verl.trainer.main_ppo",
}


def run(folder: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    script = folder / "run it.sh"
    script.write_text(text)
    environment = {**os.environ, "HOME": "/home/someone", "MODEL": "my/model"}
    command = [sys.executable, "-m", "gmpo", "verl", str(script), *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("launch", LAUNCHES.values(), ids=LAUNCHES.keys())
def test_the_arguments_that_reach_verls_trainer_are_printed_as_a_command(tmp_path: Path, launch: str) -> None:
    """Variables are those of the script's shell, quoting is kept, and what is given beside the script comes last."""
    background = " > log.txt 2>&1 &\nwait" if launch.startswith("nohup") else ""
    done = run(
        tmp_path, f"set -xeuo pipefail\n{launch} {ARRIVES} $@{background}\n", "--print", "trainer.total_epochs=1"
    )
    assert done.returncode == 0
    assert shlex.split(done.stdout) == [
        *("gmpo", "train", "algorithm.adv_estimator=grpo", "data.train_files=['/home/someone/a b.parquet']"),
        *("actor_rollout_ref.model.path=my/model", "trainer.total_epochs=1"),
    ]


def test_what_is_not_run_is_named_and_leaves_no_trace(tmp_path: Path) -> None:
    """What the shell itself does (a variable from `python3 -c`) happens; other words are the script's arguments."""
    (tmp_path / "kept").write_text("precious")
    text = (
        "mkdir made\nrm -rf kept\npip install verl\nray start --head\npython3 examples/data_preprocess/gsm8k.py\n"
        "wget http://localhost/data.parquet\nEPOCHS=$(python3 -c 'print(3 * 5)')\n"
        "python3 -m verl.trainer.main_ppo trainer.total_epochs=$EPOCHS trainer.experiment_name=$1 2>&1 | tee log.txt\n"
    )
    done = run(tmp_path, text, "--print", "first")
    assert done.stdout == "gmpo train trainer.total_epochs=15 trainer.experiment_name=first\n"
    named = [line for line in done.stderr.splitlines() if line.startswith("not run: ")]
    assert [line.split("(")[0].removeprefix("not run: ").strip() for line in named] == [
        *("mkdir made", "rm -rf kept", "pip install verl", "ray start --head"),
        *("python examples/data_preprocess/gsm8k.py", "wget http://localhost/data.parquet", "tee log.txt"),
    ]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["kept", "run it.sh"]


def test_a_script_may_start_verl_twice_or_not_at_all(tmp_path: Path) -> None:
    twice = run(tmp_path, "for lr in 1e-6 2e-6; do python3 -m verl.trainer.main_ppo a.lr=$lr; done\n", "--print")
    assert twice.stdout == "gmpo train a.lr=1e-6\ngmpo train a.lr=2e-6\n"
    never = run(tmp_path, "torchrun -m verl.trainer.fsdp_sft_trainer x=1\nexit 3\n", "--print")
    assert never.returncode == 2
    assert "ended with exit status 3 (what it printed is above) without reaching verl.trainer.main_ppo" in never.stderr
    assert "verl.trainer.fsdp_sft_trainer x=1" in never.stderr
    assert "give one of them" in run(tmp_path, "", "--print", "--check").stderr


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("folder", None, "a folder, not a script; it holds a/one.sh, two.sh; name one."),
        ("missing.sh", None, "there is no such file; give the path of a shell script that starts verl's trainer."),
        ("binary.sh", b"\x7fELF\x02\x00\x00", "not a text, so no shell script"),
        ("empty.sh", b"", "holds no command"),
        ("comments.sh", b"#!/bin/bash\n\n  # python3 -m verl.trainer.main_ppo\n", "holds no command"),
        ("ppo.yaml", b"trainer: {seed: 1}\n", "settings, not a script; gmpo train --config "),
        ("main.py", b"print()\n", "a program in Python, not a shell script"),
        ("other.sh", b"x=1\n", "ended without reaching verl.trainer.main_ppo, so there is nothing to train. Give a"),
        ("broken.sh", b"if x; then\n", "ended with exit status 2 (what it printed is above) without reaching"),
    ],
)
@pytest.mark.parametrize("mode", ["--print", "--check", "train"])
def test_what_is_no_script_of_verls_is_refused_with_what_it_is(
    tmp_path: Path, command: Callable[..., Any], name: str, content: bytes | None, words: str, mode: str
) -> None:
    place = tmp_path / name
    if content is not None:
        place.write_bytes(content)
    elif name == "folder":
        (place / "a").mkdir(parents=True)
        for script in ("two.sh", "a/one.sh"):
            (place / script).touch()
    outcome = command("verl", str(place), *[mode] * (mode != "train"))
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"ConfigError: {place}: {words}"), outcome.err


def test_check_judges_the_script_and_keeps_the_exit_code(tmp_path: Path) -> None:
    """The report is on this terminal though the script sends its output to a file."""
    text = (
        "python3 -m verl.trainer.main_ppo actor_rollout_ref.model.path=m data.train_files=d.parquet $MORE > /dev/null\n"
    )
    fine = run(tmp_path, text, "--check", "trainer.total_epochs=7")
    assert fine.returncode == 0
    assert "trainer.total_epochs = 7" in fine.stdout
    refused = run(tmp_path, text, "--check", "trainer.total_epoch=7")
    assert refused.returncode == 2
    assert "Did you mean trainer.total_epochs" in refused.stderr


def test_the_script_trains_where_it_would_train(bench: Any) -> None:
    """Commands before and after the training run too; a failure ends a script of `set -e` with the training's code."""
    words = shlex.join(bench.arguments({"trainer.total_training_steps": 1}, run="out/run"))
    text = f"set -e\nmkdir -p out\npython3 -m verl.trainer.main_ppo {words} | tee out/log.txt\necho over > out/after\n"
    done = run(bench.folder, text)
    assert done.returncode == 0, done.stderr
    assert len((bench.folder / "out/run/metrics.jsonl").read_text().splitlines()) == 1
    assert "done after 1 step;" in (bench.folder / "out/log.txt").read_text()
    (bench.folder / "out/after").unlink()
    failed = run(bench.folder, text.replace("| tee out/log.txt", ""), "data.train_files=nowhere.parquet")
    assert failed.returncode == 1
    assert not (bench.folder / "out/after").exists()


def test_a_stop_goes_to_the_training_and_ends_the_script(bench: Any) -> None:
    """SIGTERM at `gmpo verl` alone: the training finishes its step, and the second training is not begun."""
    script = bench.folder / "run.sh"
    endless = {"trainer.total_training_steps": 10**6}
    words = (shlex.join(bench.arguments(endless, run=name)) for name in ("one", "two"))
    script.write_text("\n".join(f"python3 -m verl.trainer.main_ppo {line}" for line in words))
    process = subprocess.Popen(
        [sys.executable, "-m", "gmpo", "verl", str(script)],
        cwd=bench.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    metrics = bench.folder / "one/metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode in (130, 143)
    assert not (bench.folder / "two").exists()
    assert b"the training before it was interrupted" in errors


def test_a_command_in_one_word_is_looked_into() -> None:
    assert trainer_arguments(
        ["job", "submit", "--", "bash", "-c", "cd x; python3 -m verl.trainer.main_ppo a='b c'"]
    ) == ["a=b c"]
    assert trainer_arguments(["-m", "verl.trainer.main_eval", "a=1"]) is None
    assert trainer_arguments(["-m", "verl.trainer.main_ppo"]) == []
