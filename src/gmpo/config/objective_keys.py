"""Which key gives each number of an advantage estimator or a policy loss: the one table that rules and build read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gmpo.config.derive import ACTOR
from gmpo.config.schema import Config
from gmpo.config.tree import get

ESTIMATOR_KEYS: Mapping[str, str] = {
    "normalise_by_std": "algorithm.norm_adv_by_std_in_grpo",
    "gamma": "algorithm.gamma",
    "lam": "algorithm.lam",
    "floor": "algorithm.geo_mean_eps",
    "offset": "algorithm.geo_mean_offset",
    "component_weights": "algorithm.gdpo_reward_weights",
}
"""Keyword argument of an estimator -> the key that gives it."""

LOSS_KEYS: Mapping[str, str] = {
    "clip_low": f"{ACTOR}.clip_ratio_low",
    "clip_high": f"{ACTOR}.clip_ratio_high",
    "clip_dual": f"{ACTOR}.clip_ratio_c",
    "clip_level": f"{ACTOR}.policy_loss.clip_level",
    "length_norm": f"{ACTOR}.policy_loss.length_norm",
    "upper": f"{ACTOR}.policy_loss.geo_mean_upper",
    "power": f"{ACTOR}.policy_loss.power",
    "tau_positive": f"{ACTOR}.tau_pos",
    "tau_negative": f"{ACTOR}.tau_neg",
    "symmetric": f"{ACTOR}.policy_loss.dppo_symmetric",
    "beta": f"{ACTOR}.policy_loss.dro_beta",
    "clip_cov_share": f"{ACTOR}.policy_loss.clip_cov_ratio",
    "cov_low": f"{ACTOR}.policy_loss.clip_cov_lb",
    "cov_high": f"{ACTOR}.policy_loss.clip_cov_ub",
    "kl_cov_share": f"{ACTOR}.policy_loss.kl_cov_ratio",
    "kl_coef": f"{ACTOR}.policy_loss.ppo_kl_coef",
}
"""Keyword argument of a loss or of its choice of tokens -> the key that gives it. A pair of numbers is a course from
the first to the second over the run."""


def configured_numbers(config: Config, names: Iterable[str], keys: Mapping[str, str]) -> dict[str, Any]:
    """The named numbers as a configuration sets them."""
    return {name: get(config, keys[name]) for name in names}
