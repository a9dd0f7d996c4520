"""The settings of a run by what they mean to one that goes on: identity, execution, bookkeeping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from gmpo.config.fields import Role, Section
from gmpo.config.resolved import Resolved, as_tree
from gmpo.config.schema import Config
from gmpo.config.schema_sft import SftConfig
from gmpo.config.schema_training import Optim
from gmpo.config.tree import leaves

FUNCTIONS = "reward_model.extra_rewards"
"""A list of objects with paths: what lies there is compared by content, as for every other path."""


Part = Role | Literal["idle"]


def by_role(resolved: Resolved[Any]) -> dict[Part, dict[str, Any]]:
    """Role -> path -> value as JSON writes it; `idle` has the settings that have no effect in this configuration."""
    tree = as_tree(resolved.config)
    found: dict[Part, dict[str, Any]] = {"identity": {}, "execution": {}, "bookkeeping": {}, "idle": {}}
    root: type[Section] = type(resolved.config)
    for path, leaf in leaves(root).items():
        value = _at(tree, path)
        part: Part = "idle" if path in resolved.inert_paths else leaf.role
        found[part][path] = [_without_path(item) for item in value] if path == FUNCTIONS else value
    return found


def _at(tree: Mapping[str, Any], path: str) -> Any:
    value: Any = tree
    for name in path.split("."):
        value = value[name]
    return value


def _without_path(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "path"}


def length_matters(config: Config | SftConfig) -> bool:
    """Whether a step of the run depends on how many there will be: then a longer run is another run."""
    if isinstance(config, SftConfig):
        return config.optim.lr_scheduler_type != "constant" or config.optim.warmup_steps_ratio > 0
    actor = config.actor_rollout_ref.actor
    optimizers = [actor.optim, *([config.critic.optim] if config.critic.enable else [])]
    return any(_schedule_needs_length(optim) for optim in optimizers) or isinstance(actor.policy_loss.power, tuple)


def _schedule_needs_length(optim: Optim) -> bool:
    if optim.total_training_steps is not None:
        return False
    return optim.lr_scheduler_type != "constant" or (optim.lr_warmup_steps < 0 and optim.lr_warmup_steps_ratio > 0)
