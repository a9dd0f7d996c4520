"""What a run does to the policy: the data it visits, the objectives it follows, and that it learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gmpo
from gmpo.backends.tiny_model import make_model, word_tokenizer
from gmpo.data.stories import story_rows, vocabulary

A, R = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
Lines = Callable[[Path], list[dict[str, Any]]]
Weights = Callable[[Path], dict[str, torch.Tensor]]
EVERYTHING = {"trainer.sample_groups": -1, "trainer.token_record_groups": 4}


def _steps(run: gmpo.Run) -> list[Any]:
    return [metrics for metrics in run.history if "actor/grad_norm" in metrics]


def _problems(run: gmpo.Run, step: int, lines: Lines) -> list[str]:
    """The problems of a step in their order."""
    return list(dict.fromkeys(sample["problem"] for sample in lines(run.folder / "samples" / f"{step}.jsonl")))


def test_every_epoch_asks_every_problem_once_in_an_order_of_its_own(bench: Any, lines: Lines) -> None:
    run = bench.train({"trainer.total_training_steps": 6, "trainer.sample_groups": -1})
    epochs = [[p for step in steps for p in _problems(run, step, lines)] for steps in ((1, 2, 3), (4, 5, 6))]
    everything = [f"rows:{n}" for n in range(1, 13)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(everything)
    assert epochs[0] != epochs[1]
    assert everything not in epochs
    assert [m["training/epoch"] for m in _steps(run)] == [0, 0, 0, 1, 1, 1]


def test_without_shuffling_the_rows_are_asked_in_their_order(bench: Any, lines: Lines) -> None:
    run = bench.train({"data.shuffle": False, "trainer.sample_groups": -1})
    assert _problems(run, 1, lines) + _problems(run, 2, lines) == [f"rows:{n}" for n in range(1, 9)]


def test_two_runs_of_the_same_settings_are_the_same_and_another_seed_is_another_run(
    bench: Any, weights: Weights, same_run: Callable[[Path, Path, int], None]
) -> None:
    first, second = bench.train(run="first"), bench.train(run="second")
    same_run(first.folder, second.folder, 2)
    other = bench.train({"trainer.seed": 2}, run="other")
    assert not torch.equal(*(weights(r.model)["model.norm.weight"] for r in (first, other)))


def test_the_same_problem_is_answered_anew_in_every_step(bench: Any, lines: Lines) -> None:
    """A policy that stands still, asked the same four problems twice: other random numbers, other answers."""
    run = bench.train({f"{A}.optim.lr": 0.0, "data.shuffle": False, "trainer.sample_groups": -1}, rows=bench.rows[:4])
    first, second = (lines(run.folder / "samples" / f"{n}.jsonl") for n in (1, 2))
    assert [s["input"] for s in first] == [s["input"] for s in second]
    assert len({s["output"] for s in first}) == 16
    assert not {s["output"] for s in first} & {s["output"] for s in second}


@pytest.mark.parametrize(
    "division",
    [
        {f"{A}.ppo_micro_batch_size_per_gpu": 1},
        {f"{A}.ppo_micro_batch_size_per_gpu": 4},
        {f"{A}.use_dynamic_bsz": True, f"{A}.ppo_max_token_len_per_gpu": 60},
    ],
)
def test_micro_batches_change_the_model_by_rounding_alone(bench: Any, division: dict[str, Any]) -> None:
    one_pass = _steps(bench.train({f"{A}.ppo_micro_batch_size_per_gpu": 8}, run="one-pass"))
    divided = _steps(bench.train(division, run="divided"))
    for name in ("actor/pg_loss", "actor/grad_norm", "actor/entropy", "actor/log_ratio/max"):
        assert [m[name] for m in divided] == pytest.approx([m[name] for m in one_pass], rel=1e-3, abs=1e-5)


def test_with_one_update_per_step_no_old_log_probs_are_computed_and_every_ratio_is_one(
    bench: Any, lines: Lines
) -> None:
    run = bench.train({f"{A}.ppo_mini_batch_size": 4, **EVERYTHING})
    for step, metrics in enumerate(_steps(run), start=1):
        samples = lines(run.folder / "samples" / f"{step}.jsonl")
        assert all(sample["old_logp"] is None for sample in samples)
        assert metrics["actor/log_ratio/min"] == metrics["actor/log_ratio/max"] == 0.0
        assert metrics["actor/seq_ratio/min"] == metrics["actor/seq_ratio/max"] == 1.0
        assert metrics["actor/clip_share/positive"] == metrics["actor/clip_share/negative"] == 0.0
        # Sampler and learner are compared all the same: they compute one model in two ways.
        assert 0 < metrics["training/rollout_logprobs_diff_max"] < 1e-4
        updates = {len(sample["updates"]) for sample in samples}
        assert updates <= {0, 1}


@pytest.mark.parametrize(
    ("changes", "updates"),
    [({}, 2), ({f"{A}.ppo_mini_batch_size": 1}, 4), ({f"{A}.ppo_mini_batch_size": 4, f"{A}.ppo_epochs": 3}, 3)],
)
def test_with_several_updates_the_first_sees_the_sampling_policy_and_later_ones_do_not(
    bench: Any, lines: Lines, changes: dict[str, Any], updates: int
) -> None:
    run = bench.train({**EVERYTHING, **changes})
    for step in (1, 2):
        apart: dict[int, float] = {}
        for sample in lines(run.folder / "samples" / f"{step}.jsonl"):
            for update in sample["updates"]:
                d = max(abs(new - old) for new, old in zip(update["logp"], sample["old_logp"], strict=True))
                apart[update["update"]] = max(d, apart.get(update["update"], 0.0))
        assert sorted(apart) == list(range(updates))
        assert apart[0] < 1e-5
        assert all(apart[n] > 1e-3 for n in range(1, updates))


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
@pytest.mark.parametrize("loss", ["vanilla", "geo_mean"])
def test_every_objective_trains(bench: Any, weights: Weights, loss: str, mode: str) -> None:
    terms = {f"{A}.use_kl_loss": True, f"{A}.entropy_coeff": 0.01}
    objective = {f"{A}.policy_loss.loss_mode": loss, f"{A}.loss_agg_mode": mode}
    run = bench.train({**objective, **terms, "trainer.total_training_steps": 1})
    (metrics,) = _steps(run)
    assert metrics["actor/grad_norm"] > 0
    assert metrics["actor/entropy"] > 0
    before, after = weights(bench.model), weights(run.model)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert any(not torch.equal(before[name], tensor) for name, tensor in after.items())


@pytest.mark.parametrize("kind", ["kl", "abs", "mse", "low_var_kl", "kl+", "abs+", "mse+", "low_var_kl+"])
def test_the_kl_term_is_zero_on_the_reference_and_grows_with_the_first_update(bench: Any, kind: str) -> None:
    """Two updates, the first on the reference's own weights; `kl` alone may be of either sign."""
    term = {f"{A}.use_kl_loss": True, f"{A}.kl_loss_coef": 0.1, f"{A}.kl_loss_type": kind}
    first = _steps(bench.train({**term, f"{A}.ppo_mini_batch_size": 4, "trainer.total_training_steps": 2}))
    assert abs(first[0]["actor/kl_loss"]) < 1e-5
    second = first[1]["actor/kl_loss"]
    assert abs(second) > 1e-4 if kind in ("kl", "kl+") else second > 1e-4


