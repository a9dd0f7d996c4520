"""The published recipes run here in small, from warm-up to resume: a dense model and a mixture of experts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from gmpo.data.files import write_parquet
from gmpo.data.instructions import ANSWER_LINE, BOXED, HASH, INSTRUCTIONS
from gmpo.data.rows import math_row

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rehearse", ROOT / "examples" / "rehearse.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rehearse"] = module
    spec.loader.exec_module(module)
    return module


def rows(source: str, form: str, count: int) -> list[dict[str, Any]]:
    """Small sums under a data set's name; the answers are few, so that a guess may be right."""
    ask = INSTRUCTIONS[form].ask
    sums = [(i % 3, i // 3 % 2) for i in range(count)]
    return [math_row(source, ask(f"What is {a} + {b}?"), str(a + b), {"index": i}) for i, (a, b) in enumerate(sums)]


def rehearsed(example: ModuleType, tmp_path: Path, words: list[str], *sets: tuple[str, str], experts: int = 0) -> Any:
    train = [str(write_parquet(rows(s, f, 48), tmp_path / f"train{i}.parquet")) for i, (s, f) in enumerate(sets)]
    val = [str(write_parquet(rows(s, f, 6), tmp_path / f"val{i}.parquet")) for i, (s, f) in enumerate(sets)]
    return example.rehearse(
        tmp_path / "out",
        words,
        train=train,
        val=val,
        experts=experts,
        seed=1,
        warm_up=30,
        console=Console(quiet=True),
    )


def steps_of(runs: Any) -> list[dict[str, float]]:
    return [metrics for run in runs for metrics in run.history if "critic/score/mean" in metrics]


@pytest.mark.parametrize("recipe", ["gmpo_qwen2_5_7b_math", "gspo_qwen2_5_3b_math", "dr_grpo_qwen2_5_math_7b"])
def test_a_recipe_on_gsm8k_and_math_learns_from_groups_that_differ_and_resumes(
    example: ModuleType, tmp_path: Path, recipe: str
) -> None:
    sets = [("openai/gsm8k", HASH), ("lighteval/MATH", BOXED)]
    runs = rehearsed(example, tmp_path, [f"recipe={recipe}", "actor_rollout_ref.rollout.n=5"], *sets)
    steps = steps_of(runs)
    assert [m["training/global_step"] for m in steps] == [1, 2, 3]
    for metrics in steps:
        assert metrics["rollout/zero_variance_groups"] < 1
        assert metrics["actor/grad_norm"] > 0
    assert runs[-1].finished


def test_gmpo_with_dapo_on_a_mixture_of_experts_penalises_length_and_fills_its_batches(
    example: ModuleType, tmp_path: Path
) -> None:
    dynamic = ["+algorithm.filter_groups.enable=True", "+algorithm.filter_groups.metric=acc", "+data.gen_batch_size=24"]
    words = ["recipe=gmpo_dapo_qwen3_30b_math", *dynamic, "actor_rollout_ref.rollout.n=8"]
    steps = steps_of(rehearsed(example, tmp_path, words, ("math_dapo", ANSWER_LINE), experts=8))
    for metrics in steps:
        assert metrics["reward_parts/overlong_penalty/mean"] < 0
        assert metrics["critic/rewards/mean"] < metrics["critic/score/mean"]
        assert metrics["train/num_gen_batches"] >= 1
        assert metrics["train/sampled_groups"] >= 24
        assert metrics["rollout/zero_variance_groups"] == 0


def test_grpo_with_a_reference_reports_its_kl(example: ModuleType, tmp_path: Path) -> None:
    steps = steps_of(rehearsed(example, tmp_path, ["recipe=grpo_qwen3_8b"], ("openai/gsm8k", HASH)))
    assert all("actor/kl_loss" in metrics for metrics in steps)
    assert steps[-1]["actor/kl_loss"] > 0
