"""The learner in one process: policy, optimizer and reference model on one device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gmpo.algo.kl import kl_penalty
from gmpo.algo.losses import PolicyLoss, reduce_surrogate
from gmpo.algo.masks import Counts, aggregate
from gmpo.backends.devices import Device, out_of_memory_hint
from gmpo.backends.forward import response_logprobs
from gmpo.backends.storage import load_model, load_optimizer, save_huggingface, save_model, save_optimizer
from gmpo.batch import Batch, micro_batches
from gmpo.errors import BackendError
from gmpo.ports import Update, Weights


@dataclass(frozen=True, slots=True)
class Objective:
    """What an update minimises: surrogate + kl_coef * KL - entropy_coef * entropy."""

    loss: PolicyLoss
    loss_numbers: Mapping[str, float]
    """Values of `loss.numbers`."""
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

    @property
    def only_advantages(self) -> bool:
        """Responses of advantage 0 have no gradient at all, so they need not be computed."""
        return self.kl_coef == 0.0 and self.entropy_coef == 0.0


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW, one parameter group, and the bound on the gradient's norm."""

    learning_rate: Callable[[int], float]
    """Training step (0-based) -> learning rate."""
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    max_norm: float
    max_nonfinite: int
    """So many updates in a row whose gradient is not finite stop the run."""


@dataclass(frozen=True, slots=True)
class MicroBatching:
    """Division of a mini-batch into passes: by `rows` or by `tokens`, exactly one of them given."""

    rows: int | None = None
    tokens: int | None = None


