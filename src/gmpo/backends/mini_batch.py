"""A mini-batch on its way to a learner: what must be known of the whole of it before it is divided."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gmpo.algo.masks import Counts
from gmpo.algo.objective import LossInputs, Objective
from gmpo.records.batch import Batch


@dataclass(frozen=True, slots=True)
class MiniBatch:
    """Rows of a mini-batch that have a gradient, with the counts of the whole: a part of it may be computed anywhere.

    Example: of 8 answers 2 have advantage 0. `batch` holds 6 rows, `rows` their numbers among the 8, `counts` all 8
    and `computed` the 6. Two parts of 4 and 2 rows keep these counts, and their gradients add up to that of the whole.
    """

    batch: Batch
    rows: Tensor
    """[R] row numbers within the whole mini-batch."""
    counts: Counts
    """Of the whole mini-batch: the denominators of the loss."""
    computed: Counts
    """Of its rows that have a gradient."""
    width: int
    """T of the whole mini-batch."""
    step: int
    """Training step."""

    def part(self, rows: Tensor) -> MiniBatch:
        """The given rows, counted from 0 in `batch`."""
        return replace(self, batch=self.batch.select(rows), rows=self.rows[rows])

    def inputs(self, where: torch.device) -> LossInputs:
        """What the loss of these rows needs, on its device."""
        b = self.batch
        assert b.advantage is not None
        found = {
            "rows": self.rows,
            "advantage": b.advantage,
            "mask": b.mask,
            "old_logp": b.old_logp,
            "ref_logp": b.ref_logp,
            "weights": b.weights,
            "selected": b.selected,
        }
        return LossInputs(**{name: None if x is None else x.to(where) for name, x in found.items()})  # type: ignore[arg-type]


def prepare(objective: Objective, batch: Batch, step: int, logp: Tensor | None = None) -> MiniBatch:
    """The mini-batch `batch`, counted, with the loss's choice of tokens, less its rows without a gradient.

    Args:
        step: training step.
        logp: log-probs `[B, T]` of the present policy; needed where the objective chooses tokens.
    """
    advantage, mask = batch.advantage, batch.mask
    assert advantage is not None
    if objective.chooses:
        assert logp is not None
        chosen = objective.choose(logp, batch.old_logp, advantage, mask, batch.index, step)
        batch = batch.replace(selected=chosen)
    rows = objective.with_signal(advantage, mask)
    with_signal = batch.select(rows)
    return MiniBatch(with_signal, rows, batch.counts(), with_signal.counts(), batch.response_ids.shape[1], step)


def stand_in() -> Batch:
    """One row of one prompt and one response token, for a pass that must be made although there are no rows."""
    token, real = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
    number, value = torch.zeros(1, dtype=torch.long), torch.zeros(1)
    return Batch(token, real, token, real, group=number, index=number, rewards=value, rollout_logp=torch.zeros(1, 1))


def every_row(batch: Batch, step: int) -> MiniBatch:
    """A mini-batch all of whose rows are computed."""
    counts = batch.counts()
    return MiniBatch(batch, torch.arange(batch.rows), counts, counts, batch.response_ids.shape[1], step)
