"""A folder belongs to one run and never loses it: everything a new user does to a folder that holds one."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import gmpo
from gmpo.backends.tiny_model import make_model, word_tokenizer
from gmpo.build.old_folder import OLD_VERSION
from gmpo.data.stories import demonstration_rows, story_rows, vocabulary
from gmpo.errors import CheckpointError, ConfigError
from gmpo.records.run_folder import RunRecord, read_run, read_val_only
from gmpo.tracking.sinks import JsonLines

A, R, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"
Lines = Callable[[Path], list[dict[str, Any]]]
FOUR = {"trainer.total_training_steps": 4, "trainer.save_freq": 1}
SIX = {"trainer.total_training_steps": 6, "trainer.save_freq": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, new_bench: Callable[[Path], Any]) -> Path:
    """The folder of a finished run of 4 steps with a checkpoint after each. Nobody writes to it."""
    bench = new_bench(tmp_path_factory.mktemp("finished"))
    bench.train(FOUR)
    return bench.folder / "run"


@pytest.fixture
def folder(finished: Path, bench: Any) -> Path:
    """The same, as the run folder of the test's own runs."""
    shutil.copytree(finished, bench.folder / "run")
    return bench.folder / "run"


def _content(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, the lock apart."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


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


def _unfinished(folder: Path, steps: int = 2) -> None:
    """Make a folder as though its process had been killed when `steps` were saved and 4 recorded."""
    for step in range(steps + 1, 5):
        shutil.rmtree(folder / f"global_step_{step}")
    shutil.rmtree(folder / "huggingface")
    (folder / "latest_checkpointed_iteration.txt").write_text(str(steps))
    saved = json.loads((folder / "run.json").read_text())
    saved["status"] = saved["legs"][0]["status"] = "running"
    saved["steps"] = saved["legs"][0]["steps"] = 0
    (folder / "run.json").write_text(json.dumps(saved))


def test_a_run_is_recorded_with_its_settings_by_role_and_what_their_paths_led_to(finished: Path, bench: Any) -> None:
    record = _record(finished)
    assert (record.program, record.status, record.reason) == ("train", "finished", "")
    assert (record.steps, record.total_steps) == (4, 4)
    assert record.identity[f"{A}.policy_loss.loss_mode"] == "geo_mean"
    assert record.identity[f"{A}.optim.lr"] == 1e-2
    assert record.execution[f"{MODEL}.path"] == str(bench.model)
    assert record.bookkeeping["trainer.save_freq"] == 1
    assert f"{A}.kl_loss_coef" in record.idle  # there is no KL term
    assert {
        f"content of {MODEL}.path",
        "content of data.train_files",
        "content of custom_reward_function.path",
        "tokenizer",
        "chat template",
    } <= record.content.keys()
    (leg,) = record.legs
    assert (leg.number, leg.start, leg.steps, leg.status, leg.exact) == (1, 0, 4, "finished", True)
    for name in ("config.yaml", "environment.json"):
        assert (finished / "legs" / "1" / name).read_bytes() == (finished / name).read_bytes()


# The same run again


def test_a_finished_run_started_again_says_so_and_touches_nothing(bench: Any, folder: Path) -> None:
    before, console = _content(folder), _said()
    run = bench.train(FOUR, console=console)
    assert _content(folder) == before
    assert (run.steps, run.total_steps, run.finished, run.history) == (4, 4, True, ())
    assert run.model == folder / "huggingface"
    assert f"{folder} holds this run, which is finished after 4 steps: nothing is left to do." in _text(console)


def test_a_preempted_run_goes_on_and_its_killed_leg_is_known(bench: Any, folder: Path, lines: Lines) -> None:
    whole = _content(folder)
    _unfinished(folder)
    killed = _record(folder)
    assert (killed.status, killed.steps) == ("running", 4)
    console = _said()
    assert _steps(bench.train(FOUR, console=console)) == [3, 4]
    assert "The records of steps 3 to 4 are replaced: these steps happen again." in _text(console)
    assert _content(folder)["huggingface/model.safetensors"] == whole["huggingface/model.safetensors"]
    first, second = _record(folder).legs
    assert (first.status, first.reason) == ("failed", "it ended without a word: killed, or the machine went down")
    assert (second.start, second.steps, second.status, second.checkpoint) == (2, 4, "finished", "global_step_2")
    assert second.exact


def test_settings_of_bookkeeping_and_execution_go_on_and_rounding_is_said(bench: Any, folder: Path) -> None:
    _unfinished(folder)
    console = _said()
    changes = {"trainer.max_actor_ckpt_to_keep": 9, "trainer.sample_groups": 3, f"{A}.ppo_micro_batch_size_per_gpu": 2}
    assert _steps(bench.train({**FOUR, **changes}, console=console)) == [3, 4]
    leg = _record(folder).legs[1]
    assert not leg.exact
    assert {"trainer.max_actor_ckpt_to_keep", "trainer.sample_groups", f"{A}.ppo_micro_batch_size_per_gpu"} <= {
        d.key for d in leg.differences
    }
    assert "the same run but for rounding, not bit for bit" in _text(console)
    assert f"  {A}.ppo_micro_batch_size_per_gpu: null -> 2" in _text(console)
    assert "trainer.sample_groups" not in _text(console)
    kept = yaml.safe_load((folder / "legs" / "1" / "config.yaml").read_text())
    newest = yaml.safe_load((folder / "config.yaml").read_text())
    assert (kept["trainer"]["sample_groups"], newest["trainer"]["sample_groups"]) == (8, 3)


def test_a_base_model_that_was_moved_goes_on_bit_for_bit_and_another_one_is_refused(bench: Any, folder: Path) -> None:
    _unfinished(folder)
    moved = bench.folder / "moved"
    shutil.copytree(bench.model, moved)
    assert _steps(bench.train({**FOUR, f"{MODEL}.path": str(moved)})) == [3, 4]
    leg = _record(folder).legs[1]
    paths = [f"{MODEL}.path", "custom_reward_function.path", "trainer.default_local_dir"]
    assert [d.key for d in leg.differences] == paths
    assert leg.exact
    sizes = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16, "intermediate": 64}
    make_model(bench.folder / "other", word_tokenizer(vocabulary()), seed=7, **sizes)
    with pytest.raises(ConfigError, match=f"content of {MODEL}.path: ") as error:
        bench.train({**FOUR, "trainer.total_training_steps": 5, f"{MODEL}.path": str(bench.folder / "other")})
    assert f'{MODEL}.path: "{moved}" -> "{bench.folder / "other"}"' in str(error.value)