class LocalLearner:
    """A `Learner` on one device.

    Args:
        update_split: micro-batches with gradient; score_split: without.
        reference: frozen model for KL terms, None without one; reference_split: its micro-batches.
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
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.device = device
        self.objective = objective
        self.settings = optimizer
        self.update_split = update_split
        self.score_split = score_split
        self.reference_split = reference_split or score_split
        self.reference = reference.eval().requires_grad_(False) if reference is not None else None
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=optimizer.learning_rate(0),
            betas=optimizer.betas,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )
        self.nonfinite_in_a_row = 0

    def weights(self, version: int) -> Weights:
        """The live module: a sampler in this process reads it directly."""
        return Weights(self.model, version)

    def score(self, batch: Batch, *, old: bool) -> Batch:
        """Log-probs and entropies of the current policy (if `old`), log-probs of the reference (if there is one)."""
        self.model.eval()
        filled = batch
        if old:
            logp, entropy = self._no_grad_pass(self.model, batch, self.score_split, with_entropy=True)
            filled = filled.replace(old_logp=logp, entropy=entropy)
        if self.reference is not None:
            ref_logp, _ = self._no_grad_pass(self.reference, batch, self.reference_split, with_entropy=False)
            filled = filled.replace(ref_logp=ref_logp)
        return filled

    def _no_grad_pass(
        self, model: PreTrainedModel, batch: Batch, split: MicroBatching, *, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        logp = torch.zeros(batch.response_ids.shape)
        entropy = torch.zeros(batch.response_ids.shape) if with_entropy else None
        for rows in _split(batch, split):
            part = batch.select(rows)
            with torch.no_grad(), out_of_memory_hint("computing log-probs"):
                part_logp, part_entropy = response_logprobs(
                    model,
                    part,
                    self.device,
                    temperature=self.objective.temperature,
                    entropies="value" if with_entropy else "none",
                )
            width = part.response_ids.shape[1]
            logp[rows, :width] = part_logp.float().cpu() * part.response_mask
            if entropy is not None and part_entropy is not None:
                entropy[rows, :width] = part_entropy.float().cpu() * part.response_mask
        return logp, entropy

    def update(self, batch: Batch, *, step: int) -> Update:
        """One optimizer update on the mini-batch `batch`.

        The denominators are counted over the whole mini-batch before the first backward pass, so its division into
        micro-batches does not change the gradient. Responses without signal are counted but not computed.

        Raises:
            BackendError: out of memory, or too many non-finite gradients in a row.
        """
        self.model.train()
        rate = self.settings.learning_rate(step)
        counts = batch.counts()
        computed = self._rows_with_signal(batch)
        with_signal = batch.select(computed)
        self._zero_gradients()
        parts = []
        for rows in _split(with_signal, self.update_split):
            with out_of_memory_hint("updating the policy"):
                part = self._accumulate(with_signal.select(rows), counts, with_signal.counts())
            parts.append((computed[rows], part))
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_norm))
        skipped = not math.isfinite(norm)
        if skipped:
            self._count_nonfinite(norm, step)
        else:
            self.nonfinite_in_a_row = 0
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        return _joined(parts, batch.response_ids.shape[1], {"grad_norm": norm, "lr": rate}, skipped=skipped)

    def _rows_with_signal(self, batch: Batch) -> Tensor:
        present = batch.response_mask.any(dim=1)
        if self.objective.only_advantages:
            assert batch.advantage is not None
            present &= (batch.advantage != 0).any(dim=1)
        return present.nonzero().squeeze(1)

    def _zero_gradients(self) -> None:
        # Zeros rather than None: AdamW passes over parameters without a gradient, and a mini-batch without any signal
        # still makes its (decayed) step.
        for parameter in self.model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            else:
                parameter.grad.zero_()

    def _accumulate(self, part: Batch, counts: Counts, computed: Counts) -> _Part:
        """Backward pass of one micro-batch.

        Args:
            counts: of the whole mini-batch.
            computed: of its responses that are computed, which is all of them where the entropy is part of the loss.
        """
        o = self.objective
        # Where old log-probs were computed the entropy is known already.
        watched: Literal["none", "value"] = "value" if part.old_logp is None else "none"
        logp, entropy = response_logprobs(
            self.model,
            part,
            self.device,
            temperature=o.temperature,
            entropies="gradient" if o.entropy_coef != 0.0 else watched,
        )
        where = self.device.torch
        mask = part.response_mask.to(where)
        assert part.advantage is not None
        old = logp.detach() if part.old_logp is None else part.old_logp.to(where)
        surrogate = o.loss.fn(logp, old, part.advantage.to(where), mask, **o.loss_numbers)
        loss = pg_loss = reduce_surrogate(
            surrogate,
            mask,
            per_sequence=o.loss.per_sequence,
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
            if o.entropy_coef != 0.0:
                loss = loss - o.entropy_coef * aggregate(entropy, mask, o.aggregation, counts, o.loss_scale)
            # Reported per token whatever the aggregation, as where it comes from the pass for old log-probs.
            scalars["entropy"] = float(aggregate(entropy.detach(), mask, "token-mean", computed, o.loss_scale))
        loss.backward()
        return _Part(
            logp=logp.detach().float().cpu(),
            clipped=surrogate.clipped.cpu(),
            clipped_lower=surrogate.clipped_lower.cpu(),
            sequence_ratio=surrogate.sequence_ratio.float().cpu(),
            capped=surrogate.capped.cpu(),
            scalars=scalars,
        )

    def _count_nonfinite(self, norm: float, step: int) -> None:
        self.nonfinite_in_a_row += 1
        if self.nonfinite_in_a_row >= self.settings.max_nonfinite:
            raise BackendError(
                f"step {step}: the gradient was not finite ({norm}) in {self.nonfinite_in_a_row} updates in a row; the "
                "weights were left as they were. Lower actor_rollout_ref.actor.optim.lr, or resume from an earlier "
                "checkpoint. actor_rollout_ref.actor.max_nonfinite_updates sets how many are tolerated."
            )

    def save(self, folder: Path, contents: Sequence[str]) -> None:
        """`model`, `optimizer` and `extra` become safetensors and JSON below `folder`; `hf_model` a loadable folder
        `huggingface/`, which without it holds configuration and tokenizer only."""
        folder.mkdir(parents=True, exist_ok=True)
        if "model" in contents:
            save_model(self.model, folder)
        if "optimizer" in contents:
            save_optimizer(self.model, self.optimizer, folder, {"nonfinite_in_a_row": self.nonfinite_in_a_row})
        save_huggingface(self.model, self.tokenizer, folder / "huggingface", weights="hf_model" in contents)

    def load(self, folder: Path, contents: Sequence[str]) -> None:
        """Read what `save` wrote: weights from `model`, else from `hf_model`.

        Raises:
            CheckpointError: a file is missing or does not fit the model.
        """
        load_model(self.model, folder, "model" if "model" in contents else "hf_model")
        if "optimizer" in contents:
            extra = load_optimizer(self.model, self.optimizer, folder)
            self.nonfinite_in_a_row = int(extra["nonfinite_in_a_row"])


@dataclass(frozen=True, slots=True)
class _Part:
    """What one micro-batch leaves behind."""

    logp: Tensor
    clipped: Tensor
    clipped_lower: Tensor
    sequence_ratio: Tensor
    capped: Tensor
    scalars: Mapping[str, float]


def _split(batch: Batch, by: MicroBatching) -> list[Tensor]:
    prompts, responses = batch.prompt_mask.sum(1), batch.response_mask.sum(1)
    return micro_batches(prompts, responses, rows=by.rows, tokens=by.tokens)


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
