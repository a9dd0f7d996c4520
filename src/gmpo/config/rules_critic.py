"""Rules over `critic.*`, as far as they are not those of every section with batches or an optimizer."""

from __future__ import annotations

from collections.abc import Iterator

from gmpo.config.derive import CRITIC, Given
from gmpo.config.issues import Issue, below, error, inert
from gmpo.config.schema import Config
from gmpo.objectives import ESTIMATORS


def critic(config: Config, given: Given) -> Iterator[Issue]:
    """There is a critic exactly when the estimator needs one."""
    name, enable = config.algorithm.adv_estimator, f"{CRITIC}.enable"
    needed = ESTIMATORS[name].needs_critic
    if config.critic.enable and not needed:
        users = [other for other, traits in ESTIMATORS.items() if traits.needs_critic]
        reason = f"has nothing to do with algorithm.adv_estimator={name}; {', '.join(users)} would use a critic"
        yield error(enable, reason, "algorithm.adv_estimator")
    elif needed and not config.critic.enable:
        yield error(enable, f"takes away what algorithm.adv_estimator={name} estimates with", "algorithm.adv_estimator")
    if not needed:
        paths = (path for path in below(CRITIC) if path != enable)
        reason = f"algorithm.adv_estimator={name} needs no critic, so there is none"
        yield from inert(reason, "trainer.critic_warmup", *paths)
    elif not config.critic.shuffle:
        yield from inert(f"{CRITIC}.shuffle is off", f"{CRITIC}.data_loader_seed")
