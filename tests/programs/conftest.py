"""A tiny real model, real files and real grading workers: what a run of the programs needs, in a tenth of a second."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import gmpo
from gmpo.api import Run
from gmpo.backends.tiny_model import make_model, word_tokenizer
from gmpo.cli import main
from gmpo.data.files import write_parquet
from gmpo.data.stories import story_rows, vocabulary

DIGITS = '''"""Reward: the share of digits among the words of an answer."""


def compute_score(data_source, solution_str, ground_truth, extra_info):
    words = solution_str.split()
    return sum(word.isdigit() for word in words) / max(1, len(words))
'''

A, R = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"


@pytest.fixture(scope="session")
def story_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a one-layer model of some 11,000 weights that reads stories. Nobody writes to it."""
    folder = tmp_path_factory.mktemp("programs") / "model"
    make_model(
        folder,
        word_tokenizer(vocabulary()),
        seed=0,
        hidden=32,
        layers=1,
        heads=2,
        kv_heads=1,
        head_dim=16,
        intermediate=64,
    )
    return folder


@dataclass
class Bench:
    """Everything that a test of a program starts from, and readers of what it leaves."""

    folder: Path
    """Scratch folder of the test."""
    model: Path
    rows: list[dict[str, Any]]
    """12 stories; with batches of 4 an epoch has 3 steps."""
    console: Console = field(default_factory=lambda: Console(quiet=True))

    def settings(self, changes: Mapping[str, Any] | None = None, *, run: str = "run") -> dict[str, Any]:
        """4 problems with 4 answers of at most 8 tokens a step, 2 updates each, 2 steps, the reward of `DIGITS`."""
        reward = self.folder / "digits.py"
        reward.write_text(DIGITS)
        return {
            "recipe": "gmpo",
            "actor_rollout_ref.model.path": str(self.model),
            "actor_rollout_ref.model.enable_gradient_checkpointing": False,
            "custom_reward_function.path": str(reward),
            "data.train_batch_size": 4,
            "data.max_prompt_length": 48,
            "data.max_response_length": 8,
            f"{R}.n": 4,
            f"{A}.ppo_mini_batch_size": 2,
            f"{A}.optim.lr": 1e-2,
            "reward_model.grader_workers": 1,
            "trainer.total_training_steps": 2,
            "trainer.device": "cpu",
            "trainer.default_local_dir": str(self.folder / run),
            "trainer.logger": [],
            **(changes or {}),
        }

    def train(self, changes: Mapping[str, Any] | None = None, *, run: str = "run", **arguments: Any) -> Run:
        """A run of `gmpo.train` on `rows`."""
        arguments = {"rows": self.rows, "console": self.console, **arguments}
        return gmpo.train(self.settings(changes, run=run), **arguments)

    def write_rows(self, rows: Sequence[Mapping[str, Any]] | None = None, name: str = "train.parquet") -> str:
        """The rows as a parquet file."""
        return str(write_parquet(self.rows if rows is None else rows, self.folder / name))

    def arguments(self, changes: Mapping[str, Any] | None = None, *, run: str = "run") -> list[str]:
        """The same settings as words of a command line, with the rows in a file."""
        settings = {"data.train_files": self.write_rows(), **self.settings(changes, run=run)}
        return [f"{key}={value}" for key, value in settings.items()]


@pytest.fixture(scope="session")
def new_bench(story_model: Path) -> Callable[[Path], Bench]:
    """Makes a `Bench` in a folder."""
    return lambda folder: Bench(folder, story_model, story_rows(12, seed=0, split="train"))


@pytest.fixture
def bench(tmp_path: Path, new_bench: Callable[[Path], Bench]) -> Bench:
    return new_bench(tmp_path)


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs `gmpo ARGUMENTS` in this process, as the shell does it. A traceback fails the test."""

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["gmpo", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        written = capsys.readouterr()
        assert "Traceback" not in written.out + written.err
        return Outcome(0 if exit_.value.code is None else int(exit_.value.code), written.out, written.err)

    return run


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="session")
def lines() -> Callable[[Path], list[dict[str, Any]]]:
    """Reads a file of JSON lines."""
    return _lines


@pytest.fixture(scope="session")
def weights() -> Callable[[Path], dict[str, torch.Tensor]]:
    """Reads the weights of a Hugging Face folder."""
    return lambda folder: load_file(folder / "model.safetensors")


@pytest.fixture(scope="session")
def same_run() -> Callable[[Path, Path, int], None]:
    """Asserts that two run folders hold the same model, metrics (times and memory apart) and samples, bit for bit."""

    def timeless(folder: Path) -> list[dict[str, Any]]:
        records = [{"step": line["step"], **line["data"]} for line in _lines(folder / "metrics.jsonl")]
        return [{k: v for k, v in r.items() if not k.startswith(("timing_s/", "perf/"))} for r in records]

    def check(one: Path, other: Path, steps: int) -> None:
        assert timeless(one) == timeless(other)
        assert [line["step"] for line in _lines(one / "metrics.jsonl")] == list(range(1, steps + 1))
        for step in range(1, steps + 1):
            assert _lines(one / "samples" / f"{step}.jsonl") == _lines(other / "samples" / f"{step}.jsonl")
        files = [folder / "huggingface" / "model.safetensors" for folder in (one, other)]
        assert files[0].read_bytes() == files[1].read_bytes()

    return check
