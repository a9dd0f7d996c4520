"""The names that the schema offers are those that the algorithms have."""

from __future__ import annotations

import pytest

from gmpo.algo.advantages import ADVANTAGES
from gmpo.algo.corrections import REJECTION
from gmpo.algo.kl import KL_ESTIMATORS
from gmpo.algo.losses import POLICY_LOSSES
from gmpo.algo.masks import AGGREGATIONS
from gmpo.algo.schedule import SHAPES
from gmpo.config import Config
from gmpo.config.derive import REINFORCE_LOSS
from gmpo.config.objective_keys import ESTIMATOR_KEYS, LOSS_KEYS
from gmpo.config.presets import PRESETS
from gmpo.config.schema_sft import SftConfig
from gmpo.config.tree import leaves
from gmpo.objectives import ESTIMATORS, LOSSES, REJECTIONS

ACTOR = "actor_rollout_ref.actor"


@pytest.mark.parametrize(
    ("path", "table"),
    [
        ("algorithm.adv_estimator", ADVANTAGES),
        ("algorithm.kl_penalty", KL_ESTIMATORS),
        (f"{ACTOR}.policy_loss.loss_mode", POLICY_LOSSES),
        ("algorithm.rollout_correction.rollout_rs", REJECTION),
        ("algorithm.rollout_correction.preset", PRESETS),
        (f"{ACTOR}.loss_agg_mode", AGGREGATIONS),
        ("critic.loss_agg_mode", AGGREGATIONS),
        (f"{ACTOR}.optim.lr_scheduler_type", SHAPES),
    ],
)
def test_a_setting_offers_exactly_the_names_of_its_table(path: str, table: dict[str, object]) -> None:
    assert set(leaves(Config)[path].choices) == set(table)


def test_kl_terms_of_the_loss_offer_every_estimator_with_and_without_plus() -> None:
    names = set(leaves(Config)[f"{ACTOR}.kl_loss_type"].choices)
    assert names == {f"{name}{plus}" for name in KL_ESTIMATORS for plus in ("", "+")}


def test_supervised_learning_has_the_same_schedules() -> None:
    assert set(leaves(SftConfig)["optim.lr_scheduler_type"].choices) == set(SHAPES)


def test_every_number_of_an_estimator_or_loss_has_a_key() -> None:
    known = leaves(Config)
    estimators = {number for traits in ESTIMATORS.values() for number in traits.numbers}
    losses = {number for traits in LOSSES.values() for number in traits.numbers + traits.select_numbers}
    for numbers, keys in ((estimators, ESTIMATOR_KEYS), (losses, LOSS_KEYS)):
        assert numbers == set(keys)
        assert set(keys.values()) <= set(known)


def test_a_preset_fills_in_keys_of_its_section() -> None:
    for values in PRESETS.values():
        assert {f"algorithm.rollout_correction.{key}" for key in values} <= set(leaves(Config))


def test_a_rule_of_rejection_is_two_sided_exactly_when_it_measures_the_ratio() -> None:
    assert {name for name, traits in REJECTIONS.items() if traits.two_sided} == {
        "token_k1",
        "seq_sum_k1",
        "seq_mean_k1",
    }
    assert all(name == f"{traits.level}_{traits.divergence}" for name, traits in REJECTIONS.items())


def test_the_loss_of_verls_reinforce_has_neither_ratio_nor_numbers() -> None:
    traits = LOSSES[REINFORCE_LOSS]
    assert traits.numbers == traits.select_numbers == ()
