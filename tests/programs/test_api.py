"""`gmpo.train` and `gmpo.sft` as Python calls: every form of settings and rewards, and what a run leaves behind."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

import gmpo
from gmpo.config import load
from gmpo.data.stories import story_rows
from gmpo.errors import ConfigError, DataError
from gmpo.records.run_folder import read_val_only
from gmpo.version import __version__

A, R = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
Lines = Callable[[Path], list[dict[str, Any]]]


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = value
    return tree


def test_every_form_of_settings_gives_the_same_run(bench: Any, same_run: Callable[[Path, Path, int], None]) -> None:
    """Dotted mapping, nested mapping, a mixture, `KEY=VALUE` words, a YAML file, and what `load` returned."""
    train_files = {"data.train_files": bench.write_rows()}

    def settings(run: str) -> dict[str, Any]:
        return bench.settings(train_files, run=run)

    file = bench.folder / "settings.yaml"
    file.write_text(yaml.safe_dump(_nested(settings("file"))))
    mixed = {**_nested(settings("mixed")), "data.train_batch_size": 4}
    del mixed["data"]["train_batch_size"]
    words = [f"{key}={value}" for key, value in settings("words").items()]
    forms = [settings("dotted"), _nested(settings("nested")), mixed, words, file, str(file), load(words)]
    runs = [gmpo.train(form, console=bench.console) for form in forms]
    assert all(isinstance(run, gmpo.Run) for run in runs)
    assert [run.folder.name for run in runs] == ["dotted", "nested", "mixed", "words", "file", "file", "words"]
    for run in runs[1:]:
        same_run(runs[0].folder, run.folder, 2)


def test_a_run_tells_where_everything_is_and_how_far_it_came(bench: Any) -> None:
    run = bench.train()
    assert run.folder == bench.folder / "run"
    assert run.model == run.folder / "huggingface"
    assert (run.steps, run.total_steps, run.finished) == (2, 2, True)
    assert [metrics["training/global_step"] for metrics in run.history] == [1, 2]


def test_the_model_loads_with_the_library_and_is_the_policy_that_was_trained(bench: Any) -> None:
    held_out = story_rows(2, seed=1, split="test")
    run = bench.train({"trainer.test_freq": 2, "trainer.val_before_train": False}, val_rows=held_out)
    model = AutoModelForCausalLM.from_pretrained(run.model)
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    samples = [json.loads(line) for line in (run.folder / "validation" / "2.jsonl").read_text().splitlines()]
    for sample in samples:
        ids = tokenizer.apply_chat_template(
            sample["input"], add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        greedy = model.generate(ids, max_new_tokens=8, do_sample=False)
        assert tokenizer.decode(greedy[0, ids.shape[1] :], skip_special_tokens=True) == sample["output"]


def test_the_run_folder_holds_settings_environment_metrics_samples_and_events(bench: Any, lines: Lines) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"trainer.logger": ["console", "tensorboard"], "trainer.test_freq": 2}
    run = bench.train(settings, val_rows=story_rows(3, seed=1, split="test"))
    assert load(file=run.folder / "config.yaml").config == load(tree=bench.settings(settings)).config
    environment = json.loads((run.folder / "environment.json").read_text())
    assert environment["gmpo"] == __version__
    assert environment["libraries"]["torch"] == torch.__version__

    metrics = lines(run.folder / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [0, 1, 2]
    assert [line["data"] for line in metrics] == [dict(m) for m in run.history]

    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    for name in ("critic/score/mean", "actor/log_ratio/q99.9"):
        written = [(event.step, event.value) for event in events.Scalars(name)]
        assert written == [(n, pytest.approx(metrics[n]["data"][name], rel=1e-6)) for n in (1, 2)]
    assert [event.step for event in events.Scalars("val/pass@1")] == [0, 2]

    assert [p.name for p in sorted((run.folder / "validation").iterdir())] == ["0.jsonl", "2.jsonl"]
    assert len(lines(run.folder / "validation" / "2.jsonl")) == 3
    assert {sample["problem"] for sample in lines(run.folder / "validation" / "0.jsonl")} == {
        "val_rows:1",
        "val_rows:2",
        "val_rows:3",
    }


def test_as_many_groups_are_kept_as_asked_and_token_records_have_one_entry_per_token(bench: Any, lines: Lines) -> None:
    run = bench.train({"trainer.sample_groups": 3, "trainer.token_record_groups": 2})
    samples = lines(run.folder / "samples" / "1.jsonl")
    assert len(samples) == 3 * 4
    assert [s["answer"] for s in samples] == [0, 1, 2, 3] * 3
    # Of the groups, token records go to those at even distances over the computed ones, the last included.
    assert [("response_ids" in s) for s in samples] == [False] * 4 + [True] * 8
    tokenizer = AutoTokenizer.from_pretrained(bench.model)
    for sample in samples[4:]:
        n = sample["tokens"]
        assert all(len(sample[name]) == n for name in ("response_ids", "rollout_logp", "old_logp", "advantage"))
        assert tokenizer.decode(sample["response_ids"], skip_special_tokens=True) == sample["output"]
        prompt = tokenizer.apply_chat_template(sample["input"], add_generation_prompt=True, return_dict=False)
        assert sample["prompt_ids"] == prompt
        assert sample["finish_reason"] == ("length" if sample["response_ids"][-1] != tokenizer.eos_token_id else "stop")
        # The sampler's log-probs and the learner's are of one model at temperature 1.
        assert sample["rollout_logp"] == pytest.approx(sample["old_logp"], abs=1e-4)
        assert len(set(sample["advantage"])) == 1
        for update in sample["updates"]:
            assert len(update["logp"]) == len(update["bound"]) == n
            assert set(update["bound"]) <= {0, 1}
    assert {s["verdict"] for s in samples} <= {"correct", "wrong"}
    assert all(s["gts"] and s["reason"] is None for s in samples)


def test_all_answers_go_to_the_folders_that_are_named_for_them(bench: Any, lines: Lines) -> None:
    settings = {
        "trainer.sample_groups": 0,
        "trainer.token_record_groups": 0,
        "trainer.rollout_data_dir": str(bench.folder / "all-training"),
        "trainer.validation_data_dir": str(bench.folder / "all-validation"),
        "trainer.test_freq": 1,
    }
    run = bench.train(settings, val_rows=story_rows(3, seed=1, split="test"))
    assert lines(run.folder / "samples" / "1.jsonl") == []
    assert lines(run.folder / "validation" / "1.jsonl") == []
    assert [len(lines(bench.folder / "all-training" / f"{n}.jsonl")) for n in (1, 2)] == [16, 16]
    assert [len(lines(bench.folder / "all-validation" / f"{n}.jsonl")) for n in (0, 1, 2)] == [3, 3, 3]


def test_a_reward_may_be_a_lambda_a_closure_or_a_function_of_trls_signature(bench: Any, lines: Lines) -> None:
    """Right is an answer with an odd digit: about half of a fresh model's."""
    odd = set("13579")

    def closure(solution_str: str) -> float:
        return float(bool(odd & set(solution_str.split())))

    def trl(prompts: list[Any], completions: list[Any], index: list[int], **columns: Any) -> list[float]:
        assert len(set(index)) == 1, "one call gets the answers to one problem"
        return [float(bool(odd & set(c[0]["content"].split()))) for c in completions]

    rewards = {
        "lambda": lambda data_source, solution_str, ground_truth, extra_info: bool(odd & set(solution_str.split())),
        "closure": closure,
        "trl": trl,
    }
    scores = {}
    for name, reward in rewards.items():
        run = bench.train({"trainer.sample_groups": -1}, run=name, reward=reward)
        samples = lines(run.folder / "samples" / "1.jsonl")
        assert all(s["reward"] == closure(s["output"]) for s in samples)
        assert all(s["verdict"] == ("correct" if s["reward"] else "wrong") for s in samples)
        scores[name] = [m["critic/score/mean"] for m in run.history]
    assert 0 < scores["lambda"][0] < 1
    assert scores["lambda"] == scores["closure"] == scores["trl"]


