"""Names and numbers of a configuration -> the objects of a run: the one place that knows both sides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gmpo.algo.losses import SUPERVISED
from gmpo.algo.objective import Objective
from gmpo.algo.schedule import learning_rate
from gmpo.backends.devices import DTYPES, Device, pick_device
from gmpo.backends.learner import LocalLearner
from gmpo.backends.models import (
    ModelSource,
    check_positions,
    check_vocabulary,
    checkpoint_activations,
    load_model,
    load_tokenizer,
    pad_token_id,
    stop_token_ids,
)
from gmpo.backends.products import Product, use_product
from gmpo.backends.torch_sampler import TorchSampler
from gmpo.backends.trainable import MicroBatching, OptimizerSettings
from gmpo.build.objective import (
    build_critic,
    build_objective,
    build_optimizer,
    split_by,
)
from gmpo.config import Config, SftConfig
from gmpo.config.numbers import Numbers
from gmpo.config.schema_actor import Rollout, ValKwargs
from gmpo.data.problems import Problem, ProblemStream, load_problems, problems_from_rows, sample
from gmpo.data.prompts import EncodedProblem, EncodedProblems, encode_prompts
from gmpo.objectives import ESTIMATORS
from gmpo.ports import Learner, Sampler, SamplingParams
from gmpo.rewards.combined import Rewards
from gmpo.tracking.folder import PASS_RATES
from gmpo.training.checkpoint import Store, content_hash
from gmpo.training.collect import Collector
from gmpo.training.evaluation import Evaluation
from gmpo.training.gather import Gather, GroupFilter
from gmpo.training.loop import Plan
from gmpo.training.pass_rates import PassRates
from gmpo.training.producer import Producer
from gmpo.training.scoring import Scoring

Rows = Iterable[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Policy:
    """A model with its tokenizer and the ids that matter for sampling."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: Device
    stop_ids: frozenset[int]
    pad_id: int
    product: Product
    """The float32 matrix product in effect."""


def build_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """The run's tokenizer: of `model.tokenizer_path` if given, else of the model."""
    model = config.actor_rollout_ref.model
    source = ModelSource(model.tokenizer_path or model.path, model.trust_remote_code)
    return load_tokenizer(source, chat_template=model.custom_chat_template)


def build_policy(config: Config, tokenizer: PreTrainedTokenizerBase, *, longest_prompt: int) -> Policy:
    """Load the policy onto the run's device.

    Args:
        longest_prompt: tokens of the longest prompt it will be asked.
    """
    settings = config.actor_rollout_ref.model
    precision = config.actor_rollout_ref.actor.fsdp_config
    device = pick_device(config.trainer.device, precision.dtype)
    product = use_product(config.trainer.matmul_precision, device.torch)
    source = ModelSource(settings.path, settings.trust_remote_code, settings.override_config)
    model = load_model(source, device.torch, DTYPES[precision.model_dtype])
    if settings.enable_gradient_checkpointing:
        checkpoint_activations(model)
    check_vocabulary(model, tokenizer)
    check_positions(model, longest_prompt, config.data.max_response_length)
    stop_ids = stop_token_ids(model, tokenizer)
    return Policy(model, tokenizer, device, stop_ids, pad_token_id(tokenizer, stop_ids), product)


def build_problems(
    config: Config, tokenizer: PreTrainedTokenizerBase, rows: Rows | None, val_rows: Rows | None
) -> tuple[EncodedProblems, EncodedProblems | None]:
    """Training and validation problems with their prompt ids; rows given in Python take the place of files."""
    data = config.data
    load = partial(load_problems, prompt_key=data.prompt_key, data_source_key=data.reward_fn_key, seed=config.data.seed)
    from_rows = partial(problems_from_rows, prompt_key=data.prompt_key, data_source_key=data.reward_fn_key)
    if rows is not None:
        train = sample(from_rows(rows, "rows"), data.train_max_samples, data.seed)
    else:
        train = load(data.train_files, limit=data.train_max_samples)
    encode = partial(
        encode_prompts,
        tokenizer=tokenizer,
        max_prompt_length=data.max_prompt_length,
        truncation=data.truncation,
        filter_overlong=data.filter_overlong_prompts,
        chat_template_kwargs=data.apply_chat_template_kwargs,
    )
    if val_rows is not None:
        val = sample(from_rows(val_rows, "val_rows"), data.val_max_samples, data.seed)
    else:
        val = load(data.val_files, limit=data.val_max_samples) if data.val_files else []
    return encode(train), encode(val) if val else None