def test_more_steps_are_the_same_run_at_a_constant_rate_and_another_one_on_a_schedule(bench: Any, folder: Path) -> None:
    assert _steps(bench.train({**FOUR, "trainer.total_training_steps": 5})) == [5]
    falling = {**FOUR, f"{A}.optim.lr_scheduler_type": "cosine"}
    bench.train(falling, run="falling")
    with pytest.raises(ConfigError, match="steps of the run: 4 -> 5"):
        bench.train({**falling, "trainer.total_training_steps": 5}, run="falling")


# Another run


@pytest.mark.parametrize(
    ("changes", "listed"),
    [
        ({"recipe": "gspo"}, f'{A}.policy_loss.loss_mode: "geo_mean" -> "gspo"'),
        ({f"{A}.optim.lr": 5e-3}, f"{A}.optim.lr: 0.01 -> 0.005"),
        ({f"{R}.n": 2}, f"{R}.n: 4 -> 2"),
        ({f"{MODEL}.custom_chat_template": "{{ messages[0]['content'] }}"}, "chat template: "),
        ({"trainer.seed": 2}, "data.seed: 1 -> 2"),
        ({"data.train_max_samples": 8}, "content of data.train_files: "),
        ({f"{R}.temperature": 0.5}, f"{R}.temperature: 1.0 -> 0.5"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("ended", [True, False], ids=["finished", "unfinished"])
def test_other_settings_in_a_named_folder_are_refused_with_what_differs(
    bench: Any, folder: Path, changes: Mapping[str, Any], listed: str, ended: bool
) -> None:
    if not ended:
        _unfinished(folder)
    before = _content(folder)
    with pytest.raises(ConfigError) as error:
        bench.train({**FOUR, "trainer.total_training_steps": 6, **changes})
    message = str(error.value)
    assert f"trainer.default_local_dir={folder} holds another run" in message
    assert f"\n  {listed}" in message
    assert "Name another trainer.default_local_dir" in message
    assert "trainer.allow_changed_config=True" in message
    assert _content(folder) == before


def test_another_reward_function_is_another_run_wherever_it_lies(bench: Any, folder: Path) -> None:
    file = bench.folder / "other.py"
    file.write_text("def compute_score(data_source, solution_str, ground_truth, extra_info):\n    return 1.0\n")
    with pytest.raises(ConfigError, match="content of custom_reward_function"):
        bench.train({**FOUR, "trainer.total_training_steps": 5, "custom_reward_function.path": str(file)})
    shutil.copy(bench.folder / "digits.py", bench.folder / "moved.py")
    moved = {"custom_reward_function.path": str(bench.folder / "moved.py"), "trainer.total_training_steps": 5}
    assert _steps(bench.train({**FOUR, **moved})) == [5]


def test_a_changed_setting_goes_on_when_it_is_allowed_and_the_leg_records_it(bench: Any, folder: Path) -> None:
    console = _said()
    changes = {"trainer.allow_changed_config": True, "trainer.total_training_steps": 5, f"{A}.optim.lr": 5e-3}
    assert _steps(bench.train({**FOUR, **changes}, console=console)) == [5]
    record = _record(folder)
    assert record.identity[f"{A}.optim.lr"] == 5e-3
    leg = record.legs[1]
    assert f"{A}.optim.lr: 0.01 -> 0.005" in [str(d) for d in leg.differences]
    assert not leg.exact
    assert f"  {A}.optim.lr: 0.01 -> 0.005" in _text(console)
    assert (
        yaml.safe_load((folder / "legs/1/config.yaml").read_text())["actor_rollout_ref"]["actor"]["optim"]["lr"] == 0.01
    )


def test_disable_never_mixes_with_a_run_that_is_there(bench: Any, folder: Path) -> None:
    before = _content(folder)
    with pytest.raises(ConfigError, match=r"holds a run \(finished, 4 steps, .*resume_mode=disable starts a new one"):
        bench.train({**FOUR, "trainer.resume_mode": "disable"})
    assert _content(folder) == before
    run = bench.train({"trainer.resume_mode": "disable"}, run="fresh")
    assert _steps(run) == [1, 2]


def test_without_a_name_another_run_takes_the_folder_beside_and_every_run_finds_its_own(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bench.folder)

    def train(changes: Mapping[str, Any]) -> tuple[gmpo.Run, str]:
        console = _said()
        settings = bench.settings({**FOUR, "trainer.total_training_steps": 1, **changes})
        del settings["trainer.default_local_dir"]
        return gmpo.train(settings, rows=bench.rows, console=console), _text(console)

    base, second, third = (Path("checkpoints/gmpo") / name for name in ("run", "run-2", "run-3"))
    assert train({})[0].folder == base
    before = _content(base)
    run, said = train({"recipe": "gspo"})
    assert run.folder == second
    assert f"{base} holds another run" in said
    assert f"This run takes {second}." in said
    assert yaml.safe_load((second / "config.yaml").read_text())["trainer"]["default_local_dir"] == str(second)
    assert train({"trainer.resume_mode": "disable"})[0].folder == third
    # Each command again: its own run, and nothing is trained.
    for changes, folder in (({}, base), ({"recipe": "gspo"}, second)):
        again, said = train(changes)
        assert (again.folder, again.history) == (folder, ())
    # An unfinished one goes on where it is.
    longer = {"recipe": "gspo", "trainer.total_training_steps": 2}
    assert (train(longer)[0].folder, _record(second).steps) == (second, 2)
    # A validation of its own finds the run of these settings.
    validated, said = train({"recipe": "gspo", "trainer.val_only": True, "data.val_files": bench.write_rows()})
    assert (validated.folder, validated.steps) == (second, 2)
    assert _content(base) == before


def test_a_python_program_that_failed_before_anything_was_kept_does_not_own_the_folder(bench: Any) -> None:
    def fails(solution_str: str) -> float:
        raise ValueError("a mistake")

    with pytest.raises(gmpo.GmpoError):
        bench.train(reward=fails)
    record = _record(bench.folder / "run")
    assert (record.status, record.steps) == ("failed", 0)
    assert record.reason
    assert bench.train().finished


# Checkpoints that are lost, or older than what is there


def test_a_lost_latest_file_never_starts_over_existing_checkpoints(bench: Any, folder: Path) -> None:
    (folder / "latest_checkpointed_iteration.txt").unlink()
    console = _said()
    assert _steps(bench.train({**FOUR, "trainer.total_training_steps": 5}, console=console)) == [5]
    assert "latest_checkpointed_iteration.txt is missing; the newest complete checkpoint is global_step_4." in _text(
        console
    )


def test_a_kill_between_two_renames_costs_nothing(bench: Any, folder: Path) -> None:
    """The old checkpoint was put aside and the new one had not taken its place."""
    _unfinished(folder, steps=3)
    (folder / "global_step_3").rename(folder / ".unfinished_old_global_step_3")
    console = _said()
    assert _steps(bench.train(FOUR, console=console)) == [4]
    assert f"going on after step 3 from {folder / 'global_step_3'}" in _text(console)
    assert not list(folder.glob(".unfinished*"))


def test_checkpoints_that_are_all_lost_are_no_reason_to_begin_again_in_silence(bench: Any, folder: Path) -> None:
    _unfinished(folder)
    for step in (1, 2):
        shutil.rmtree(folder / f"global_step_{step}")
    with pytest.raises(CheckpointError, match=r"names step 2, but there is no complete global_step_N"):
        bench.train(FOUR)


def test_a_run_without_checkpoints_begins_again_and_says_what_is_replaced(bench: Any, folder: Path) -> None:
    _unfinished(folder)
    for step in (1, 2):
        shutil.rmtree(folder / f"global_step_{step}")
    (folder / "latest_checkpointed_iteration.txt").unlink()
    console = _said()
    assert _steps(bench.train(FOUR, console=console)) == [1, 2, 3, 4]
    assert "it begins again, and its records of steps 1 to 4 are replaced." in _text(console)


def test_an_earlier_checkpoint_of_the_same_folder_is_refused_with_what_would_be_lost(bench: Any, folder: Path) -> None:
    before = _content(folder)
    earlier = {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": str(folder / "global_step_2")}
    with pytest.raises(CheckpointError) as error:
        bench.train({**FOUR, **earlier})
    assert "would replace global_step_3, global_step_4 and the records of steps 3 to 4" in str(error.value)
    assert _content(folder) == before
    elsewhere = bench.train({**FOUR, **earlier}, run="elsewhere")
    assert _steps(elsewhere) == [3, 4]


def test_a_run_that_began_with_anothers_checkpoint_knows_it_and_goes_on_from_its_own(
    bench: Any, finished: Path
) -> None:
    origin = finished / "global_step_1"
    fork = {
        "trainer.resume_mode": "resume_path",
        "trainer.resume_from_path": str(origin),
        "trainer.save_freq": 1,
        f"{A}.optim.lr": 5e-3,
    }
    assert _steps(bench.train({**fork, "trainer.total_training_steps": 3}, run="fork")) == [2, 3]
    record = _record(bench.folder / "fork")
    assert (record.origin, record.legs[0].checkpoint, record.legs[0].start) == (str(origin), str(origin), 1)
    # Preempted and started by the same command, it does not go back to its origin.
    assert _steps(bench.train({**fork, "trainer.total_training_steps": 4}, run="fork")) == [4]
    other = {**fork, "trainer.resume_from_path": str(finished / "global_step_2")}
    with pytest.raises(ConfigError, match="which did not begin with"):
        bench.train(other, run="fork")


# A validation on its own


def test_a_validation_of_a_finished_folder_is_of_its_newest_checkpoint_and_moves_nothing(
    bench: Any, folder: Path
) -> None:
    before = _content(folder)
    held_out = story_rows(3, seed=1, split="test")
    only = {**FOUR, "trainer.val_only": True, "trainer.logger": ["tensorboard"]}
    for number in (1, 2):
        run = bench.train(only, val_rows=held_out, rows=None)  # no training problems are needed
        assert run.steps == 4
        after = _content(folder)
        assert {name: after[name] for name in before} == before
        assert all(name.startswith("val_only/") for name in after.keys() - before.keys())
        assert [place.name for place, _ in read_val_only(folder)] == [str(n) for n in range(1, number + 1)]
    assert (folder / "val_only" / "2" / "validation" / "4.jsonl").is_file()
    assert (folder / "val_only" / "2" / "config.yaml").is_file()


def test_a_validation_of_an_old_checkpoint_keeps_the_later_records_of_the_run(bench: Any, folder: Path) -> None:
    before = _content(folder)
    old = {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": str(folder / "global_step_2")}
    run = bench.train({**FOUR, **old, "trainer.val_only": True}, val_rows=bench.rows[:3])
    assert run.steps == 2
    after = _content(folder)
    assert {name: after[name] for name in before} == before
    assert _steps(bench.train({**FOUR, "trainer.total_training_steps": 5})) == [5]


def test_a_validation_never_scores_the_base_model_by_accident(bench: Any, folder: Path) -> None:
    for step in (1, 2, 3, 4):
        shutil.rmtree(folder / f"global_step_{step}")
    only = {**FOUR, "trainer.val_only": True}
    with pytest.raises(CheckpointError, match="without a checkpoint to validate"):
        bench.train(only, val_rows=bench.rows[:3])
    run = bench.train({**only, "trainer.resume_mode": "disable"}, val_rows=bench.rows[:3])
    assert run.steps == 0


# Supervised fine-tuning


@pytest.fixture
def supervised(bench: Any) -> dict[str, Any]:
    return {
        "model.path": str(bench.model),
        "data.train_batch_size": 8,
        "data.max_length": 96,
        "optim.lr": 1e-2,
        "trainer.total_training_steps": 3,
        "trainer.device": "cpu",
        "trainer.default_local_dir": str(bench.folder / "sft"),
        "trainer.logger": [],
    }


def test_a_second_fine_tuning_never_overwrites_a_finished_model(
    bench: Any, supervised: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, quiet = demonstration_rows(16, seed=0), Console(quiet=True)
    folder = gmpo.sft(supervised, rows=rows, console=quiet).folder
    assert (_record(folder).program, _record(folder).status) == ("sft", "finished")
    before, console = _content(folder), _said()
    again = gmpo.sft(supervised, rows=rows, console=console)
    assert (again.history, again.steps, again.finished) == ((), 3, True)
    assert "which is finished after 3 steps: nothing is left to do." in _text(console)
    for changes, listed in (
        ({"optim.lr": 1e-3}, "optim.lr: 0.01 -> 0.001"),
        ({"trainer.total_training_steps": 4}, "steps of the run: 3 -> 4"),
    ):
        with pytest.raises(ConfigError, match=listed):
            gmpo.sft({**supervised, **changes}, rows=rows, console=quiet)
    with pytest.raises(ConfigError, match=r"content of data\.train_files"):
        gmpo.sft(supervised, rows=demonstration_rows(16, seed=1), console=quiet)
    with pytest.raises(ConfigError, match=r"holds a run of `gmpo sft`"):
        bench.train(run="sft")
    assert _content(folder) == before
    monkeypatch.chdir(bench.folder)
    del supervised["trainer.default_local_dir"]
    names = [gmpo.sft({**supervised, "trainer.seed": n}, rows=rows, console=quiet).folder.name for n in (1, 2, 1)]
    assert names == ["sft", "sft-2", "sft"]


def test_an_interrupted_fine_tuning_goes_on_from_its_checkpoint(
    bench: Any, supervised: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = JsonLines.write

    def interrupting(self: JsonLines, step: int, metrics: Any) -> None:
        write(self, step, metrics)
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    rows = demonstration_rows(16, seed=0)
    with monkeypatch.context() as patched:
        patched.setattr(JsonLines, "write", interrupting)
        assert gmpo.sft(supervised, rows=rows, console=Console(quiet=True)).steps == 2
    record = _record(bench.folder / "sft")
    assert (record.status, record.reason, record.steps) == ("interrupted", "Ctrl-C or SIGTERM", 2)
    console = _said()
    assert gmpo.sft(supervised, rows=rows, console=console).finished
    assert f"going on after step 2 from {bench.folder / 'sft' / 'global_step_2'}" in _text(console)


# How a run ended


def test_an_interruption_a_failure_and_an_end_are_told_apart(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, write = bench.folder / "run", JsonLines.write
    signals: list[int] = [1, 1]

    def interrupting(self: JsonLines, step: int, metrics: Any) -> None:
        write(self, step, metrics)
        if step == 1:
            for _ in range(signals.pop()):
                os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(JsonLines, "write", interrupting)
        bench.train(FOUR)
    record = _record(folder)
    # The signal came when the first step was recorded, so the second was the last.
    assert (record.status, record.reason, record.steps) == ("interrupted", "Ctrl-C or SIGTERM", 2)

    def failing(self: JsonLines, step: int, metrics: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(JsonLines, "write", failing)
        with pytest.raises(gmpo.BackendError):
            bench.train(FOUR)
    record = _record(folder)
    assert record.status == "failed"
    assert "BackendError: cannot write the metrics of step 3: no space left" in record.reason
    # A checkpoint whose step has no metrics is none.
    assert _steps(bench.train(FOUR)) == [3, 4]
    record = _record(folder)
    assert (record.status, record.reason) == ("finished", "")
    assert [leg.status for leg in record.legs] == ["interrupted", "failed", "finished"]


# Places outside of the folder


def test_records_elsewhere_are_never_replaced_by_another_run(
    bench: Any, monkeypatch: pytest.MonkeyPatch, lines: Lines
) -> None:
    answers = {"trainer.rollout_data_dir": str(bench.folder / "answers")}
    bench.train({**FOUR, **answers, "trainer.total_training_steps": 2})
    before = _content(bench.folder / "answers")
    with pytest.raises(ConfigError, match=r"trainer\.rollout_data_dir=.*answers holds records already"):
        bench.train(answers, run="other")
    assert _content(bench.folder / "answers") == before
    bench.train({**FOUR, **answers, "trainer.total_training_steps": 3})  # its own run goes on there
    assert sorted(_content(bench.folder / "answers")) == ["1.jsonl", "2.jsonl", "3.jsonl"]

    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(bench.folder / "log.jsonl"))
    monkeypatch.setenv("TENSORBOARD_DIR", str(bench.folder / "events"))
    for logger, name in (("file", r"\$VERL_FILE_LOGGER_PATH"), ("tensorboard", r"\$TENSORBOARD_DIR")):
        bench.train({"trainer.logger": [logger]}, run=f"{logger}-1")
        with pytest.raises(ConfigError, match=f"{name}=.* holds records already"):
            bench.train({"trainer.logger": [logger]}, run=f"{logger}-2")
    assert [line["step"] for line in lines(bench.folder / "log.jsonl")] == [1, 2]


# Folders of an earlier version


def _as_before(folder: Path) -> dict[str, Any]:
    """Make it a folder as gmpo 0.1.0 left it, without run.json and legs; returns the paths of its settings."""
    record = _record(folder)
    (folder / "run.json").unlink()
    shutil.rmtree(folder / "legs")
    return {"custom_reward_function.path": record.execution["custom_reward_function.path"]}


def test_a_folder_of_an_earlier_version_goes_on_and_keeps_its_configuration(bench: Any, folder: Path) -> None:
    _unfinished(folder)
    same = {**FOUR, **_as_before(folder)}
    configuration = (folder / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=f"{A}.optim.lr: 0.01 -> 0.005"):
        bench.train({**same, f"{A}.optim.lr": 5e-3})
    other = bench.folder / "other"
    shutil.copytree(bench.model, other)
    with pytest.raises(ConfigError, match=f"{MODEL}.path: "):
        bench.train({**same, f"{MODEL}.path": str(other)})  # what lay there was not recorded
    console = _said()
    assert _steps(bench.train(same, console=console)) == [3, 4]
    assert "was written by gmpo 0.1.0 or earlier, which drew other random numbers: not bit-exact" in _text(console)
    first, second = _record(folder).legs
    assert (first.gmpo, first.steps, second.start, second.exact) == ("0.1.0", 4, 2, False)
    assert (folder / "legs" / "1" / "config.yaml").read_bytes() == configuration


def test_a_finished_folder_of_an_earlier_version_is_finished(bench: Any, folder: Path) -> None:
    same = {**FOUR, **_as_before(folder)}
    before = _content(folder)
    assert bench.train(same).history == ()
    assert _content(folder) == before


def test_settings_of_an_earlier_version_that_this_one_does_not_take_name_the_version_that_does(
    bench: Any, folder: Path
) -> None:
    _unfinished(folder)
    _as_before(folder)
    with (folder / "config.yaml").open("a") as file:
        file.write("forgotten:\n  key: 1\n")
    with pytest.raises(CheckpointError, match=r"gmpo 0\.1\.0 goes on with it") as error:
        bench.train(FOUR)
    assert "forgotten" in str(error.value)


def test_the_version_that_wrote_such_folders_is_an_earlier_one() -> None:
    assert gmpo.__version__ != OLD_VERSION


def test_a_run_whose_configuration_is_merely_missing_gets_advice_that_fits(bench: Any, folder: Path) -> None:
    _as_before(folder)
    (folder / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"neither run\.json nor config\.yaml") as error:
        bench.train(FOUR)
    assert "Bring one of them back" in str(error.value)
    assert OLD_VERSION not in str(error.value)