def test_without_a_function_the_data_source_chooses_the_scorer(bench: Any, lines: Lines) -> None:
    run = bench.train({"custom_reward_function.path": None, "trainer.sample_groups": -1})
    for sample in lines(run.folder / "samples" / "1.jsonl"):
        assert sample["data_source"] == "gmpo/stories"
        assert sample["verdict"] == ("unparsed" if sample["pred"] is None else "wrong")


def test_rows_are_counted_like_files(bench: Any, lines: Lines) -> None:
    """data.train_max_samples chooses among rows as it does among those of a file."""
    limit = {"data.train_max_samples": 4, "data.val_max_samples": 2, "trainer.sample_groups": -1}
    held_out = story_rows(5, seed=1, split="test")
    by_rows = bench.train(limit, run="rows", val_rows=held_out)
    files = {"data.train_files": bench.write_rows(), "data.val_files": bench.write_rows(held_out, "val.parquet")}
    by_files = bench.train({**limit, **files}, run="files", rows=None)
    asked = [
        [{s["output"] for s in lines(run.folder / "samples" / f"{n}.jsonl")} for n in (1, 2)]
        for run in (by_rows, by_files)
    ]
    assert asked[0] == asked[1]
    numbers = [{s["problem"].split(":")[1] for s in lines(by_rows.folder / "samples" / f"{n}.jsonl")} for n in (1, 2)]
    assert len(numbers[0]) == 4
    assert numbers[0] == numbers[1]
    assert by_rows.history[0]["val/problems"] == by_files.history[0]["val/problems"] == 2


