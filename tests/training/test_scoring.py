"""What the probe looks at, and what it takes for agreement. Whole runs are in `tests/programs/test_scoring.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from gmpo.records.batch import Batch
from gmpo.training.scoring import Scoring

PROBLEMS, ANSWERS = 40, 2


@dataclass
class Noted:
    """A learner whose log-probs are the sampler's plus `shift`, and which notes what it was asked."""

    shift: Mapping[int, float]
    """Row -> difference on its first token."""
    asked: list[tuple[list[int], bool]] = field(default_factory=list)

    def score(self, batch: Batch, *, old: bool) -> Batch:
        self.asked.append((batch.index.tolist(), old))
        logp: Tensor = batch.rollout_logp.clone()
        for place, row in enumerate(batch.index.tolist()):
            logp[place, 0] += self.shift.get(row, 0.0)
        return batch.replace(learner_logp=logp) if old else batch


def batch() -> Batch:
    rows = PROBLEMS * ANSWERS
    mask = torch.ones(rows, 3, dtype=torch.bool)
    return Batch(
        prompt_ids=torch.ones(rows, 1, dtype=torch.long),
        prompt_mask=torch.ones(rows, 1, dtype=torch.bool),
        response_ids=torch.ones(rows, 3, dtype=torch.long),
        response_mask=mask,
        sampled_mask=mask,
        group=torch.arange(PROBLEMS).repeat_interleave(ANSWERS),
        index=torch.arange(rows),
        rewards=torch.zeros(rows),
        rollout_logp=-torch.ones(rows, 3),
    )


def scored(shift: Mapping[int, float], step: int, tolerance: float = 1e-4) -> tuple[Noted, Any]:
    learner = Noted(shift)
    return learner, Scoring(learner, old=True, tolerance=tolerance)(batch(), step=step)  # type: ignore[arg-type]


def test_the_probe_is_of_one_problem_in_sixteen_and_changes_with_the_step() -> None:
    probes = []
    for step in range(20):
        learner, _ = scored({}, step)
        rows, old = learner.asked[0]
        assert old
        assert len(rows) == 3 * ANSWERS, "three of forty, rounded up"
        assert {row // ANSWERS for row in rows} == {row // ANSWERS for row in rows[::ANSWERS]}, "whole problems"
        probes.append(tuple(rows))
        assert learner.asked[1:] == [(list(range(PROBLEMS * ANSWERS)), False)], "the rest is not computed again"
    assert len(set(probes)) > 15


@pytest.mark.parametrize(
    ("difference", "agrees"),
    [(0.9e-4, True), (-0.9e-4, True), (1.1e-4, False), (-1.1e-4, False), (float("nan"), False)],
)
def test_one_token_of_the_probe_beyond_the_tolerance_is_enough(difference: float, agrees: bool) -> None:
    row = scored({}, 5)[0].asked[0][0][-1]
    learner, result = scored({row: difference}, 5)
    assert result.metrics["rollout/old_log_probs_reused"] == float(agrees)
    assert learner.asked[1][1] is not agrees
    if agrees:
        assert torch.equal(result.batch.old_logp, batch().rollout_logp)
    elif difference == difference:
        assert float(result.batch.old_logp[row, 0]) == pytest.approx(-1.0 + difference)
