"""Validation: answers to held-out problems, graded, as verl's `val-core/` and `val-aux/` metrics and pass@k."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gmpo.data.prompts import EncodedProblem
from gmpo.errors import CheckpointError
from gmpo.metrics.validation import validation_metrics
from gmpo.ports import SamplingParams
from gmpo.records.rollout import Group
from gmpo.streams import VALIDATION
from gmpo.training.collect import Collector
from gmpo.training.state import EVALUATION, PartState

MEASURE = "val/pass@1"
"""What makes one validation better than another."""


class Evaluation:
    """Validation of the policy that the collector's sampler holds.

    Args:
        batch_size: problems sampled at a time; None takes all at once.
        keep: receives the step and the graded groups, for the run's records.
        keep_best: have the checkpoint of the best validation kept.
    """

    def __init__(
        self,
        collector: Collector,
        problems: Sequence[EncodedProblem],
        params: SamplingParams,
        *,
        batch_size: int | None,
        keep: Callable[[int, Sequence[Group]], None],
        keep_best: bool = False,
    ) -> None:
        self.collector = collector
        self.problems = problems
        self.params = params
        self.batch_size = batch_size or max(1, len(problems))
        self.keep = keep
        self.keep_best = keep_best
        self.best: tuple[float, int] | None = None
        """Pass@1 of the best validation after a training step, the first of equals, and its step."""

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
        metrics = validation_metrics(groups)
        if step > 0 and (self.best is None or metrics[MEASURE] > self.best[0]):
            self.best = metrics[MEASURE], step
        return metrics

    @property
    def spare(self) -> int | None:
        """The step whose checkpoint is to be kept however old it is; None for none."""
        return self.best[1] if self.keep_best and self.best is not None else None

    def state(self) -> PartState:
        """The best validation so far."""
        return PartState({"best": self.best})

    def restore(self, state: PartState) -> None:
        """Raises CheckpointError for another entry."""
        state.check_format(EVALUATION, known=1)
        try:
            best = state.values["best"]
            self.best = None if best is None else (float(best[0]), int(best[1]))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(f"the checkpoint's best validation cannot be read: {error!r}") from error
