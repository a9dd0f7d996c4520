"""Learner and sampler of a run of several ranks: what each rank builds in its process, and how they are started.

Only a run of several ranks imports Ray.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase

from gmpo.backends.devices import Device, pick_device, use_any_length
from gmpo.backends.learner import LocalLearner, Part
from gmpo.backends.models import Loading
from gmpo.backends.passes import BatchModule
from gmpo.backends.products import Product, take_product
from gmpo.backends.ranks.group import Ranks, prepare_ray
from gmpo.backends.ranks.handing_out import hand_out, kept_whole
from gmpo.backends.ranks.learner import RankedLearner
from gmpo.backends.ranks.proof import proof_in
from gmpo.backends.ranks.rank import Member, RankParts
from gmpo.backends.ranks.sampler import RankedSampler
from gmpo.backends.ranks.sharding import make_mesh, sequence_group, shard
from gmpo.build.learner import build_learner, build_sampler, model_sources, require_divisible_sequences
from gmpo.build.objective import build_objective, critic_settings
from gmpo.build.policy import (
    SUPERVISED_OBJECTIVE,
    PolicyFacts,
    build_policy,
    build_supervised_learner,
    policy_source,
    supervised_source,
)
from gmpo.config import Config, SftConfig
from gmpo.errors import BackendError
from gmpo.records.run_folder import RankPlace

PATIENCE_S = 600.0
"""Of fine-tuning, as `actor_rollout_ref.nccl_timeout` of a training."""
INSTALL = "pip install 'gmpo[ray]', or trainer.n_gpus_per_node=1."


@dataclass(frozen=True, slots=True)
class Job:
    """What a rank of a training needs to build its parts; it travels to every process."""

    config: Config
    tokenizer: PreTrainedTokenizerBase
    longest_prompt: int
    """Tokens."""
    total_steps: int
    product: Product
    """The float32 products in effect in the driver."""


@dataclass(frozen=True, slots=True)
class ValidationJob:
    """The same of a validation on its own."""

    config: Config
    tokenizer: PreTrainedTokenizerBase
    longest_prompt: int
    """Tokens."""
    product: Product


@dataclass(frozen=True, slots=True)
class SupervisedJob:
    """The same of supervised fine-tuning."""

    config: SftConfig
    tokenizer: PreTrainedTokenizerBase
    longest: int
    """Tokens of the longest demonstration, prompt and answer."""
    total_steps: int
    product: Product


def start_ranks(
    job: Job, folder: Path, drew: Callable[[int], object]
) -> tuple[PolicyFacts, RankedLearner, RankedSampler]:
    """Start the ranks of a training and have them load the models.

    Args:
        folder: of the run, which every node must see.

    Raises:
        BackendError: sequences of a model cannot be divided as asked for; Ray is missing, or there are too few devices;
            whatever loading a model raises.
    """
    config: Config = job.config
    require_divisible_sequences(config)
    dtype = config.actor_rollout_ref.actor.fsdp_config.dtype
    models = [source.path for source in model_sources(config)]
    ranks, facts = _started(
        config,
        folder,
        models,
        dtype,
        float(config.actor_rollout_ref.nccl_timeout),
        partial(build_rank, job),
        "loading the models",
    )
    learner = RankedLearner(ranks, build_objective(config, job.total_steps), critic_settings(config))
    return facts, learner, RankedSampler(ranks, drew)


def start_validating_ranks(
    job: ValidationJob, folder: Path, drew: Callable[[int], object]
) -> tuple[PolicyFacts, Ranks, RankedSampler]:
    """The same for a validation on its own: every rank has the whole policy and samples its share of the answers."""
    config: Config = job.config
    ranks, facts = _started(
        config,
        folder,
        [policy_source(config).path],
        config.actor_rollout_ref.actor.fsdp_config.dtype,
        float(config.actor_rollout_ref.nccl_timeout),
        partial(build_validating_rank, job),
        "loading the model",
    )
    return facts, ranks, RankedSampler(ranks, drew)


def start_supervised_ranks(job: SupervisedJob, folder: Path) -> tuple[PolicyFacts, RankedLearner]:
    """The same for supervised fine-tuning, which samples nothing."""
    models = [supervised_source(job.config).path]
    ranks, facts = _started(
        job.config, folder, models, None, PATIENCE_S, partial(build_supervised_rank, job), "loading the model"
    )
    return facts, RankedLearner(ranks, SUPERVISED_OBJECTIVE, None)


def _started(
    config: Config | SftConfig,
    folder: Path,
    models: list[str],
    dtype: str | None,
    patience: float,
    make: Callable[[Member], RankParts],
    phase: str,
) -> tuple[Ranks, PolicyFacts]:
    prepare_ray()
    try:
        ray_ranks: Any = import_module("gmpo.backends.ranks.ray_ranks")
    except ImportError as error:
        why = f"several ranks are started by Ray, which cannot be imported ({error}): {INSTALL}"
        raise BackendError(why) from error
    nodes, world = config.trainer.nnodes, config.devices
    plan = ray_ranks.RayPlan(
        nodes=nodes,
        ranks_a_node=world // nodes,
        device=pick_device(config.trainer.device, dtype).torch.type,
        threads=max(1, torch.get_num_threads() // (world // nodes)),
        patience=patience,
        address=os.environ.get("RAY_ADDRESS"),
    )
    ranks: Ranks = ray_ranks.RayRanks.start(plan, make)
    try:
        with proof_in(folder, models) as proof:
            found = ranks.call("prove", lambda _: (proof,), phase="looking for the run's files")
        if lacking := [f"{ranks.where[i]}: {reason}" for i, reasons in enumerate(found) for reason in reasons]:
            raise BackendError("; ".join(lacking) + ".")
        facts = cast(PolicyFacts, ranks.call("build", lambda _: (), phase=phase)[0])
    except BaseException:
        ranks.close()
        raise
    on_nodes = f" on {nodes} nodes" if nodes > 1 else ""
    ranks_of: tuple[RankPlace, ...] = tuple({"rank": w.rank, "host": w.host, "pid": w.pid} for w in ranks.where)
    return ranks, replace(facts, where=f"{world} ranks under Ray{on_nodes}, {facts.where} each", ranks=ranks_of)


def build_rank(job: Job, member: Member) -> RankParts:
    """Load the models of a training in a rank's process and shard them."""
    config: Config = job.config
    actor = config.actor_rollout_ref.actor
    device = _device(config, actor.fsdp_config.dtype, job.product)
    loading = _loading(device, member)
    policy = build_policy(config, job.tokenizer, device, longest_prompt=job.longest_prompt, loading=loading)
    learner, beyond = build_learner(config, policy, job.total_steps)
    copied: Any = deepcopy(policy.model).requires_grad_(False)
    copied.to(device.torch)
    sampler = build_sampler(config, policy, lambda tokens: None, copied)
    facts = replace(policy.facts, notes=(*policy.notes, *beyond))
    degrees: dict[Part, int] = {
        "policy": actor.ulysses_sequence_parallel_size,
        "reference": config.actor_rollout_ref.ref.ulysses_sequence_parallel_size,
        "critic": config.critic.ulysses_sequence_parallel_size,
    }
    _spread(learner, device, member, actor.fsdp_config.fsdp_size, degrees)
    return RankParts(learner, sampler, facts)


