"""The model that is trained, of either program, with every check of it; and the learner of supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gmpo.algo.losses import SUPERVISED
from gmpo.algo.objective import Objective
from gmpo.algo.schedule import learning_rate
from gmpo.backends.adapters import AdapterSettings, add_adapters, require_peft
from gmpo.backends.devices import DTYPES, Device, describe
from gmpo.backends.family import require_family
from gmpo.backends.learner import LocalLearner
from gmpo.backends.models import (
    Loading,
    ModelSource,
    check_positions,
    check_vocabulary,
    checkpoint_activations,
    load_generation,
    load_model_with_notes,
    load_tokenizer,
    pad_token_id,
    stop_token_ids,
    what_is_left_out,
)
from gmpo.backends.ranks.handing_out import placeholder_model
from gmpo.backends.trainable import MicroBatching, OptimizerSettings
from gmpo.config import Config, SftConfig
from gmpo.config.schema_model import Model
from gmpo.config.schema_sft import SftModel
from gmpo.records.run_folder import RankPlace
from gmpo.training.saved import contents_of, naming_an_older, step_of

SUPERVISED_OBJECTIVE = Objective(SUPERVISED, {}, "token-mean", loss_scale=1.0, temperature=1.0)
"""Of fine-tuning: the mean `-logp` of the answers' tokens."""


@dataclass(frozen=True, slots=True)
class Longest:
    """The longest row of a run."""

    tokens: int
    what: str
    """What makes so many, in words."""


@dataclass(frozen=True, slots=True)
class PolicyFacts:
    """What a program must know of its policy, wherever that is."""

    parameters: int
    trained: int
    """Of them, those that are trained: all, or the adapters'."""
    where: str
    """On which device, for people."""
    stop_ids: frozenset[int]
    pad_id: int
    notes: tuple[str, ...] = ()
    """What the model folders of the run hold or ask for and training leaves out."""
    ranks: tuple[RankPlace, ...] = ()
    """Where the ranks are; none in one process."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A model in this process, with its tokenizer and the ids that matter for sampling."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: Device
    stop_ids: frozenset[int]
    pad_id: int
    longest: Longest
    """Its longest row, which every other model of the run reads too."""
    loading: Loading
    """As of every other model of the run."""
    notes: tuple[str, ...] = ()
    """As of its facts."""

    @property
    def facts(self) -> PolicyFacts:
        """What others must know of it."""
        sizes = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        trained = sum(size for size, trains in sizes if trains)
        return PolicyFacts(
            sum(size for size, _ in sizes), trained, describe(self.device), self.stop_ids, self.pad_id, self.notes
        )


def policy_source(config: Config) -> ModelSource:
    """Where the policy comes from."""
    model = config.actor_rollout_ref.model
    return ModelSource(model.source, model.trust_remote_code, model.override_config)


def build_policy(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    device: Device,
    *,
    longest_prompt: int,
    loading: Loading | None = None,
) -> Policy:
    """Load the policy for a device. With `load_policy` and `build_sampler` that is all that an evaluation needs.

    Args:
        longest_prompt: tokens of the longest prompt it will be asked.
        loading: where to; onto the device when None.
    """
    settings = config.actor_rollout_ref.model
    precision = config.actor_rollout_ref.actor.fsdp_config
    source = policy_source(config)
    response = config.data.max_response_length
    return _policy(
        source,
        tokenizer,
        device,
        DTYPES[precision.model_dtype],
        settings.enable_gradient_checkpointing,
        Longest(
            longest_prompt + response,
            f"the longest prompt ({longest_prompt} tokens) and data.max_response_length={response}",
        ),
        adapter_settings(settings, config.trainer.seed, "actor_rollout_ref.model"),
        loading,
    )


def adapter_settings(model: Model | SftModel, seed: int, key: str) -> AdapterSettings | None:
    """The adapters that settings ask for; None where all weights are trained."""
    if not model.lora_rank:
        return None
    return AdapterSettings(model.lora_rank, model.lora_alpha, model.target_modules, model.exclude_modules, seed, key)


def _policy(
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    device: Device,
    dtype: torch.dtype,
    recompute: bool,
    longest: Longest,
    adapters: AdapterSettings | None,
    loading: Loading | None,
) -> Policy:
    """A model to train, of either program, with every check of it."""
    if adapters is not None:
        require_peft(f"{adapters.key}.lora_rank={adapters.rank}")
    loading = loading or Loading(device)
    beyond: Sequence[str] = ()
    if loading.reads:
        model, beyond = load_model_with_notes(source, loading.device.torch, dtype)
    else:
        model = placeholder_model(source, dtype)
    if recompute:
        checkpoint_activations(model)
    check_vocabulary(model, tokenizer)
    check_positions(model, longest.tokens, longest.what, source)
    if loading.reads:
        require_family(model, loading.device, source.path)
    if adapters is not None:
        add_adapters(model, adapters, source.path)
    stop_ids = stop_token_ids(model.generation_config, tokenizer)
    pad = pad_token_id(tokenizer, stop_ids)
    return Policy(model, tokenizer, device, stop_ids, pad, longest, loading, (*beyond, *what_is_left_out(model)))


def load_policy(read: Callable[[Path, str], object], checkpoint: Path, contents: Sequence[str]) -> int:
    """Put a checkpoint's weights into a policy, without optimizer or critic; returns the number of steps behind them.

    Args:
        read: reads the policy from a folder, as `storage.load_model`, wherever it is.
        contents: what may be loaded, as `actor.checkpoint.load_contents`.

    Raises:
        CheckpointError: it holds none of that, or the weights do not fit.
    """
    with naming_an_older(checkpoint, "trainer.resume_mode=resume_path trainer.resume_from_path={older} validates it."):
        content = "model" if "model" in contents_of(checkpoint, contents) else "hf_model"
        read(checkpoint / "actor", content)
        return step_of(checkpoint)


def decode_answers(
    tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int], skip_special_tokens: bool, answers: list[list[int]]
) -> list[str]:
    """The texts of answers, without the token that ended each."""
    ended = [ids[:-1] if ids and ids[-1] in stop_ids else ids for ids in answers]
    texts: list[str] = tokenizer.batch_decode(ended, skip_special_tokens=skip_special_tokens)
    return texts


def build_supervised_tokenizer(config: SftConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of the model that is fine-tuned."""
    model = config.model
    return load_tokenizer(supervised_source(config), chat_template=model.custom_chat_template)


