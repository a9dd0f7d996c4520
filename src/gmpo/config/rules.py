"""Rules over several settings: what cannot be, what this version cannot do, what has no effect, what to beware of."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from gmpo.config.derive import ACTOR, CRITIC, REF, ROLLOUT, Given
from gmpo.config.issues import ROWS, VAL_ROWS, Issue, Rule, SftRule, below, error, inert, unavailable, warning
from gmpo.config.rules_batches import (
    batch_sizes,
    group_size,
    log_prob_micro_batches,
    micro_batches,
    token_budgets,
)
from gmpo.config.rules_correction import RULES as CORRECTION_RULES
from gmpo.config.rules_critic import critic
from gmpo.config.rules_objective import RULES as OBJECTIVE_RULES
from gmpo.config.rules_reward import RULES as REWARD_RULES
from gmpo.config.rules_sampling import RULES as SAMPLING_RULES
from gmpo.config.schema import Config
from gmpo.config.schema_sft import SftConfig
from gmpo.config.schema_training import Optim

UNAVAILABLE_LOGGERS = ("mlflow", "swanlab", "vemlp_wandb", "clearml")


LARGEST_RATE = 0.02
"""The library's standard deviation of new weights."""
FEWEST_TOKENS = 4
"""Of an answer's limit."""


def resuming(config: Config, given: Given) -> Iterator[Issue]:
    trainer, path = config.trainer, "trainer.resume_from_path"
    if trainer.resume_mode != "resume_path":
        yield from inert("only trainer.resume_mode=resume_path reads it", path)
    elif trainer.resume_from_path is None:
        yield error(path, "must be given with trainer.resume_mode=resume_path", "trainer.resume_mode")
    elif not trainer.resume_from_path.rstrip("/").rpartition("/")[2].startswith("global_step_"):
        yield error(path, "must be a checkpoint folder, whose name is global_step_N", "trainer.resume_mode")


def checkpoints(config: Config, given: Given) -> Iterator[Issue]:
    saved = config.actor_rollout_ref.actor.checkpoint.save_contents
    loaded = config.actor_rollout_ref.actor.checkpoint.load_contents
    path = f"{ACTOR}.checkpoint"
    if "hf_model" in saved and "optimizer" not in saved:
        yield warning(
            f"{path}.save_contents",
            "holds weights without the optimizer: a resumed run continues from these weights with a fresh optimizer",
        )
    if missing := [content for content in loaded if content not in saved]:
        yield warning(f"{path}.load_contents", f"asks for {', '.join(missing)}, which save_contents does not write")


def run_length(config: Config | SftConfig, given: Given) -> Iterator[Issue]:
    if config.trainer.total_epochs is None and config.trainer.total_training_steps is None:
        yield error("trainer.total_epochs", "and trainer.total_training_steps are both null; give one of them")


def sampling(config: Config, given: Given) -> Iterator[Issue]:
    rollout = config.actor_rollout_ref.rollout
    for path, top_k in ((f"{ROLLOUT}.top_k", rollout.top_k), (f"{ROLLOUT}.val_kwargs.top_k", rollout.val_kwargs.top_k)):
        if top_k == 0:
            yield error(path, "must be -1 (off) or at least 1")


def kl_terms(config: Config, given: Given) -> Iterator[Issue]:
    actor, algorithm = config.actor_rollout_ref.actor, config.algorithm
    if not actor.use_kl_loss:
        yield from inert(f"{ACTOR}.use_kl_loss is off", f"{ACTOR}.kl_loss_coef", f"{ACTOR}.kl_loss_type")
    elif not actor.has_kl_term:
        reason = f"{ACTOR}.kl_loss_coef is 0, so the loss has no KL term"
        yield from inert(reason, f"{ACTOR}.use_kl_loss", f"{ACTOR}.kl_loss_type")
    controller = [f"algorithm.kl_ctrl.{name}" for name in ("type", "kl_coef", "horizon", "target_kl")]
    if not algorithm.use_kl_in_reward:
        yield from inert("algorithm.use_kl_in_reward is off", "algorithm.kl_penalty", *controller)
    elif algorithm.kl_ctrl.type == "fixed":
        yield from inert("only algorithm.kl_ctrl.type=adaptive reads it", *controller[2:])
    if not config.uses_reference:
        reason = f"no KL term is on ({ACTOR}.use_kl_loss, algorithm.use_kl_in_reward), so there is no reference model"
        yield from inert(reason, *below(REF))


def schedule(config: Config, given: Given) -> Iterator[Issue]:
    yield from _schedule(config.actor_rollout_ref.actor.optim, f"{ACTOR}.optim")
    if config.critic.enable:
        yield from _schedule(config.critic.optim, f"{CRITIC}.optim")


def _schedule(optim: Optim, prefix: str) -> Iterator[Issue]:
    if optim.lr_warmup_steps >= 0:
        yield from inert(f"{prefix}.lr_warmup_steps is given and wins", f"{prefix}.lr_warmup_steps_ratio")
    by_ratio = optim.lr_warmup_steps < 0 and optim.lr_warmup_steps_ratio > 0
    if optim.lr_scheduler_type == "constant" and not by_ratio:
        yield from inert("a constant learning rate has no end", f"{prefix}.total_training_steps")
    yield from _schedule_shape(optim.lr_scheduler_type, prefix)
    yield from _betas(optim.betas, f"{prefix}.betas")
    yield from _rate(optim.lr, f"{prefix}.lr")


