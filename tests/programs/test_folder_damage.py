"""What lies in a run folder that a run did not write, and what is damaged, lost or not there yet."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import gmpo
from gmpo.build.opened import opened_run, opened_validation
from gmpo.build.programs import read_training, read_validation
from gmpo.config import load
from gmpo.errors import BackendError, CheckpointError, ConfigError, DataError
from gmpo.records.run_folder import (
    KILLED,
    RunRecord,
    claimed,
    ended,
    read_metrics,
    read_run,
    set_aside_unreadable,
    write_run,
)
from gmpo.tracking.sinks import JsonLines

A, R = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
THREE: Mapping[str, Any] = {"trainer.total_training_steps": 3, "trainer.save_freq": 1}
FOUR: Mapping[str, Any] = {**THREE, "trainer.total_training_steps": 4}
LESS: Mapping[str, Any] = {f"{A}.optim.lr": 5e-3}
FOLDER = "trainer.default_local_dir"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, new_bench: Callable[[Path], Any]) -> Path:
    """The folder of a finished run of 3 steps with a checkpoint after each. Nobody writes to it."""
    bench = new_bench(tmp_path_factory.mktemp("finished"))
    bench.train(THREE)
    return bench.folder / "run"


@pytest.fixture
def folder(finished: Path, bench: Any) -> Path:
    """The same, as the run folder of the test's own runs."""
    shutil.copytree(finished, bench.folder / "run")
    return bench.folder / "run"


def _content(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def _record(folder: Path) -> RunRecord:
    record = read_run(folder)
    assert record is not None
    return record


def _said(program: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[Any, str]:
    console = Console(file=io.StringIO(), width=1000)
    result = program(*arguments, console=console, **named)
    assert isinstance(console.file, io.StringIO)
    return result, console.file.getvalue()


def _killed(folder: Path, saved: int) -> None:
    """As though the process had been killed with 3 steps recorded and `saved` checkpoints."""
    for step in range(saved + 1, 4):
        shutil.rmtree(folder / f"global_step_{step}")
    shutil.rmtree(folder / "huggingface")
    if saved:
        (folder / "latest_checkpointed_iteration.txt").write_text(str(saved))
    else:
        (folder / "latest_checkpointed_iteration.txt").unlink()
    record = _record(folder)
    leg = replace(record.legs[0], status="running", steps=0)
    write_run(folder, replace(record, legs=(leg,), status="running", steps=0))


@pytest.fixture
def derived(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[gmpo.Run, str]]:
    """Trains in the folder that the settings derive, `checkpoints/gmpo/run`."""
    monkeypatch.chdir(bench.folder)

    def train(changes: Mapping[str, Any] | None = None, **arguments: Any) -> tuple[gmpo.Run, str]:
        settings = {**bench.settings(THREE), **(changes or {})}
        del settings[FOLDER]
        return _said(gmpo.train, settings, rows=bench.rows, **arguments)  # type: ignore[return-value]

    return train


BASE = Path("checkpoints/gmpo/run")


# Files of the user


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "huggingface/precious.txt", "metrics.jsonl", "legs/notes.txt", "samples/1.jsonl", "run.jsonl"],
)
def test_files_of_the_user_under_names_of_a_run_are_refused_and_stay(bench: Any, name: str) -> None:
    file = bench.folder / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(ConfigError, match=r"holds no run \(no run.json\)") as error:
        bench.train({"trainer.logger": ["file"]})
    assert f"is there: {name.partition('/')[0]}" in str(error.value)
    assert _content(bench.folder / "run") == {name: b"mine"}


def test_a_derived_folder_with_files_of_the_user_is_left_to_them(derived: Any) -> None:
    BASE.mkdir(parents=True)
    (BASE / "config.yaml").write_text("mine")
    run, said = derived()
    assert run.folder.name == "run-2"
    assert f"{BASE} holds no run" in said
    assert _content(BASE) == {"config.yaml": b"mine"}


def test_other_files_and_empty_folders_are_no_hindrance(bench: Any) -> None:
    (bench.folder / "run" / "samples").mkdir(parents=True)
    (bench.folder / "run" / "notes.txt").write_text("mine")
    assert bench.train().finished
    assert (bench.folder / "run" / "notes.txt").read_text() == "mine"


