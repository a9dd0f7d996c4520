"""Starts under other settings: what a permission allows, what a fork says, and what makes content another one."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import gmpo
from gmpo.backends.tiny_model import make_model, word_tokenizer
from gmpo.config import load
from gmpo.data.stories import demonstration_rows, vocabulary
from gmpo.errors import CheckpointError, ConfigError
from gmpo.records.run_folder import RunRecord, read_run

A, R, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"
TWO = {"trainer.total_training_steps": 2, "trainer.save_freq": 1}
THREE = {**TWO, "trainer.total_training_steps": 3}
ALLOWED = {"trainer.allow_changed_config": True}
SIZES = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16, "intermediate": 64}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, new_bench: Callable[[Path], Any]) -> Path:
    """The folder of a finished run of 2 steps with a checkpoint after each. Nobody writes to it."""
    bench = new_bench(tmp_path_factory.mktemp("finished"))
    bench.train(TWO)
    return bench.folder / "run"


@pytest.fixture
def folder(finished: Path, bench: Any) -> Path:
    """The same, as the run folder of the test's own runs."""
    shutil.copytree(finished, bench.folder / "run")
    return bench.folder / "run"


def _record(folder: Path) -> RunRecord:
    record = read_run(folder)
    assert record is not None
    return record


def _steps(run: gmpo.Run) -> list[float]:
    return [metrics["training/global_step"] for metrics in run.history]


def _said() -> Console:
    return Console(file=io.StringIO(), width=1000)


def _text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _interrupted(folder: Path) -> None:
    saved = json.loads((folder / "run.json").read_text())
    saved["status"] = "interrupted"
    (folder / "run.json").write_text(json.dumps(saved))


def _without_checkpoints(folder: Path) -> None:
    for place in folder.glob("global_step_*"):
        shutil.rmtree(place)
    (folder / "latest_checkpointed_iteration.txt").unlink()


@pytest.fixture
def other_model(bench: Any) -> Path:
    """A model of the same sizes and other weights."""
    make_model(bench.folder / "other", word_tokenizer(vocabulary()), seed=7, **SIZES)
    return bench.folder / "other"


# Forks


