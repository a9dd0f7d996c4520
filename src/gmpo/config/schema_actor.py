"""`actor_rollout_ref.*`: the model, its training, the reference model and the sampler."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from gmpo.config.fields import Place, Section, setting
from gmpo.config.schema_loss import PolicyLoss
from gmpo.config.schema_model import Model
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

DEFAULT_GROUP_SIZE = 5
VLLM_ONLY = "the vllm sampler reads it, which is not available yet"

KlLossType = Literal[
    "kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3", "kl+", "k1+", "abs+", "mse+", "k2+", "low_var_kl+", "k3+"
]


class FsdpConfig(Section):
    """Where parameters live and in which precision they are stored and used."""

    param_offload: bool = setting(
        False, "Move parameters to the CPU between phases.", inert=ONE_PROCESS, role="execution"
    )
    optimizer_offload: bool = setting(
        False, "Move optimizer state to the CPU between phases.", inert=ONE_PROCESS, role="execution"
    )
    fsdp_size: int = setting(-1, "Ranks that share one copy of the parameters; -1 is all.", ge=-1, role="execution")
    forward_prefetch: bool = setting(False, "Fetch the next layer's shards early.", inert=ONE_PROCESS, role="execution")
    model_dtype: Precision = setting("fp32", "Precision of the stored weights.")
    dtype: Precision | None = setting(
        None, "Precision of the forward and backward pass. null: bf16 on CUDA, fp32 on a CPU."
    )


class RefFsdpConfig(Section):
    """Where the reference model's parameters live."""

    param_offload: bool = setting(
        False, "Keep the reference model on the CPU when idle.", inert=ONE_PROCESS, role="execution"
    )
    forward_prefetch: bool = setting(False, "Fetch the next layer's shards early.", inert=ONE_PROCESS, role="execution")


class Checkpoint(Section):
    """What a checkpoint holds."""

    save_contents: Contents = setting(
        ("model", "optimizer", "extra"),
        "model: weights. optimizer: its moments. hf_model: a Hugging Face folder. extra: nothing more: learning rate "
        "and random streams follow from seed and step.",
        role="bookkeeping",
    )
    load_contents: Contents = setting(
        None,
        "What is restored when a run continues.",
        follows="actor_rollout_ref.actor.checkpoint.save_contents",
        role="execution",
    )
    async_save: bool = setting(
        True,
        "Write checkpoints while training goes on, from a copy: 12 bytes of host memory per parameter. False waits.",
        role="bookkeeping",
    )


class Actor(Section):
    """The policy's update."""

    strategy: Strategy = setting("fsdp", "How parameters are sharded.", inert=ONE_STRATEGY, role="execution")
    ppo_mini_batch_size: int = setting(
        256, "Problems per optimizer update; all answers to a problem stay together.", ge=1
    )
    ppo_micro_batch_size_per_gpu: int | None = setting(
        None,
        "Answers per forward and backward pass. Saves memory and never changes the gradient.",
        ge=1,
        role="execution",
    )
    ppo_micro_batch_size: int | None = setting(
        None, "Deprecated: the same over all devices. Use ppo_micro_batch_size_per_gpu.", ge=1, role="execution"
    )
    use_dynamic_bsz: bool = setting(
        None,
        "Form micro-batches by a token budget instead of a number of answers.",
        derived="True when no micro-batch size is given, else False",
        role="execution",
    )
    ppo_max_token_len_per_gpu: int = setting(
        16384, "Token budget of a micro-batch, prompts included, when use_dynamic_bsz is on.", ge=1, role="execution"
    )
    ppo_epochs: int = setting(1, "Passes over the answers of a step.", ge=1)
    shuffle: bool = setting(False, "Permute the problems of a step before cutting mini-batches, anew in each epoch.")
    data_loader_seed: int = setting(
        None,
        "Seed of that permutation, and of the tokens that clip_cov chooses.",
        follows="trainer.seed",
        ge=0,
        le=LARGEST_SEED,
    )
    clip_ratio: float = setting(0.2, "Clip bound for both sides where clip_ratio_low or _high is not given.", ge=0)
    clip_ratio_low: float = setting(
        None,
        "Lower bound: ratios below 1 - low are clipped; for geo_mean and power_mean log-ratios below -low.",
        follows="actor_rollout_ref.actor.clip_ratio",
        ge=0,
    )
    clip_ratio_high: float = setting(
        None,
        "Upper bound: ratios above 1 + high are clipped; for geo_mean and power_mean log-ratios above high.",
        follows="actor_rollout_ref.actor.clip_ratio",
        ge=0,
    )
    clip_ratio_c: float = setting(3.0, "Dual clip of vanilla: with A < 0 the loss is at most -A times this.", gt=1)
    tau_pos: float = setting(1.0, "Steepness of sapo's gate where A > 0.", gt=0)
    tau_neg: float = setting(1.05, "Steepness of sapo's gate where A < 0.", gt=0)
    mask_truncated: bool = setting(
        False, "Answers cut at the length limit leave the loss; they still count in their group's baseline.", own=True
    )
    entropy_quantile: float | None = setting(
        None,
        "Only tokens whose entropy before the update is at or above this quantile of the step stay in the loss "
        "(arXiv 2506.01939 keeps a fifth: 0.8). null keeps all.",
        own=True,
        ge=0,
        lt=1,
    )
    loss_agg_mode: LossAggMode = setting(
        "token-mean",
        "How token losses become one number. With losses that define their own mean (geo_mean, power_mean, gspo, "
        "gspo_token, sapo) it governs only the KL and entropy terms.",
    )
    loss_scale_factor: int | None = setting(
        None, "Divisor in tokens of seq-mean-token-sum-norm. null takes data.max_response_length.", ge=1
    )
    entropy_coeff: float = setting(0.0, "Weight of the entropy bonus, which is subtracted from the loss.")
    use_kl_loss: bool = setting(False, "Add kl_loss_coef times the KL to the reference model to the loss.")
    kl_loss_coef: float = setting(0.001, "Weight of that KL term.", ge=0)
    kl_loss_type: KlLossType = setting(
        "low_var_kl",
        "Estimator of that KL: kl = k1, mse = k2, low_var_kl = k3, or abs. With '+': its value with k2's gradient.",
    )
    grad_clip: float = setting(1.0, "Largest norm of the gradient; a longer one is scaled down.", gt=0)
    max_nonfinite_updates: int = setting(
        3,
        "The run stops after so many skipped updates (gradient not finite) in a row.",
        own=True,
        ge=1,
        role="bookkeeping",
    )
    ulysses_sequence_parallel_size: int = setting(
        1,
        "Ranks that compute sequences together, each a slice of the tokens and some heads of the attention.",
        ge=1,
        role="execution",
    )
    use_torch_compile: bool = setting(
        True, "Compile the entropy function.", inert="nothing is compiled", role="execution"
    )
    entropy_checkpointing: bool = setting(
        False, "Recompute the entropy in the backward pass.", inert="a memory setting of verl's entropy function"
    )
    entropy_from_logits_with_chunking: bool = setting(
        False, "Compute the entropy in chunks.", inert="a memory setting of verl's entropy function"
    )
    optim: Optim = Field(default_factory=Optim)
    fsdp_config: FsdpConfig = Field(default_factory=FsdpConfig)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    policy_loss: PolicyLoss = Field(default_factory=PolicyLoss)

    @property
    def has_kl_term(self) -> bool:
        """Whether the loss holds a KL to the reference model."""
        return self.use_kl_loss and self.kl_loss_coef > 0


