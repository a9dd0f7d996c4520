"""What is optimised, from the configuration: loss, advantages, corrections, optimizers, critic."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from gmpo.algo.advantages import ADVANTAGES
from gmpo.algo.losses import POLICY_LOSSES
from gmpo.algo.schedule import learning_rate, linear
from gmpo.backends.critic import Critic as CriticModel
from gmpo.backends.critic import CriticSettings, load_value_model
from gmpo.backends.devices import Device
from gmpo.backends.learner import Objective
from gmpo.backends.models import ModelSource, checkpoint_activations
from gmpo.backends.trainable import MicroBatching, OptimizerSettings, Trainable
from gmpo.config import Config
from gmpo.config.corrections import rejections
from gmpo.config.schema_actor import Actor
from gmpo.config.schema_training import Optim
from gmpo.training.credit import Correction, Credit, LossMask, RewardKL


def needs_reference(config: Config) -> bool:
    """Whether a term compares the policy with the reference model."""
    actor = config.actor_rollout_ref.actor
    return (actor.use_kl_loss and actor.kl_loss_coef > 0) or config.algorithm.use_kl_in_reward


def needs_old_logp(config: Config, updates: int, *, shared_weights: bool) -> bool:
    """Whether a step starts with the learner's log-probs of what was sampled.

    Not where one update sees exactly the weights that sampled all groups, nor where the sampler's log-probs stand in
    for them, unless something else compares the two or needs the entropies.

    Args:
        shared_weights: the sampler's `shares_learner_weights`.
    """
    compares = build_correction(config).compares or config.algorithm.use_kl_in_reward
    groups = config.algorithm.filter_groups
    stale = groups.enable and groups.max_staleness > 0
    if stale or not shared_weights or compares or config.actor_rollout_ref.actor.entropy_quantile is not None:
        return True
    return updates > 1 and not config.algorithm.rollout_correction.bypass_mode


def can_reuse_logp(config: Config, *, shared_weights: bool) -> bool:
    """Whether the sampler's log-probs may stand for the old ones: it has the learner's weights (`shared_weights`),
    nothing compares the two policies, and nothing needs the entropies that come with old log-probs."""
    groups = config.algorithm.filter_groups
    stale = groups.enable and groups.max_staleness > 0
    compares = build_correction(config).compares
    return shared_weights and not (stale or compares or config.actor_rollout_ref.actor.entropy_quantile is not None)


def build_objective(config: Config, total_steps: int) -> Objective:
    """The loss that `policy_loss.loss_mode` names, with its numbers and the terms beside it."""
    actor = config.actor_rollout_ref.actor
    correction = config.algorithm.rollout_correction
    reinforce = correction.bypass_mode and correction.loss_type == "reinforce"
    numbers, schedules = _loss_numbers(actor, total_steps)
    return Objective(
        loss=POLICY_LOSSES["gpg" if reinforce else actor.policy_loss.loss_mode],
        loss_numbers=numbers,
        schedules=schedules,
        aggregation=actor.loss_agg_mode,
        loss_scale=float(actor.loss_scale_factor or config.data.max_response_length),
        temperature=config.actor_rollout_ref.rollout.temperature,
        kl_coef=actor.kl_loss_coef if actor.use_kl_loss else 0.0,
        kl_kind=actor.kl_loss_type,
        entropy_coef=actor.entropy_coeff,
        seed=actor.data_loader_seed,
    )


def _loss_numbers(actor: Actor, total_steps: int) -> tuple[dict[str, Any], dict[str, Callable[[int], float]]]:
    """Every number a loss may take, and those that change with the step."""
    loss = actor.policy_loss
    numbers = {
        "clip_low": actor.clip_ratio_low,
        "clip_high": actor.clip_ratio_high,
        "clip_dual": actor.clip_ratio_c,
        "clip_level": loss.clip_level,
        "length_norm": loss.length_norm,
        "upper": loss.geo_mean_upper,
        "tau_positive": actor.tau_pos,
        "tau_negative": actor.tau_neg,
        "clip_cov_share": loss.clip_cov_ratio,
        "cov_low": loss.clip_cov_lb,
        "cov_high": loss.clip_cov_ub,
        "kl_cov_share": loss.kl_cov_ratio,
        "kl_coef": loss.ppo_kl_coef,
    }
    if isinstance(loss.power, tuple):
        start, end = loss.power
        return numbers, {"power": partial(linear, start=start, end=end, total_steps=total_steps)}
    return {**numbers, "power": float(loss.power)}, {}


def build_optimizer(optim: Optim, *, max_norm: float, max_nonfinite: int, total_steps: int) -> OptimizerSettings:
    """AdamW with the learning rate of a section `optim`."""
    horizon = optim.total_training_steps or total_steps
    ratio = int(optim.lr_warmup_steps_ratio * horizon)
    return OptimizerSettings(
        learning_rate=partial(
            learning_rate,
            peak=optim.lr,
            shape=optim.lr_scheduler_type,
            warmup_steps=optim.lr_warmup_steps if optim.lr_warmup_steps >= 0 else ratio,
            total_steps=horizon,
            min_ratio=optim.min_lr_ratio,
            cycles=optim.num_cycles,
        ),
        betas=optim.betas,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        max_norm=max_norm,
        max_nonfinite=max_nonfinite,
    )


def build_correction(config: Config) -> Correction:
    """What is done about sampler and learner being two policies."""
    settings = config.algorithm.rollout_correction
    return Correction(
        level=settings.rollout_is,
        threshold=settings.rollout_is_threshold,
        batch_normalise=settings.rollout_is_batch_normalize,
        geometric=settings.geometric_weights,
        icepop=settings.icepop,
        rejections=rejections(config),
        bypass=settings.bypass_mode,
    )


def build_credit(config: Config) -> Credit:
    """The estimator that `adv_estimator` names, with its numbers, and what leaves or weights the loss."""
    algorithm, actor = config.algorithm, config.actor_rollout_ref.actor
    estimator = ADVANTAGES[algorithm.adv_estimator]
    numbers = {
        "normalise_by_std": algorithm.norm_adv_by_std_in_grpo,
        "gamma": algorithm.gamma,
        "lam": algorithm.lam,
        "floor": algorithm.geo_mean_eps,
        "offset": algorithm.geo_mean_offset,
    }
    control = algorithm.kl_ctrl
    reward_kl = RewardKL(
        kind=algorithm.kl_penalty,
        coefficient=control.kl_coef,
        target=control.target_kl if control.type == "adaptive" else None,
        horizon=float(control.horizon),
    )
    return Credit(
        estimator,
        {name: numbers[name] for name in estimator.traits.numbers},
        reward_kl if algorithm.use_kl_in_reward else None,
        correction=build_correction(config),
        loss_mask=LossMask(
            zero_variance=algorithm.drop_zero_variance,
            truncated=actor.mask_truncated,
            entropy_quantile=actor.entropy_quantile,
        ),
    )


def split_by(dynamic: bool, rows: int | None, tokens: int) -> MicroBatching:
    """Micro-batches by a token budget or by rows."""
    return MicroBatching(tokens=tokens) if dynamic else MicroBatching(rows=rows)


def build_critic(
    config: Config, tokenizer: PreTrainedTokenizerBase, device: Device, total_steps: int
) -> CriticModel | None:
    """The critic, where the advantages need one."""
    critic = config.critic
    if not critic.enable:
        return None
    source = ModelSource(critic.model.path, critic.model.trust_remote_code, critic.model.override_config)
    model = load_value_model(source, device.torch)
    if critic.model.enable_gradient_checkpointing:
        checkpoint_activations(model)
    settings = build_optimizer(
        critic.optim,
        max_norm=critic.grad_clip,
        max_nonfinite=config.actor_rollout_ref.actor.max_nonfinite_updates,
        total_steps=total_steps,
    )
    return CriticModel(
        Trainable(model, tokenizer, settings, lr_key="critic.optim.lr"),
        device=device,
        settings=CriticSettings(
            gamma=config.algorithm.gamma,
            lam=config.algorithm.lam,
            clip=critic.cliprange_value,
            aggregation=critic.loss_agg_mode,
            loss_scale=float(config.data.max_response_length),
            mini_batch_problems=critic.ppo_mini_batch_size,
            epochs=critic.ppo_epochs,
            shuffle_seed=critic.data_loader_seed if critic.shuffle else None,
        ),
        update_split=split_by(
            critic.use_dynamic_bsz, critic.ppo_micro_batch_size_per_gpu, critic.ppo_max_token_len_per_gpu
        ),
        score_split=split_by(
            critic.use_dynamic_bsz, critic.forward_micro_batch_size_per_gpu, critic.forward_max_token_len_per_gpu
        ),
    )
