"""The page on migrating names settings that exist, and says of verl's checkpoints what happens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import gmpo
from gmpo.backends.tiny_model import make_model, word_tokenizer
from gmpo.config import load
from gmpo.data.stories import story_rows, vocabulary

PAGE = Path(__file__).parents[2] / "docs" / "migrating.md"
VALUES = {"lora_rank": "8", "lora_alpha": "16", "target_modules": "all-linear", "logger": "[console]", "n": "4",
          "ppo_epochs": "2", "train_batch_size": "8", "ppo_mini_batch_size": "4", "max_response_length": "8",
          "top_p": "1.0", "use_kl_loss": "True", "norm_adv_by_std_in_grpo": "False"}  # fmt: skip


def test_every_setting_in_the_table_of_trl_is_honoured() -> None:
    section = PAGE.read_text().partition("## From TRL")[2]
    cells = [row.split("|")[2] for row in section.splitlines() if row.startswith("|")]
    keys = {
        key for cell in cells for key in re.findall(r"`((?:actor_rollout_ref|data|algorithm|trainer)\.[\w.]+)", cell)
    }
    assert len(keys) >= 14
    words = [f"{key}={VALUES.get(key.rpartition('.')[2], '0.5')}" for key in sorted(keys)]
    resolved = load(["recipe=gmpo", "actor_rollout_ref.model.path=MODEL", *words])
    assert not [note for note in resolved.inert if note.path in keys]


def files(folder: Path) -> dict[Path, bytes]:
    """But for the lock of a start."""
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name != ".lock"}


def test_a_checkpoint_of_verl_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    make_model(tmp_path / "model", word_tokenizer(vocabulary()), seed=0, hidden=32, layers=1, heads=2, intermediate=64)
    theirs = tmp_path / "verl" / "global_step_3" / "actor"
    theirs.mkdir(parents=True)
    (theirs / "model_world_size_2_rank_0.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    (tmp_path / "verl" / "latest_checkpointed_iteration.txt").write_text("3")
    before = files(tmp_path / "verl")
    common: dict[str, Any] = {
        "recipe": "gmpo",
        "actor_rollout_ref.model.path": str(tmp_path / "model"),
        "actor_rollout_ref.rollout.n": 2,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 2,
        "data.train_batch_size": 4,
        "trainer.device": "cpu",
        "trainer.default_local_dir": str(tmp_path / "run"),
    }
    for changes, error in (
        ({"trainer.default_local_dir": str(tmp_path / "verl")}, "holds no run"),
        ({"trainer.resume_mode": "resume_path", "trainer.resume_from_path": str(theirs.parent)}, "no checkpoint there"),
    ):
        with pytest.raises(gmpo.GmpoError, match=error):
            gmpo.train(common | changes, rows=story_rows(8, seed=0, split="train"), console=Console(quiet=True))
    assert files(tmp_path / "verl") == before
