"""The learner in one process: policy, optimizer, reference model and critic on one device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gmpo.algo.corrections import with_gradient_weights
from gmpo.algo.kl import kl_penalty
from gmpo.algo.losses import PolicyLoss, reduce_surrogate
from gmpo.algo.masks import Counts, aggregate
from gmpo.backends.critic import Critic
from gmpo.backends.devices import Device, out_of_memory_hint
from gmpo.backends.forward import TokenModel
from gmpo.backends.storage import held_weights, save_huggingface
from gmpo.backends.trainable import MicroBatching, OptimizerSettings, Trainable
from gmpo.backends.weights import LiveWeights
from gmpo.ops.linear_logprob import Entropies
from gmpo.ports import Update
from gmpo.records.batch import Batch
from gmpo.streams import uniform


@dataclass(frozen=True, slots=True)
class Objective:
    """What an update minimises: surrogate + kl_coef * KL - entropy_coef * entropy."""

    loss: PolicyLoss
    loss_numbers: Mapping[str, Any]
    """Values of the loss's and its selection's `numbers`."""
    aggregation: str
    """`loss_agg_mode`: of the surrogate where it is per token, and of the KL and entropy terms."""
    loss_scale: float
    """Divisor of `seq-mean-token-sum-norm`, in tokens."""
    temperature: float
    """Sampling temperature; divides the logits in every log-prob."""
    kl_coef: float = 0.0
    """0 leaves the KL term out."""
    kl_kind: str = "low_var_kl"
    entropy_coef: float = 0.0
    schedules: Mapping[str, Callable[[int], float]] = field(default_factory=dict)
    """Numbers that change with the training step, which win over `loss_numbers`."""
    seed: int = 0
    """Root of the loss's random choices."""

    @property
    def only_advantages(self) -> bool:
        """Responses of advantage 0 have no gradient at all, so they need not be computed."""
        return self.kl_coef == 0.0 and self.entropy_coef == 0.0 and self.loss.select is None

    def numbers(self, names: Sequence[str], step: int) -> dict[str, Any]:
        """The named numbers at a training step; one that is not given takes the function's default."""
        fixed = {name: self.loss_numbers[name] for name in names if name in self.loss_numbers}
        return fixed | {name: self.schedules[name](step) for name in names if name in self.schedules}