def test_the_reference_is_a_model_of_its_own_and_does_not_learn(bench: Any, lines: Lines) -> None:
    other = bench.folder / "reference"
    make_model(other, word_tokenizer(vocabulary()), seed=9, hidden=32, layers=1, heads=2, head_dim=16, intermediate=64)
    given = {f"{A}.use_kl_loss": True, "actor_rollout_ref.ref.model.path": str(other), **EVERYTHING}
    run = bench.train({**given, f"{A}.optim.lr": 0.0})
    # The policy stands still, and still it is away from another model.
    assert all(m["actor/kl_loss"] > 1e-3 for m in _steps(run))
    assert all(sample["ref_logp"] != sample["old_logp"] for sample in lines(run.folder / "samples" / "1.jsonl"))
    without = bench.train(EVERYTHING, run="without")
    assert all(sample["ref_logp"] is None for sample in lines(without.folder / "samples" / "1.jsonl"))
    assert "actor/kl_loss" not in _steps(without)[0]


@pytest.mark.parametrize("control", ["fixed", "adaptive"])
def test_the_kl_in_the_reward_is_subtracted_token_by_token_under_the_controllers_coefficient(
    bench: Any, lines: Lines, control: str
) -> None:
    settings = {
        "algorithm.use_kl_in_reward": True,
        "algorithm.kl_ctrl.type": control,
        "algorithm.kl_ctrl.kl_coef": 0.5,
        **({"algorithm.kl_ctrl.target_kl": 0.01, "algorithm.kl_ctrl.horizon": 100} if control == "adaptive" else {}),
        "trainer.total_training_steps": 3,
        **EVERYTHING,
    }
    run = bench.train(settings)
    coefficient = 0.5
    for step, metrics in enumerate(_steps(run), start=1):
        assert metrics["actor/reward_kl_penalty_coeff"] == pytest.approx(coefficient, rel=1e-6)
        samples = lines(run.folder / "samples" / f"{step}.jsonl")
        penalties = [[o - r for o, r in zip(s["old_logp"], s["ref_logp"], strict=True)] for s in samples]
        mean_kl = sum(sum(p) / len(p) for p in penalties) / len(samples)
        assert metrics["actor/reward_kl_penalty"] == pytest.approx(mean_kl, abs=1e-6)
        rewards = [s["reward"] - coefficient * sum(p) for s, p in zip(samples, penalties, strict=True)]
        assert metrics["critic/rewards/mean"] == pytest.approx(sum(rewards) / len(rewards), abs=1e-5)
        if control == "adaptive":
            coefficient *= 1 + min(max(mean_kl / 0.01 - 1, -0.2), 0.2) * len(samples) / 100
    assert (coefficient == 0.5) == (control == "fixed")