def _rate(rate: float, path: str) -> Iterator[Issue]:
    if rate > LARGEST_RATE:
        yield warning(
            path,
            "an update of AdamW moves each weight by about the learning rate, and a model's weights are of the order "
            f"of {LARGEST_RATE:g}: the policy will fall apart. 1e-6 is usual for language models, 1e-4 for tiny ones",
        )


def _schedule_shape(shape: str, prefix: str) -> Iterator[Issue]:
    if shape == "constant":
        reason = "a constant learning rate has no minimum and no cycles"
        yield from inert(reason, f"{prefix}.min_lr_ratio", f"{prefix}.num_cycles")
    elif shape == "linear":
        yield from inert("only lr_scheduler_type=cosine has cycles", f"{prefix}.num_cycles")


def _betas(betas: Sequence[float], path: str) -> Iterator[Issue]:
    if not all(0 <= beta < 1 for beta in betas):
        yield error(path, "must be two numbers >= 0 and < 1")


def validation(config: Config, given: Given) -> Iterator[Issue]:
    settings = config.actor_rollout_ref.rollout.val_kwargs
    prefix = f"{ROLLOUT}.val_kwargs"
    if VAL_ROWS in given:
        yield from inert("validation problems are handed over as rows", "data.val_files")
    elif not config.data.val_files:
        trainer = ("test_freq", "val_before_train", "log_val_generations", "validation_data_dir", "keep_best")
        paths = ["data.val_batch_size", "data.val_max_samples", *(f"trainer.{name}" for name in trainer)]
        reason = "there is no validation without data.val_files"
        yield from inert(reason, *paths, *below(prefix))
        if config.trainer.val_only:
            yield error("trainer.val_only", "validates and stops, but data.val_files is empty", "data.val_files")
        return
    if config.trainer.keep_best and config.trainer.test_freq < 1:
        yield error(
            "trainer.keep_best", "nothing is validated while training: set trainer.test_freq", "trainer.test_freq"
        )
    if not settings.do_sample:
        yield from inert(
            "val_kwargs.do_sample is off", *(f"{prefix}.{name}" for name in ("temperature", "top_p", "top_k"))
        )
    if settings.do_sample and settings.greedy:
        yield warning(f"{prefix}.do_sample", "is on, but val_kwargs.temperature is 0, which is greedy")
    if settings.greedy and settings.n > 1:
        yield warning(
            f"{prefix}.n", f"takes {settings.n} answers, but greedy ones are all equal; raise the temperature"
        )


def data_and_rewards(config: Config, given: Given) -> Iterator[Issue]:
    data, custom = config.data, config.custom_reward_function
    if data.max_response_length < FEWEST_TOKENS:
        reason = "hardly an answer fits, with its end token: all others are cut and judged as they stand"
        yield warning("data.max_response_length", reason)
    if not data.shuffle:
        yield from inert("data.shuffle is off; problems keep their order", "data.seed")
    if ROWS in given:
        yield from inert("problems are handed over as rows", "data.train_files")
    elif not data.train_files and not config.trainer.val_only:
        yield warning("data.train_files", "is empty; problems must be handed over by gmpo.train(config, rows=...)")
    if custom.path is None:
        paths = ("custom_reward_function.name", "custom_reward_function.reward_kwargs")
        yield from inert("custom_reward_function.path is not given", *paths)
    else:
        names = ("answer_rule", "scorer", "scorers", "thinking", "thinking_tags", "require", "max_unmet_references")
        scorers = [f"reward_model.{name}" for name in names]
        yield from inert("custom_reward_function.path replaces the scorers", *scorers)


def not_available(config: Config, given: Given) -> Iterator[Issue]:
    tree, trainer = config.actor_rollout_ref, config.trainer
    if not tree.model.path:
        yield unavailable("actor_rollout_ref.model.path", "is not given; name a local model folder or a hub model")
    if tree.rollout.name == "vllm":
        reason = f"comes with multi-GPU support; {ROLLOUT}.name=hf (the default) samples with the embedded sampler"
        yield unavailable(f"{ROLLOUT}.name", reason)
    yield from _ranks_not_here(config)
    yield from _loggers(trainer.logger)


def _ranks_not_here(config: Config | SftConfig) -> Iterator[Issue]:
    if config.trainer.nnodes > 1 and not os.environ.get("RAY_ADDRESS"):
        join = "`ray start --head` on one, `ray start --address=HEAD:6379` on the others, RAY_ADDRESS=HEAD:6379 here"
        reason = f"{config.trainer.nnodes} machines are joined by a Ray cluster, and RAY_ADDRESS names none: {join}"
        yield unavailable("trainer.nnodes", reason)
    if config.devices > 1 and find_spec("ray") is None:
        needs = "several ranks are started by Ray, which is not installed: pip install 'gmpo[ray]'"
        yield unavailable("trainer.n_gpus_per_node", needs)