class LocalLearner:
    """A `Learner` on one device.

    Args:
        update_split: micro-batches with gradient; score_split: without.
        reference: frozen model for KL terms, None without one; reference_split: its micro-batches.
        critic: estimates values for advantages that need them.
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
        reference: PreTrainedModel | None = None,
        reference_split: MicroBatching | None = None,
        critic: Critic | None = None,
    ) -> None:
        self.model = model
        self.policy = Trainable(model, tokenizer, optimizer, lr_key="actor_rollout_ref.actor.optim.lr")
        self.tokenizer = tokenizer
        self.device = device
        self.objective = objective
        self.update_split = update_split
        self.score_split = score_split
        self.reference_split = reference_split or score_split
        temperature = objective.temperature
        self.tokens = TokenModel(model, device, temperature=temperature)
        self.reference = None
        if reference is not None:
            self.reference = TokenModel(reference.requires_grad_(False), device, temperature=temperature)
        self.critic = critic

    def weights(self, version: int) -> LiveWeights:
        """The live model: a sampler in this process reads it directly."""
        return LiveWeights(self.model, version)

    def close(self) -> None:
        """Nothing is held outside of this process."""

    def score(self, batch: Batch, *, old: bool) -> Batch:
        """Log-probs and entropies of the current policy (if `old`), log-probs of the reference and the critic's values
        (where there are such)."""
        filled = batch
        if old:
            logp, entropy = self._no_grad_pass(self.tokens, batch, self.score_split, with_entropy=True)
            filled = filled.replace(old_logp=logp, entropy=entropy)
        if self.reference is not None:
            ref_logp, _ = self._no_grad_pass(self.reference, batch, self.reference_split, with_entropy=False)
            filled = filled.replace(ref_logp=ref_logp)
        if self.critic is not None:
            filled = filled.replace(values=self.critic.values(batch))
        return filled

    def update_critic(self, batch: Batch, *, step: int) -> dict[str, float]:
        """Fit the critic to the returns of a credited batch; nothing without a critic. Returns `critic/*` metrics."""
        return {} if self.critic is None else self.critic.fit(batch, step=step)

    def _no_grad_pass(
        self, tokens: TokenModel, batch: Batch, by: MicroBatching, *, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        tokens.model.eval()
        logp = torch.zeros(batch.response_ids.shape)
        entropy = torch.zeros(batch.response_ids.shape) if with_entropy else None
        for rows in tokens.split(batch, by):
            part = batch.select(rows)
            with out_of_memory_hint("computing log-probs"):
                part_logp, part_entropy = tokens.logprobs(part, with_entropy=with_entropy)
            width = part.response_ids.shape[1]
            logp[rows, :width] = part_logp.float().cpu()
            if entropy is not None and part_entropy is not None:
                entropy[rows, :width] = part_entropy.float().cpu()
        return logp, entropy

    def update(self, batch: Batch, *, step: int) -> Update:
        """One optimizer update on the mini-batch `batch`.

        The denominators are counted over the whole mini-batch before the first backward pass, so its division into
        micro-batches does not change the gradient. Responses without signal are counted but not computed.

        Raises:
            BackendError: out of memory, or too many non-finite gradients in a row.
        """
        counts = batch.counts()
        if self.objective.loss.select is not None:
            batch = batch.replace(selected=self._selected(batch, step))
        computed = self._rows_with_signal(batch)
        with_signal = batch.select(computed)
        self.policy.begin()
        parts = []
        for rows in self.tokens.split(with_signal, self.update_split):
            with out_of_memory_hint("updating the policy"):
                found = self._accumulate(with_signal.select(rows), counts, with_signal.counts(), step)
            parts += [(computed[rows[some]], part) for some, part in found]
        stepped = self.policy.step(step)
        scalars = {"grad_norm": stepped.norm, "lr": stepped.rate}
        return _joined(parts, batch.response_ids.shape[1], scalars, skipped=stepped.skipped)

    def _selected(self, batch: Batch, step: int) -> Tensor:
        """The loss's choice of tokens `[B, T]`, from log-probs of the whole mini-batch.

        Random numbers are keyed by the response's place in the step and the position, so no split changes the choice.
        """
        loss = self.objective.loss
        assert loss.select is not None
        assert batch.advantage is not None
        logp, _ = self._no_grad_pass(self.tokens, batch, self.score_split, with_entropy=False)
        width = batch.response_ids.shape[1]
        noise = np.stack([uniform(width, self.objective.seed, step, int(index)) for index in batch.index])
        return loss.select(
            logp,
            logp if batch.old_logp is None else batch.old_logp,
            batch.advantage,
            batch.mask,
            torch.from_numpy(noise),
            **self.objective.numbers(loss.traits.select_numbers, step),
        )

    def _rows_with_signal(self, batch: Batch) -> Tensor:
        present = batch.mask.any(dim=1)
        if self.objective.only_advantages:
            assert batch.advantage is not None
            present &= ((batch.advantage != 0) & batch.mask).any(dim=1)
        return present.nonzero().squeeze(1)

    def _accumulate(self, batch: Batch, counts: Counts, computed: Counts, step: int) -> list[tuple[Tensor, _Part]]:
        """Backward pass of one micro-batch; returns the records of its parts, with their rows.

        Args:
            counts: of the whole mini-batch.
            computed: of its responses that are computed, which is all of them where the entropy is part of the loss.
        """
        o = self.objective
        # Where the entropy was computed with the old log-probs it is known already.
        watched: Entropies = "value" if batch.entropy is None else "none"
        parts: list[tuple[Tensor, _Part]] = []

        def loss(rows: slice, logp: Tensor, entropy: Tensor | None) -> Tensor:
            some = torch.arange(rows.start, rows.stop)
            value, record = self._loss(batch.take(some), logp, entropy, counts, step)
            parts.append((some, record))
            return value

        entropy = self.tokens.backward(batch, loss, entropy="gradient" if o.entropy_coef != 0.0 else watched)
        if entropy is not None:
            # Reported per token whatever the aggregation, as where it comes from the pass for old log-probs.
            mean = aggregate(entropy, batch.mask.to(entropy.device), "token-mean", computed, o.loss_scale)
            parts[0][1].scalars["entropy"] = float(mean)
        return parts

    def _loss(
        self, part: Batch, logp: Tensor, entropy: Tensor | None, counts: Counts, step: int
    ) -> tuple[Tensor, _Part]:
        """The loss of some responses, a share of the mini-batch's, and the record of it."""
        o, where = self.objective, self.device.torch
        mask = part.mask.to(where)
        assert part.advantage is not None
        old = logp.detach() if part.old_logp is None else part.old_logp.to(where)
        extra = {} if part.selected is None else {"selected": part.selected.to(where)}
        weighted = logp if part.weights is None else with_gradient_weights(logp, part.weights.to(where))
        surrogate = o.loss.fn(
            weighted, old, part.advantage.to(where), mask, **o.numbers(o.loss.traits.numbers, step), **extra
        )
        loss = pg_loss = reduce_surrogate(
            surrogate,
            mask,
            traits=o.loss.traits,
            mode=o.aggregation,
            counts=counts,
            loss_scale=o.loss_scale,
        )
        scalars = {"pg_loss": float(pg_loss.detach())}
        if o.kl_coef != 0.0:
            assert part.ref_logp is not None
            kl = kl_penalty(logp, part.ref_logp.to(where), o.kl_kind)
            kl_loss = aggregate(kl, mask, o.aggregation, counts, o.loss_scale)
            loss = loss + o.kl_coef * kl_loss
            scalars["kl_loss"] = float(kl_loss.detach())
        if entropy is not None:
            loss = loss - o.entropy_coef * aggregate(entropy, mask, o.aggregation, counts, o.loss_scale)
        return loss, _Part(
            logp=logp.detach().float().cpu(),
            clipped=surrogate.clipped.cpu(),
            clipped_lower=surrogate.clipped_lower.cpu(),
            sequence_ratio=surrogate.sequence_ratio.float().cpu(),
            capped=surrogate.capped.cpu(),
            scalars=scalars,
        )

    def snapshot(self, contents: Sequence[str], *, copy: bool) -> Callable[[Path], None]:
        """`actor/` and, with a critic, `critic/` below a folder: see `Trainable.snapshot`."""
        parts = {"actor": self.policy} | ({} if self.critic is None else {"critic": self.critic.trainable})
        writers = {name: part.snapshot(contents, copy=copy) for name, part in parts.items()}

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


