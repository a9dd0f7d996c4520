"""The typed tree of `gmpo train`, in verl's key names. `docs/configuration.md` is generated from it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from gmpo.config.fields import Name, Place, Section, setting
from gmpo.config.schema_actor import ActorRolloutRef
from gmpo.config.schema_algorithm import Algorithm
from gmpo.config.schema_critic import Critic
from gmpo.config.schema_reward import CustomRewardFunction, RewardModel
from gmpo.config.schema_training import RUN_FOLDER
from gmpo.limits import LARGEST_SEED

Truncation = Literal["error", "left", "right", "middle"]
Device = Literal["auto", "cpu", "cuda"]
LoggerName = Literal[
    "console", "tensorboard", "wandb", "trackio", "file", "mlflow", "swanlab", "vemlp_wandb", "clearml"
]


class Data(Section):
    """Problems: where they come from, in which order, and how long prompts and answers may be."""

    train_files: tuple[Place, ...] = setting(
        (),
        "Parquet or JSONL files with rows of verl's schema: one path or a list, concatenated in order.",
        role="execution",
        exact=True,
    )
    val_files: tuple[Place, ...] = setting(
        (),
        "Files with validation problems: one path or a list. null or an empty list means no validation.",
        role="execution",
        exact=True,
    )
    prompt_key: Name = setting("prompt", "Column that holds the prompt: a list of chat messages, or a text.")
    reward_fn_key: Name = setting("data_source", "Column that names the data source, which selects the scorer.")
    train_batch_size: int = setting(
        1024, "Problems per training step. Answers per step are this number times rollout.n.", ge=1
    )
    gen_batch_size: int = setting(
        None,
        "Problems asked in each round of sampling under algorithm.filter_groups.",
        follows="data.train_batch_size",
        ge=1,
    )
    val_batch_size: int | None = setting(
        None, "Validation problems sampled at once. null takes all of them in one batch.", ge=1, role="execution"
    )
    max_prompt_length: int = setting(
        512, "Longest templated prompt, in tokens. data.truncation says what happens to longer ones.", ge=1
    )
    max_response_length: int = setting(512, "Longest answer, in tokens; sampling stops there.", ge=1)
    filter_overlong_prompts: bool = setting(
        False, "Drop problems whose templated prompt is longer than max_prompt_length. The number dropped is shown."
    )
    filter_overlong_prompts_workers: int = setting(
        1, "Processes of that filter.", ge=1, inert="prompts are measured in the program's own process"
    )
    truncation: Truncation = setting(
        "error", "What to do with a prompt that is too long: stop, or keep its end (left), its start (right), or both."
    )
    shuffle: bool = setting(True, "Visit the training problems in a new random order each epoch, drawn from data.seed.")
    seed: int = setting(
        None, "Seed of the order of the training problems.", follows="trainer.seed", ge=0, le=LARGEST_SEED
    )
    train_max_samples: int = setting(-1, "Use only so many training problems. -1 uses all.", ge=-1)
    val_max_samples: int = setting(-1, "Use only so many validation problems. -1 uses all.", ge=-1)
    pass_rate_range: tuple[float, float] | None = setting(
        None,
        "[low, high]: leave out problems whose share of right answers, when they were last asked, was below low or "
        "above high. Problems never asked stay in.",
        own=True,
    )
    pass_rate_history: Place | None = setting(
        None,
        "Folder of an earlier run, or its pass_rates.jsonl, whose pass rates are known from the start.",
        own=True,
        role="execution",
        exact=True,
    )
    apply_chat_template_kwargs: dict[str, Any] = setting(
        {}, "Keyword arguments for the tokenizer's chat template, for example {enable_thinking: False}."
    )
    return_raw_chat: bool = setting(True, "Keep the raw messages with each row.", inert="they are always kept")
    dataloader_num_workers: int = setting(
        8, "Processes that load rows.", ge=0, inert="rows are read once, in the program's own process"
    )


class Trainer(Section):
    """Length of the run, what it writes, where it continues."""

    total_epochs: int | None = setting(
        30,
        "Passes over the training problems, at most. null sets no bound, which is what it becomes when only "
        "total_training_steps is given (verl would stop after 30 epochs).",
        ge=1,
        role="bookkeeping",
    )
    total_training_steps: int | None = setting(
        None,
        "Training steps, at most. When total_epochs is given too, the run ends at whichever comes first.",
        ge=1,
        role="bookkeeping",
    )
    nnodes: int = setting(1, "Machines.", ge=1, role="execution")
    n_gpus_per_node: int | None = setting(
        None,
        "Devices per machine, each with a rank of the learner; with device=cpu, processes on the CPU. Several need Ray "
        "(`pip install 'gmpo[ray]'`). null and 0 are one process on one device.",
        ge=0,
        role="execution",
    )
    device: Device = setting(
        None, "Where to compute. auto takes CUDA when it is present, else the CPU.", derived="auto", role="execution"
    )
    seed: int = setting(1, "Root of all random streams of the run.", own=True, ge=0, le=LARGEST_SEED)
    matmul_precision: Literal["auto", "highest", "medium"] = setting(
        "auto",
        "Float32 matrix products on a CPU. highest is torch's default, medium oneDNN's, which on some processors is "
        "faster and on others rounds to bfloat16; auto takes it where its error is float32's and it is faster for the "
        "model's shapes, both measured at the run's first start and kept for all of it. Attention is timed by itself.",
        own=True,
        role="execution",
    )
    balance_batch: bool = setting(
        True,
        "Reorder a batch by length so that devices get equal work.",
        inert="which answers share a mini-batch never depends on their lengths",
    )
    critic_warmup: int = setting(0, "Steps at the start in which only the critic learns.", ge=0)
    use_legacy_worker_impl: Literal["auto", "enable", "disable"] = setting(
        "auto", "Which of verl's two training engines runs.", inert="there is one engine here"
    )
    logger: tuple[LoggerName, ...] = setting(
        ("console", "tensorboard"),
        "Where metrics go. metrics.jsonl in the run folder is always written.",
        role="bookkeeping",
    )
    project_name: Name = setting(
        "gmpo", "Project under which loggers file the run; part of the default run folder.", role="bookkeeping"
    )
    experiment_name: Name = setting(
        "run", "Name of the run for loggers; part of the default run folder.", role="bookkeeping"
    )
    default_local_dir: Place = setting(
        None,
        "The run folder: checkpoints, metrics, samples. It belongs to one run. If the derived one holds another, "
        "a folder beside it is taken, with -2, -3 .. behind its name; a given one is then refused.",
        derived=RUN_FOLDER,
        role="bookkeeping",
    )
    save_freq: int = setting(
        -1, "Write a checkpoint every so many steps and after the last one. -1 is off.", ge=-1, role="bookkeeping"
    )
    test_freq: int = setting(
        -1, "Validate every so many steps and after the last one. -1 is off.", ge=-1, role="bookkeeping"
    )
    val_before_train: bool = setting(
        True, "Validate before the first step, when there are validation files.", role="bookkeeping"
    )
    val_only: bool = setting(False, "Validate once and stop.", role="bookkeeping")
    resume_mode: Literal["auto", "disable", "resume_path"] = setting(
        "auto",
        "auto continues from the newest checkpoint of the run folder if there is one; disable starts anew, in a folder "
        "without a run; resume_path takes resume_from_path.",
        role="bookkeeping",
    )
    resume_from_path: Place | None = setting(None, "Checkpoint folder whose name is global_step_N.", role="bookkeeping")
    allow_changed_config: bool = setting(
        False,
        "Go on from the newest checkpoint of a run folder although settings differ that decide what is learned. The "
        "differences are recorded. It counts for this start alone: a saved config.yaml does not hold it.",
        own=True,
        role="bookkeeping",
    )
    max_actor_ckpt_to_keep: int | None = setting(
        None, "Keep only the newest so many checkpoints. null keeps all.", ge=1, role="bookkeeping"
    )
    keep_best: bool = setting(
        False,
        "Write a checkpoint after every validation that is better than all before (val/pass@1), and keep the best one "
        "beside the newest.",
        own=True,
        role="bookkeeping",
    )
    max_critic_ckpt_to_keep: int | None = setting(
        None,
        "Keep only the newest so many checkpoints of the critic.",
        ge=1,
        inert="it is kept with the actor: max_actor_ckpt_to_keep",
        role="bookkeeping",
    )
    esi_redundant_time: float = setting(
        0.0,
        "Seconds that must be left, beyond the longest step so far, when a scheduler ends the job at a time that it "
        "tells (SLURM_JOB_END_TIME and verl's two variables): the run then saves and ends with exit status 75.",
        ge=0,
        role="bookkeeping",
    )
    alarm: Literal["warn", "stop"] = setting(
        "warn",
        "What follows when a step looks wrong: a collapse of rewards or lengths, entropy near zero, over 90 % of the "
        "answers cut, sampler and learner apart, no variance in any group. Each is said, counted in alarm/*, kept in "
        "run.json; stop also ends the run, with a checkpoint and exit status 70.",
        own=True,
        role="bookkeeping",
    )
    stop_within_s: float | None = setting(
        60.0,
        "Seconds that Ctrl-C and SIGTERM leave a step for its sampling and grading. Then the step is given up, and "
        "a checkpoint of the steps before is written; the same command does it again. An update or a validation that "
        "has begun is finished in any case. null waits for the step.",
        own=True,
        gt=0,
        role="bookkeeping",
    )
    log_val_generations: int = setting(0, "Validation answers shown per validation.", ge=0, role="bookkeeping")
    rollout_data_dir: Place | None = setting(
        None, "Folder for all training answers, one JSONL file per step.", role="bookkeeping"
    )
    validation_data_dir: Place | None = setting(
        None, "Folder for all validation answers, one JSONL file per step.", role="bookkeeping"
    )
    sample_groups: int = setting(
        8,
        "Groups per step whose texts and verdicts are kept in the run folder; -1 keeps all. Gradings without a "
        "judgement are always kept.",
        own=True,
        ge=-1,
        role="bookkeeping",
    )
    token_record_groups: int = setting(
        2,
        "Groups per step whose answers are kept with token ids, log-probs, advantages and the mask of binding tokens: "
        "at even distances over those that were computed, the last included.",
        own=True,
        ge=0,
        role="bookkeeping",
    )


class Config(Section):
    """The whole tree of `gmpo train`."""

    data: Data = Field(default_factory=Data)
    actor_rollout_ref: ActorRolloutRef = Field(default_factory=ActorRolloutRef)
    critic: Critic = Field(default_factory=Critic)
    algorithm: Algorithm = Field(default_factory=Algorithm)
    reward_model: RewardModel = Field(default_factory=RewardModel)
    custom_reward_function: CustomRewardFunction = Field(default_factory=CustomRewardFunction)
    trainer: Trainer = Field(default_factory=Trainer)

    @property
    def uses_reference(self) -> bool:
        """Whether a term compares the policy with the reference model."""
        return self.actor_rollout_ref.actor.has_kl_term or self.algorithm.use_kl_in_reward

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates of the policy per training step; the last one may be smaller."""
        actor = self.actor_rollout_ref.actor
        return -(-self.data.train_batch_size // actor.ppo_mini_batch_size) * actor.ppo_epochs

    @property
    def critic_updates_per_step(self) -> int:
        """Optimizer updates of the critic per training step; 0 without one."""
        critic = self.critic
        return -(-self.data.train_batch_size // critic.ppo_mini_batch_size) * critic.ppo_epochs if critic.enable else 0

    @property
    def problems_per_round(self) -> int:
        """Problems that are sampled at once; a step takes several such rounds where groups are filtered."""
        return self.data.gen_batch_size if self.algorithm.filter_groups.enable else self.data.train_batch_size

    @property
    def needs_old_logp(self) -> bool:
        """Whether a step starts with the learner's log-probs of what was sampled.

        Not where one update sees exactly the weights that sampled all groups, nor where the sampler's log-probs stand
        in for them, unless something else compares the two or needs the entropies.
        """
        bypass = self.algorithm.rollout_correction.bypass_mode
        several = self.updates_per_step > 1 and not bypass
        return several or self._needs_own_logp or self.algorithm.use_kl_in_reward

    @property
    def can_reuse_logp(self) -> bool:
        """Whether log-probs of a sampler with the learner's weights may stand for the old ones: nothing compares the
        two policies, and nothing needs the entropies that come with old log-probs."""
        return not self._needs_own_logp

    @property
    def _needs_own_logp(self) -> bool:
        stale, entropies = self.algorithm.filter_groups.keeps_groups, self.actor_rollout_ref.actor.entropy_quantile
        return stale or entropies is not None or self.algorithm.rollout_correction.compares

    @property
    def devices(self) -> int:
        """Devices of the run. A count that is not given is taken as 1."""
        return self.trainer.nnodes * max(1, self.trainer.n_gpus_per_node or 1)