def test_an_export_keeps_what_somebody_put_beside_the_model(bench: Any, folder: Path) -> None:
    model = folder / "huggingface"
    (model / "README.md").write_text("a card")
    (model / "plots").mkdir()
    (model / "plots" / "a.png").write_text("a plot")
    (model / "model-00001-of-00002.safetensors").write_text("a shard of an older export")
    bench.train(FOUR)
    assert (model / "README.md").read_text() == "a card"
    assert (model / "plots" / "a.png").read_text() == "a plot"
    assert not (model / "model-00001-of-00002.safetensors").exists()


# Records that are lost or damaged


def test_a_lost_record_is_rebuilt_and_no_leg_is_overwritten(bench: Any, folder: Path) -> None:
    bench.train(FOUR)
    kept = _content(folder / "legs")
    assert {name.partition("/")[0] for name in kept} == {"1", "2"}
    (folder / "run.json").unlink()
    reward = {"custom_reward_function.path": str(bench.folder / "digits.py")}
    _, said = _said(bench.train, {**FOUR, **reward, "trainer.total_training_steps": 5})
    assert f"{folder / 'run.json'} is lost" in said
    assert "0.1.0 or earlier" not in said
    legs = _record(folder).legs
    assert [leg.number for leg in legs] == [1, 2, 3]
    assert (legs[1].steps, legs[2].start, legs[2].steps, legs[2].exact) == (4, 4, 5, False)
    assert "run.json was lost" in legs[0].reason
    after = _content(folder / "legs")
    assert {name: after[name] for name in kept} == kept


def test_a_damaged_record_names_the_remedy_and_the_remedy_works(bench: Any, folder: Path) -> None:
    reward = {"custom_reward_function.path": _record(folder).execution["custom_reward_function.path"]}
    (folder / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run\.json: not the record of a run .* move it away, and the next start"):
        bench.train({**FOUR, **reward})
    (folder / "run.json").unlink()
    assert bench.train({**FOUR, **reward}).steps == 4


def test_a_record_that_cannot_be_read_is_not_called_damaged(bench: Any, folder: Path) -> None:
    """Of `/proc/self/mem` the system refuses to read the first byte, as of a file without permission or a bad disk."""
    (folder / "run.json").rename(folder / "kept.json")
    (folder / "run.json").symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match=r"run\.json: cannot be read: Input/output error\. .* leave it where") as caught:
        bench.train(FOUR)
    assert "move it away" not in str(caught.value)
    (folder / "run.json").unlink()
    (folder / "run.json").write_bytes(b"\xff{")
    with pytest.raises(DataError, match=r"run\.json: not the record of a run"):
        bench.train(FOUR)


def test_a_damaged_record_in_the_derived_folder_blocks_its_own_run_alone(derived: Any) -> None:
    derived()
    (BASE / "run.json").write_text("{")
    run, said = derived(LESS)
    assert run.folder.name == "run-2"
    assert f"{BASE} holds a run whose record cannot be read" in said
    with pytest.raises(DataError, match="not the record of a run"):
        derived()


