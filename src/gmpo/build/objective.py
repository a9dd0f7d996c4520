"""What is optimised, from the configuration: loss, advantages, corrections, optimizers, critic."""

from __future__ import annotations

from functools import partial

import torch

from gmpo.algo.advantages import ADVANTAGES
from gmpo.algo.losses import POLICY_LOSSES
from gmpo.algo.objective import Objective
from gmpo.algo.schedule import learning_rate, linear
from gmpo.backends.critic import Critic as CriticModel
from gmpo.backends.critic import CriticSettings, load_value_model_with_notes
from gmpo.backends.family import require_family
from gmpo.backends.models import ModelSource, check_positions, check_vocabulary, checkpoint_activations
from gmpo.backends.ranks.handing_out import placeholder_model
from gmpo.backends.trainable import MicroBatching, OptimizerSettings, Trainable
from gmpo.build.policy import Policy, policy_source
from gmpo.config import Config
from gmpo.config.corrections import rejections
from gmpo.config.objective_keys import ESTIMATOR_KEYS, LOSS_KEYS, configured_numbers
from gmpo.config.schema_training import Optim
from gmpo.training.credit import Correction, Credit, LossMask, RewardKL


def build_objective(config: Config, total_steps: int) -> Objective:
    """The loss that `policy_loss.loss_mode` names, with its numbers and the terms beside it."""
    actor = config.actor_rollout_ref.actor
    loss = POLICY_LOSSES[actor.policy_loss.loss_mode]
    numbers = configured_numbers(config, loss.traits.all_numbers, LOSS_KEYS)
    courses = {name: value for name, value in numbers.items() if isinstance(value, tuple)}
    return Objective(
        policy_loss=loss,
        loss_numbers={name: value for name, value in numbers.items() if name not in courses},
        schedules={
            name: partial(linear, start=start, end=end, total_steps=total_steps)
            for name, (start, end) in courses.items()
        },
        aggregation=actor.loss_agg_mode,
        loss_scale=float(actor.loss_scale_factor or config.data.max_response_length),
        temperature=config.actor_rollout_ref.rollout.temperature,
        kl_coef=actor.kl_loss_coef if actor.has_kl_term else 0.0,
        kl_kind=actor.kl_loss_type,
        entropy_coef=actor.entropy_coeff,
        seed=actor.data_loader_seed,
    )


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
    # A ratio of the loss to the sampler is the weight itself.
    weighs = not (settings.bypass_mode and settings.loss_type == "ppo_clip")
    return Correction(
        level=settings.rollout_is if weighs else None,
        threshold=settings.rollout_is_threshold,
        batch_normalise=settings.rollout_is_batch_normalize,
        geometric=settings.geometric_weights,
        icepop=settings.icepop if weighs else None,
        rejections=rejections(config),
        bypass=settings.bypass_mode,
    )


def build_credit(config: Config) -> Credit:
    """The estimator that `adv_estimator` names, with its numbers, and what leaves or weights the loss."""
    algorithm, actor = config.algorithm, config.actor_rollout_ref.actor
    estimator = ADVANTAGES[algorithm.adv_estimator]
    control = algorithm.kl_ctrl
    reward_kl = RewardKL(
        kind=algorithm.kl_penalty,
        coefficient=control.kl_coef,
        target=control.target_kl if control.type == "adaptive" else None,
        horizon=float(control.horizon),
    )
    return Credit(
        estimator,
        configured_numbers(config, estimator.traits.numbers, ESTIMATOR_KEYS),
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


def critic_settings(config: Config) -> CriticSettings | None:
    """How the critic is fitted; None without one."""
    critic = config.critic
    if not critic.enable:
        return None
    return CriticSettings(
        gamma=config.algorithm.gamma,
        lam=config.algorithm.lam,
        clip=critic.cliprange_value,
        aggregation=critic.loss_agg_mode,
        loss_scale=float(config.data.max_response_length),
        mini_batch_problems=critic.ppo_mini_batch_size,
        epochs=critic.ppo_epochs,
        shuffle_seed=critic.data_loader_seed if critic.shuffle else None,
    )


def critic_source(config: Config) -> ModelSource:
    """Where the critic's backbone comes from."""
    own = config.critic.model
    return ModelSource(
        own.source, own.trust_remote_code, own.override_config, "critic.model.path", "critic.model.override_config"
    )


def build_critic(config: Config, policy: Policy, total_steps: int) -> tuple[CriticModel | None, list[str]]:
    """The critic, where the advantages need one, and what the files of a backbone of its own hold beyond it."""
    critic, fitting = config.critic, critic_settings(config)
    if fitting is None:
        return None, []
    device, source, loading = policy.device, critic_source(config), policy.loading
    notes: list[str] = []
    if loading.reads:
        model, notes = load_value_model_with_notes(source, loading.device.torch)
    else:
        model = placeholder_model(source, torch.float32, "critic")
    if source == policy_source(config):
        notes = []  # the policy's own
    elif loading.reads:
        check_vocabulary(model, policy.tokenizer)
        check_positions(model, policy.longest.tokens, policy.longest.what, source)
        require_family(model, loading.device, source.path, critic=True)
    if critic.model.enable_gradient_checkpointing:
        checkpoint_activations(model)
    settings = build_optimizer(
        critic.optim,
        max_norm=critic.grad_clip,
        max_nonfinite=config.actor_rollout_ref.actor.max_nonfinite_updates,
        total_steps=total_steps,
    )
    made = CriticModel(
        Trainable(model, policy.tokenizer, settings, lr_key="critic.optim.lr"),
        device=device,
        settings=fitting,
        update_split=split_by(
            critic.use_dynamic_bsz, critic.ppo_micro_batch_size_per_gpu, critic.ppo_max_token_len_per_gpu
        ),
        score_split=split_by(
            critic.use_dynamic_bsz, critic.forward_micro_batch_size_per_gpu, critic.forward_max_token_len_per_gpu
        ),
    )
    return made, [f"critic.model.path: {note}" for note in notes]