@dataclass(frozen=True, slots=True)
class _Part:
    """What one micro-batch leaves behind."""

    logp: Tensor
    clipped: Tensor
    clipped_lower: Tensor
    sequence_ratio: Tensor
    capped: Tensor
    scalars: dict[str, float]


def _joined(parts: Sequence[tuple[Tensor, _Part]], width: int, scalars: dict[str, float], *, skipped: bool) -> Update:
    """The record of an update from those of its micro-batches; loss terms are shares of a mean and add up."""
    for _, part in parts:
        for name, value in part.scalars.items():
            scalars[name] = scalars.get(name, 0.0) + value

    def rows(name: str, dtype: torch.dtype) -> Tensor:
        pieces = [getattr(part, name) for _, part in parts]
        return torch.cat(pieces) if pieces else torch.zeros(0, dtype=dtype)

    def tokens(name: str, dtype: torch.dtype) -> Tensor:
        pieces = [getattr(part, name) for _, part in parts]
        padded = [torch.nn.functional.pad(p, (0, width - p.shape[1])) for p in pieces]
        return torch.cat(padded) if padded else torch.zeros(0, width, dtype=dtype)

    return Update(
        rows=torch.cat([rows for rows, _ in parts]) if parts else torch.zeros(0, dtype=torch.long),
        logp=tokens("logp", torch.float32),
        clipped=tokens("clipped", torch.bool),
        clipped_lower=tokens("clipped_lower", torch.bool),
        sequence_ratio=rows("sequence_ratio", torch.float32),
        capped=rows("capped", torch.bool),
        scalars=scalars,
        skipped=skipped,
    )
