"""`critic.*`: the value model of estimators that need one."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from gmpo.config.fields import Place, Section, setting
from gmpo.config.schema_training import (
    ONE_PROCESS,
    ONE_STRATEGY,
    Contents,
    LossAggMode,
    Optim,
    Precision,
    Strategy,
)
from gmpo.limits import LARGEST_SEED

LIKE_THE_ACTOR = "the critic is computed in the actor's precision"
WITH_THE_ACTOR = "the critic is saved and restored with the actor, which actor.checkpoint governs"


class CriticFsdpConfig(Section):
    """Where the critic's parameters live."""

    param_offload: bool = setting(
        False, "Move parameters to the CPU between phases.", inert=ONE_PROCESS, role="execution"
    )
    optimizer_offload: bool = setting(
        False, "Move optimizer state to the CPU between phases.", inert=ONE_PROCESS, role="execution"
    )
    fsdp_size: int = setting(
        -1,
        "Ranks that share one copy of the parameters; -1 is all.",
        ge=-1,
        inert="the critic is sharded as the actor is",
        role="execution",
    )
    forward_prefetch: bool = setting(False, "Fetch the next layer's shards early.", inert=ONE_PROCESS, role="execution")
    model_dtype: Precision = setting("fp32", "Precision of the stored weights.", inert="it is always fp32")
    dtype: Precision | None = setting(None, "Precision of the forward and backward pass.", inert=LIKE_THE_ACTOR)


class CriticModel(Section):
    """The critic's weights: a backbone whose language head is replaced by one number per token."""

    path: Place | None = setting(
        None,
        "Folder or hub name of the backbone.",
        follows="actor_rollout_ref.model.path",
        role="execution",
        exact=True,
    )
    tokenizer_path: Place | None = setting(
        None,
        "Tokenizer of the critic.",
        inert="the critic reads the policy's token ids, so its tokenizer is the same",
        role="execution",
        exact=True,
    )
    trust_remote_code: bool = setting(
        None,
        "Run Python code that comes with the model. Off unless you trust it.",
        derived="actor_rollout_ref.model.trust_remote_code when the path is the same, else False",
        role="execution",
        exact=True,
    )
    override_config: dict[str, Any] = setting(
        None,
        "Changes to the model's own config.json.",
        derived="actor_rollout_ref.model.override_config when the path is the same, else none",
    )
    enable_gradient_checkpointing: bool = setting(
        True, "Recompute activations in the backward pass: less memory, about a third more compute.", role="execution"
    )
    use_remove_padding: bool = setting(
        False,
        "Pack sequences without padding.",
        inert="packed wherever the model and device allow; same results",
        role="execution",
    )
    fsdp_config: CriticFsdpConfig = Field(default_factory=CriticFsdpConfig)

    @property
    def source(self) -> str:
        """The path for those who load the model; that one is given was asked before."""
        return self.path or ""


class CriticOptim(Optim):
    """AdamW of the critic and its learning-rate schedule."""

    lr: float = setting(1e-5, "Peak learning rate.", ge=0)


class CriticCheckpoint(Section):
    """What a checkpoint holds of the critic."""

    save_contents: Contents = setting(
        ("model", "optimizer", "extra"), "What is written of the critic.", inert=WITH_THE_ACTOR
    )
    load_contents: Contents | None = setting(None, "What is restored of the critic.", inert=WITH_THE_ACTOR)
    async_save: bool = setting(True, "Write while training goes on.", inert=WITH_THE_ACTOR)


class Critic(Section):
    """The value function of algorithm.adv_estimator=gae and its update. Without such an estimator there is none."""

    enable: bool = setting(
        None,
        "Whether there is a critic. Giving another value than the derived one is an error.",
        derived="True exactly when algorithm.adv_estimator needs one",
    )
    strategy: Strategy = setting("fsdp", "How parameters are sharded.", inert=ONE_STRATEGY, role="execution")
    ppo_mini_batch_size: int = setting(
        None,
        "Problems per optimizer update of the critic.",
        follows="actor_rollout_ref.actor.ppo_mini_batch_size",
        ge=1,
    )
    ppo_micro_batch_size_per_gpu: int | None = setting(
        None,
        "Answers per forward and backward pass.",
        follows="actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
        ge=1,
        role="execution",
    )
    ppo_micro_batch_size: int | None = setting(
        None, "Deprecated: the same over all devices. Use ppo_micro_batch_size_per_gpu.", ge=1, role="execution"
    )
    forward_micro_batch_size_per_gpu: int | None = setting(
        None,
        "Answers per forward pass that computes values for the advantages.",
        follows="critic.ppo_micro_batch_size_per_gpu",
        ge=1,
        role="execution",
    )
    use_dynamic_bsz: bool = setting(
        None,
        "Form micro-batches by a token budget.",
        derived="actor.use_dynamic_bsz, or False when a micro-batch size of the critic is given",
        role="execution",
    )
    ppo_max_token_len_per_gpu: int = setting(
        32768, "Token budget of a micro-batch, prompts included, when use_dynamic_bsz is on.", ge=1, role="execution"
    )
    forward_max_token_len_per_gpu: int = setting(
        None,
        "Token budget of a forward pass that computes values.",
        follows="critic.ppo_max_token_len_per_gpu",
        ge=1,
        role="execution",
    )
    ppo_epochs: int = setting(
        None, "Passes over the answers of a step.", follows="actor_rollout_ref.actor.ppo_epochs", ge=1
    )
    shuffle: bool = setting(
        None,
        "Permute the problems of a step before cutting mini-batches, anew in each epoch.",
        follows="actor_rollout_ref.actor.shuffle",
    )
    data_loader_seed: int = setting(
        None, "Seed of that permutation.", follows="actor_rollout_ref.actor.data_loader_seed", ge=0, le=LARGEST_SEED
    )
    cliprange_value: float = setting(
        0.5, "How far a value may move from the one at the start of the step before its loss stops falling.", gt=0
    )
    loss_agg_mode: LossAggMode = setting(
        None, "How the token losses of the values become one number.", follows="actor_rollout_ref.actor.loss_agg_mode"
    )
    grad_clip: float = setting(1.0, "Largest norm of the gradient; a longer one is scaled down.", gt=0)
    ulysses_sequence_parallel_size: int = setting(1, "Ranks that compute sequences together.", ge=1, role="execution")
    model: CriticModel = Field(default_factory=CriticModel)
    optim: CriticOptim = Field(default_factory=CriticOptim)
    checkpoint: CriticCheckpoint = Field(default_factory=CriticCheckpoint)
