"""Rewards through whole runs: DAPO's penalty, several weighted rewards, from the configuration and from Python."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from gmpo.errors import ConfigError, DataError, GradingError

BREVITY = '''"""Fewer words, more reward."""


def brevity(data_source, solution_str, ground_truth, extra_info, scale=1.0):
    return -scale * len(solution_str.split())
'''


def digits(data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any]) -> float:
    return sum(word.isdigit() for word in solution_str.split()) / 8


def words(data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any]) -> float:
    return float(len(solution_str.split()))


def test_the_penalty_lowers_rewards_and_leaves_scores_and_accuracy_alone(
    bench: Any, lines: Callable[[Path], list[dict[str, Any]]]
) -> None:
    buffer = "reward_model.reward_kwargs.overlong_buffer_cfg"
    own = {
        "reward_model.reward_manager": "dapo",
        f"{buffer}.enable": True,
        f"{buffer}.len": 4,
        "trainer.sample_groups": -1,
    }
    run = bench.train({**own, "trainer.test_freq": 1}, val_rows=bench.rows[:2])
    samples = lines(run.folder / "samples" / "1.jsonl")
    for sample in samples:  # at most 8 tokens: the penalty begins behind the fourth
        penalty = min(0.0, -(sample["tokens"] - 4) / 4)
        assert sample["reward_parts"]["overlong_penalty"] == penalty
        assert sample["reward"] == pytest.approx(sample["score"] + penalty)
    steps = [metrics for metrics in run.history if "critic/score/mean" in metrics]
    mean = sum(sample["reward_parts"]["overlong_penalty"] for sample in samples) / len(samples)
    assert steps[0]["reward_parts/overlong_penalty/mean"] == pytest.approx(mean)
    assert steps[0]["critic/rewards/mean"] == pytest.approx(steps[0]["critic/score/mean"] + mean, abs=1e-6)
    accuracy = steps[0]["val-core/gmpo/stories/acc/mean@1"]
    assert accuracy == steps[0]["val/pass@1"]
    validated = [sample["reward"] for sample in lines(run.folder / "validation" / "1.jsonl")]
    assert steps[0]["val-aux/gmpo/stories/reward/mean@1"] == pytest.approx(sum(validated) / len(validated))


def test_several_functions_are_added_with_their_weights(bench: Any) -> None:
    own = {"custom_reward_function.path": None}
    run = bench.train(own, reward=[digits, words], reward_weights=[2.0, -0.25])
    for metrics in run.history:
        parts = metrics["reward_parts/main/mean"], metrics["reward_parts/words_2/mean"]
        assert metrics["critic/rewards/mean"] == pytest.approx(2.0 * parts[0] - 0.25 * parts[1], abs=1e-6)
        assert metrics["critic/score/mean"] == pytest.approx(parts[0], abs=1e-6)
    with pytest.raises(ConfigError, match="1 reward_weights are given for 2 reward functions"):
        bench.train(own, reward=[digits, words], reward_weights=[2.0])


def test_a_further_reward_comes_from_a_file_with_a_label_and_arguments(bench: Any) -> None:
    file = bench.folder / "brevity.py"
    file.write_text(BREVITY)
    entry = {"path": str(file), "name": "brevity", "label": "short", "weight": 0.1, "reward_kwargs": {"scale": 3.0}}
    metrics = bench.train({"reward_model.extra_rewards": [entry]}).history[0]
    assert metrics["reward_parts/short/mean"] < -3
    expected = metrics["reward_parts/main/mean"] + 0.1 * metrics["reward_parts/short/mean"]
    assert metrics["critic/rewards/mean"] == pytest.approx(expected, abs=1e-6)


def rows_of(bench: Any, *truths: str) -> list[dict[str, Any]]:
    """The bench's problems under another data source and with other references."""
    pairs = zip(bench.rows, truths, strict=False)
    return [{**row, "data_source": "anything", "reward_model": {"ground_truth": truth}} for row, truth in pairs]


NO_FILE = {"custom_reward_function.path": None}


def test_references_that_cannot_be_met_stop_a_run_before_anything_is_sampled(bench: Any) -> None:
    rows = rows_of(bench, "1", "2", "None", "nan")
    with pytest.raises(
        DataError, match=r"2 of 4 reference answers.*\n  rows:3 \(anything\): 'None' is wrong\n  rows:4"
    ):
        bench.train({**NO_FILE, "reward_model.scorer": "math_verify"}, rows=rows)
    assert not list(bench.folder.glob("**/metrics.jsonl"))


