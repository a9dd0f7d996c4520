"""The value that is set under a key reaches the loss or estimator as the number that the key stands for."""

from __future__ import annotations

from typing import Any

import pytest

from gmpo.algo.advantages import ADVANTAGES
from gmpo.algo.losses import POLICY_LOSSES
from gmpo.build.objective import build_credit, build_objective
from gmpo.config import Config, load
from gmpo.config.tree import get
from gmpo.objectives import ESTIMATORS, LOSSES

A = "actor_rollout_ref.actor"
P = f"{A}.policy_loss"
LOSS, ESTIMATOR = f"{P}.loss_mode", "algorithm.adv_estimator"
STEPS = 5

LOSS_NUMBERS: dict[str, tuple[str, Any]] = {
    "clip_low": (f"{A}.clip_ratio_low", 0.11),
    "clip_high": (f"{A}.clip_ratio_high", 0.12),
    "clip_dual": (f"{A}.clip_ratio_c", 7.0),
    "clip_level": (f"{P}.clip_level", "sequence"),
    "length_norm": (f"{P}.length_norm", False),
    "upper": (f"{P}.geo_mean_upper", 0.13),
    "power": (f"{P}.power", -0.14),
    "tau_positive": (f"{A}.tau_pos", 0.15),
    "tau_negative": (f"{A}.tau_neg", 0.16),
    "symmetric": (f"{P}.dppo_symmetric", True),
    "beta": (f"{P}.dro_beta", 0.165),
    "clip_cov_share": (f"{P}.clip_cov_ratio", 0.17),
    "cov_low": (f"{P}.clip_cov_lb", 2.5),
    "cov_high": (f"{P}.clip_cov_ub", 6.5),
    "kl_cov_share": (f"{P}.kl_cov_ratio", 0.18),
    "kl_coef": (f"{P}.ppo_kl_coef", 0.19),
}
"""Keyword argument -> its key, and a value that no other key has and that is not its default."""
ESTIMATOR_NUMBERS: dict[str, tuple[str, Any]] = {
    "normalise_by_std": ("algorithm.norm_adv_by_std_in_grpo", False),
    "gamma": ("algorithm.gamma", 0.91),
    "lam": ("algorithm.lam", 0.92),
    "floor": ("algorithm.geo_mean_eps", 0.21),
    "offset": ("algorithm.geo_mean_offset", 0.22),
    "component_weights": ("algorithm.gdpo_reward_weights", (0.23, 0.24)),
}


def configured(chosen: str, name: str, numbers: dict[str, tuple[str, Any]]) -> Config:
    """A configuration with every number set, also those that the loss or estimator does not take."""
    keys = ["algorithm.gdpo_reward_keys=[one,other]"]
    return load([f"{chosen}={name}", *keys, *(f"{key}={_written(value)}" for key, value in numbers.values())]).config


def _written(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value)


def test_the_values_differ_from_each_other_and_from_the_defaults() -> None:
    given = [*LOSS_NUMBERS.values(), *ESTIMATOR_NUMBERS.values()]
    numbers = [value for _, value in given if isinstance(value, float)]
    assert len(set(numbers)) == len(numbers)
    assert all(get(load().config, key) != value for key, value in given)


@pytest.mark.parametrize("name", LOSSES)
def test_every_number_of_a_loss_and_of_its_choice_of_tokens_is_the_value_under_its_key(name: str) -> None:
    objective = build_objective(configured(LOSS, name, LOSS_NUMBERS), STEPS)
    assert objective.policy_loss is POLICY_LOSSES[name]
    for names in (LOSSES[name].numbers, LOSSES[name].select_numbers):
        assert objective.numbers(names, step=0) == {number: LOSS_NUMBERS[number][1] for number in names}


def test_a_pair_under_the_key_of_the_power_goes_from_one_to_the_other_over_the_run() -> None:
    config = load([f"{LOSS}=power_mean", f"{P}.power=[1,-1]"]).config
    objective = build_objective(config, STEPS)
    assert [objective.numbers(["power"], step)["power"] for step in range(STEPS)] == [1.0, 0.5, 0.0, -0.5, -1.0]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_number_of_an_estimator_is_the_value_under_its_key(name: str) -> None:
    credit = build_credit(configured(ESTIMATOR, name, ESTIMATOR_NUMBERS))
    assert credit.estimator is ADVANTAGES[name]
    assert credit.numbers == {number: ESTIMATOR_NUMBERS[number][1] for number in ESTIMATORS[name].numbers}


def test_every_number_that_a_loss_or_estimator_takes_is_tried() -> None:
    assert {number for traits in LOSSES.values() for number in traits.all_numbers} == set(LOSS_NUMBERS)
    assert {number for traits in ESTIMATORS.values() for number in traits.numbers} == set(ESTIMATOR_NUMBERS)