def _fork(origin: Path, step: int = 1) -> dict[str, Any]:
    return {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": str(origin / f"global_step_{step}")}


def test_a_fork_under_the_same_settings_is_exact(bench: Any, finished: Path) -> None:
    console = _said()
    bench.train({**TWO, **_fork(finished)}, run="fork", console=console)
    (leg,) = _record(bench.folder / "fork").legs
    assert leg.exact
    assert {d.key for d in leg.differences} >= {"trainer.default_local_dir", "trainer.resume_mode"}
    assert "warning" not in _text(console)


def test_a_fork_says_and_records_what_differs_from_the_run_that_it_begins_with(
    bench: Any, finished: Path, other_model: Path
) -> None:
    changes = {f"{A}.optim.lr": 5e-3, f"{R}.n": 2, f"{MODEL}.path": str(other_model)}
    console = _said()
    bench.train({**TWO, **_fork(finished), **changes}, run="fork", console=console)
    record, origin = _record(bench.folder / "fork"), _record(finished)
    (leg,) = record.legs
    assert not leg.exact
    listed = {str(d) for d in leg.differences}
    assert {f"{A}.optim.lr: 0.01 -> 0.005", f"{R}.n: 4 -> 2"} <= listed
    assert f"the run that this one begins with ({finished / 'global_step_1'})" in _text(console)
    assert f"  {A}.optim.lr: 0.01 -> 0.005" in _text(console)
    assert "The weights are those of the checkpoint" in _text(console)
    # The weights began with the origin's model, whatever the path names.
    path = f"content of {MODEL}.path"
    assert record.content["base model"] == origin.content["base model"] == origin.content[path]
    assert record.content[path] != origin.content[path]
    # Preempted, the fork is compared with itself.
    again = {**THREE, **_fork(finished), **changes}
    assert _steps(bench.train(again, run="fork")) == [3]
    assert _record(bench.folder / "fork").content["base model"] == origin.content["base model"]
    assert _record(bench.folder / "fork").legs[1].exact


def test_a_fork_is_compared_with_the_settings_that_wrote_the_checkpoint(bench: Any, folder: Path) -> None:
    """The run went on under another learning rate after the checkpoint."""
    bench.train({**THREE, **ALLOWED, f"{A}.optim.lr": 5e-3})
    assert _record(folder).identity[f"{A}.optim.lr"] == 5e-3
    bench.train({**TWO, **_fork(folder)}, run="before")
    assert _record(bench.folder / "before").legs[0].exact
    bench.train({**THREE, **_fork(folder, 3), "trainer.total_training_steps": 4}, run="after")
    leg = _record(bench.folder / "after").legs[0]
    assert f"{A}.optim.lr: 0.005 -> 0.01" in {str(d) for d in leg.differences}


def test_a_fork_of_a_checkpoint_without_its_run_says_that_nothing_was_compared(bench: Any, finished: Path) -> None:
    shutil.copytree(finished / "global_step_1", bench.folder / "lonely" / "global_step_1")
    console = _said()
    bench.train({**TWO, **_fork(bench.folder / "lonely")}, run="fork", console=console)
    record = _record(bench.folder / "fork")
    assert "holds no record of a run that can be read, so nothing could be compared" in _text(console)
    assert (record.legs[0].exact, record.content["base model"]) == (False, None)


# What a permission allows


@pytest.mark.parametrize("steps", [1, 2])
def test_another_runs_finished_model_is_never_called_this_run(bench: Any, folder: Path, steps: int) -> None:
    changed = {**TWO, "recipe": "gspo", "trainer.total_training_steps": steps, **ALLOWED}
    with pytest.raises(ConfigError) as error:
        bench.train(changed)
    assert "holds another run (finished, 2 steps" in str(error.value)
    assert f'{A}.policy_loss.loss_mode: "geo_mean" -> "gspo"' in str(error.value)
    assert "trainer.allow_changed_config=True with more than its 2 steps goes on here" in str(error.value)
    assert _steps(bench.train({**changed, "trainer.total_training_steps": 3})) == [3]


def _other_answer(bench: Any) -> list[dict[str, Any]]:
    rows = json.loads(json.dumps(bench.rows))
    rows[3]["reward_model"]["ground_truth"] = "99"
    return list(rows)


@pytest.mark.parametrize(
    ("changes", "listed"),
    [
        ({"data.train_batch_size": 6, f"{A}.ppo_mini_batch_size": 3}, "data.train_batch_size: 4 -> 6"),
        ({"trainer.seed": 7}, "data.seed: 1 -> 7"),
        ({}, "content of the problems: "),
    ],
    ids=["batch", "seed", "problems"],
)
def test_with_the_permission_other_data_go_on_at_the_same_position_which_is_said(
    bench: Any, folder: Path, changes: Mapping[str, Any], listed: str
) -> None:
    rows = bench.rows if changes else _other_answer(bench)
    with pytest.raises(ConfigError, match=r"trainer\.allow_changed_config=True goes on here"):
        bench.train({**THREE, **changes}, rows=rows)
    console = _said()
    assert _steps(bench.train({**THREE, **changes, **ALLOWED}, rows=rows, console=console)) == [3]
    assert "it goes on at the same position (8) of the new one" in _text(console)
    assert f"\n  {listed}" in _text(console)
    assert not _record(folder).legs[1].exact
    bench.train({**THREE, **changes, "trainer.total_training_steps": 4}, rows=rows)
    assert _record(folder).legs[2].exact


def test_groups_that_waited_under_other_settings_are_dropped_which_is_said(bench: Any) -> None:
    waiting = {
        "algorithm.filter_groups.enable": True,
        "algorithm.filter_groups.metric": "score",
        "algorithm.filter_groups.max_staleness": 5,
        "data.gen_batch_size": 12,
        f"{R}.temperature": 2.0,
    }
    bench.train({**TWO, **waiting})
    state = json.loads((bench.folder / "run" / "global_step_2" / "state.json").read_text())
    assert state["parts"]["gather"]["waiting"]
    console = _said()
    plain = {**THREE, **ALLOWED, f"{R}.temperature": 2.0}
    assert _steps(bench.train(plain, console=console)) == [3]
    assert "groups that waited were sampled under the settings of then: dropped" in _text(console)


def test_the_permission_is_offered_only_where_it_can_work(bench: Any, folder: Path) -> None:
    other = {**TWO, f"{A}.optim.lr": 5e-3}
    _without_checkpoints(folder)
    _interrupted(folder)
    with pytest.raises(ConfigError) as error:
        bench.train(other)
    assert "allow_changed_config" not in str(error.value)
    with pytest.raises(ConfigError, match="without a checkpoint"):
        bench.train({**other, **ALLOWED})


def test_a_fine_tuning_that_is_finished_is_not_changed_and_an_unfinished_one_begins_again(bench: Any) -> None:
    settings = {
        "model.path": str(bench.model),
        "data.train_batch_size": 8,
        "data.max_length": 96,
        "trainer.total_training_steps": 2,
        "trainer.device": "cpu",
        "trainer.default_local_dir": str(bench.folder / "sft"),
        "trainer.logger": [],
    }
    tune = partial(gmpo.sft, rows=demonstration_rows(16, seed=0))
    folder = tune(settings, console=Console(quiet=True)).folder
    for permission in ({}, ALLOWED):
        with pytest.raises(ConfigError, match=r"optim\.lr: .* -> 0\.003") as error:
            tune({**settings, "optim.lr": 3e-3, **permission}, console=Console(quiet=True))
        assert "allow_changed_config" not in str(error.value)
    with pytest.raises(ConfigError, match="without a checkpoint to go on from") as error:
        tune({**settings, **ALLOWED, "optim.lr": 3e-3, "trainer.total_training_steps": 3}, console=Console(quiet=True))
    assert "trainer.save_freq was off" in str(error.value)
    _interrupted(folder)
    with pytest.raises(ConfigError, match="allow_changed_config=True begins again here"):
        tune({**settings, "optim.lr": 3e-3}, console=Console(quiet=True))
    console = _said()
    assert tune({**settings, "optim.lr": 3e-3, **ALLOWED}, console=console).finished
    assert "its records of steps 1 to 2 and the model so far are replaced" in _text(console)
    assert not _record(folder).legs[1].exact


def test_a_permission_is_of_one_start_and_not_saved(bench: Any, folder: Path) -> None:
    bench.train({**THREE, **ALLOWED, f"{A}.optim.lr": 5e-3})
    for place in (folder, folder / "legs" / "2"):
        saved = yaml.safe_load((place / "config.yaml").read_text())
        assert "trainer.allow_changed_config" not in saved["given"]
        assert saved["trainer"]["allow_changed_config"] is False
    assert _record(folder).bookkeeping["trainer.allow_changed_config"] is False
    resolved = load([f"{A}.optim.lr=0.001", "trainer.total_training_steps=4"], file=folder / "config.yaml", rows=True)
    with pytest.raises(ConfigError, match=rf"{A}\.optim\.lr: 0\.005 -> 0\.001"):
        gmpo.train(resolved, rows=bench.rows, console=Console(quiet=True))


# Content


@pytest.fixture
def own_model(bench: Any) -> Path:
    return Path(shutil.copytree(bench.model, bench.folder / "own"))


def _edit(file: Path, changes: Mapping[str, Any]) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("file", "changes", "listed"),
    [
        (
            "tokenizer.json",
            {"normalizer": {"type": "Replace", "pattern": {"String": "3"}, "content": "4"}},
            "tokenizer: ",
        ),
        ("generation_config.json", {"eos_token_id": [1, 5]}, "stop tokens: [1] -> [1, 5]"),
    ],
)
def test_what_becomes_of_text_and_where_answers_end_belong_to_the_run(
    bench: Any, own_model: Path, file: str, changes: Mapping[str, Any], listed: str
) -> None:
    settings = {f"{MODEL}.path": str(own_model)}
    bench.train({**TWO, **settings})
    _edit(own_model / file, {})  # written anew, it says the same
    assert _steps(bench.train({**THREE, **settings})) == [3]
    _edit(own_model / file, changes)
    with pytest.raises(ConfigError) as error:
        bench.train({**THREE, **settings, "trainer.total_training_steps": 4})
    assert f"\n  {listed}" in str(error.value)


