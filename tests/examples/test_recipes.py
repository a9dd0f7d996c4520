"""Recipes and scripts: each loads, a script says what its recipe says, and the published commands mean the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gmpo.config import load
from gmpo.config.layers import read_yaml, recipes
from gmpo.config.resolved import Resolved
from gmpo.config.tree import get
from gmpo.errors import ConfigError

ROOT = Path(__file__).parents[2]
GMPO = (sys.executable, "-m", "gmpo")
SCRIPTS = sorted((ROOT / "examples").glob("*_trainer/*.sh"))
RECIPE_OF = {
    "run_qwen3_8b_fsdp.sh": "gmpo_qwen3_8b",
    "run_qwen2_5-7b_math.sh": "gmpo_qwen2_5_7b_math",
    "test_dapo_7b_math.sh": "gmpo_dapo_qwen2_5_7b_math",
    "test_dapo_qwen3_30b_math.sh": "gmpo_dapo_qwen3_30b_math",
    "run_qwen3-8b.sh": "grpo_qwen3_8b",
    "run_dr_grpo_qwen2_5-7b_math.sh": "dr_grpo_qwen2_5_math_7b",
    "run_qwen2_5-3b_math.sh": "gspo_qwen2_5_3b_math",
}
PUBLISHED = ROOT.parent / "shared" / "published_overrides.json"
PUBLISHED_AS = {
    "gmpo_qwen2_5_7b_math": "gmpo_qwen2_5_7b_math",
    "gmpo_dapo_qwen2_5_7b_math": "gmpo_dapo_qwen2_5_7b_math",
    "gmpo_dapo_qwen3_30b_math": "gmpo_dapo_qwen3_30b_math",
    "grpo_qwen3_8b_gsm8k": "grpo_qwen3_8b",
}


NAMED = sorted(set(RECIPE_OF.values()) | {"gmpo_dapo_qwen3_30b_math_low_clip"})


def words_of(script: Path, tmp_path: Path, *more: str) -> list[str]:
    """The words that a script gives to `gmpo`: it runs with a stand-in that writes them down."""
    stand_in = tmp_path / "gmpo"
    stand_in.write_text('#!/usr/bin/env bash\nprintf "%s\\0" "$@" > "$WORDS"\n')
    stand_in.chmod(0o755)
    words = tmp_path / "words"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": "/home/someone", "WORDS": str(words)}
    subprocess.run([str(script), *more], check=True, env=environment, cwd=tmp_path)
    return words.read_text().split("\0")[:-1]


def settings_of(resolved: Resolved[Any]) -> dict[str, Any]:
    """Every setting with an effect, but names, places and the logger."""
    apart = ("data.train_files", "data.val_files", "trainer.project_name", "trainer.experiment_name")
    own = (
        "trainer.default_local_dir",
        "trainer.logger",
        "actor_rollout_ref.model.path",
        "actor_rollout_ref.ref.model.path",
    )
    paths = resolved.honoured | {item.path for item in resolved.derived} | {n.path for n in resolved.unavailable}
    return {path: get(resolved.config, path) for path in sorted(paths) if path not in (*apart, *own)}


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_recipe_loads_and_says_what_it_is(name: str) -> None:
    assert load([f"recipe={name}"]).config
    assert recipes()[name].read_text().startswith("# ")


def _leaves(tree: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _outcome(settings: dict[str, Any]) -> object:
    try:
        resolved = load(tree=settings)
    except ConfigError as error:
        return str(error)
    return resolved.config, resolved.warnings


@pytest.mark.parametrize("name", NAMED)
def test_a_recipe_holds_nothing_that_would_be_so_without_it(name: str) -> None:
    settings = dict(_leaves(read_yaml(recipes()[name])))
    whole = _outcome(settings)
    superfluous = [path for path in settings if _outcome({k: v for k, v in settings.items() if k != path}) == whole]
    assert not superfluous


def test_every_script_has_its_recipe() -> None:
    assert {script.name for script in SCRIPTS} == set(RECIPE_OF)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.name)
def test_a_script_and_its_recipe_are_the_same_configuration(script: Path, tmp_path: Path) -> None:
    program, *words = words_of(script, tmp_path)
    assert program == "train"
    ours = load(words)
    recipe = load([f"recipe={RECIPE_OF[script.name]}"])
    paths = {path for path in ours.given | recipe.given if not path.startswith("data.") or "files" not in path}
    for path in sorted(paths):
        assert get(ours.config, path) == get(recipe.config, path), path
    for key in ("train_files", "val_files"):
        there = [file.replace("~", "/home/someone") for file in getattr(recipe.config.data, key)]
        assert list(getattr(ours.config.data, key)) == there


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.name)
def test_further_words_and_a_check_reach_the_program(script: Path, tmp_path: Path) -> None:
    assert words_of(script, tmp_path, "trainer.total_epochs=1")[-1] == "trainer.total_epochs=1"
    program, *words = words_of(script, tmp_path, "--check", "trainer.total_epochs=1")
    assert (program, words[-1]) == ("check", "trainer.total_epochs=1")


def test_the_low_clip_variant_differs_in_its_clip_alone() -> None:
    one, other = (load([f"recipe=gmpo_dapo_qwen3_30b_math{end}"]).config for end in ("", "_low_clip"))
    actor = other.actor_rollout_ref.actor
    assert (actor.clip_ratio_low, actor.clip_ratio_high) == (0.2, 0.2)
    back = ["actor_rollout_ref.actor.clip_ratio_low=0.4", "actor_rollout_ref.actor.clip_ratio_high=0.4"]
    again = load(
        ["recipe=gmpo_dapo_qwen3_30b_math_low_clip", *back, "trainer.experiment_name=gmpo_dapo_qwen3_30b_math"]
    )
    assert again.config == one


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published commands are not beside the repository")
@pytest.mark.parametrize("name", PUBLISHED_AS)
def test_a_published_command_word_for_word_means_what_our_recipe_means(name: str) -> None:
    words = json.loads(PUBLISHED.read_text())[name]
    assert len(words) >= 35
    published, ours = settings_of(load(words)), settings_of(load([f"recipe={PUBLISHED_AS[name]}"]))
    differing = {path for path in published | ours if published.get(path) != ours.get(path)}
    contents = "actor_rollout_ref.actor.checkpoint"
    # The published list saves weights alone, from which no run goes on exactly.
    allowed = {f"{contents}.save_contents", f"{contents}.load_contents"}
    silent = {path for path in differing if path not in published or path not in ours}
    for path in differing - allowed - silent:
        raise AssertionError(f"{path}: {published[path]!r} published, {ours[path]!r} here")
    for path in silent - allowed:  # given on one side only, and to the default
        assert get(load(words).config, path) == get(load([f"recipe={PUBLISHED_AS[name]}"]).config, path), path


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published commands are not beside the repository")
@pytest.mark.parametrize("name", PUBLISHED_AS)
def test_a_published_command_passes_the_check_word_for_word(name: str) -> None:
    words = json.loads(PUBLISHED.read_text())[name]
    done = subprocess.run([*GMPO, "check", "--all", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for title in ("honoured (", "derived (", "without effect (", "not here (", "memory of each device"):
        assert title in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_the_numbers_of_gmpos_run_on_eight_gpus() -> None:
    done = subprocess.run(
        [*GMPO, "check", "recipe=gmpo_qwen2_5_7b_math"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "120"},
    )
    lines = {line.strip().split("  ")[0]: line for line in done.stdout.splitlines()}
    for name, value in (
        ("problems per step", "1,024"),
        ("answers per step", "5,120"),
        ("updates per step", "4"),
        ("answers per update", "1,280"),
        ("tokens per step, at most", "10,485,760"),
        ("tokens per step and device", "1,310,720"),
    ):
        assert f" {value} " in lines[name], lines[name]
    assert "7,615,616,512 parameters (the built-in shape of qwen2.5-7b)" in done.stdout
    assert "data/gsm8k/train.parquet" in done.stdout.partition("not here (")[2]
