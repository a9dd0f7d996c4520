"""Rules over which problems are asked and which of their groups are learned from."""

from __future__ import annotations

from collections.abc import Iterator

from gmpo.config.derive import ROLLOUT, Given
from gmpo.config.issues import Issue, error, inert, warning
from gmpo.config.schema import Config
from gmpo.objectives import ESTIMATORS

FILTER = "algorithm.filter_groups"
DROP = "algorithm.drop_zero_variance"


def filter_groups(config: Config, given: Given) -> Iterator[Issue]:
    settings, n = config.algorithm.filter_groups, config.actor_rollout_ref.rollout.n
    if not settings.enable:
        paths = [f"{FILTER}.{name}" for name in ("metric", "max_num_gen_batches", "max_staleness")]
        yield from inert(f"{FILTER}.enable is off", *paths)
        # verl's own trainer has no filter and takes this key, where it is given, for the size of a step.
        reason = f"{FILTER}.enable is off, so one round of data.train_batch_size problems makes a step"
        yield from inert(reason, "data.gen_batch_size")
        return
    if n == 1:
        yield error(f"{ROLLOUT}.n", f"is 1, so no group has answers that differ, as {FILTER}.enable asks", FILTER)
    if settings.metric == "seq_final_reward" and config.algorithm.use_kl_in_reward:
        reason = "is the reward less the KL penalty, which is not known while sampling; seq_reward is"
        yield error(f"{FILTER}.metric", reason, "algorithm.use_kl_in_reward")
    if settings.keeps_groups and not config.algorithm.rollout_correction.compares:
        reason = (
            "lets groups of earlier weights into the batch, and nothing corrects for it; "
            "algorithm.rollout_correction.rollout_is=token weighs them"
        )
        yield warning(f"{FILTER}.max_staleness", reason)


def zero_variance(config: Config, given: Given) -> Iterator[Issue]:
    name = config.algorithm.adv_estimator
    if config.algorithm.drop_zero_variance and not ESTIMATORS[name].needs_groups:
        reason = f"drops groups of equal rewards, but {name} does not compare within a group, so they do teach it"
        yield error(DROP, reason, "algorithm.adv_estimator")


def pass_rates(config: Config, given: Given) -> Iterator[Issue]:
    bounds, path = config.data.pass_rate_range, "data.pass_rate_range"
    if bounds is None:
        yield from inert(f"{path} is not given", "data.pass_rate_history")
    elif not 0 <= bounds[0] <= bounds[1] <= 1:
        yield error(path, f"is {list(bounds)}: give two shares, 0 <= low <= high <= 1")


RULES = (filter_groups, zero_variance, pass_rates)
"""In the order in which they are reported."""