def test_the_entropy_bonus_keeps_the_entropy_up(bench: Any) -> None:
    """The same six steps with and without it; the reward alone drives the entropy down."""
    settings = {"trainer.total_training_steps": 6}
    plain = _steps(bench.train(settings, run="plain"))[-1]["actor/entropy"]
    kept = _steps(bench.train({**settings, f"{A}.entropy_coeff": 0.5}, run="kept"))[-1]["actor/entropy"]
    assert kept > plain + 0.05


def test_a_step_without_any_difference_between_answers_changes_no_weight(bench: Any, weights: Weights) -> None:
    def constant(solution_str: str) -> float:
        return 1.0

    settings = {f"{A}.optim.weight_decay": 0.0}
    run = bench.train(settings, reward=constant)
    for metrics in _steps(run):
        assert metrics["rollout/zero_variance_groups"] == 1.0
        assert metrics["actor/grad_norm"] == 0.0
    before = weights(bench.model)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(run.model).items())


@pytest.mark.parametrize("loss", ["geo_mean", "vanilla"])
def test_a_reward_that_can_be_learned_is_learned(bench: Any, loss: str) -> None:
    """The share of one word among the answer's, a few percent by chance; 20 steps of 8 problems with 4 answers."""

    def share_of_seven(solution_str: str) -> float:
        words = solution_str.split()
        return words.count("7") / max(1, len(words))

    settings = {
        "data.train_batch_size": 8,
        f"{A}.policy_loss.loss_mode": loss,
        f"{A}.optim.lr": 3e-2,
        "trainer.total_training_steps": 20,
    }
    run = bench.train(settings, rows=story_rows(16, seed=0, split="train"), reward=share_of_seven)
    scores = [m["critic/score/mean"] for m in _steps(run)]
    assert scores[0] < 0.1
    assert sum(scores[-3:]) / 3 > 0.6


def test_validation_does_not_disturb_training(
    bench: Any, same_run: Callable[[Path, Path, int], None], weights: Weights
) -> None:
    held_out = story_rows(4, seed=1, split="test")
    plain = bench.train(run="plain")
    sampled = {f"{R}.val_kwargs.n": 2, f"{R}.val_kwargs.temperature": 1.0, "trainer.test_freq": 1}
    tested = bench.train(sampled, run="tested", val_rows=held_out)
    assert [("val/pass@1" in m) for m in tested.history] == [True, True, True]
    before, after = weights(plain.model), weights(tested.model)
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert [m["critic/score/mean"] for m in _steps(plain)] == [m["critic/score/mean"] for m in _steps(tested)]


def test_the_learning_rate_follows_its_schedule_over_the_whole_run(bench: Any) -> None:
    settings = {
        f"{A}.optim.lr_scheduler_type": "linear",
        f"{A}.optim.lr_warmup_steps": 2,
        f"{A}.optim.min_lr_ratio": 0.5,
        "trainer.total_training_steps": 6,
    }
    rates = [m["actor/lr"] for m in _steps(bench.train(settings))]
    assert rates == pytest.approx([0.0, 0.005, 0.01, 0.00875, 0.0075, 0.00625])
