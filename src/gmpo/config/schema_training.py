"""What the sections of actor and critic share: names of choices, the optimizer."""

from __future__ import annotations

from typing import Literal

from gmpo.config.fields import Name, Section, Text, setting

ONE_STRATEGY = "FSDP2 shards the parameters of several ranks, under either name"
ONE_PROCESS = "this version keeps parameters and optimizer state where they are computed with"

RUN_FOLDER = "checkpoints/{project_name}/{experiment_name}"
"""The run folder where none is given."""

LossAggMode = Literal["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
Schedule = Literal["constant", "cosine", "linear"]
Contents = tuple[Literal["model", "optimizer", "extra", "hf_model"], ...]
Precision = Literal["fp32", "bf16"]
Strategy = Literal["fsdp", "fsdp2"]


class Adapters(Section):
    """Low-rank adapters of a model that is trained."""

    lora_rank: int = setting(
        0, "Rank of low-rank adapters (LoRA), which alone are trained then; 0 trains all weights. Needs peft.", ge=0
    )
    lora_alpha: int = setting(16, "Adapters count alpha / rank times.", ge=1)
    target_modules: Text | tuple[Name, ...] = setting(
        "all-linear",
        "Layers with an adapter: all-linear (all but the head), a list of ends of their names, or one expression.",
    )
    exclude_modules: tuple[Name, ...] = setting((), "Layers without one, in the same way.")


class Optim(Section):
    """AdamW and its learning-rate schedule. The schedule advances once per training step."""

    lr: float = setting(1e-6, "Peak learning rate.", ge=0)
    weight_decay: float = setting(0.01, "Decoupled weight decay, on all parameters.", ge=0)
    betas: tuple[float, float] = setting((0.9, 0.999), "Decay rates of the two moments, each in [0, 1).")
    eps: float = setting(1e-8, "Term added to the root of the second moment.", gt=0)
    lr_warmup_steps: int = setting(
        -1, "Training steps of linear warm-up from 0. A negative number leaves it to lr_warmup_steps_ratio.", ge=-1
    )
    lr_warmup_steps_ratio: float = setting(0.0, "Warm-up as a share of all training steps.", ge=0, le=1)
    lr_scheduler_type: Schedule = setting("constant", "Course of the learning rate after the warm-up.")
    min_lr_ratio: float = setting(0.0, "Where cosine and linear end, as a share of lr.", ge=0, le=1)
    num_cycles: float = setting(0.5, "Periods of the cosine; 0.5 falls once from lr to its minimum.", gt=0)
    total_training_steps: int | None = setting(
        None, "Training steps over which the schedule runs. null takes the length of the run.", ge=1
    )
