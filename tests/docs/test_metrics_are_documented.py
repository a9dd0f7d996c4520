"""`docs/metrics.md` lists exactly the metrics that are written: tiny runs of `train` and `sft` against its tables."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import gmpo
from gmpo.backends.tiny_model import make_model, word_tokenizer
from gmpo.data.stories import demonstration_rows, story_rows, vocabulary

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
PLACEHOLDERS = {
    "<source>": r"gmpo/stories",
    "<number>": r"(acc|reward)",
    "<N>": r"4",
    "<k>": r"[124]",
    "<rule>": r"seq_mean_k1",
    "<part>": r"(main|overlong_penalty)",
    "<alarm>": r"(collapse|length|entropy|truncated|mismatch|no_variance)",
    "<verdict>": r"(correct|wrong|unparsed|timeout|grader_error)",
}
ONLY_ON_CUDA = {"perf/max_memory_allocated_gb", "perf/max_memory_reserved_gb"}


def by_length(data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any]) -> dict[str, Any]:
    """Rewards what an untrained model does by chance, so that groups have variance."""
    return {"score": float(len(solution_str) % 2), "pred": solution_str[:1]}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every name that six small runs write; together they have every optional part switched on."""
    root = tmp_path_factory.mktemp("metrics")
    make_model(root / "model", word_tokenizer(vocabulary()), seed=0, hidden=32, layers=1, heads=2, intermediate=64)
    rows = story_rows(8, seed=0, split="train")
    settings: dict[str, Any] = {
        "recipe": "gmpo",
        "actor_rollout_ref.model.path": str(root / "model"),
        "data.train_batch_size": 4,
        "data.max_prompt_length": 40,
        "data.max_response_length": 8,
        "actor_rollout_ref.rollout.n": 4,
        "reward_model.grader_workers": 1,
        "trainer.logger": [],
        "trainer.total_training_steps": 1,
    }
    everything = {
        "actor_rollout_ref.actor.ppo_mini_batch_size": 2,
        "actor_rollout_ref.actor.use_kl_loss": True,
        "actor_rollout_ref.actor.entropy_coeff": 0.01,
        "actor_rollout_ref.rollout.val_kwargs.n": 4,
        "actor_rollout_ref.rollout.val_kwargs.temperature": 1.0,
        "algorithm.use_kl_in_reward": True,
        "algorithm.kl_ctrl.type": "adaptive",
        "trainer.test_freq": 1,
        "trainer.save_freq": 1,
    }
    ppo = {
        "algorithm.adv_estimator": "gae",
        "actor_rollout_ref.actor.ppo_mini_batch_size": 2,
        "actor_rollout_ref.actor.policy_loss.loss_mode": "vanilla",
        "critic.model.enable_gradient_checkpointing": False,
    }
    correction = "algorithm.rollout_correction"
    corrected = {
        "actor_rollout_ref.actor.ppo_mini_batch_size": 2,
        f"{correction}.rollout_is": "token",
        f"{correction}.rollout_rs": "seq_mean_k1",
        f"{correction}.rollout_rs_threshold": "0.5_2.0",
    }
    one_update = {
        "actor_rollout_ref.actor.ppo_mini_batch_size": 4,
        "actor_rollout_ref.actor.fsdp_config.model_dtype": "bf16",
    }
    buffer = "reward_model.reward_kwargs.overlong_buffer_cfg"
    penalised = {"reward_model.reward_manager": "dapo", f"{buffer}.enable": True, f"{buffer}.len": 4}
    dynamic = {**penalised, "actor_rollout_ref.actor.ppo_mini_batch_size": 2, "algorithm.filter_groups.enable": True}
    warm_up = {
        "model.path": str(root / "model"),
        "data.train_batch_size": 8,
        "data.val_files": str(root / "held_out.jsonl"),
        "trainer.logger": [],
        "trainer.total_training_steps": 1,
        "trainer.default_local_dir": str(root / "sft"),
    }
    demonstrations = demonstration_rows(8, seed=0)
    _write_jsonl(root / "held_out.jsonl", demonstrations)
    quiet = Console(quiet=True)
    runs = [gmpo.sft(warm_up, rows=demonstrations, console=quiet)]
    for name, more, val_rows in (
        ("all", everything, rows[:2]),
        ("one", one_update, None),
        ("ppo", ppo, None),
        ("corrected", corrected, None),
        ("dynamic", dynamic, None),
    ):
        own = {**settings, **more, "trainer.default_local_dir": str(root / name)}
        runs.append(gmpo.train(own, rows=rows, val_rows=val_rows, reward=by_length, console=quiet))
    return {name for run in runs for metrics in run.history for name in metrics}


def _write_jsonl(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _expanded(name: str) -> Iterator[str]:
    """`a/{x,y}` -> `a/x`, `a/y`."""
    parts = [part[1:-1].split(",") if part.startswith("{") else [part] for part in re.split(r"(\{[^}]*\})", name)]
    yield from ("".join(choice) for choice in itertools.product(*parts))


def _documented() -> list[str]:
    cells = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return [name for cell in cells for quoted in re.findall(r"`([^`]+)`", cell) for name in _expanded(quoted)]


def _pattern(name: str) -> re.Pattern[str]:
    text = re.escape(name)
    for placeholder, choices in PLACEHOLDERS.items():
        text = text.replace(re.escape(placeholder), choices)
    return re.compile(text)


def test_every_metric_that_is_written_is_documented(written: set[str]) -> None:
    patterns = [_pattern(name) for name in _documented()]
    assert len(written) > 100
    assert not sorted(name for name in written if not any(p.fullmatch(name) for p in patterns))


def test_every_metric_that_is_documented_is_written(written: set[str]) -> None:
    missing = [name for name in _documented() if not any(_pattern(name).fullmatch(w) for w in written)]
    assert set(missing) <= ONLY_ON_CUDA


def test_no_metric_is_documented_twice() -> None:
    names = _documented()
    assert sorted(names) == sorted(set(names))
