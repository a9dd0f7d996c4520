"""The producer of a run: problems of the stream -> graded groups, a round at a time.

It alone knows how far the stream has been asked.
"""

from __future__ import annotations

from collections.abc import Callable

from gmpo.data.problems import ProblemStream
from gmpo.data.prompts import EncodedProblem
from gmpo.errors import CheckpointError
from gmpo.ports import SamplingParams, Step
from gmpo.records.rollout import Group
from gmpo.streams import TRAINING
from gmpo.training.collect import Collector
from gmpo.training.state import PRODUCER, PartState


class Producer:
    """Samples and grades the problems of a stream, a batch of them in each round.

    Args:
        wanted: whether a problem is asked at all, when its turn comes.
        greedy_baseline: also draw the greedy answer to each problem.
    """

    def __init__(
        self,
        collector: Collector,
        stream: ProblemStream[EncodedProblem],
        params: SamplingParams,
        wanted: Callable[[EncodedProblem], bool],
        *,
        greedy_baseline: bool = False,
    ) -> None:
        self.collector = collector
        self.stream = stream
        self.params = params
        self.wanted = wanted
        self.greedy_baseline = greedy_baseline
        self.position = 0
        """In the stream, behind the last problem handed over."""

    @property
    def epoch(self) -> int:
        """Number of the epoch that the last problem handed over belongs to, from 0."""
        return self.stream.epoch_of(max(0, self.position - 1))

    def next_round(self, rec: Step) -> list[Group]:
        """The groups of the next batch of the stream; times the phases `gen` and `reward` on `rec`.

        Raises:
            DataError: a whole pass over the data holds too few wanted problems.
        """
        drawn = self.stream.draw(self.position, self.wanted)
        phase = self.collector.begin(self.params, namespace=TRAINING, greedy_baseline=self.greedy_baseline)
        with phase:
            with rec.time("gen"):
                phase.sample(drawn.items, drawn.positions)
            with rec.time("reward"):
                groups = phase.groups()
        self.position = drawn.end
        return groups

    def state(self) -> PartState:
        """The position in the stream of problems."""
        return PartState({"position": self.position})

    def restore(self, state: PartState) -> None:
        """Raises CheckpointError for another entry."""
        state.check_format(PRODUCER, known=1)
        try:
            self.position = int(state.values["position"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint's position in the data cannot be read: {error!r}") from error
