"""Values that follow from other settings when the user gives none. Each is reported with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from gmpo.config.fields import Section
from gmpo.config.presets import PRESETS
from gmpo.config.schema import Config
from gmpo.config.schema_actor import DEFAULT_GROUP_SIZE
from gmpo.config.schema_sft import LARGEST_MICRO_BATCH, SftConfig
from gmpo.config.schema_training import RUN_FOLDER
from gmpo.config.tree import get, leaves, replace
from gmpo.objectives import ESTIMATORS

ACTOR = "actor_rollout_ref.actor"
REF = "actor_rollout_ref.ref"
ROLLOUT = "actor_rollout_ref.rollout"
CRITIC = "critic"
CORRECTION = "algorithm.rollout_correction"
REINFORCE_LOSS = "gpg"
"""The `loss_mode` that verl's `loss_type=reinforce` is."""

ConfigT = TypeVar("ConfigT", bound=Section)


@dataclass(frozen=True, slots=True)
class Derived:
    """One derived value. Example: `Derived("data.seed", 1, "follows trainer.seed")`."""

    path: str
    value: Any
    why: str


Given = frozenset[str]
Derivation = Callable[[Config, Given], Iterator[Derived]]
SftDerivation = Callable[[SftConfig, Given], Iterator[Derived]]


def _follow(config: Section, given: Given) -> Iterator[Derived]:
    """What the schema declares to follow another setting, which may follow a third."""
    known = leaves(type(config))
    for path, leaf in known.items():
        if leaf.follows is None or get(config, path) is not None:
            continue
        source = leaf.follows
        while get(config, source) is None and (further := known[source].follows) is not None:
            source = further
        if (value := get(config, source)) is not None:
            yield Derived(path, value, f"follows {leaf.follows}")


def _estimator(config: Config, given: Given) -> Iterator[Derived]:
    """One answer to a problem has nothing to be compared with; verl's default, of both settings, is PPO."""
    path, alone = "algorithm.adv_estimator", get(config, f"{ROLLOUT}.n") == 1
    if alone and path not in given and ESTIMATORS[config.algorithm.adv_estimator].needs_groups:
        yield Derived(path, "gae", f"{ROLLOUT}.n is 1, which leaves nothing to compare")


def _group_size(config: Config, given: Given) -> Iterator[Derived]:
    if get(config, f"{ROLLOUT}.n") is None:
        estimator = config.algorithm.adv_estimator
        if ESTIMATORS[estimator].needs_groups:
            yield Derived(f"{ROLLOUT}.n", DEFAULT_GROUP_SIZE, f"{estimator} compares the answers to one problem")
        else:
            yield Derived(f"{ROLLOUT}.n", 1, f"{estimator} needs no group")


def _preset(config: Config, given: Given) -> Iterator[Derived]:
    name = config.algorithm.rollout_correction.preset
    for key, value in PRESETS[name].items() if name is not None else ():
        path = f"{CORRECTION}.{key}"
        if path not in given and get(config, path) != value:
            yield Derived(path, value, f"{CORRECTION}.preset is {name}")


def _loss_of_bypass(config: Config, given: Given) -> Iterator[Derived]:
    correction, path = config.algorithm.rollout_correction, f"{ACTOR}.policy_loss.loss_mode"
    if correction.bypass_mode and correction.loss_type == "reinforce" and path not in given:
        yield Derived(path, REINFORCE_LOSS, f"{CORRECTION}.loss_type is reinforce")


def _global_micro_batches(config: Config, given: Given) -> Iterator[Derived]:
    actor, critic = config.actor_rollout_ref.actor, config.critic
    for part, size in ((ACTOR, actor.ppo_micro_batch_size), (CRITIC, critic.ppo_micro_batch_size)):
        if size is not None and f"{part}.ppo_micro_batch_size_per_gpu" not in given:
            why = "the deprecated ppo_micro_batch_size, on one device"
            yield Derived(f"{part}.ppo_micro_batch_size_per_gpu", size, why)
            yield Derived(f"{part}.ppo_micro_batch_size", None, "replaced by ppo_micro_batch_size_per_gpu")


def _dynamic_micro_batches(config: Config, given: Given) -> Iterator[Derived]:
    if get(config, f"{ACTOR}.use_dynamic_bsz") is None:
        size = config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu
        why = "no micro-batch size is given" if size is None else "ppo_micro_batch_size_per_gpu is given"
        yield Derived(f"{ACTOR}.use_dynamic_bsz", size is None, why)


def _fixed_micro_batch(config: Config, given: Given) -> Iterator[Derived]:
    """Micro-batches by number without a number: its size changes memory and speed, and no result."""
    actor, critic = config.actor_rollout_ref.actor, config.critic
    answers = config.actor_rollout_ref.rollout.n or 1
    for part, section, mini in (
        (ACTOR, actor, actor.ppo_mini_batch_size),
        (CRITIC, critic, get(config, f"{CRITIC}.ppo_mini_batch_size") or actor.ppo_mini_batch_size),
    ):
        size = f"{part}.ppo_micro_batch_size_per_gpu"
        own = part == ACTOR or f"{part}.use_dynamic_bsz" in given
        if section.use_dynamic_bsz is False and section.ppo_micro_batch_size_per_gpu is None and own:
            if part == CRITIC and actor.ppo_micro_batch_size_per_gpu is not None:
                continue  # It follows the actor's.
            why = f"use_dynamic_bsz is off; the largest divisor of a mini-batch up to {LARGEST_MICRO_BATCH}"
            yield Derived(size, _largest_divisor(mini * answers), why)