def build_sampler(config: Config, policy: Policy) -> TorchSampler:
    """The sampler that `rollout.name` means."""
    rollout = config.actor_rollout_ref.rollout
    return TorchSampler(
        device=policy.device,
        seed=rollout.seed,
        stop_ids=frozenset() if rollout.ignore_eos else policy.stop_ids,
        max_num_seqs=rollout.max_num_seqs,
    )


def sampling_params(settings: Rollout | ValKwargs, max_tokens: int) -> SamplingParams:
    """Of training rollouts, or of validation, where `do_sample=False` is greedy decoding."""
    greedy = isinstance(settings, ValKwargs) and settings.greedy
    return SamplingParams(
        n=settings.n,
        temperature=0.0 if greedy else settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        max_tokens=max_tokens,
    )


def build_learner(config: Config, policy: Policy, total_steps: int) -> LocalLearner:
    """Policy, optimizer and, where they are asked for, the reference model and the critic."""
    tree = config.actor_rollout_ref
    reference = None
    if config.uses_reference:
        source = ModelSource(tree.ref.model.path, tree.model.trust_remote_code, tree.model.override_config)
        reference = load_model(source, policy.device.torch)
    actor, rollout = tree.actor, tree.rollout
    return LocalLearner(
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
        critic=build_critic(config, policy.tokenizer, policy.device, total_steps),
    )


def build_collector(config: Config, policy: Policy, rewards: Rewards) -> Collector:
    """Sampling and grading of the run."""
    return Collector(
        build_sampler(config, policy),
        rewards,
        decode=partial(policy.tokenizer.batch_decode, skip_special_tokens=True),
    )


def build_evaluation(
    config: Config, collector: Collector, problems: EncodedProblems | None, keep: Callable[..., None]
) -> Evaluation:
    """Validation of the run; without problems it gives no metrics."""
    data = config.data
    return Evaluation(
        collector,
        problems.items if problems else (),
        sampling_params(config.actor_rollout_ref.rollout.val_kwargs, data.max_response_length),
        batch_size=data.val_batch_size,
        keep=keep,
    )


def build_history(config: Config, folder: Path, problems: EncodedProblems) -> PassRates:
    """The pass rates of the run, kept in its folder."""
    data = config.data
    return PassRates(
        folder / PASS_RATES,
        [item.problem for item in problems.items],
        bounds=data.pass_rate_range,
        earlier=Path(data.pass_rate_history).expanduser() if data.pass_rate_range and data.pass_rate_history else None,
    )


def build_gather(config: Config, collector: Collector, problems: EncodedProblems, history: PassRates) -> Gather:
    """Which problems a step asks, in which order, and which groups it learns from."""
    data, groups = config.data, config.algorithm.filter_groups
    key = "data.gen_batch_size" if groups.enable else "data.train_batch_size"
    stream: ProblemStream[EncodedProblem] = ProblemStream(
        problems.items, config.problems_per_round, shuffle=data.shuffle, seed=data.seed, key=key
    )
    producer = Producer(
        collector,
        stream,
        sampling_params(config.actor_rollout_ref.rollout, data.max_response_length),
        history.wanted,
        greedy_baseline=ESTIMATORS[config.algorithm.adv_estimator].needs_greedy,
    )
    chosen = GroupFilter(groups.metric or "seq_reward", groups.max_num_gen_batches, groups.max_staleness)
    return Gather(producer, history, groups=data.train_batch_size, group_filter=chosen if groups.enable else None)


