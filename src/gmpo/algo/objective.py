"""What an update minimises, `surrogate + kl_coef * KL - entropy_coef * entropy`, and the record that it leaves.

Tensors in, loss and record out: nothing here knows a model, a device or how the mini-batch is divided. A learner

1. counts the tokens and answers of the whole mini-batch (`gmpo.algo.masks.count`), has the loss choose its tokens where
   it does so (`choose`), and leaves out the rows without a gradient (`with_signal`);
2. calls `loss` for the answers, a few at a time, always with the counts of the whole, and sums the gradients;
3. joins the records (`joined`).

Shapes: B answers, T response positions; R answers of a record.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gmpo.algo.corrections import with_gradient_weights
from gmpo.algo.kl import kl_penalty
from gmpo.algo.losses import PolicyLoss, reduce_surrogate
from gmpo.algo.masks import Counts, aggregate
from gmpo.streams import uniform


@dataclass(frozen=True, slots=True)
class LossInputs:
    """What the loss of some answers needs beside their log-probs, on the device of the loss."""

    rows: Int[Tensor, " B"]
    """Numbers of the answers within the mini-batch; they pass into the record."""
    advantage: Float[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    """The tokens in the loss."""
    old_logp: Float[Tensor, "B T"] | None = None
    """None compares the policy with itself."""
    ref_logp: Float[Tensor, "B T"] | None = None
    """Needed with a KL term alone."""
    weights: Float[Tensor, "B T"] | None = None
    """Constants that multiply the gradient of each token; None weights all alike."""
    selected: Bool[Tensor, "B T"] | None = None
    """What `Objective.choose` chose; None for a loss that chooses nothing."""

    def part(self, rows: slice) -> LossInputs:
        """Some neighbouring answers, with all their padding."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return LossInputs(**{name: None if x is None else x[rows] for name, x in fields.items()})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class LossRecord:
    """What the loss of some answers leaves behind, without gradient."""

    rows: Int[Tensor, " R"]
    """Numbers of the answers within the mini-batch."""
    logp: Float[Tensor, "R T"]
    """Log-probs of the policy, float32."""
    clipped: Bool[Tensor, "R T"]
    clipped_lower: Bool[Tensor, "R T"]
    sequence_ratio: Float[Tensor, " R"]
    capped: Bool[Tensor, " R"]
    scalars: Mapping[str, Tensor]
    """`pg_loss`, `kl_loss`, `entropy`, those that there are: shares of the mini-batch's means, which add up."""

    def having(self, **scalars: Tensor) -> LossRecord:
        """The record with further scalars."""
        return dataclasses.replace(self, scalars={**self.scalars, **scalars})


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of a run, with its numbers and the terms beside it."""

    policy_loss: PolicyLoss
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
        pulls = self.policy_loss.traits.pulls
        return self.kl_coef == 0.0 and self.entropy_coef == 0.0 and not self.chooses and not pulls

    @property
    def chooses(self) -> bool:
        """The loss treats tokens differently that it chooses from the whole mini-batch (see `choose`)."""
        return self.policy_loss.select is not None

    def with_signal(self, advantage: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Int[Tensor, " R"]:
        """The rows that have a gradient. The others count in the denominators and need not be computed."""
        present = mask.any(dim=1)
        if self.only_advantages:
            present = present & ((advantage != 0) & mask).any(dim=1)
        return present.nonzero().squeeze(1)

    def choose(
        self,
        logp: Float[Tensor, "B T"],
        old_logp: Float[Tensor, "B T"] | None,
        advantage: Float[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
        index: Int[Tensor, " B"],
        step: int,
    ) -> Bool[Tensor, "B T"]:
        """The loss's choice of tokens, from the whole mini-batch.

        Random numbers are keyed by the response's place in the step and the position, so no split changes the choice.

        Args:
            logp: of the present policy; old_logp: None where that is the old one too.
            index: row numbers within the step's batch.
        """
        assert self.policy_loss.select is not None
        width = mask.shape[1]
        noise = np.stack([uniform(width, self.seed, step, int(row)) for row in index])
        chosen: Tensor = self.policy_loss.select(
            logp,
            logp if old_logp is None else old_logp,
            advantage,
            mask,
            torch.from_numpy(noise),
            **self.numbers(self.policy_loss.traits.select_numbers, step),
        )
        return chosen

    def loss(
        self,
        inputs: LossInputs,
        logp: Float[Tensor, "B T"],
        entropy: Float[Tensor, "B T"] | None,
        counts: Counts,
        step: int,
    ) -> tuple[Float[Tensor, ""], LossRecord]:
        """The loss of some answers, a share of the mini-batch's, and the record of it.

        Args:
            logp, entropy: with gradient, where the model's head has left them; entropy: with an entropy term alone.
            counts: of the whole mini-batch.
            step: training step, for numbers that change with it.
        """
        mask = inputs.mask
        old = logp.detach() if inputs.old_logp is None else inputs.old_logp
        extra = {} if inputs.selected is None else {"selected": inputs.selected}
        weighted = logp if inputs.weights is None else with_gradient_weights(logp, inputs.weights)
        numbers = self.numbers(self.policy_loss.traits.numbers, step)
        surrogate = self.policy_loss.fn(weighted, old, inputs.advantage, mask, **numbers, **extra)
        loss = reduce_surrogate(
            surrogate,
            mask,
            traits=self.policy_loss.traits,
            mode=self.aggregation,
            counts=counts,
            loss_scale=self.loss_scale,
        )
        scalars = {"pg_loss": loss.detach()}
        if self.kl_coef != 0.0:
            assert inputs.ref_logp is not None
            kl = kl_penalty(logp, inputs.ref_logp, self.kl_kind)
            kl_loss = aggregate(kl, mask, self.aggregation, counts, self.loss_scale)
            loss = loss + self.kl_coef * kl_loss
            scalars["kl_loss"] = kl_loss.detach()
        if entropy is not None:
            loss = loss - self.entropy_coef * aggregate(entropy, mask, self.aggregation, counts, self.loss_scale)
        record = LossRecord(
            rows=inputs.rows,
            logp=logp.detach().float(),
            clipped=surrogate.clipped,
            clipped_lower=surrogate.clipped_lower,
            sequence_ratio=surrogate.sequence_ratio.float(),
            capped=surrogate.capped,
            scalars=scalars,
        )
        return loss, record

    def watched_entropy(
        self, entropy: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], computed: Counts
    ) -> Float[Tensor, ""]:
        """These answers' share of the entropy that is reported: per token whatever the aggregation, as where it comes
        from the pass for old log-probs.

        Args:
            computed: counts of the answers that are computed, which is all of them where the entropy is in the loss.
        """
        return aggregate(entropy, mask, "token-mean", computed, self.loss_scale)

    def numbers(self, names: Sequence[str], step: int) -> dict[str, Any]:
        """The named numbers at a training step; one that is not given takes the function's default."""
        fixed = {name: self.loss_numbers[name] for name in names if name in self.loss_numbers}
        return fixed | {name: self.schedules[name](step) for name in names if name in self.schedules}


def joined(records: Sequence[LossRecord], width: int) -> LossRecord:
    """One record, on the CPU, of the answers of all `records`, wherever each was made; scalars are added in float64.

    Args:
        width: T of the mini-batch; a record may be narrower.
    """

    def stacked(name: str, dtype: torch.dtype, *empty: int) -> Tensor:
        pieces = [getattr(record, name).cpu() for record in records]
        padded = [torch.nn.functional.pad(p, (0, width - p.shape[1])) if p.dim() == 2 else p for p in pieces]
        return torch.cat(padded) if padded else torch.zeros(0, *empty, dtype=dtype)

    return LossRecord(
        rows=stacked("rows", torch.long),
        logp=stacked("logp", torch.float32, width),
        clipped=stacked("clipped", torch.bool, width),
        clipped_lower=stacked("clipped_lower", torch.bool, width),
        sequence_ratio=stacked("sequence_ratio", torch.float32),
        capped=stacked("capped", torch.bool),
        scalars=added([record.scalars for record in records]),
    )


def added(shares: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The sum of each name's values, in float64 on the CPU: shares of a mini-batch's means add up to these."""
    total: dict[str, Tensor] = {}
    for share in shares:
        for name, value in share.items():
            total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + value.cpu().double()
    return total
