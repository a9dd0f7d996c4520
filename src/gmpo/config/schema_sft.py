"""The typed tree of `gmpo sft`, in the key names of verl's SFT trainer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from gmpo.config.fields import Name, Place, Section, Text, setting
from gmpo.config.schema import Device, LoggerName
from gmpo.config.schema_training import RUN_FOLDER, Adapters, Schedule
from gmpo.limits import LARGEST_SEED

LARGEST_MICRO_BATCH = 32
"""Most demonstrations of a micro-batch whose size is not given."""


class SftData(Section):
    """Demonstrations."""

    train_files: tuple[Place, ...] = setting(
        (), "Parquet or JSONL files with a prompt and an answer per row.", role="execution", exact=True
    )
    val_files: tuple[Place, ...] = setting(
        (),
        "Files whose loss is measured after each epoch. null or an empty list measures none.",
        role="execution",
        exact=True,
    )
    train_batch_size: int = setting(256, "Demonstrations per optimizer update.", ge=1)
    micro_batch_size_per_gpu: int = setting(
        None,
        "Demonstrations per forward and backward pass. Saves memory and never changes the gradient.",
        derived=f"the largest divisor of train_batch_size up to {LARGEST_MICRO_BATCH}",
        ge=1,
        role="execution",
    )
    max_length: int = setting(1024, "Longest prompt with its answer, in tokens.", ge=2)
    truncation: Literal["error", "left", "right"] = setting(
        "error", "What to do with a longer one: stop, keep its end (left) or keep its start (right)."
    )
    prompt_key: Name = setting("prompt", "Column of the prompt: chat messages, or a text. Dots descend into it.")
    response_key: Name = setting("extra_info.answer", "Column of the answer to imitate. Dots descend into it.")
    max_samples: int = setting(-1, "Use only so many demonstrations. -1 uses all.", ge=-1)


class SftModel(Adapters):
    """The model that is trained."""

    path: Place | None = setting(
        None,
        "Local Hugging Face model folder, or a name on the hub. Must be given to train.",
        role="execution",
        exact=True,
    )
    trust_remote_code: bool = setting(
        False, "Run Python code that comes with the model. Off unless you trust it.", role="execution", exact=True
    )
    override_config: dict[str, Any] = setting({}, "Changes to the model's own config.json.")
    enable_gradient_checkpointing: bool = setting(
        False, "Recompute activations in the backward pass: less memory, about a third more compute.", role="execution"
    )
    custom_chat_template: Text | None = setting(
        None, "Jinja chat template to use in place of the tokenizer's. null keeps the tokenizer's."
    )

    @property
    def source(self) -> str:
        """The path for those who load the model; that one is given was asked before."""
        return self.path or ""


class SftOptim(Section):
    """AdamW and its learning-rate schedule, which advances once per update."""

    lr: float = setting(1e-5, "Peak learning rate.", ge=0)
    betas: tuple[float, float] = setting((0.9, 0.95), "Decay rates of the two moments, each in [0, 1).")
    eps: float = setting(1e-8, "Term added to the root of the second moment.", gt=0)
    weight_decay: float = setting(0.01, "Decoupled weight decay, on all parameters.", ge=0)
    warmup_steps_ratio: float = setting(0.1, "Linear warm-up from 0 as a share of all updates.", ge=0, le=1)
    lr_scheduler_type: Schedule = setting("cosine", "Course of the learning rate after the warm-up.")
    min_lr_ratio: float = setting(0.0, "Where cosine and linear end, as a share of lr.", ge=0, le=1)
    clip_grad: float = setting(1.0, "Largest norm of the gradient; a longer one is scaled down.", gt=0)


class SftTrainer(Section):
    """Length of the run and what it writes."""

    total_epochs: int | None = setting(
        4,
        "Passes over the demonstrations, at most. null sets no bound, which is what it becomes when only "
        "total_training_steps is given.",
        ge=1,
        role="bookkeeping",
    )
    total_training_steps: int | None = setting(
        None,
        "Updates, at most. When total_epochs is given too, the run ends at whichever comes first.",
        ge=1,
        role="bookkeeping",
    )
    default_local_dir: Place = setting(
        None,
        "The run folder: checkpoints, metrics and the model. It belongs to one run. If the derived one holds another, "
        "a folder beside it is taken, with -2, -3 .. behind its name; a given one is then refused.",
        derived=RUN_FOLDER,
        role="bookkeeping",
    )
    allow_changed_config: bool = setting(
        False,
        "Go on from the newest checkpoint of an unfinished run, or begin it again where it has none, although settings "
        "differ that decide what is learned. It counts for this start alone: a saved config.yaml does not hold it.",
        own=True,
        role="bookkeeping",
    )
    save_freq: int = setting(
        -1,
        "Write a checkpoint every so many updates and after the last one. -1 is off: one is written when the run is "
        "stopped. The same command goes on from the newest.",
        ge=-1,
        role="bookkeeping",
    )
    max_ckpt_to_keep: int | None = setting(
        None, "Keep only the newest so many checkpoints. null keeps all.", ge=1, role="bookkeeping"
    )
    project_name: Name = setting(
        "gmpo", "Project under which loggers file the run; part of the default run folder.", role="bookkeeping"
    )
    experiment_name: Name = setting(
        "sft", "Name of the run for loggers; part of the default run folder.", role="bookkeeping"
    )
    logger: tuple[LoggerName, ...] = setting(
        ("console", "tensorboard"),
        "Where metrics go. metrics.jsonl in the run folder is always written.",
        role="bookkeeping",
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


class SftConfig(Section):
    """The whole tree of `gmpo sft`."""

    data: SftData = Field(default_factory=SftData)
    model: SftModel = Field(default_factory=SftModel)
    optim: SftOptim = Field(default_factory=SftOptim)
    trainer: SftTrainer = Field(default_factory=SftTrainer)

    @property
    def devices(self) -> int:
        """Devices of the run. A count that is not given is taken as 1."""
        return self.trainer.nnodes * max(1, self.trainer.n_gpus_per_node or 1)