def _largest_divisor(rows: int) -> int:
    return max(size for size in range(1, min(rows, LARGEST_MICRO_BATCH) + 1) if rows % size == 0)


def _log_prob_micro_batches(config: Config, given: Given) -> Iterator[Derived]:
    actor = config.actor_rollout_ref.actor
    for part in (ROLLOUT, REF):
        size = f"{part}.log_prob_micro_batch_size_per_gpu"
        if get(config, f"{part}.log_prob_use_dynamic_bsz") is None:
            # A resolved file gives the size as null, so it is the value that tells, not whether it is given.
            own = get(config, size) is not None
            dynamic = actor.use_dynamic_bsz and not own
            why = "a micro-batch size of its own is given" if own else f"follows {ACTOR}.use_dynamic_bsz"
            yield Derived(f"{part}.log_prob_use_dynamic_bsz", dynamic, why)


def _critic(config: Config, given: Given) -> Iterator[Derived]:
    if get(config, f"{CRITIC}.enable") is None:
        estimator = config.algorithm.adv_estimator
        needed = ESTIMATORS[estimator].needs_critic
        yield Derived(f"{CRITIC}.enable", needed, f"{estimator} needs {'one' if needed else 'none'}")


def _critic_micro_batches(config: Config, given: Given) -> Iterator[Derived]:
    actor, critic = config.actor_rollout_ref.actor, config.critic
    own = critic.ppo_micro_batch_size_per_gpu is not None
    if get(config, f"{CRITIC}.use_dynamic_bsz") is None:
        why = "a micro-batch size of its own is given" if own else f"follows {ACTOR}.use_dynamic_bsz"
        yield Derived(f"{CRITIC}.use_dynamic_bsz", actor.use_dynamic_bsz and not own, why)


def _critic_model(config: Config, given: Given) -> Iterator[Derived]:
    """Trust and changes belong to a folder: another one does not inherit them."""
    policy, critic = config.actor_rollout_ref.model, config.critic.model
    same = policy.path == critic.path
    why = "follows actor_rollout_ref.model, whose path it has" if same else "the path is not that of the policy"
    for key, value, none in (
        ("trust_remote_code", policy.trust_remote_code, False),
        ("override_config", policy.override_config, {}),
    ):
        if get(config, f"{CRITIC}.model.{key}") is None:
            yield Derived(f"{CRITIC}.model.{key}", value if same else none, why)


def _greedy_validation(config: Config, given: Given) -> Iterator[Derived]:
    path = f"{ROLLOUT}.val_kwargs.do_sample"
    if get(config, path) is None:
        temperature = config.actor_rollout_ref.rollout.val_kwargs.temperature
        yield Derived(path, temperature > 0, f"val_kwargs.temperature is {temperature:g}")


FILTER_METRIC = "algorithm.filter_groups.metric"


def _filter_metric(config: Config, given: Given) -> Iterator[Derived]:
    groups = config.algorithm.filter_groups
    if groups.enable and groups.metric is None and config.reward_model.reward_manager == "dapo":
        yield Derived(FILTER_METRIC, "acc", "reward_manager=dapo makes rewards differ by length alone")


def _epochs(config: Config | SftConfig, given: Given) -> Iterator[Derived]:
    if config.trainer.total_training_steps is not None and "trainer.total_epochs" not in given:
        yield Derived("trainer.total_epochs", None, "total_training_steps alone sets the length of the run")


def _run_folder(config: Config | SftConfig, given: Given) -> Iterator[Derived]:
    if get(config, "trainer.default_local_dir") is None:
        trainer = config.trainer
        folder = RUN_FOLDER.format(project_name=trainer.project_name, experiment_name=trainer.experiment_name)
        yield Derived("trainer.default_local_dir", folder, "from project_name and experiment_name")


def _device(config: Config | SftConfig, given: Given) -> Iterator[Derived]:
    if get(config, "trainer.device") is None:
        yield Derived("trainer.device", "auto", "CUDA when it is present, else the CPU")


def _sft_micro_batch(config: SftConfig, given: Given) -> Iterator[Derived]:
    if get(config, "data.micro_batch_size_per_gpu") is None:
        rows = config.data.train_batch_size
        size = _largest_divisor(rows)
        why = f"the largest divisor of data.train_batch_size up to {LARGEST_MICRO_BATCH}"
        yield Derived("data.micro_batch_size_per_gpu", size, why)


DERIVATIONS: Sequence[Derivation] = (
    _preset,
    _loss_of_bypass,
    _estimator,
    _group_size,
    _global_micro_batches,
    _dynamic_micro_batches,
    _fixed_micro_batch,
    _log_prob_micro_batches,
    _greedy_validation,
    _critic,
    _critic_micro_batches,
    # What is above asks which settings have a value of their own, what is below reads those that follow.
    _follow,
    _critic_model,
    _filter_metric,
    _epochs,
    _run_folder,
    _device,
)
"""In the order in which they are applied: a later one may read what an earlier one derived."""

SFT_DERIVATIONS: Sequence[SftDerivation] = (_sft_micro_batch, _epochs, _run_folder, _device)


def derive(
    config: ConfigT, given: Given, derivations: Sequence[Callable[[ConfigT, Given], Iterator[Derived]]]
) -> tuple[ConfigT, tuple[Derived, ...]]:
    """Apply all derivations in order: the completed tree and what was derived."""
    found: list[Derived] = []
    for derivation in derivations:
        for item in tuple(derivation(config, given)):
            config = replace(config, item.path, item.value)
            found.append(item)
    return config, tuple(found)