def _weighted(data_source: str, solution_str: str, ground_truth: str, extra_info: Any, weight: float = 1.0) -> float:
    return weight * len(solution_str)


class _Table:
    """Something that nobody can compare."""

    __module__ = "elsewhere"


def test_a_reward_function_with_another_constant_is_another_run_and_what_is_unseen_is_said(bench: Any) -> None:
    own = {"custom_reward_function.path": None}
    bench.train({**TWO, **own}, reward=partial(_weighted, weight=1.0))
    with pytest.raises(ConfigError, match=r"reward function 1 \(_weighted\): "):
        bench.train({**THREE, **own}, reward=partial(_weighted, weight=-1.0))
    assert _steps(bench.train({**THREE, **own}, reward=partial(_weighted, weight=1.0))) == [3]

    held: list[Any] = [1.0]

    def blind(solution_str: str) -> float:
        return float(len(solution_str)) * held[0]

    bench.train({**TWO, **own}, run="seen", reward=blind)
    console = _said()
    bench.train({**THREE, **own}, run="seen", reward=blind, console=console)
    assert "not compared" not in _text(console)
    held[0] = 2.0
    with pytest.raises(ConfigError, match=r"reward function 1 \("):
        bench.train({**THREE, **own, "trainer.total_training_steps": 4}, run="seen", reward=blind)


def test_what_a_reward_function_holds_and_nobody_can_compare_is_said(bench: Any) -> None:
    own, table = {"custom_reward_function.path": None}, _Table()

    def looks_up(solution_str: str) -> float:
        return float(len(solution_str)) + (table is None)

    bench.train({**TWO, **own}, reward=looks_up)
    console = _said()
    bench.train({**THREE, **own}, reward=looks_up, console=console)
    (line,) = [line for line in _text(console).splitlines() if line.startswith("not compared: ")]
    assert line.endswith("looks_up: closure table (_Table)")


def test_without_the_permission_a_fork_with_other_data_is_refused_and_with_it_goes_on(
    bench: Any, finished: Path
) -> None:
    other = {**TWO, **_fork(finished), "trainer.seed": 7}
    with pytest.raises(CheckpointError, match="allow_changed_config=True goes on at the same position"):
        bench.train(other, run="fork")
    assert _steps(bench.train({**other, **ALLOWED}, run="fork")) == [2]