def test_validation_alone_reports_on_the_newest_checkpoint_and_trains_nothing(bench: Any, lines: Lines) -> None:
    held_out = story_rows(4, seed=1, split="test")
    trained = bench.train({"trainer.save_freq": 1, "trainer.test_freq": 2}, val_rows=held_out)
    before = {p: p.read_bytes() for p in trained.folder.rglob("*.safetensors")}
    again = bench.train({"trainer.val_only": True}, val_rows=held_out)
    (metrics,) = again.history
    assert metrics["training/global_step"] == again.steps == 2
    last = trained.history[-1]
    assert all(metrics[name] == value for name, value in last.items() if name.startswith("val"))
    assert {p: p.read_bytes() for p in trained.folder.rglob("*.safetensors")} == before
    assert [line["step"] for line in lines(trained.folder / "metrics.jsonl")] == [0, 1, 2]
    ((place, recorded),) = read_val_only(trained.folder)
    assert (place, recorded.step) == (trained.folder / "val_only" / "1", 2)
    assert recorded.values == metrics

    fresh = bench.train({"trainer.val_only": True}, run="fresh", val_rows=held_out)
    assert fresh.steps == 0
    assert fresh.history[0]["val/response_length/mean"] == trained.history[0]["val/response_length/mean"]


def test_settings_that_this_version_cannot_run_are_refused_before_anything_is_made(bench: Any) -> None:
    with pytest.raises(ConfigError, match=r"this version cannot run them:\n  actor_rollout_ref.rollout.name"):
        bench.train({f"{R}.name": "vllm"})
    assert not (bench.folder / "run").exists()


def test_a_wrong_data_source_or_reward_is_known_before_the_first_answer(bench: Any) -> None:
    strange = [{**row, "data_source": "nobody/knows"} for row in bench.rows]
    with pytest.raises(DataError, match="No scorer for data_source 'nobody/knows'"):
        bench.train({"custom_reward_function.path": None}, rows=strange)
    with pytest.raises(ConfigError, match="must have a parameter solution_str"):
        bench.train(reward=lambda text: 1.0)
    lock = threading.Lock()
    with pytest.raises(ConfigError, match="cannot be sent to a grading worker"):
        bench.train(reward=lambda solution_str: float(lock.locked()))
    assert not list(bench.folder.glob("run/*.json*"))


def test_a_bracket_in_a_path_is_a_bracket(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Rich would read `[/b]` as markup and fail on it."""
    run = bench.train({"trainer.logger": ["console"]}, run="[red] runs [/b]", console=Console(width=200))
    assert run.finished
    assert f"-> {run.folder}" in capsys.readouterr().out


def test_progress_is_one_line_a_step_where_there_is_no_terminal(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"trainer.logger": ["console"], "trainer.total_training_steps": 4, "trainer.log_val_generations": 1}
    run = bench.train(settings, console=Console(width=200), val_rows=story_rows(2, seed=1, split="test"))
    out = capsys.readouterr().out
    assert "12 problems, 2 for validation; " in out
    assert "4 steps of 4 x 4 answers and 2 updates" in out
    for step, epoch in ((1, 1), (2, 1), (3, 1), (4, 2)):
        score = run.history[step]["critic/score/mean"]
        assert f"step:{step}/4 - epoch {epoch} of 2 - " in out
        assert f"critic/score/mean:{score:.3g}" in out
    assert "validation after step 0: " in out
    assert not math.isnan(score)
