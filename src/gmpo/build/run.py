"""Names and numbers of a configuration -> the objects of a run: the one place that knows both sides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from gmpo.backends.devices import Device, describe, pick_device, use_any_length
from gmpo.backends.models import (
    ModelSource,
    load_config,
    load_tokenizer,
)
from gmpo.backends.packed import FAMILIES, only_full_attention
from gmpo.backends.products import Product, shapes_of, use_product
from gmpo.build.identity import PRODUCTS
from gmpo.build.kept import products_of
from gmpo.build.policy import PolicyFacts, decode_answers, policy_source, supervised_source
from gmpo.build.start import Start
from gmpo.config import Config, Resolved, SftConfig
from gmpo.config.numbers import Numbers
from gmpo.config.schema_actor import Rollout, ValKwargs
from gmpo.data.problems import Problem, ProblemStream, load_problems, problems_from_rows, sample
from gmpo.data.prompts import EncodedProblem, EncodedProblems, encode_prompts
from gmpo.objectives import ESTIMATORS
from gmpo.ports import Learner, Sampler, SamplingParams
from gmpo.records.activity import Activity
from gmpo.records.run_folder import PASS_RATES, Program
from gmpo.rewards.combined import Rewards
from gmpo.training.checkpoint import Store, content_hash
from gmpo.training.collect import Collector
from gmpo.training.evaluation import Evaluation
from gmpo.training.gather import Gather, GroupFilter
from gmpo.training.loop import Plan
from gmpo.training.pass_rates import PassRates
from gmpo.training.producer import Producer
from gmpo.training.scoring import Scoring

Rows = Iterable[Mapping[str, Any]]


def build_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """The run's tokenizer: of `model.tokenizer_path` if given, else of the model."""
    model = config.actor_rollout_ref.model
    source = ModelSource(model.tokenizer_path or model.source, model.trust_remote_code)
    return load_tokenizer(source, chat_template=model.custom_chat_template)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a run computes."""

    device: Device
    product: Product
    """The float32 matrix products in effect."""

    @property
    def kept(self) -> dict[str, Any]:
        """What is no setting and found out here, for the run's record."""
        return {} if self.product.errors is None else {PRODUCTS: self.product.kept}

    def __str__(self) -> str:
        return f"{describe(self.device)}; {self.product}"


def build_machine(resolved: Resolved[Any], program: Program) -> Machine:
    """Pick the run's device and put its matrix products into effect: of an earlier start, if there is one, else those
    that are fast for the model's shapes."""
    config: Config | SftConfig = resolved.config
    if isinstance(config, Config):
        dtype, source = config.actor_rollout_ref.actor.fsdp_config.dtype, policy_source(config)
        longest = config.data.max_prompt_length + config.data.max_response_length
    else:
        dtype, longest, source = None, config.data.max_length, supervised_source(config)
    device, setting = pick_device(config.trainer.device, dtype), config.trainer.matmul_precision
    use_any_length(device.torch)
    if setting != "auto" or device.torch.type != "cpu":
        return Machine(device, use_product(setting, device.torch))
    found = load_config(source)
    shapes = shapes_of(found, longest, apart=found.model_type in FAMILIES and only_full_attention(found))
    return Machine(device, use_product(setting, device.torch, shapes, products_of(resolved, program)))


def build_problems(
    config: Config, tokenizer: PreTrainedTokenizerBase, rows: Rows | None, moment: datetime | None
) -> EncodedProblems:
    """Training problems with their prompt ids; rows given in Python take the place of files. `moment` is what the chat
    template writes."""
    data = config.data
    return _problems(config, tokenizer, data.train_files, rows, "rows", data.train_max_samples, moment)


def build_validation(
    config: Config, tokenizer: PreTrainedTokenizerBase, rows: Rows | None, moment: datetime | None
) -> EncodedProblems | None:
    """Validation problems with their prompt ids, or None without any; rows take the place of files."""
    data = config.data
    if rows is None and not data.val_files:
        return None
    return _problems(config, tokenizer, data.val_files, rows, "val_rows", data.val_max_samples, moment)