def end_token(config: SftConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """What ends a demonstration's answer: the tokenizer's end token, else one of the model's."""
    if tokenizer.eos_token_id is not None:
        return int(tokenizer.eos_token_id)
    return min(stop_token_ids(load_generation(supervised_source(config)), tokenizer))


def supervised_source(config: SftConfig) -> ModelSource:
    """The model that is fine-tuned, under the keys that name it."""
    model = config.model
    return ModelSource(
        model.source, model.trust_remote_code, model.override_config, "model.path", "model.override_config"
    )


SUPERVISED_MEMORY = (
    "data.micro_batch_size_per_gpu: demonstrations per pass",
    "data.max_length: tokens of a prompt and its answer",
)
"""The settings of `gmpo sft` that memory depends on; model.enable_gradient_checkpointing=True saves more."""


def build_supervised_learner(
    config: SftConfig,
    tokenizer: PreTrainedTokenizerBase,
    device: Device,
    total_steps: int,
    *,
    longest: int,
    loading: Loading | None = None,
) -> tuple[LocalLearner, Policy]:
    """Policy and optimizer for supervised learning: the same learner with the likelihood as its objective.

    Args:
        longest: tokens of the longest demonstration, prompt and answer.
        loading: where the model is loaded to; onto the device when None.
    """
    optim = config.optim
    policy = _policy(
        supervised_source(config),
        tokenizer,
        device,
        torch.float32,
        config.model.enable_gradient_checkpointing,
        Longest(longest, "the longest prompt and its answer"),
        adapter_settings(config.model, config.trainer.seed, "model"),
        loading,
    )
    split = MicroBatching(rows=config.data.micro_batch_size_per_gpu, settings=SUPERVISED_MEMORY)
    learner = LocalLearner(
        policy.model,
        tokenizer,
        device=device,
        objective=SUPERVISED_OBJECTIVE,
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
        lr_key="optim.lr",
        nonfinite_key=None,
    )
    return learner, policy