class RefModel(Section):
    """Weights of the reference model."""

    path: Place | None = setting(
        None,
        "Folder or hub name of the reference model.",
        follows="actor_rollout_ref.model.path",
        role="execution",
        exact=True,
    )

    @property
    def source(self) -> str:
        """The path for those who load the model; that one is given was asked before."""
        return self.path or ""


class Ref(Section):
    """The reference model of the KL terms. It exists only with actor.use_kl_loss or algorithm.use_kl_in_reward."""

    strategy: Strategy = setting(
        None,
        "How parameters are sharded.",
        follows="actor_rollout_ref.actor.strategy",
        inert=ONE_STRATEGY,
        role="execution",
    )
    log_prob_micro_batch_size_per_gpu: int | None = setting(
        None,
        "Answers per forward pass.",
        follows="actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
        ge=1,
        role="execution",
    )
    log_prob_use_dynamic_bsz: bool = setting(
        None,
        "Form micro-batches by a token budget.",
        derived="actor.use_dynamic_bsz, or False when the micro-batch size above is given",
        role="execution",
    )
    log_prob_max_token_len_per_gpu: int = setting(
        None, "That token budget.", follows="actor_rollout_ref.actor.ppo_max_token_len_per_gpu", ge=1, role="execution"
    )
    ulysses_sequence_parallel_size: int = setting(
        None,
        "Ranks that compute sequences together.",
        follows="actor_rollout_ref.actor.ulysses_sequence_parallel_size",
        ge=1,
        role="execution",
    )
    use_torch_compile: bool = setting(
        None,
        "Compile the entropy function.",
        follows="actor_rollout_ref.actor.use_torch_compile",
        inert="nothing is compiled",
        role="execution",
    )
    model: RefModel = Field(default_factory=RefModel)
    fsdp_config: RefFsdpConfig = Field(default_factory=RefFsdpConfig)


class ValKwargs(Section):
    """Sampling for validation."""

    n: int = setting(1, "Answers per validation problem.", ge=1)
    temperature: float = setting(0.0, "Sampling temperature; 0 is greedy.", ge=0)
    top_p: float = setting(1.0, "Sample among the most probable tokens that together reach this share.", gt=0, le=1)
    top_k: int = setting(-1, "Sample among so many most probable tokens. -1 is off.", ge=-1)
    do_sample: bool = setting(
        None, "False takes the most probable token each time, whatever the temperature.", derived="temperature > 0"
    )

    @property
    def greedy(self) -> bool:
        """Whether every token is the most probable one."""
        return not self.do_sample or self.temperature == 0


