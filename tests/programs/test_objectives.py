"""Runs with every estimator and every loss, with the corrections and with the critic."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import gmpo
from gmpo.algo.advantages import ADVANTAGES
from gmpo.algo.losses import POLICY_LOSSES
from gmpo.config import load
from gmpo.config.objective_keys import ESTIMATOR_KEYS, LOSS_KEYS, configured_numbers
from gmpo.objectives import ESTIMATORS, LOSSES

A, R, RC = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "algorithm.rollout_correction"
Weights = Callable[[Path], dict[str, Tensor]]
CRITIC = {"critic.model.enable_gradient_checkpointing": False, "critic.optim.lr": 1e-2}
# rewards of the bench lie in [0, 1]; a geometric mean wants them away from 0
POSITIVE = {"algorithm.geo_mean_offset": 0.1}
COMPONENTS = {"algorithm.gdpo_reward_keys": ["score", "acc"], "algorithm.gdpo_reward_weights": [1.0, 0.5]}


def run(bench: Any, estimator: str, loss: str, **changes: Any) -> gmpo.Run:
    settings = {
        "recipe": "gmpo",
        "algorithm.adv_estimator": estimator,
        f"{A}.policy_loss.loss_mode": loss,
        **(CRITIC if ESTIMATORS[estimator].needs_critic else {}),
        **(COMPONENTS if ESTIMATORS[estimator].needs_components else {}),
        **(POSITIVE if estimator == "geo_mean" else {}),
        **changes,
    }
    return bench.train(settings)


PAIRS = {
    "grpo": "geo_mean",
    "gae": "vanilla",
    "rloo": "power_mean",
    "reinforce_plus_plus": "cispo",
    "reinforce_plus_plus_baseline": "gspo",
    "remax": "sapo",
    "opo": "gpg",
    "gpg": "gspo_token",
    "gdpo": "geo_mean",
    "optimal_token_baseline": "vanilla",
    "max_rl": "dppo_tv",
    "grpo_passk": "clip_cov",
    "grpo_batch_std": "kl_cov",
    "geo_mean": "dro",
}
FURTHER = [("grpo", "dppo_kl")]
"""Every estimator and every loss in a run. Which of the others go together is in `tests/config/test_objectives.py`, and
that each number arrives from its key in `tests/build/test_objective_numbers.py`."""


def test_every_estimator_and_every_loss_is_in_a_run() -> None:
    assert PAIRS.keys() == ESTIMATORS.keys()
    assert {*PAIRS.values(), *(loss for _, loss in FURTHER)} == LOSSES.keys()


class Recorded:
    """A function of a table that remembers the numbers it was called with."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.numbers: dict[str, Any] = {}

    def __call__(self, *tensors: Any, **keywords: Any) -> Any:
        of_batch = {"weights"}  # None without a correction, so not told from a number by its type
        self.numbers = {n: v for n, v in keywords.items() if n not in of_batch and not isinstance(v, Tensor)}
        return self.fn(*tensors, **keywords)


@pytest.mark.parametrize(("estimator", "loss"), [*PAIRS.items(), *FURTHER])
def test_a_run_calls_its_estimator_and_loss_with_the_configured_numbers_and_moves_the_weights(
    bench: Any, monkeypatch: pytest.MonkeyPatch, weights: Weights, estimator: str, loss: str
) -> None:
    advantages, surrogate = Recorded(ADVANTAGES[estimator].fn), Recorded(POLICY_LOSSES[loss].fn)
    select = POLICY_LOSSES[loss].select
    choice = None if select is None else Recorded(select)
    monkeypatch.setitem(ADVANTAGES, estimator, replace(ADVANTAGES[estimator], fn=advantages))
    monkeypatch.setitem(POLICY_LOSSES, loss, replace(POLICY_LOSSES[loss], fn=surrogate, select=choice))
    done = run(bench, estimator, loss)
    config = load(file=done.folder / "config.yaml").config
    assert advantages.numbers == configured_numbers(config, ESTIMATORS[estimator].numbers, ESTIMATOR_KEYS)
    assert surrogate.numbers == configured_numbers(config, LOSSES[loss].numbers, LOSS_KEYS)
    if choice is not None:
        assert choice.numbers == configured_numbers(config, LOSSES[loss].select_numbers, LOSS_KEYS)
    assert done.steps == 2
    before, after = weights(bench.model), weights(done.model)
    assert any(not torch.equal(before[name], after[name]) for name in before), "two steps moved no weight"
    assert all(math.isfinite(value) for metrics in done.history for value in metrics.values())


