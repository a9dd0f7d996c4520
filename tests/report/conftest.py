"""One real run of a small model, made once, and copies of its folder in other states."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import gmpo
from gmpo.backends.tiny_model import make_model, word_tokenizer
from gmpo.data.stories import story_rows, vocabulary


def by_length(data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any]) -> dict[str, Any]:
    """Rewards what an untrained model does by chance, so that groups have variance."""
    return {"score": float(len(solution_str) % 2), "pred": solution_str[:1]}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of 3 steps, 4 problems with 4 answers each, 2 updates a step."""
    root = tmp_path_factory.mktemp("report")
    make_model(root / "model", word_tokenizer(vocabulary()), seed=0, hidden=32, layers=1, heads=2, intermediate=64)
    rows = story_rows(8, seed=0, split="train")
    settings = {
        "recipe": "gmpo",
        "actor_rollout_ref.model.path": str(root / "model"),
        "actor_rollout_ref.actor.ppo_mini_batch_size": 2,
        "actor_rollout_ref.actor.optim.lr": 1e-3,
        "actor_rollout_ref.rollout.n": 4,
        "data.train_batch_size": 4,
        "data.max_prompt_length": 40,
        "data.max_response_length": 8,
        "reward_model.grader_workers": 1,
        "trainer.logger": [],
        "trainer.test_freq": 1,
        "trainer.total_training_steps": 3,
        "trainer.default_local_dir": str(root / "run"),
    }
    gmpo.train(settings, rows=rows, val_rows=rows[:2], reward=by_length, console=Console(quiet=True))
    return root / "run"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"