class Rollout(Section):
    """The sampler, and the pass that recomputes log-probs with the learner."""

    name: Literal["hf", "vllm"] = setting(
        "hf", "Sampler. hf is the embedded one; vllm is not available yet. verl has no default."
    )
    n: int = setting(
        None, "Answers per problem.", derived=f"{DEFAULT_GROUP_SIZE} for group estimators, otherwise 1", ge=1
    )
    temperature: float = setting(
        1.0, "Sampling temperature. Every log-prob in training is taken at this temperature too.", gt=0
    )
    top_p: float = setting(1.0, "Sample among the most probable tokens that together reach this share.", gt=0, le=1)
    top_k: int = setting(-1, "Sample among so many most probable tokens. -1 is off.", ge=-1)
    seed: int = setting(None, "Seed of sampling.", follows="trainer.seed", ge=0, le=LARGEST_SEED)
    max_num_seqs: int = setting(
        256, "Answers sampled at once. Saves memory and never changes what is sampled.", ge=1, role="execution"
    )
    prompt_length: int = setting(
        None,
        "Longest prompt, in tokens.",
        follows="data.max_prompt_length",
        inert="another name of data.max_prompt_length",
        ge=1,
    )
    response_length: int = setting(
        None,
        "Longest answer, in tokens.",
        follows="data.max_response_length",
        inert="another name of data.max_response_length",
        ge=1,
    )
    calculate_log_probs: bool = setting(
        False,
        "Return the sampler's log-probs and compare them with the learner's.",
        inert="this is always done",
    )
    log_prob_micro_batch_size_per_gpu: int | None = setting(
        None,
        "Answers per forward pass for old log-probs.",
        follows="actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
        ge=1,
        role="execution",
    )
    log_prob_use_dynamic_bsz: bool = setting(
        None,
        "Form those micro-batches by a token budget.",
        derived="actor.use_dynamic_bsz, or False when the micro-batch size above is given",
        role="execution",
    )
    log_prob_max_token_len_per_gpu: int = setting(
        None, "That token budget.", follows="actor_rollout_ref.actor.ppo_max_token_len_per_gpu", ge=1, role="execution"
    )
    log_prob_tolerance: float = setting(
        1e-4,
        "The embedded sampler runs the learner's own weights, so its log-probs are taken for the old ones when on a "
        "sixteenth of a step's problems no token differs by more than this, in nats. 0 always computes old log-probs.",
        own=True,
        ge=0,
    )
    mode: Literal["async", "sync"] = setting("async", "How verl's engine is called.", inert=VLLM_ONLY)
    tensor_model_parallel_size: int = setting(2, "Devices per engine.", ge=1, inert=VLLM_ONLY, role="execution")
    data_parallel_size: int = setting(1, "Data-parallel ranks per engine.", ge=1, inert=VLLM_ONLY, role="execution")
    expert_parallel_size: int = setting(1, "Expert-parallel ranks per engine.", ge=1, inert=VLLM_ONLY, role="execution")
    gpu_memory_utilization: float = setting(
        0.5, "Share of device memory.", gt=0, le=1, inert=VLLM_ONLY, role="execution"
    )
    enable_chunked_prefill: bool = setting(True, "Prefill long prompts in pieces.", inert=VLLM_ONLY)
    enable_prefix_caching: bool = setting(
        True, "Share the cache of equal prefixes.", inert="the answers to one problem always share one prefill"
    )
    max_num_batched_tokens: int = setting(8192, "Tokens per engine step.", ge=1, inert=VLLM_ONLY)
    max_model_len: int | None = setting(None, "Longest sequence of the engine, in tokens.", ge=1, inert=VLLM_ONLY)
    enforce_eager: bool = setting(False, "Run without CUDA graphs.", inert=VLLM_ONLY)
    free_cache_engine: bool = setting(True, "Free the engine's memory while training.", inert=VLLM_ONLY)
    load_format: str = setting("dummy", "How the engine gets its first weights.", inert=VLLM_ONLY)
    dtype: Literal["bfloat16", "float16", "float32"] = setting("bfloat16", "Engine precision.", inert=VLLM_ONLY)
    ignore_eos: bool = setting(
        False, "Sample on after the stop token: every answer has max_response_length tokens. For measuring speed."
    )
    disable_log_stats: bool = setting(True, "Hide the engine's statistics.", inert=VLLM_ONLY)
    engine_kwargs: dict[str, Any] = setting({}, "Further arguments of the engine, by engine.", inert=VLLM_ONLY)
    val_kwargs: ValKwargs = Field(default_factory=ValKwargs)


class ActorRolloutRef(Section):
    """The policy: model, update, reference and sampler."""

    model: Model = Field(default_factory=Model)
    actor: Actor = Field(default_factory=Actor)
    ref: Ref = Field(default_factory=Ref)
    rollout: Rollout = Field(default_factory=Rollout)
    nccl_timeout: int = setting(
        600,
        "Seconds that ranks wait for each other, and without a sign of life from a rank, after which the run ends.",
        ge=1,
        role="execution",
    )
