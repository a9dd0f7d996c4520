"""Validation figures on groups that a reader can count, and validation of a real policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from gmpo.data.problems import Problem
from gmpo.data.stories import story_rows
from gmpo.metrics.validation import validation_metrics
from gmpo.records.rollout import Completion, Graded, Group
from gmpo.rewards.verdict import Grade, Verdict

R = "actor_rollout_ref.rollout"
Lines = Callable[[Path], list[dict[str, Any]]]
RIGHT, WRONG = (Verdict.CORRECT, "42"), (Verdict.WRONG, "41")
NONE, SLOW = (Verdict.UNPARSED, None), (Verdict.TIMEOUT, None)


def _group(*answers: tuple[Verdict, str | None], source: str = "s", length: int = 3) -> Group:
    """Answers by verdict and prediction; a correct one has score 1."""
    graded = []
    for verdict, pred in answers:
        correct = verdict is Verdict.CORRECT
        extra = {"acc": int(correct), "style": "terse"} if verdict is not Verdict.TIMEOUT else {}
        grade = Grade(verdict, float(correct), pred, extra, "too slow" if verdict is Verdict.TIMEOUT else None)
        completion = Completion((7,) * length, (0.0,) * length, "stop", (0, 0))
        graded.append(Graded(completion, "", grade, float(correct)))
    return Group(Problem("p", ({"role": "user", "content": "?"},), source, "42"), (5,), tuple(graded))


def _draws(answers: Sequence[Any], k: int) -> list[tuple[Any, ...]]:
    return list(product(answers, repeat=k))


def test_one_answer_per_problem_gives_the_mean_under_verls_name_and_no_estimate_that_needs_more() -> None:
    metrics = validation_metrics([_group(RIGHT), _group(WRONG), _group(RIGHT), _group(NONE)])
    assert metrics["val-core/s/acc/mean@1"] == 0.5
    assert metrics["val-aux/s/reward/mean@1"] == 0.5
    assert metrics["val-core/s/pass@1"] == metrics["val/pass@1"] == 0.5
    assert not any(word in name for name in metrics for word in ("best@", "worst@", "maj@", "std@"))


def test_best_worst_and_majority_of_four_are_means_over_all_draws_with_replacement() -> None:
    """One problem with answers 42, 42, 41 and 7: best of k is right unless every draw is wrong."""
    answers = [RIGHT, RIGHT, WRONG, (Verdict.WRONG, "7")]
    metrics = validation_metrics([_group(*answers)])
    correct = [1, 1, 0, 0]
    for k in (2, 4):
        draws = _draws(range(4), k)
        best = sum(max(correct[i] for i in draw) for draw in draws) / len(draws)
        worst = sum(min(correct[i] for i in draw) for draw in draws) / len(draws)
        core = "val-core" if k == 4 else "val-aux"
        assert metrics[f"{core}/s/acc/best@{k}/mean"] == pytest.approx(best)
        assert metrics[f"val-aux/s/acc/worst@{k}/mean"] == pytest.approx(worst)
    assert metrics["val-core/s/acc/best@4/mean"] == pytest.approx(1 - 0.5**4)
    assert metrics["val-core/s/acc/mean@4"] == 0.5
    assert metrics["val-aux/s/acc/std@4"] == 0.5

    def winner(draw: Sequence[int]) -> int:
        votes = ["42", "42", "41", "7"]
        drawn = [votes[i] for i in draw]
        return correct[votes.index(max(drawn, key=lambda vote: (drawn.count(vote), -drawn.index(vote))))]

    exact = sum(winner(draw) for draw in _draws(range(4), 4)) / 4**4
    assert metrics["val-core/s/acc/maj@4/mean"] == pytest.approx(exact, abs=0.05)  # 1,000 draws, as in verl


def test_pass_at_k_is_the_chance_that_k_of_the_answers_without_replacement_hold_a_right_one() -> None:
    metrics = validation_metrics([_group(RIGHT, WRONG, WRONG, WRONG), _group(RIGHT, RIGHT, WRONG, WRONG)])
    assert metrics["val-core/s/pass@1"] == pytest.approx((1 / 4 + 2 / 4) / 2)
    assert metrics["val-core/s/pass@2"] == pytest.approx((1 / 2 + 5 / 6) / 2)
    assert metrics["val-core/s/pass@4"] == 1.0


def test_a_number_of_answers_that_is_no_power_of_two_has_its_own_headline() -> None:
    metrics = validation_metrics([_group(RIGHT, WRONG, WRONG)])
    assert {"val-core/s/acc/mean@3", "val-core/s/acc/best@3/mean", "val-core/s/pass@3"} <= set(metrics)
    assert "val-aux/s/acc/best@2/mean" in metrics


def test_answers_without_prediction_vote_together_and_without_any_there_is_no_majority() -> None:
    metrics = validation_metrics([_group(NONE, NONE, NONE, RIGHT)])
    assert metrics["val-core/s/acc/maj@4/mean"] < metrics["val-core/s/acc/mean@4"] + 0.05
    assert not any("maj@" in name for name in validation_metrics([_group(NONE, NONE)]))


def test_every_data_source_has_its_own_figures_and_all_problems_one_pass_at_1() -> None:
    groups = [_group(RIGHT, source="a"), _group(WRONG, source="b", length=9), _group(RIGHT, source="b")]
    metrics = validation_metrics(groups)
    assert metrics["val-core/a/acc/mean@1"] == 1.0
    assert metrics["val-core/b/acc/mean@1"] == 0.5
    assert metrics["val/pass@1"] == pytest.approx(2 / 3)
    assert metrics["val/pass@1_low"] < 2 / 3 < metrics["val/pass@1_high"]
    assert metrics["val/problems"] == 3
    assert metrics["val/response_length/mean"] == 5


def test_an_answer_that_nobody_judged_counts_as_nothing_and_is_counted() -> None:
    metrics = validation_metrics([_group(RIGHT, SLOW), _group(RIGHT, RIGHT)])
    assert metrics["val-core/s/acc/mean@2"] == 0.75
    assert metrics["val/timeout_share"] == 0.25
    assert metrics["val/correct_share"] == 0.75


def test_greedy_validation_is_the_same_each_time_and_whatever_the_batch(bench: Any, lines: Lines) -> None:
    held_out = story_rows(6, seed=1, split="test")
    frozen = {"actor_rollout_ref.actor.optim.lr": 0.0, "trainer.test_freq": 1, "trainer.total_training_steps": 1}
    run = bench.train(frozen, val_rows=held_out)
    outputs = [[s["output"] for s in lines(run.folder / "validation" / f"{n}.jsonl")] for n in (0, 1)]
    assert outputs[0] == outputs[1]
    assert all(run.history[0][name] == run.history[1][name] for name in run.history[0] if name.startswith("val"))
    small = bench.train({**frozen, "data.val_batch_size": 4, f"{R}.max_num_seqs": 2}, run="small", val_rows=held_out)
    assert outputs[0] == [s["output"] for s in lines(small.folder / "validation" / "0.jsonl")]


def test_sampled_validation_draws_the_same_numbers_each_time_and_others_than_training(bench: Any, lines: Lines) -> None:
    settings = {
        "actor_rollout_ref.actor.optim.lr": 0.0,
        f"{R}.val_kwargs.n": 4,
        f"{R}.val_kwargs.temperature": 1.0,
        "data.shuffle": False,
        "trainer.test_freq": 1,
        "trainer.total_training_steps": 1,
        "trainer.sample_groups": -1,
    }
    run = bench.train(settings, val_rows=bench.rows[:4])
    first, second = (lines(run.folder / "validation" / f"{n}.jsonl") for n in (0, 1))
    assert [s["output"] for s in first] == [s["output"] for s in second]
    # The numbers belong to a problem's place in the whole set, however many are sampled at once.
    small = bench.train({**settings, "data.val_batch_size": 3}, run="small", val_rows=bench.rows[:4])
    assert [s["output"] for s in lines(small.folder / "validation" / "0.jsonl")] == [s["output"] for s in first]
    # The same policy on the same four problems.
    trained = lines(run.folder / "samples" / "1.jsonl")
    assert [s["input"] for s in trained] == [s["input"] for s in first]
    assert [s["output"] for s in trained] != [s["output"] for s in first]
