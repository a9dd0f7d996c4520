"""Numbers that follow from the configuration and the size of the data: what one step does, how long the run is."""

from __future__ import annotations

from dataclasses import dataclass

from gmpo.config.schema import Config
from gmpo.errors import ConfigError


def counted(number: int, thing: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class Length:
    """How long a run is. Example: 7473 rows in batches of 1024 for 15 epochs: `Length(7, 105, 15)`."""

    steps_per_epoch: int
    """Full batches in one pass; the rows that fill no batch are left out of that pass."""
    total_steps: int
    epochs: int
    """Passes that are begun."""


def run_length(
    *, rows: int, batch_size: int, total_epochs: int | None, total_training_steps: int | None, key: str
) -> Length:
    """The length of a run: full batches only, and the smaller of the two bounds (at least one is not None).

    Args:
        key: name of the batch size, for the message.

    Raises:
        ConfigError: a batch is larger than the data set.
    """
    if rows < batch_size:
        raise ConfigError(
            f"{key} = {batch_size} is larger than the data set, which has {counted(rows, 'row')}: not one step is "
            f"possible. Lower {key} to at most {rows} or add data."
        )
    per_epoch = rows // batch_size
    bounds = [] if total_epochs is None else [per_epoch * total_epochs]
    bounds += [] if total_training_steps is None else [total_training_steps]
    steps = min(bounds)
    return Length(per_epoch, steps, -(-steps // per_epoch))


@dataclass(frozen=True, slots=True)
class Number:
    """One line of the table. Example: `Number("answers per step", 5120, "train_batch_size 1024 x rollout.n 5")`."""

    name: str
    value: int | None
    """None where it depends on something unknown."""
    formula: str


@dataclass(frozen=True, slots=True)
class Numbers:
    """Derived numbers of a training run. What depends on an unknown number of rows is None."""

    prompts_per_step: int
    responses_per_step: int
    mini_batch_responses: int
    """Answers behind one optimizer update."""
    updates_per_step: int
    micro_batches_per_update: int | None
    """On each device, or on each group of devices that share sequences. None with a token budget, where
    it depends on the lengths."""
    max_tokens_per_step: int
    """Prompts and answers at their longest."""
    steps_per_epoch: int | None
    total_steps: int | None
    epochs: int | None
    validation_responses: int | None
    """Answers per validation; 0 without validation problems."""
    critic_updates_per_step: int
    """0 without a critic."""

    def table(self, config: Config, train_rows: int | None, val_rows: int | None) -> tuple[Number, ...]:
        """All of them with their formulas, for display."""
        data, actor, rollout = config.data, config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
        n, mini, problems = rollout.n, actor.ppo_mini_batch_size, counted(self.prompts_per_step, "problem")
        groups = _replicas(config)
        micro = (
            f"by a budget of {actor.ppo_max_token_len_per_gpu} tokens each"
            if self.micro_batches_per_update is None
            else f"{counted(self.mini_batch_responses, 'answer')} / "
            + (f"{groups} devices / " if groups > 1 else "")
            + f"ppo_micro_batch_size_per_gpu {actor.ppo_micro_batch_size_per_gpu}"
        )
        longest = f"(max_prompt_length {data.max_prompt_length} + max_response_length {data.max_response_length})"
        trainer = config.trainer
        bounds = (
            ("steps per epoch x total_epochs", trainer.total_epochs),
            ("total_training_steps", trainer.total_training_steps),
        )
        length = ", ".join(f"{name} {bound}" for name, bound in bounds if bound is not None)
        rows = _rows(_capped(train_rows, data.train_max_samples))
        val = _rows(_capped(val_rows, data.val_max_samples))
        return (
            Number("problems per step", self.prompts_per_step, "data.train_batch_size"),
            Number(
                "answers per step",
                self.responses_per_step,
                f"{problems} x rollout.n {n}",
            ),
            Number(
                "updates per step",
                self.updates_per_step,
                f"ceil({self.prompts_per_step} / ppo_mini_batch_size {mini}) x ppo_epochs {actor.ppo_epochs}",
            ),
            *self._critic(config),
            Number("answers per update", self.mini_batch_responses, f"ppo_mini_batch_size {mini} x rollout.n {n}"),
            Number("micro-batches per update", self.micro_batches_per_update, micro),
            Number("tokens per step, at most", self.max_tokens_per_step, f"{self.responses_per_step} x {longest}"),
            Number("steps per epoch", self.steps_per_epoch, f"floor({rows} / {self.prompts_per_step})"),
            Number("steps", self.total_steps, f"the smaller of {length}" if ", " in length else length),
            Number("epochs begun", self.epochs, "ceil(steps / steps per epoch)"),
            Number(
                "answers per validation",
                self.validation_responses,
                f"{val} x val_kwargs.n {rollout.val_kwargs.n}"
                if self.validation_responses != 0
                else "no validation problems",
            ),
        )

    def _critic(self, config: Config) -> tuple[Number, ...]:
        critic = config.critic
        if not critic.enable:
            return ()
        formula = (
            f"ceil({self.prompts_per_step} / critic.ppo_mini_batch_size {critic.ppo_mini_batch_size}) x "
            f"critic.ppo_epochs {critic.ppo_epochs}"
        )
        return (Number("critic updates per step", self.critic_updates_per_step, formula),)


def numbers(config: Config, train_rows: int | None, val_rows: int | None) -> Numbers:
    """Derive the numbers. `train_rows` and `val_rows` count the problems, None when unknown.

    Raises:
        ConfigError: a batch is larger than the data set.
    """
    data, actor, rollout = config.data, config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    prompts, mini = data.train_batch_size, actor.ppo_mini_batch_size
    responses, mini_rows = prompts * rollout.n, mini * rollout.n
    size = None if actor.use_dynamic_bsz else actor.ppo_micro_batch_size_per_gpu
    longest = data.max_prompt_length + data.max_response_length
    steps_per_epoch, total_steps, epochs = _length(config, _capped(train_rows, data.train_max_samples))
    val_problems = _capped(val_rows, data.val_max_samples) if data.val_files or val_rows else 0
    return Numbers(
        prompts_per_step=prompts,
        responses_per_step=responses,
        mini_batch_responses=mini_rows,
        updates_per_step=config.updates_per_step,
        micro_batches_per_update=None if size is None else -(-mini_rows // (size * _replicas(config))),
        max_tokens_per_step=responses * longest,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        epochs=epochs,
        validation_responses=None if val_problems is None else val_problems * rollout.val_kwargs.n,
        critic_updates_per_step=config.critic_updates_per_step,
    )


def _replicas(config: Config) -> int:
    """Devices, or groups of devices that share sequences, between which a mini-batch is divided."""
    return max(1, config.devices // max(1, config.actor_rollout_ref.actor.ulysses_sequence_parallel_size))


def _capped(rows: int | None, limit: int) -> int | None:
    return rows if rows is None or limit < 0 else min(rows, limit)


def _rows(number: int | None) -> str:
    return "an unknown number of rows" if number is None else counted(number, "row")


def _length(config: Config, rows: int | None) -> tuple[int | None, int | None, int | None]:
    trainer = config.trainer
    if rows is None:
        return None, trainer.total_training_steps if trainer.total_epochs is None else None, trainer.total_epochs
    length = run_length(
        rows=rows,
        batch_size=config.data.train_batch_size,
        total_epochs=trainer.total_epochs,
        total_training_steps=trainer.total_training_steps,
        key="data.train_batch_size",
    )
    return length.steps_per_epoch, length.total_steps, length.epochs
