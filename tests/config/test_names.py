"""The names that the schema offers are those that the algorithms have."""

from __future__ import annotations

import pytest

from gmpo.algo.advantages import ADVANTAGES
from gmpo.algo.kl import KL_ESTIMATORS
from gmpo.algo.losses import POLICY_LOSSES
from gmpo.algo.masks import AGGREGATIONS
from gmpo.algo.schedule import SHAPES
from gmpo.config import Config
from gmpo.config.derive import GROUP_ESTIMATORS
from gmpo.config.schema_sft import SftConfig
from gmpo.config.tree import leaves

ACTOR = "actor_rollout_ref.actor"


@pytest.mark.parametrize(
    ("path", "table"),
    [
        ("algorithm.adv_estimator", ADVANTAGES),
        ("algorithm.kl_penalty", KL_ESTIMATORS),
        (f"{ACTOR}.policy_loss.loss_mode", POLICY_LOSSES),
        (f"{ACTOR}.loss_agg_mode", AGGREGATIONS),
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


def test_group_estimators_are_those_that_need_groups() -> None:
    assert {name for name, estimator in ADVANTAGES.items() if estimator.needs_groups} == GROUP_ESTIMATORS
