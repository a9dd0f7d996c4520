"""What the metrics say is what the samples show, and every sink tells it once."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gmpo
from gmpo.data.problems import Problem
from gmpo.errors import BackendError, ConfigError
from gmpo.ports import Update
from gmpo.records.batch import collate
from gmpo.records.rollout import Completion, Graded, Group
from gmpo.records.run_folder import Leg, RunRecord, read_run
from gmpo.rewards.verdict import Grade, Verdict
from gmpo.tracking.environment import environment
from gmpo.tracking.folder import RunFolder
from gmpo.tracking.sinks import SINKS, JsonLines, RunInfo
from gmpo.tracking.tracker import RunTracker, SamplePolicy, SampleWriter

A = "actor_rollout_ref.actor"
Lines = Callable[[Path], list[dict[str, Any]]]

THREE_VERDICTS = '''"""Correct with an odd digit, wrong with even ones alone; without any digit the function fails."""


def compute_score(data_source, solution_str, ground_truth, extra_info):
    digits = [int(word) for word in solution_str.split() if word.isdigit()]
    if not digits:
        raise ValueError("no digit at all")
    odd = sum(digit % 2 for digit in digits)
    return {"score": 2.0 * odd, "acc": odd > 0, "pred": str(digits[-1])}
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, new_bench: Callable[[Path], Any]) -> gmpo.Run:
    """Three steps of four updates under tight bounds, so that many tokens are cut, with complete records."""
    bench = new_bench(tmp_path_factory.mktemp("tracking"))
    file = bench.folder / "reward.py"
    file.write_text(THREE_VERDICTS)
    settings = {
        "custom_reward_function.path": str(file),
        "reward_model.max_failed_share": 1.0,
        f"{A}.ppo_mini_batch_size": 1,
        f"{A}.clip_ratio": 0.02,
        "trainer.total_training_steps": 3,
        "trainer.sample_groups": -1,
        "trainer.token_record_groups": 4,
    }
    return bench.train(settings)


@pytest.fixture(scope="module")
def steps(run: gmpo.Run, lines: Lines) -> list[tuple[Any, list[dict[str, Any]]]]:
    """Metrics and samples of each step."""
    return [(m, lines(run.folder / "samples" / f"{n}.jsonl")) for n, m in enumerate(run.history, start=1)]


def test_scores_rewards_and_lengths_are_those_of_the_samples(steps: Any) -> None:
    for metrics, samples in steps:
        assert len(samples) == 16
        for name, values in {
            "critic/score": [s["score"] for s in samples],
            "critic/rewards": [s["reward"] for s in samples],
            "response_length": [s["tokens"] for s in samples],
            "prompt_length": [len(s["prompt_ids"]) for s in samples],
            "critic/advantages": [a for s in samples for a in s["advantage"]],
        }.items():
            assert metrics[f"{name}/mean"] == pytest.approx(np.mean(values), abs=1e-6)
            assert metrics[f"{name}/max"] == pytest.approx(max(values), abs=1e-6)
            assert metrics[f"{name}/min"] == pytest.approx(min(values), abs=1e-6)
        cut = [s["finish_reason"] == "length" for s in samples]
        assert metrics["response_length/clip_ratio"] == np.mean(cut)
        assert metrics["perf/total_num_tokens"] == sum(len(s["prompt_ids"]) + s["tokens"] for s in samples)


def test_verdicts_are_counted_and_every_failure_keeps_its_reason(steps: Any) -> None:
    seen = set()
    for metrics, samples in steps:
        for verdict in ("correct", "wrong", "unparsed", "timeout", "grader_error"):
            count = sum(s["verdict"] == verdict for s in samples)
            assert metrics[f"reward/{verdict}"] == count
            assert metrics[f"reward/{verdict}_share"] == count / 16
        seen |= {s["verdict"] for s in samples}
        assert all("no digit at all" in s["reason"] for s in samples if s["verdict"] == "grader_error")
    assert seen == {"correct", "wrong", "grader_error"}


def test_advantages_are_the_group_relative_rewards(steps: Any) -> None:
    for metrics, samples in steps:
        constant = 0
        for start in range(0, 16, 4):
            rewards = [s["reward"] for s in samples[start : start + 4]]
            spread = np.std(rewards, ddof=1)
            constant += spread == 0
            for sample, reward in zip(samples[start : start + 4], rewards, strict=True):
                expected = (reward - np.mean(rewards)) / (spread + 1e-6)
                assert sample["advantage"] == pytest.approx([expected] * sample["tokens"], abs=1e-5)
        assert metrics["rollout/zero_variance_groups"] == constant / 4


def test_log_ratios_and_clip_shares_are_those_of_the_token_records(steps: Any) -> None:
    """Pooled over the updates of the step, over the responses that an update computed: those with an advantage."""
    cut_anywhere = 0
    for metrics, samples in steps:
        ratios: list[float] = []
        bound: dict[bool, list[int]] = {True: [], False: []}
        sequence_ratios = []
        for sample in samples:
            positive = sample["advantage"][0] > 0
            for update in sample["updates"]:
                d = [new - old for new, old in zip(update["logp"], sample["old_logp"], strict=True)]
                ratios += d
                bound[positive] += update["bound"]
                held = [x > 0.02 if positive else x < -0.02 for x in d]
                assert update["bound"] == [int(h) for h in held]
                bounded = [min(x, 0.02) if positive else max(x, -0.02) for x in d]
                sequence_ratios.append(math.exp(sum(bounded) / len(bounded)))
        assert metrics["actor/log_ratio/min"] == pytest.approx(min(ratios), abs=1e-6)
        assert metrics["actor/log_ratio/max"] == pytest.approx(max(ratios), abs=1e-6)
        assert metrics["actor/log_ratio/q50"] == pytest.approx(np.quantile(ratios, 0.5), abs=1e-6)
        assert metrics["actor/ppo_kl"] == pytest.approx(-np.mean(ratios), abs=1e-6)
        assert metrics["actor/clip_share/positive"] == pytest.approx(np.mean(bound[True] or [0]))
        assert metrics["actor/clip_share/negative"] == pytest.approx(np.mean(bound[False] or [0]))
        both = metrics["actor/pg_clipfrac"] + metrics["actor/pg_clipfrac_lower"]
        assert both == pytest.approx(np.mean(bound[True] + bound[False]))
        assert metrics["actor/seq_ratio/mean"] == pytest.approx(np.mean(sequence_ratios), rel=1e-5)
        cut_anywhere += sum(bound[True] + bound[False])
    assert cut_anywhere > 20


def test_verls_metric_names_are_there(run: gmpo.Run) -> None:
    names = set(run.history[-1])
    assert {
        "actor/entropy",
        "actor/grad_norm",
        "actor/lr",
        "actor/pg_clipfrac",
        "actor/pg_clipfrac_lower",
        "actor/pg_loss",
        "actor/ppo_kl",
        "critic/advantages/max",
        "critic/advantages/mean",
        "critic/advantages/min",
        "critic/rewards/mean",
        "critic/score/max",
        "critic/score/mean",
        "critic/score/min",
        "perf/cpu_memory_used_gb",
        "perf/throughput",
        "perf/time_per_step",
        "perf/total_num_tokens",
        "prompt_length/clip_ratio",
        "prompt_length/mean",
        "response_length/clip_ratio",
        "response_length/mean",
        "timing_s/adv",
        "timing_s/gen",
        "timing_s/old_log_prob",
        "timing_s/reward",
        "timing_s/step",
        "timing_s/update_actor",
        "timing_s/update_weights",
        "training/epoch",
        "training/global_step",
        "training/rollout_probs_diff_max",
    } <= names
    # What shows the geometric mean at work.
    assert {f"actor/log_ratio/{q}" for q in ("q0.1", "q1", "q50", "q99", "q99.9", "min", "max", "var_within")} <= names
    assert {"actor/ess", "actor/seq_ratio/min", "actor/seq_ratio/max", "rollout/zero_variance_groups"} <= names


def test_the_phases_of_a_step_add_up_to_its_time(run: gmpo.Run) -> None:
    for metrics in run.history:
        phases = [v for k, v in metrics.items() if k.startswith("timing_s/") and k != "timing_s/step"]
        assert all(seconds >= 0 for seconds in phases)
        assert sum(phases) <= metrics["timing_s/step"] * 1.001
        assert metrics["perf/throughput"] == metrics["perf/total_num_tokens"] / metrics["timing_s/step"]


def test_a_resumed_file_of_metrics_drops_what_happens_again_and_a_line_that_was_cut_short(
    tmp_path: Path, lines: Lines
) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.start(0)
    for step in range(4):
        sink.write(step, {"x": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "da')
    sink.start(2)
    sink.write(3, {"x": 30})
    assert [(line["step"], line["data"]["x"]) for line in lines(tmp_path / "metrics.jsonl")] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 30),
    ]


def test_a_resumed_run_overwrites_its_events_beyond_the_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = SINKS["tensorboard"](RunInfo(tmp_path, "p", "e", {}))
    for first, last, value in ((0, 5, 1.0), (3, 4, 2.0)):
        sink.start(first)
        for step in range(first + 1 if first else 0, last + 1):
            sink.write(step, {"x": value})
        sink.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("x")
    assert [(event.step, event.value) for event in events] == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]


RUN = RunRecord("train", "running", 0, 4, identity={}, execution={}, bookkeeping={}, idle={}, content={})
LEG = Leg(number=0, start=0, steps=0, status="running")


def _environment(**changes: Any) -> dict[str, Any]:
    return {**environment("cpu", {}), **changes}


def test_a_resumed_folder_drops_samples_beyond_the_step_and_keeps_the_others(tmp_path: Path) -> None:
    for kind, steps in (("samples", (1, 2, 3, 10)), ("validation", (0, 2, 4))):
        (tmp_path / kind).mkdir()
        for step in steps:
            (tmp_path / kind / f"{step}.jsonl").touch()
    RunFolder(tmp_path, RUN, LEG, config="", environment=_environment(), say=print).start(2)
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["1.jsonl", "2.jsonl"]
    assert sorted(p.name for p in (tmp_path / "validation").iterdir()) == ["0.jsonl", "2.jsonl"]


def test_every_leg_keeps_its_settings_and_environment_and_a_changed_machine_is_said(tmp_path: Path) -> None:
    said: list[str] = []

    def leg(config: str, step: int, **machine: Any) -> RunRecord:
        known = read_run(tmp_path) or RUN
        folder = RunFolder(tmp_path, known, LEG, config=config, environment=_environment(**machine), say=said.append)
        folder.start(step)
        folder.write(step + 1, {})
        folder.end("interrupted", "a signal")
        written = read_run(tmp_path)
        assert written is not None
        return written

    leg("a: 1", 0)
    assert said == []
    record = leg("a: 2", 1, torch_threads=64, platform="another kernel")
    assert [(k.number, k.start, k.steps, k.status, k.exact) for k in record.legs] == [
        (1, 0, 1, "interrupted", True),
        (2, 1, 2, "interrupted", False),
    ]
    assert [d.key for d in record.legs[1].differences] == ["torch_threads"]
    assert "torch_threads: 1 -> 64" in said[0]
    for place, config, threads in (("legs/1", "a: 1", 1), ("legs/2", "a: 2", 64), (".", "a: 2", 64)):
        assert (tmp_path / place / "config.yaml").read_text() == config
        assert json.loads((tmp_path / place / "environment.json").read_text())["torch_threads"] == threads


def test_a_leg_that_never_began_leaves_no_trace(tmp_path: Path) -> None:
    RunFolder(tmp_path, RUN, LEG, config="", environment={}, say=print).end("failed", "no model")
    assert list(tmp_path.iterdir()) == []


def test_the_file_logger_goes_where_verls_environment_variables_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Lines
) -> None:
    info = RunInfo(tmp_path / "run", "project", "experiment", {})
    places = []
    for variables in ({}, {"VERL_FILE_LOGGER_ROOT": "root"}, {"VERL_FILE_LOGGER_PATH": "exact.jsonl"}):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(tmp_path / value))
        sink = SINKS["file"](info)
        sink.start(0)
        sink.write(1, {"x": 1.0})
        places.append([p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*.jsonl"))])
    assert places[0] == ["run/experiment.jsonl"]
    assert places[1] == ["root/project/experiment.jsonl", "run/experiment.jsonl"]
    assert places[2] == ["exact.jsonl", "root/project/experiment.jsonl", "run/experiment.jsonl"]
    assert lines(tmp_path / "exact.jsonl") == [{"step": 1, "data": {"x": 1.0}}]


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_a_logger_that_is_not_installed_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"pip install 'gmpo\[{package}\]'"):
        SINKS[package](RunInfo(tmp_path, "p", "e", {}))


def test_loggers_of_wandbs_interface_get_project_settings_and_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that stands in for the service, which cannot run in a test."""
    module = tmp_path / "wandb.py"
    module.write_text(
        "calls = []\n"
        "def init(**k): calls.append(('init', k))\n"
        "def log(m, step): calls.append(('log', step, m))\n"
        "def finish(): calls.append(('finish',))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    sink = SINKS["wandb"](RunInfo(tmp_path, "p", "e", {"a": 1}))
    sink.start(0)
    sink.write(1, {"x": 2.0})
    sink.close()
    calls = sys.modules["wandb"].calls
    monkeypatch.delitem(sys.modules, "wandb")
    expected = [("init", {"project": "p", "name": "e", "config": {"a": 1}}), ("log", 1, {"x": 2.0}), ("finish",)]
    assert calls == expected


def test_every_sink_is_closed_even_when_one_fails(tmp_path: Path) -> None:
    closed = []

    class Sink:
        def __init__(self, name: str) -> None:
            self.name = name

        def close(self) -> None:
            closed.append(self.name)
            if self.name == "second":
                raise OSError(28, "No space left on device")

    writer = SampleWriter(tmp_path, SamplePolicy(0, 0), all_training=None, all_validation=None)
    tracker = RunTracker([Sink("first"), Sink("second"), Sink("third")], writer)  # type: ignore[list-item]
    with pytest.raises(BackendError, match="No space left on device"):
        tracker.close()
    assert sorted(closed) == ["first", "second", "third"]


def test_a_text_that_is_half_a_character_is_kept_as_its_escape(bench: Any, lines: Lines) -> None:
    def reward(solution_str: str) -> dict[str, Any]:
        return {"score": 1.0, "pred": "\ud800 é"}

    run = bench.train({"trainer.total_training_steps": 1}, reward=reward)
    raw = (run.folder / "samples" / "1.jsonl").read_text(encoding="utf-8")
    assert "é" in raw
    assert json.loads(raw.splitlines()[0])["pred"] == "\ud800 é"


def test_the_token_record_of_an_answer_with_a_tool_has_all_its_tokens_and_says_which_were_sampled(
    tmp_path: Path, lines: Lines
) -> None:
    """The second answer's third token is a tool's; its fifth, the last that the policy sampled, was cut."""
    grade = Grade(Verdict.WRONG, 0.0)
    own = Completion([4, 5], [-1.0, -2.0], "stop", (0, 0))  # type: ignore[arg-type]
    mixed = Completion([6, 7, 8, 9, 10], [-1.0] * 5, "stop", (0, 0), [True, True, False, True, True])  # type: ignore[arg-type]
    problem = Problem("p", ({"role": "user", "content": "?"},), "s", "1")
    group = Group(problem, (1, 2), (Graded(own, "", grade, 0.0), Graded(mixed, "", grade, 0.0)))
    batch = collate([group], pad_id=0)
    logp = torch.tensor([[-0.5, -0.5, 0.0, -0.5, -0.25]])
    held = torch.tensor([[False, False, False, False, True]])
    update = Update(
        rows=torch.tensor([1]),
        logp=logp,
        clipped=held,
        clipped_lower=torch.zeros_like(held),
        sequence_ratio=torch.ones(1),
        capped=torch.zeros(1, dtype=torch.bool),
        scalars={},
        skipped=False,
    )
    SampleWriter(tmp_path, SamplePolicy(1, 1), all_training=None, all_validation=None).training(
        7, [group], batch, [batch], [update]
    )
    first, second = lines(tmp_path / "samples" / "7.jsonl")
    assert "sampled" not in first, "all of them"
    assert second["tokens"] == 5
    assert second["response_ids"] == [6, 7, 8, 9, 10]
    assert second["sampled"] == [1, 1, 0, 1, 1]
    assert second["rollout_logp"] == [-1.0, -1.0, 0.0, -1.0, -1.0]
    assert second["updates"] == [{"update": 0, "logp": [-0.5, -0.5, 0.0, -0.5, -0.25], "bound": [0, 0, 0, 0, 1]}]