def build_store(config: Config, folder: Path, problems: Sequence[Problem], tell: Callable[[str], None]) -> Store:
    """Checkpoints of the run, below its folder."""
    trainer, data, checkpoint = config.trainer, config.data, config.actor_rollout_ref.actor.checkpoint
    return Store(
        folder,
        save_contents=checkpoint.save_contents,
        load_contents=checkpoint.load_contents,
        resume=Path(trainer.resume_from_path or "") if trainer.resume_mode == "resume_path" else trainer.resume_mode,
        keep=trainer.max_actor_ckpt_to_keep,
        behind=checkpoint.async_save,
        data={
            "problems": len(problems),
            "content of the problems": content_hash(problems),
            "data.train_batch_size": data.train_batch_size,
            "data.gen_batch_size": data.gen_batch_size,
            "data.shuffle": data.shuffle,
            "data.seed": data.seed,
        },
        tell=tell,
    )


def build_scoring(config: Config, learner: Learner, sampler: Sampler) -> Scoring:
    """What is computed at the start of a step."""
    tolerance = config.actor_rollout_ref.rollout.log_prob_tolerance
    shared = sampler.shares_learner_weights
    return Scoring(
        learner,
        old=config.needs_old_logp or not shared,
        tolerance=tolerance if shared and config.can_reuse_logp else 0.0,
    )


def build_plan(config: Config, policy: Policy, numbers: Numbers) -> Plan:
    """The numbers of the loop."""
    actor, trainer, data = config.actor_rollout_ref.actor, config.trainer, config.data
    assert numbers.total_steps is not None, "the number of problems is known here"
    return Plan(
        total_steps=numbers.total_steps,
        max_prompt_length=data.max_prompt_length,
        pad_id=policy.pad_id,
        mini_batch_problems=actor.ppo_mini_batch_size,
        epochs_per_batch=actor.ppo_epochs,
        shuffle_seed=actor.data_loader_seed if actor.shuffle else None,
        test_freq=trainer.test_freq,
        save_freq=trainer.save_freq,
        validate_first=trainer.val_before_train or trainer.val_only,
        critic_warmup=trainer.critic_warmup if config.critic.enable else 0,
    )


def build_supervised_learner(config: SftConfig, total_steps: int) -> tuple[LocalLearner, Policy]:
    """Policy and optimizer for supervised learning: the same learner with the likelihood as its objective."""
    settings, optim = config.model, config.optim
    source = ModelSource(settings.path, settings.trust_remote_code, settings.override_config)
    tokenizer = load_tokenizer(source)
    device = pick_device(config.trainer.device, None)
    product = use_product(config.trainer.matmul_precision, device.torch)
    model = load_model(source, device.torch)
    if settings.enable_gradient_checkpointing:
        checkpoint_activations(model)
    check_vocabulary(model, tokenizer)
    stop_ids = stop_token_ids(model, tokenizer)
    split = MicroBatching(rows=config.data.micro_batch_size_per_gpu)
    learner = LocalLearner(
        model,
        tokenizer,
        device=device,
        objective=Objective(SUPERVISED, {}, "token-mean", loss_scale=1.0, temperature=1.0),
        optimizer=OptimizerSettings(
            learning_rate=partial(
                learning_rate,
                peak=optim.lr,
                shape=optim.lr_scheduler_type,
                warmup_steps=int(optim.warmup_steps_ratio * total_steps),
                total_steps=total_steps,
                min_ratio=optim.min_lr_ratio,
            ),
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            max_norm=optim.clip_grad,
            max_nonfinite=3,
        ),
        update_split=split,
        score_split=split,
    )
    return learner, Policy(model, tokenizer, device, stop_ids, pad_token_id(tokenizer, stop_ids), product)


def longest_prompt(*sets: EncodedProblems | None) -> int:
    """Tokens of the longest prompt."""
    return max(len(item.prompt_ids) for encoded in sets if encoded is not None for item in encoded.items)


def data_sources(*sets: EncodedProblems | None) -> Sequence[Problem]:
    """All problems of several sets."""
    return [item.problem for encoded in sets if encoded is not None for item in encoded.items]