def _ranks_on_gpus(config: Config | SftConfig) -> Iterator[Issue]:
    if config.devices > 1 and config.trainer.device != "cpu" and find_spec("ray") is not None:
        reason = "ranks on GPUs have been run on CPUs only so far; compare the first steps with a run on one GPU"
        yield warning("trainer.n_gpus_per_node", reason)


def several_ranks(config: Config, given: Given) -> Iterator[Issue]:
    """Several ranks, and what only they have."""
    size, world = config.actor_rollout_ref.actor.fsdp_config.fsdp_size, config.devices
    path = f"{ACTOR}.fsdp_config.fsdp_size"
    if world == 1:
        yield from inert("one process shares with no other", path, "actor_rollout_ref.nccl_timeout")
        return
    if size == 0 or (0 < size < world and world % size):
        yield error(path, f"does not divide the {world} ranks into groups of equal size", "trainer.n_gpus_per_node")
    yield from _ranks_on_gpus(config)


def adapters(config: Config | SftConfig, given: Given) -> Iterator[Issue]:
    """Low-rank adapters."""
    tree = config.actor_rollout_ref if isinstance(config, Config) else config
    section = "actor_rollout_ref.model" if isinstance(config, Config) else "model"
    if not tree.model.lora_rank:
        names = ("lora_alpha", "target_modules", "exclude_modules")
        yield from inert(f"{section}.lora_rank is 0: all weights are trained", *(f"{section}.{n}" for n in names))
    elif find_spec("peft") is None:
        yield unavailable(
            f"{section}.lora_rank", "adapters are peft's, which is not installed: pip install 'gmpo[peft]'"
        )
    if not tree.model.target_modules:
        yield error(f"{section}.target_modules", "names no layer; all-linear is every one but the head")


def divided_sequences(config: Config, given: Given) -> Iterator[Issue]:
    """Ranks that compute sequences together."""
    tree, world = config.actor_rollout_ref, config.devices
    degrees = {
        ACTOR: (tree.actor.ulysses_sequence_parallel_size, True),
        REF: (tree.ref.ulysses_sequence_parallel_size, config.uses_reference),
        CRITIC: (config.critic.ulysses_sequence_parallel_size, config.critic.enable),
    }
    own = f"{ACTOR}.ulysses_sequence_parallel_size"
    for section, (degree, used) in degrees.items():
        path = f"{section}.ulysses_sequence_parallel_size"
        if degree == 1 or not used or (path not in given and path != own):
            continue
        if world == 1:
            yield unavailable(path, "divides sequences between ranks, and this run has one: trainer.n_gpus_per_node")
        elif world % degree:
            reason = f"does not divide the {world} ranks into groups of equal size"
            yield error(path, reason, "trainer.n_gpus_per_node", own)
        elif config.trainer.device != "cpu":
            yield unavailable(path, "this version divides sequences between ranks on CPUs only")


def _loggers(names: Sequence[str]) -> Iterator[Issue]:
    if missing := [name for name in names if name in UNAVAILABLE_LOGGERS]:
        here = "console, tensorboard, wandb, trackio and file are; metrics.jsonl is always written"
        yield unavailable("trainer.logger", f"{', '.join(missing)}: no such logger in gmpo; {here}")


def sft(config: SftConfig, given: Given) -> Iterator[Issue]:
    data = config.data
    if data.train_batch_size % data.micro_batch_size_per_gpu:
        reason = f"does not divide data.train_batch_size = {data.train_batch_size}"
        yield error("data.micro_batch_size_per_gpu", reason, "data.train_batch_size")
    if 0 <= data.max_samples < data.train_batch_size:
        reason = f"leaves fewer demonstrations than one update needs (data.train_batch_size = {data.train_batch_size})"
        yield error("data.max_samples", reason, "data.train_batch_size")
    if ROWS in given:
        yield from inert("demonstrations are handed over as rows", "data.train_files")
    elif not data.train_files:
        yield unavailable("data.train_files", "is empty; name at least one file of demonstrations")
    if not config.model.path:
        yield unavailable("model.path", "is not given; name a local model folder or a hub model")
    yield from _schedule_shape(config.optim.lr_scheduler_type, "optim")
    yield from _rate(config.optim.lr, "optim.lr")
    yield from _ranks_not_here(config)
    yield from _ranks_on_gpus(config)
    yield from _betas(config.optim.betas, "optim.betas")
    yield from _loggers(config.trainer.logger)


RULES: Sequence[Rule] = (
    batch_sizes,
    several_ranks,
    divided_sequences,
    adapters,
    group_size,
    micro_batches,
    log_prob_micro_batches,
    token_budgets,
    resuming,
    checkpoints,
    run_length,
    sampling,
    *OBJECTIVE_RULES,
    *CORRECTION_RULES,
    *SAMPLING_RULES,
    *REWARD_RULES,
    critic,
    kl_terms,
    schedule,
    validation,
    data_and_rewards,
    not_available,
)
SFT_RULES: Sequence[SftRule] = (run_length, adapters, sft)
