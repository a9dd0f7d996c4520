"""The learner of a training and the embedded sampler, in the process that they run in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from transformers import PreTrainedModel

from gmpo.backends.family import require_family
from gmpo.backends.learner import LocalLearner
from gmpo.backends.models import (
    ModelSource,
    beyond_tokenizer,
    check_positions,
    check_vocabulary,
    load_config,
    load_model_with_notes,
)
from gmpo.backends.packed import require_divisible
from gmpo.backends.ranks.handing_out import placeholder_model
from gmpo.backends.torch_sampler import TorchSampler
from gmpo.build.objective import build_critic, build_objective, build_optimizer, critic_source, split_by
from gmpo.build.policy import Policy, policy_source
from gmpo.config import Config
from gmpo.objectives import ESTIMATORS


def build_sampler(
    config: Config, policy: Policy, drew: Callable[[int], object], model: PreTrainedModel | None = None
) -> TorchSampler:
    """The sampler that `rollout.name` means.

    Args:
        drew: is told how many tokens were drawn.
        model: its own, None where it samples from the learner's.
    """
    rollout = config.actor_rollout_ref.rollout
    return TorchSampler(
        device=policy.device,
        seed=rollout.seed,
        stop_ids=frozenset() if rollout.ignore_eos else policy.stop_ids,
        max_num_seqs=rollout.max_num_seqs,
        excluded=beyond_tokenizer(policy.model, policy.tokenizer),
        model=model,
        drew=drew,
    )


def build_learner(config: Config, policy: Policy, total_steps: int) -> tuple[LocalLearner, list[str]]:
    """Policy, optimizer and, where they are asked for, the reference model and the critic; and what the files of these
    two hold beyond them, in sentences."""
    tree = config.actor_rollout_ref
    reference, notes = _reference(config, policy) if config.uses_reference else (None, [])
    critic, beyond = build_critic(config, policy, total_steps)
    actor, rollout = tree.actor, tree.rollout
    learner = LocalLearner(
        policy.model,
        policy.tokenizer,
        device=policy.device,
        objective=build_objective(config, total_steps),
        optimizer=build_optimizer(
            actor.optim,
            max_norm=actor.grad_clip,
            max_nonfinite=actor.max_nonfinite_updates,
            total_steps=total_steps,
        ),
        update_split=split_by(
            actor.use_dynamic_bsz, actor.ppo_micro_batch_size_per_gpu, actor.ppo_max_token_len_per_gpu
        ),
        score_split=split_by(
            rollout.log_prob_use_dynamic_bsz,
            rollout.log_prob_micro_batch_size_per_gpu,
            rollout.log_prob_max_token_len_per_gpu,
        ),
        reference=reference,
        reference_split=split_by(
            tree.ref.log_prob_use_dynamic_bsz,
            tree.ref.log_prob_micro_batch_size_per_gpu,
            tree.ref.log_prob_max_token_len_per_gpu,
        ),
        critic=critic,
        score_norms=ESTIMATORS[config.algorithm.adv_estimator].needs_score_norms,
    )
    return learner, [*notes, *beyond]


def reference_source(config: Config) -> ModelSource:
    """Where the reference model comes from."""
    tree = config.actor_rollout_ref
    key = "actor_rollout_ref.ref.model.path"
    return ModelSource(tree.ref.model.source, tree.model.trust_remote_code, tree.model.override_config, key)


def model_sources(config: Config) -> list[ModelSource]:
    """Where the models of a training come from."""
    sources = [policy_source(config)]
    if config.uses_reference:
        sources.append(reference_source(config))
    if config.critic.enable:
        sources.append(critic_source(config))
    return sources


def require_divisible_sequences(config: Config) -> None:
    """Whether the models' sequences can be divided between ranks as asked for, by their configurations alone.

    Raises:
        BackendError: one cannot.
    """
    tree, critic, key = config.actor_rollout_ref, config.critic, "ulysses_sequence_parallel_size"
    policy, reference, values = policy_source(config), reference_source(config), critic_source(config)
    for source, used, size, section in (
        (policy, True, tree.actor.ulysses_sequence_parallel_size, "actor_rollout_ref.actor"),
        (reference, config.uses_reference, tree.ref.ulysses_sequence_parallel_size, "actor_rollout_ref.ref"),
        (values, critic.enable, critic.ulysses_sequence_parallel_size, "critic"),
    ):
        if used and size > 1:
            require_divisible(load_config(source), size, source, f"{section}.{key}")


def _reference(config: Config, policy: Policy) -> tuple[PreTrainedModel | Literal["without adapters"], list[str]]:
    """The reference model; of another path than the policy's, with the same checks, and what its files hold beyond. A
    policy with adapters is its own, without them."""
    tree = config.actor_rollout_ref
    if tree.model.lora_rank and tree.ref.model.path == tree.model.path:
        return "without adapters", []
    source, loading = reference_source(config), policy.loading
    if not loading.reads:
        return placeholder_model(source, torch.float32), []
    model, notes = load_model_with_notes(source, loading.device.torch)
    if tree.ref.model.path == tree.model.path:
        return model, []
    check_vocabulary(model, policy.tokenizer)
    check_positions(model, policy.longest.tokens, policy.longest.what, source)
    require_family(model, loading.device, source.path)
    return model, [f"{source.key}: {note}" for note in notes]