def build_validating_rank(job: ValidationJob, member: Member) -> RankParts:
    """Load the policy of a validation in a rank's process."""
    config: Config = job.config
    device = _device(config, config.actor_rollout_ref.actor.fsdp_config.dtype, job.product)
    policy = build_policy(config, job.tokenizer, device, longest_prompt=job.longest_prompt)
    return RankParts(None, build_sampler(config, policy, lambda tokens: None), policy.facts, policy.model)


def build_supervised_rank(job: SupervisedJob, member: Member) -> RankParts:
    """Load the model of supervised fine-tuning in a rank's process and shard it."""
    device = _device(job.config, None, job.product)
    learner, policy = build_supervised_learner(
        job.config, job.tokenizer, device, job.total_steps, longest=job.longest, loading=_loading(device, member)
    )
    _spread(learner, device, member, -1, {"policy": 1})
    return RankParts(learner, None, policy.facts)


def _device(config: Config | SftConfig, dtype: str | None, product: Product) -> Device:
    device = pick_device(config.trainer.device, dtype)
    use_any_length(device.torch)
    take_product(product)
    return device


def _loading(device: Device, member: Member) -> Loading:
    """The first rank reads, into the memory of its machine: a device never has more than its shards and a tensor."""
    return Loading(Device(torch.device("cpu"), device.compute), reads=member.rank == 0)


def _spread(learner: LocalLearner, device: Device, member: Member, size: int, degrees: Mapping[Part, int]) -> None:
    mesh = make_mesh(device.torch, member.world, size)
    groups = {n: sequence_group(device.torch, member.world, member.rank, n) for n in sorted(set(degrees.values()))}

    def spread(module: BatchModule, part: Part) -> None:
        whole = kept_whole(module.model)
        shard(module, mesh, device, groups[degrees[part]])
        hand_out(module.model, whole)

    learner.spread(spread)