@pytest.mark.parametrize("file", ["state.json", "actor/model.safetensors", "actor/optimizer.safetensors"])
def test_a_damaged_checkpoint_names_the_newest_intact_one_before_it(bench: Any, folder: Path, file: str) -> None:
    """Of the third checkpoint the file is cut in half, of the second one the state."""
    for place in (folder / "global_step_3" / file, folder / "global_step_2" / "state.json"):
        place.write_bytes(place.read_bytes()[: place.stat().st_size // 2])
    named = {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": str(folder / "global_step_3")}
    with pytest.raises(CheckpointError) as error:
        bench.train({**FOUR, **named})
    assert f"before it is {folder / 'global_step_1'}: move global_step_3 away" in str(error.value)
    run, said = _said(bench.train, FOUR)
    for step in (3, 2):
        assert f"global_step_{step} is damaged, and stays as global_step_{step}.damaged: the run goes on from" in said
        assert (folder / f"global_step_{step}.damaged").is_dir()
    assert [m["training/global_step"] for m in run.history] == [2, 3, 4]


def test_a_damaged_checkpoint_without_an_older_one_says_so(bench: Any, folder: Path) -> None:
    for step in (1, 2):
        shutil.rmtree(folder / f"global_step_{step}")
    (folder / "global_step_3" / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="There is no intact checkpoint before it"):
        bench.train(FOUR)
    with pytest.raises(CheckpointError, match="There is no intact checkpoint before it"):
        bench.train({**FOUR, "trainer.val_only": True}, val_rows=bench.rows[:2])


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "finished"])
@pytest.mark.parametrize("file", ["metrics.jsonl", "pass_rates.jsonl"])
def test_damaged_lines_are_put_aside_and_block_nothing(bench: Any, folder: Path, file: str, killed: bool) -> None:
    if killed:
        _killed(folder, saved=2)
    lines = (folder / file).read_bytes().splitlines(keepends=True)
    damage = b"\0\0\xff\0\n"
    (folder / file).write_bytes(lines[0] + damage + b"".join(lines[1:]))
    _, said = _said(bench.train, FOUR)
    assert f"{folder / file}: damaged lines are put aside in {file}.unreadable, 1 of 4." in said
    assert (folder / f"{file}.unreadable").read_bytes() == damage
    assert [json.loads(line)["step"] for line in (folder / file).read_text().splitlines()] == [1, 2, 3, 4]


def test_a_last_line_that_was_cut_short_is_no_damage(tmp_path: Path) -> None:
    file, said = tmp_path / "metrics.jsonl", list[str]()
    text = '{"step": 1, "data": {}}\n{"step": 2, "da'
    file.write_text(text)
    set_aside_unreadable(file, "data", said.append)
    assert (file.read_text(), said, [line.step for line in read_metrics(tmp_path)]) == (text, [], [1])


def test_a_killed_run_is_called_killed_and_its_leg_has_its_steps(bench: Any, folder: Path) -> None:
    _killed(folder, saved=0)
    with pytest.raises(ConfigError, match=r"holds another run \(killed after 3 steps\)"):
        bench.train({**THREE, **LESS})
    first = ended(_record(folder)).legs[0]
    assert (first.status, first.steps, first.reason) == ("failed", 3, KILLED)
    bench.train(THREE)
    assert _record(folder).legs[0] == first


# Answers elsewhere


def test_answers_elsewhere_beyond_the_step_of_the_checkpoint_are_replaced_too(bench: Any) -> None:
    folder, places = bench.folder / "run", [bench.folder / "answers", bench.folder / "validated"]
    keep = {
        "trainer.rollout_data_dir": str(places[0]),
        "trainer.validation_data_dir": str(places[1]),
        "trainer.test_freq": 1,
    }
    bench.train({**THREE, **keep}, val_rows=bench.rows[:2])
    _killed(folder, saved=1)
    (places[0] / "notes.jsonl").write_text("mine")
    settings = {**THREE, **keep, "trainer.total_training_steps": 2}
    _, said = _said(bench.train, settings, val_rows=bench.rows[:2])
    assert f"The records of steps 2 to 3 are replaced, also those in {places[0]}, {places[1]}:" in said
    assert sorted(_content(places[0])) == ["1.jsonl", "2.jsonl", "notes.jsonl"]
    assert "3.jsonl" not in _content(places[1])


# The end


def test_a_second_signal_is_an_interruption_and_says_what_is_there(
    bench: Any, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = JsonLines.write

    def twice(self: JsonLines, step: int, metrics: Any) -> None:
        write(self, step, metrics)
        if step == 2:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(JsonLines, "write", twice)
    for run, save_freq, remains in (
        ("without", -1, f"There is no complete checkpoint in {bench.folder / 'without'} to go on from."),
        ("with", 1, f"The newest complete checkpoint is {bench.folder / 'with' / 'global_step_1'}"),
    ):
        outcome = command("train", *bench.arguments({**THREE, "trainer.save_freq": save_freq}, run=run))
        assert outcome.code == 130
        assert "stopped at once" in outcome.err
        assert "checkpoint" not in outcome.err
        assert remains in outcome.out.replace("\n", "")
        record = _record(bench.folder / run)
        assert (record.status, record.steps) == ("interrupted", 2)
        assert record.reason == "Ctrl-C or SIGTERM: stopped at once, within a step"


def test_a_first_checkpoint_that_fails_promises_no_earlier_one(bench: Any) -> None:
    (bench.folder / "run").mkdir()
    (bench.folder / "run" / ".unfinished_global_step_1").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"There is no complete checkpoint in .* to go on from"):
        bench.train({**THREE, f"{A}.checkpoint.async_save": False})


# Starts at the same time


def _opening(bench: Any, changes: Mapping[str, Any]) -> tuple[Any, Any]:
    settings = bench.settings(changes)
    del settings[FOLDER]
    resolved = load(tree=settings, rows=True)
    return resolved, read_training(resolved, bench.rows, None, [], None, "train").opening


def test_a_second_run_that_starts_meanwhile_takes_the_folder_beside(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither has loaded a model yet."""
    monkeypatch.chdir(bench.folder)
    quiet = Console(quiet=True)
    first, second = _opening(bench, {}), _opening(bench, LESS)
    with opened_run(*first, console=quiet) as run:
        assert (run.folder, _record(BASE).status, _record(BASE).legs) == (BASE, "running", ())
        with opened_run(*second, console=quiet) as other:
            assert other.folder.name == "run-2"
        with pytest.raises(BackendError, match="another run writes there"), opened_run(*first, console=quiet):
            pass
    assert _content(BASE) == {}  # nothing was recorded, so nobody owns the folder


def test_a_start_that_fails_before_its_first_record_leaves_the_record_that_was_there(bench: Any) -> None:
    def fails(solution_str: str) -> float:
        raise ValueError("a mistake")

    with pytest.raises(gmpo.GmpoError):
        bench.train(reward=fails)
    before = _content(bench.folder / "run")
    long = {"actor_rollout_ref.model.override_config": {"max_position_embeddings": 8}}
    with pytest.raises(gmpo.GmpoError):
        bench.train(long)  # known when the model is loaded
    assert _content(bench.folder / "run") == before


# A validation on its own


def test_a_validation_in_a_folder_without_a_run_says_that_it_is_of_the_base_model(bench: Any) -> None:
    only = {"trainer.val_only": True}
    _, said = _said(bench.train, only, rows=None, val_rows=bench.rows[:2], run="mistyped")
    assert (
        f"warning: {bench.folder / 'mistyped'} holds no checkpoint and nothing else of a run: {bench.model} itself"
        in said
    )
    assert str(bench.model) in said
    assert "train_files" not in said
    assert bench.train(run="mistyped").finished  # it owns nothing


def test_a_validation_that_fails_leaves_no_folder(bench: Any) -> None:
    only = {"trainer.val_only": True, "actor_rollout_ref.model.override_config": {"max_position_embeddings": 8}}
    with pytest.raises(gmpo.GmpoError):
        bench.train(only, rows=None, val_rows=bench.rows[:2], run="mistyped/deep")
    assert not (bench.folder / "mistyped").exists()


def test_a_run_that_is_training_can_be_validated_by_several_at_once(bench: Any, folder: Path) -> None:
    before = _content(folder)
    settings = load(tree=bench.settings({**THREE, "trainer.val_only": True}), val_rows=True)
    opening = read_validation(settings, bench.rows[:2], [], None, "validate").opening
    quiet = Console(quiet=True)
    with (
        claimed(folder),
        opened_validation(settings, opening, console=quiet) as one,
        opened_validation(settings, opening, console=quiet) as other,
    ):
        assert [run.records for run in (one, other)] == [folder / "val_only" / n for n in ("1", "2")]
        assert bench.train({**THREE, "trainer.val_only": True}, val_rows=bench.rows[:2]).steps == 3
    after = _content(folder)
    assert {name: after[name] for name in before} == before
    assert [p.name for p in (folder / "val_only").iterdir()] == ["3"]


# The folder beside


def test_a_run_beside_is_announced_without_the_remedies_of_a_refusal(derived: Any) -> None:
    derived()
    run, said = derived(LESS)
    assert run.folder.name == "run-2"
    assert "remove" not in said
    assert "allow_changed_config" not in said
    assert f"{A}.optim.lr: 0.01 -> 0.005\nThis run takes" in said


def test_a_checkpoint_of_the_derived_folder_with_later_ones_is_gone_on_from_beside_it(derived: Any) -> None:
    derived()
    before = _content(BASE)
    earlier = {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": str(BASE / "global_step_1")}
    run, said = derived(earlier)
    assert (run.folder.name, [m["training/global_step"] for m in run.history]) == ("run-2", [2, 3])
    assert "would replace global_step_2, global_step_3" in said
    assert _content(BASE) == before
    assert derived(earlier)[0].history == ()  # the same command again finds it
