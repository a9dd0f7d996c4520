"""Log-probs, values and reference of a batch at the start of a step: what is computed, and what is known already.

A sampler in the learner's process runs the learner's own weights, so its log-probs are the old ones, and computing them
again is a wasted pass. That they agree is not believed but probed, in every step, on a sixteenth of the problems.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gmpo.metrics.mismatch import mismatch
from gmpo.ports import Learner
from gmpo.records.batch import Batch
from gmpo.streams import permutation

PROBED_SHARE = 16
"""One problem in so many is scored to compare learner and sampler."""


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """A batch as credit assignment wants it, and how far learner and sampler were apart."""

    batch: Batch
    metrics: Mapping[str, float]


class Scoring:
    """Scores the batches of a run.

    Args:
        old: the old log-probs are needed at all.
        tolerance: largest difference in nats, on any token of the probe, at which the sampler's log-probs are taken for
            the old ones; 0 always computes them.
    """

    def __init__(self, learner: Learner, *, old: bool, tolerance: float) -> None:
        self.learner = learner
        self.old = old
        self.tolerance = tolerance

    def __call__(self, batch: Batch, *, step: int) -> ScoredBatch:
        """Score the batch of the step after `step` steps."""
        if not self.old or self.tolerance == 0.0:
            return ScoredBatch(self.learner.score(batch, old=self.old), {})
        probe = self.learner.score(batch.select(_probed(batch, step)), old=True)
        assert probe.learner_logp is not None
        apart = (probe.learner_logp - probe.rollout_logp)[probe.sampled_mask].abs()
        agree = bool((apart <= self.tolerance).all())
        metrics = {"rollout/old_log_probs_reused": float(agree)}
        if not agree:  # also when a difference is NaN
            return ScoredBatch(self.learner.score(batch, old=True), metrics)
        metrics |= mismatch(probe.learner_logp, probe.rollout_logp, probe.sampled_mask)
        return ScoredBatch(self.learner.score(batch, old=False).replace(old_is_rollout=True), metrics)


def _probed(batch: Batch, step: int) -> Tensor:
    """Rows of every sixteenth problem, at least of one; other ones in each step."""
    problems = torch.unique(batch.group)
    chosen = permutation(len(problems), step)[: -(-len(problems) // PROBED_SHARE)]
    return torch.isin(batch.group, problems[torch.tensor(chosen)]).nonzero().squeeze(1)
