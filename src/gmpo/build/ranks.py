"""Learner and sampler of a run of several ranks: what each rank builds in its process, and how they are started.

Only a run of several ranks imports Ray.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase

from gmpo.backends.devices import describe, pick_device, use_any_length
from gmpo.backends.products import Product, take_product
from gmpo.backends.ranks.group import prepare_ray
from gmpo.backends.ranks.learner import RankedLearner
from gmpo.backends.ranks.rank import Member, RankParts
from gmpo.backends.ranks.sampler import RankedSampler
from gmpo.backends.ranks.sharding import make_mesh, shard
from gmpo.build.learner import build_learner, build_sampler
from gmpo.build.objective import build_objective, critic_settings
from gmpo.build.policy import PolicyFacts, build_policy
from gmpo.config import Config
from gmpo.errors import BackendError

INSTALL = "pip install 'gmpo[ray]', or trainer.n_gpus_per_node=1."


@dataclass(frozen=True, slots=True)
class Job:
    """What a rank needs to build its parts; it travels to every process."""

    config: Config
    tokenizer: PreTrainedTokenizerBase
    longest_prompt: int
    """Tokens."""
    total_steps: int
    product: Product
    """The float32 products in effect in the driver."""


def start_ranks(job: Job, drew: Callable[[int], object]) -> tuple[PolicyFacts, RankedLearner, RankedSampler]:
    """Start the ranks and have them load the models.

    Raises:
        BackendError: Ray is missing, or there are too few devices; whatever loading a model raises.
    """
    prepare_ray()
    try:
        ray_ranks: Any = import_module("gmpo.backends.ranks.ray_ranks")
    except ImportError as error:
        raise BackendError(
            f"several ranks are started by Ray, which cannot be imported ({error}): {INSTALL}"
        ) from error
    config: Config = job.config
    device = pick_device(config.trainer.device, config.actor_rollout_ref.actor.fsdp_config.dtype)
    world = config.devices
    plan = ray_ranks.RayPlan(
        world=world,
        device=device.torch.type,
        threads=max(1, torch.get_num_threads() // world),
        patience=float(config.actor_rollout_ref.nccl_timeout),
        address=os.environ.get("RAY_ADDRESS"),
    )
    ranks = ray_ranks.RayRanks.start(plan, partial(build_rank, job))
    try:
        facts = cast(PolicyFacts, ranks.call("build", lambda _: (), phase="loading the models")[0])
    except BaseException:
        ranks.close()
        raise
    learner = RankedLearner(ranks, build_objective(config, job.total_steps), critic_settings(config))
    where = f"{world} ranks under Ray, {facts.where} each"
    return replace(facts, where=where), learner, RankedSampler(ranks, drew)


def build_rank(job: Job, member: Member) -> RankParts:
    """Load the models in a rank's process and shard them."""
    config: Config = job.config
    actor = config.actor_rollout_ref.actor
    device = pick_device(config.trainer.device, actor.fsdp_config.dtype)
    use_any_length(device.torch)
    take_product(job.product)
    policy = build_policy(config, job.tokenizer, device, longest_prompt=job.longest_prompt)
    learner, beyond = build_learner(config, policy, job.total_steps)
    sampler = build_sampler(config, policy, lambda tokens: None, deepcopy(policy.model).requires_grad_(False))
    facts = replace(policy.facts, notes=(*policy.notes, *beyond), where=describe(device))
    mesh = make_mesh(device.torch, member.world, actor.fsdp_config.fsdp_size)
    learner.spread(lambda module: shard(module, mesh, device))
    return RankParts(learner, sampler, facts)
