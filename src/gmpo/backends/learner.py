"""The learner in one process: policy, optimizer, reference model and critic on one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gmpo.algo.masks import AGGREGATIONS
from gmpo.algo.objective import LossRecord, Objective, joined
from gmpo.backends import passes
from gmpo.backends.adapters import without_adapters
from gmpo.backends.critic import Critic
from gmpo.backends.devices import Device
from gmpo.backends.forward import PolicyModule
from gmpo.backends.mini_batch import MiniBatch, prepare
from gmpo.backends.models import beyond_tokenizer
from gmpo.backends.passes import BatchModule
from gmpo.backends.storage import ALONE, Share, held_weights, save_huggingface
from gmpo.backends.trainable import MicroBatching, OptimizerSettings, OptimizerStep, Trainable
from gmpo.backends.weights import LiveWeights
from gmpo.ops.linear_loss import Entropies
from gmpo.ports import Update
from gmpo.records.batch import Batch

LOGPROBS = "computing log-probs"
Part = Literal["policy", "reference", "critic"]


def update_of(objective: Objective, mini: MiniBatch, records: Sequence[LossRecord], stepped: OptimizerStep) -> Update:
    """The update of a mini-batch from the records of its parts, wherever these were computed."""
    found = joined(records, mini.width)
    return Update(
        rows=found.rows,
        logp=found.logp,
        clipped=found.clipped,
        clipped_lower=found.clipped_lower,
        sequence_ratio=found.sequence_ratio,
        capped=found.capped,
        scalars={
            "grad_norm": stepped.norm,
            "lr": stepped.rate,
            **({} if stepped.moved is None else {"weights_moved": stepped.moved}),
            **{k: float(x) for k, x in found.scalars.items()},
        },
        skipped=stepped.skipped,
        counted={
            "kl_loss": mini.counts.of(AGGREGATIONS[objective.aggregation].unit),
            "entropy": mini.computed.of("tokens"),
        },
    )


class LocalLearner:
    """A `Learner` on one device.

    Args:
        update_split: micro-batches with gradient; score_split: without.
        reference: frozen model for KL terms, or the policy itself without its adapters; None without one.
        reference_split: its micro-batches.
        critic: estimates values for advantages that need them.
        keys: `lr_key` and `nonfinite_key` of `Trainable`; those of `gmpo train` where they are not given.
        score_norms: every scored batch gets `score_norm`, also where its log-probs are not asked for.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        device: Device,
        objective: Objective,
        optimizer: OptimizerSettings,
        update_split: MicroBatching,
        score_split: MicroBatching,
        reference: PreTrainedModel | Literal["without adapters"] | None = None,
        reference_split: MicroBatching | None = None,
        critic: Critic | None = None,
        score_norms: bool = False,
        **keys: Any,
    ) -> None:
        self.model = model
        self.policy = Trainable(model, tokenizer, optimizer, **{"lr_key": "actor_rollout_ref.actor.optim.lr", **keys})
        self.tokenizer = tokenizer
        self.device = device
        self.objective = objective
        self.update_split = update_split
        self.score_split = score_split
        self.reference_split = reference_split or score_split
        temperature = objective.temperature
        excluded = beyond_tokenizer(model, tokenizer)
        self.module = PolicyModule(model, device, temperature=temperature, excluded=excluded)
        self.reference = None
        self.without_adapters = reference == "without adapters"
        if isinstance(reference, PreTrainedModel):
            self.reference = PolicyModule(
                reference.requires_grad_(False), device, temperature=temperature, excluded=excluded
            )
        self.critic = critic
        self.score_norms = score_norms

    def weights(self, version: int) -> LiveWeights:
        """The live model: a sampler in this process reads it directly."""
        return LiveWeights(self.model, version)

    def close(self) -> None:
        """Nothing is held outside of this process."""

    def score(self, batch: Batch, *, old: bool) -> Batch:
        """Log-probs and entropies of the current policy (if `old`), log-probs of the reference and the critic's values
        (where there are such)."""
        filled = batch
        if old or self.score_norms:
            more = {"score_norms": True} if self.score_norms else {}
            found = passes.score(
                self.module, batch, self.score_split, LOGPROBS, outputs=2 + len(more), entropy="value", **more
            )
            if old:
                filled = filled.replace(learner_logp=found[0], entropy=found[1])
            if self.score_norms:
                filled = filled.replace(score_norm=found[2])
        if self.reference is not None:
            filled = filled.replace(ref_logp=passes.score(self.reference, batch, self.reference_split, LOGPROBS)[0])
        elif self.without_adapters:
            with without_adapters(self.model):
                filled = filled.replace(ref_logp=passes.score(self.module, batch, self.reference_split, LOGPROBS)[0])
        if self.critic is not None:
            filled = filled.replace(values=self.critic.values(batch))
        return filled

    def update_critic(self, batch: Batch, *, step: int) -> dict[str, float]:
        """Fit the critic to the returns of a credited batch; nothing without a critic. Returns `critic/*` metrics."""
        return {} if self.critic is None else self.critic.fit(batch, step=step)

    def update(self, batch: Batch, *, step: int) -> Update:
        """One optimizer update on the mini-batch `batch`.

        The denominators are counted over the whole mini-batch before the first backward pass, so its division into
        micro-batches does not change the gradient. Responses without signal are counted but not computed.

        Raises:
            BackendError: out of memory, or too many non-finite gradients in a row.
        """
        mini = self.prepare(batch, step=step)
        return update_of(self.objective, mini, *self.update_part(mini))

    def prepare(self, batch: Batch, *, step: int) -> MiniBatch:
        """What the backward passes must know of the mini-batch as a whole; see `gmpo.backends.mini_batch`."""
        return prepare(self.objective, batch, step, self.logp(batch) if self.objective.chooses else None)

    def logp(self, batch: Batch) -> Tensor:
        """Log-probs `[B, T]` of the present policy, without gradient."""
        return passes.score(self.module, batch, self.score_split, LOGPROBS)[0]

    def update_part(self, mini: MiniBatch) -> tuple[list[LossRecord], OptimizerStep]:
        """Gradients of some rows of a mini-batch, and one step of the optimizer with those of all ranks."""
        return passes.update(self.module, self.policy, mini, self.update_split, "updating the policy", self.accumulate)

    def spread(self, shard: Callable[[BatchModule, Part], object]) -> None:
        """Have every model's parameters sharded by `shard`. The optimizers are made anew: they belong to parameters."""
        shard(self.module, "policy")
        self.policy = self.policy.anew()
        if self.reference is not None:
            shard(self.reference, "reference")
        if self.critic is not None:
            shard(self.critic.module, "critic")
            self.critic.trainable = self.critic.trainable.anew()

    def accumulate(self, part: MiniBatch) -> list[LossRecord]:
        """Add the gradient of a micro-batch to the parameters'; returns the records of its rows.

        Without rows the gradient is zero and the model runs all the same, as sharded ones need.
        """
        o, inputs = self.objective, part.inputs(self.device.torch)
        # Where the entropy was computed with the old log-probs it is known already.
        watched: Entropies = "value" if part.batch.entropy is None else "none"
        records: list[LossRecord] = []

        def loss(rows: slice, logp: Tensor, entropy: Tensor | None) -> Tensor:
            value, record = o.loss(inputs.part(rows), logp, entropy, part.counts, part.step)
            records.append(record)
            return value

        total, entropy = self.module(part.batch, loss, entropy="gradient" if o.entropy_coef != 0.0 else watched)
        total.backward()
        if entropy is not None and records:
            records[0] = records[0].having(entropy=o.watched_entropy(entropy, inputs.mask, part.computed))
        return records

    def snapshot(self, contents: Sequence[str], *, copy: bool, share: Share = ALONE) -> Callable[[Path], None]:
        """`actor/` and, with a critic, `critic/` below a folder: see `Trainable.snapshot`."""
        parts = {"actor": self.policy} | ({} if self.critic is None else {"critic": self.critic.trainable})
        writers = {name: part.snapshot(contents, copy=copy, share=share) for name, part in parts.items()}

        def write(folder: Path) -> None:
            for name, writer in writers.items():
                writer(folder / name)

        return write

    def load(self, folder: Path, contents: Sequence[str]) -> None:
        """Read what was written.

        Raises:
            CheckpointError: a file is missing or does not fit the model.
        """
        self.policy.load(folder / "actor", contents)
        if self.critic is not None:
            self.critic.trainable.load(folder / "critic", contents)

    def export(self, folder: Path) -> None:
        """The policy as a Hugging Face folder."""
        save_huggingface(self.model, self.tokenizer, folder, held_weights(self.model, copy=False))
