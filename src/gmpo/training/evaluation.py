"""Validation: answers to held-out problems, graded, as verl's `val-core/` and `val-aux/` metrics and pass@k."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gmpo.data.prompts import EncodedProblem
from gmpo.metrics.validation import validation_metrics
from gmpo.ports import SamplingParams
from gmpo.records.rollout import Group
from gmpo.streams import VALIDATION
from gmpo.training.collect import Collector


class Evaluation:
    """Validation of the policy that the collector's sampler holds.

    Args:
        batch_size: problems sampled at a time; None takes all at once.
        keep: receives the step and the graded groups, for the run's records.
    """

    def __init__(
        self,
        collector: Collector,
        problems: Sequence[EncodedProblem],
        params: SamplingParams,
        *,
        batch_size: int | None,
        keep: Callable[[int, Sequence[Group]], None],
    ) -> None:
        self.collector = collector
        self.problems = problems
        self.params = params
        self.batch_size = batch_size or max(1, len(problems))
        self.keep = keep

    def __call__(self, step: int) -> dict[str, float]:
        """Metrics of the policy after `step` training steps; nothing without validation problems."""
        if not self.problems:
            return {}
        with self.collector.begin(self.params, namespace=VALIDATION) as phase:
            for start in range(0, len(self.problems), self.batch_size):
                chunk = self.problems[start : start + self.batch_size]
                phase.sample(chunk, range(start, start + len(chunk)))
            groups = phase.groups()
        self.keep(step, groups)
        return validation_metrics(groups)