def test_the_critic_learns_and_is_resumed_bit_for_bit(bench: Any) -> None:
    """With the adaptive KL controller, whose coefficient shapes the rewards that the critic is fitted to."""
    changes = {
        "trainer.save_freq": 1,
        "trainer.total_training_steps": 3,
        "algorithm.use_kl_in_reward": True,
        "algorithm.kl_ctrl.type": "adaptive",
        "algorithm.kl_ctrl.kl_coef": 0.05,
        "algorithm.kl_ctrl.target_kl": 0.001,
        "algorithm.kl_ctrl.horizon": 100,
    }
    whole = run(bench, "gae", "vanilla", **changes)
    losses = [m["critic/vf_loss"] for m in whole.history if "critic/vf_loss" in m]
    assert losses[-1] < losses[0]
    for step in (2, 3):
        folder = whole.folder / f"global_step_{step}"
        assert (folder / "critic" / "model.safetensors").is_file()
    saved = load_file(whole.folder / "global_step_3" / "critic" / "model.safetensors")
    begins = {"resume_mode": "resume_path", "resume_from_path": str(whole.folder / "global_step_1")}
    begins["default_local_dir"] = str(bench.folder / "again")
    again = run(bench, "gae", "vanilla", **changes, **{f"trainer.{key}": value for key, value in begins.items()})
    resumed = load_file(again.folder / "global_step_3" / "critic" / "model.safetensors")
    assert all(torch.equal(saved[name], resumed[name]) for name in saved)
    coefficients = [m["actor/reward_kl_penalty_coeff"] for m in whole.history]
    assert len(set(coefficients)) == 3
    assert [m["actor/reward_kl_penalty_coeff"] for m in again.history[-2:]] == coefficients[1:]


def test_during_its_warm_up_only_the_critic_learns(bench: Any) -> None:
    done = run(bench, "gae", "vanilla", **{"trainer.critic_warmup": 2})
    before, after = load_file(bench.model / "model.safetensors"), load_file(done.model / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert done.history[-1]["actor/updates"] == 0.0
    assert done.history[-1]["critic/vf_loss"] > 0.0


def test_remax_compares_with_the_greedy_answer(bench: Any) -> None:
    done = run(bench, "remax", "vanilla")
    advantages = [m for m in done.history if "critic/advantages/max" in m]
    rewards = [m for m in done.history if "critic/rewards/max" in m]
    # A = R - R(greedy): its range is the reward's, shifted per problem, so it never exceeds [-1, 1]
    assert all(-1.0 <= m["critic/advantages/min"] <= m["critic/advantages/max"] <= 1.0 for m in advantages)
    assert rewards
    assert any(m["critic/advantages/mean"] != pytest.approx(m["critic/rewards/mean"]) for m in advantages)


@pytest.mark.parametrize("loss", ["vanilla", "geo_mean", "clip_cov"])
@pytest.mark.parametrize(
    "correction",
    [
        {f"{RC}.rollout_is": "token"},
        {f"{RC}.rollout_is": "sequence", f"{RC}.rollout_is_batch_normalize": True},
        {f"{RC}.rollout_rs": "seq_mean_k1,token_k3", f"{RC}.rollout_rs_threshold": "0.5_2.0,1.0"},
        {f"{RC}.icepop": [0.5, 5.0]},
    ],
    ids=["token weights", "sequence weights", "rejection", "icepop"],
)
def test_where_sampler_and_learner_agree_a_correction_changes_rounding_alone(
    bench: Any, weights: Weights, loss: str, correction: dict[str, Any]
) -> None:
    """A loss of each kind: per token, per answer, and one that chooses its tokens."""
    plain = weights(run(bench, "grpo", loss, **{"trainer.default_local_dir": str(bench.folder / "plain")}).model)
    done = run(bench, "grpo", loss, **correction, **{"trainer.default_local_dir": str(bench.folder / "corrected")})
    corrected = weights(done.model)
    assert max(float((plain[name] - corrected[name]).abs().max()) for name in plain) < 2e-3
    assert any(name.startswith("rollout_corr/rollout_") for name in done.history[-1])


def test_bypass_takes_the_samplers_log_probs_for_old_ones(bench: Any) -> None:
    done = run(bench, "grpo", "geo_mean", **{f"{RC}.bypass_mode": True})
    # the embedded sampler computes as the learner does, so the first update still has ratio 1 up to rounding
    assert all(abs(m["actor/log_ratio/q50"]) < 1.0 for m in done.history if "actor/log_ratio/q50" in m)
    assert not any("rollout_corr/kl" in m for m in done.history), "nothing was compared"


def test_a_schedule_of_the_power_starts_and_ends_where_it_says(bench: Any, weights: Weights) -> None:
    """One step sees only the start of the schedule, where p = 1 is the arithmetic mean and not p = -1."""

    def trained(power: Any, name: str) -> dict[str, Tensor]:
        changes = {f"{A}.policy_loss.power": power, "trainer.default_local_dir": str(bench.folder / name)}
        return weights(run(bench, "grpo", "power_mean", **changes, **{"trainer.total_training_steps": 1}).model)

    scheduled, start, end = trained([1.0, -1.0], "scheduled"), trained(1.0, "start"), trained(-1.0, "end")
    assert all(torch.equal(scheduled[name], start[name]) for name in start)
    assert any(not torch.equal(scheduled[name], end[name]) for name in end)


@pytest.mark.parametrize("change", [{"mask_truncated": True}, {"entropy_quantile": 0.8}], ids=lambda c: next(iter(c)))
def test_tokens_that_leave_the_loss_change_the_run(bench: Any, weights: Weights, change: dict[str, Any]) -> None:
    """What leaves is in `tests/test_credit.py`; here that the setting gets there."""
    plain = weights(run(bench, "grpo", "geo_mean", **{"trainer.default_local_dir": str(bench.folder / "plain")}).model)
    changes = {f"{A}.{key}": value for key, value in change.items()}
    masked = weights(run(bench, "grpo", "geo_mean", **changes).model)
    assert any(not torch.equal(plain[name], masked[name]) for name in plain)