def test_a_source_without_a_scorer_may_be_given_one_and_a_setting_without_effect_is_refused(bench: Any) -> None:
    rows = rows_of(bench, *map(str, range(8)))
    with pytest.raises(DataError, match=r"No scorer for data_source 'anything'"):
        bench.train(NO_FILE, rows=rows)
    with pytest.raises(ConfigError, match=r"reward_model\.scorers names elsewhere"):
        bench.train({**NO_FILE, "reward_model.scorers": {"elsewhere": "math", "anything": "math"}}, rows=rows)
    with pytest.raises(ConfigError, match=r"reward_model\.require=boxed has no effect"):
        bench.train({**NO_FILE, "reward_model.scorer": "math", "reward_model.require": "boxed"}, rows=rows)
    run = bench.train({**NO_FILE, "reward_model.scorers": {"anything": "math_verify"}}, rows=rows)
    assert run.history[0]["reward/unparsed_share"] + run.history[0]["reward/wrong_share"] > 0


FAILS_LATER = '''"""Grades the first step's 16 answers, and no other."""

import pathlib


def compute_score(data_source, solution_str, ground_truth, extra_info):
    metrics = pathlib.Path(__file__).with_name("run") / "metrics.jsonl"
    if metrics.exists() and metrics.read_text():
        raise ConnectionError("no judge")
    return float(len(solution_str) % 7)
'''


def test_a_grading_that_fails_keeps_the_steps_that_are_done_and_the_answers(
    bench: Any, lines: Callable[[Path], list[dict[str, Any]]]
) -> None:
    """In the second step of three, without `save_freq`: a checkpoint of the first, and 16 answers with what was "
    "said."""
    function = bench.folder / "fails.py"
    function.write_text(FAILS_LATER)
    changes = {"custom_reward_function.path": str(function), "trainer.total_training_steps": 3}
    with pytest.raises(GradingError, match="16 of 16 answers") as raised:
        bench.train(changes)
    folder = bench.folder / "run"
    assert str(folder / "samples" / "2.failed.jsonl") in str(raised.value)
    assert f"{folder / 'global_step_1'} holds the run after step 1;" in str(raised.value)
    kept = lines(folder / "samples" / "2.failed.jsonl")
    assert [line["step"] for line in kept] == [2] * 16
    assert all("no judge" in line["reason"] and line["input"] for line in kept)
    function.write_text(FAILS_LATER.replace("metrics.exists()", "False"))
    gone_on = bench.train({**changes, "trainer.allow_changed_config": True})
    assert gone_on.steps == 3
    assert len(gone_on.history) == 2, "the first step is not made again"


# --- special tokens


@pytest.fixture
def tagged(bench: Any) -> tuple[Any, tuple[str, str]]:
    """A bench whose tokenizer calls two words of the stories special."""
    model = bench.folder / "tagged"
    shutil.copytree(bench.model, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tags = ("many", "has")
    ids = tokenizer.convert_tokens_to_ids(list(tags))
    tokenizer.add_special_tokens({"additional_special_tokens": list(tags)})
    assert tokenizer.convert_tokens_to_ids(list(tags)) == ids
    tokenizer.save_pretrained(model)
    return replace(bench, model=model, console=Console(file=StringIO(), width=400)), tags


SCORED = {
    "custom_reward_function.path": None,
    "trainer.sample_groups": -1,
    "trainer.token_record_groups": 4,
    "trainer.total_training_steps": 1,
}


@pytest.mark.parametrize("skip", [True, False])
def test_what_is_graded_has_special_tokens_where_it_is_asked_for(tagged: Any, lines: Any, skip: bool) -> None:
    bench, tags = tagged
    run = bench.train({**SCORED, "reward_model.skip_special_tokens": skip, "reward_model.thinking_tags": tags})
    tokenizer = AutoTokenizer.from_pretrained(bench.model)
    ids, said = set(tokenizer.convert_tokens_to_ids(list(tags))), bench.console.file.getvalue()
    samples = lines(run.folder / "samples" / "1.jsonl")
    sampled = [sample for sample in samples if ids & set(sample["response_ids"])]
    assert sampled
    assert all(any(tag in sample["output"] for tag in tags) is not skip for sample in sampled)
    assert all(tokenizer.eos_token not in sample["output"] for sample in samples), "the token that ends is no text"
    assert ("warning: many and has: special tokens of the tokenizer" in said) is skip


def test_thinking_that_is_asked_for_and_cannot_be_seen_is_refused(tagged: Any) -> None:
    bench, tags = tagged
    own = {**SCORED, "reward_model.thinking_tags": tags}
    with pytest.raises(ConfigError, match=r"thinking=require has no effect\. many and has: special tokens .* Set "):
        bench.train({**own, "reward_model.thinking": "require"})
    bench.train({**own, "reward_model.thinking": "ignore"}, run="ignored")
    assert "special tokens" not in bench.console.file.getvalue()