def _problems(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    files: Sequence[str],
    rows: Rows | None,
    name: str,
    limit: int,
    moment: datetime | None,
) -> EncodedProblems:
    data = config.data
    keys = {"prompt_key": data.prompt_key, "data_source_key": data.reward_fn_key}
    if rows is not None:
        problems = sample(problems_from_rows(rows, name, **keys), limit, data.seed)
    else:
        problems = load_problems(files, limit=limit, seed=data.seed, **keys)
    return encode_prompts(
        problems,
        tokenizer,
        max_prompt_length=data.max_prompt_length,
        truncation=data.truncation,
        filter_overlong=data.filter_overlong_prompts,
        chat_template_kwargs=data.apply_chat_template_kwargs,
        moment=moment,
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


def build_collector(
    config: Config,
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    facts: PolicyFacts,
    rewards: Rewards,
    activity: Activity,
) -> Collector:
    """Sampling and grading of the run, which tell `activity` how far they are."""
    return Collector(
        sampler,
        rewards,
        decode=partial(decode_answers, tokenizer, facts.stop_ids, config.reward_model.skip_special_tokens),
        activity=activity,
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
        keep_best=config.trainer.keep_best,
    )


def build_history(
    config: Config,
    folder: Path,
    problems: EncodedProblems,
    say: Callable[[str], object],
    append: Callable[[Path, bytes], object],
) -> PassRates:
    """The pass rates of the run, kept in its folder."""
    data = config.data
    return PassRates(
        folder / PASS_RATES,
        [item.problem for item in problems.items],
        bounds=data.pass_rate_range,
        earlier=Path(data.pass_rate_history).expanduser() if data.pass_rate_range and data.pass_rate_history else None,
        say=say,
        append=append,
    )


def build_gather(
    config: Config,
    collector: Collector,
    problems: EncodedProblems,
    history: PassRates,
    stopping: Callable[[], bool] = lambda: False,
) -> Gather:
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
    return Gather(
        producer,
        history,
        groups=data.train_batch_size,
        group_filter=chosen if groups.enable else None,
        stopping=stopping,
    )


def build_store(
    config: Config, settings: str, problems: Sequence[Problem], start: Start, tell: Callable[[str], None]
) -> Store:
    """Checkpoints of the run, below its folder; it goes on from the one that its start found, if there is one.
    `settings` is all of them as YAML."""
    trainer, data, contents = config.trainer, config.data, config.actor_rollout_ref.actor.checkpoint
    return Store(
        start.folder,
        save_contents=contents.save_contents,
        load_contents=contents.load_contents,
        resume=start.checkpoint,
        damaged=start.damaged,
        settings=settings,
        keep=trainer.max_actor_ckpt_to_keep,
        behind=contents.async_save,
        data={
            "problems": len(problems),
            "content of the problems": content_hash(problems),
            "data.train_batch_size": data.train_batch_size,
            "data.gen_batch_size": data.gen_batch_size,
            "data.shuffle": data.shuffle,
            "data.seed": data.seed,
        },
        other_settings=bool(start.changes.identity),
        other_data=trainer.allow_changed_config,
        tell=tell,
    )


def build_supervised_store(
    config: SftConfig, settings: str, demonstrations: Sequence[Problem], start: Start, tell: Callable[[str], None]
) -> Store:
    """Checkpoints of fine-tuning, see `build_store`."""
    contents = ("model", "optimizer", "extra")
    return Store(
        start.folder,
        save_contents=contents,
        load_contents=contents,
        resume=start.checkpoint,
        damaged=start.damaged,
        settings=settings,
        keep=config.trainer.max_ckpt_to_keep,
        behind=True,
        data={
            "demonstrations": len(demonstrations),
            "content of the demonstrations": content_hash(demonstrations),
            "data.train_batch_size": config.data.train_batch_size,
            "trainer.seed": config.trainer.seed,
        },
        other_settings=bool(start.changes.identity),
        other_data=config.trainer.allow_changed_config,
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


def build_plan(config: Config, facts: PolicyFacts, numbers: Numbers) -> Plan:
    """The numbers of the loop."""
    actor, trainer, data = config.actor_rollout_ref.actor, config.trainer, config.data
    assert numbers.total_steps is not None, "the number of problems is known here"
    return Plan(
        total_steps=numbers.total_steps,
        max_prompt_length=data.max_prompt_length,
        pad_id=facts.pad_id,
        mini_batch_problems=actor.ppo_mini_batch_size,
        epochs_per_batch=actor.ppo_epochs,
        shuffle_seed=actor.data_loader_seed if actor.shuffle else None,
        test_freq=trainer.test_freq,
        save_freq=trainer.save_freq,
        validate_first=trainer.val_before_train,
        components=config.algorithm.gdpo_reward_keys
        if ESTIMATORS[config.algorithm.adv_estimator].needs_components
        else (),
        critic_warmup=trainer.critic_warmup if config.critic.enable else 0,
    )


def longest_prompt(*sets: EncodedProblems | None) -> int:
    """Tokens of the longest prompt."""
    return max(len(item.prompt_ids) for encoded in sets if encoded is not None for item in encoded.items)


def data_sources(*sets: EncodedProblems | None) -> Sequence[Problem]:
    """All problems of several sets."""
    return [item.problem for encoded in sets if encoded is not None for item in encoded.items]
