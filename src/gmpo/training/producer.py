"""The producer of a run: problems of the stream -> graded groups, a round at a time.

It alone knows how far the stream has been asked. It may begin coming rounds before they are wanted, within a bound:
they are then sampled by older weights, which their completions say, and with the same random numbers as on demand.
Every round that was begun is handed over, in the order of the stream, so no problem is dropped for being slow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gmpo.data.problems import Draw, ProblemStream
from gmpo.data.prompts import EncodedProblem
from gmpo.errors import CheckpointError
from gmpo.ports import SamplingParams, Step
from gmpo.records.rollout import Group
from gmpo.streams import TRAINING
from gmpo.training.collect import Collector, RolloutPhase
from gmpo.training.state import PRODUCER, PartState


@dataclass(frozen=True, slots=True)
class _Round:
    """A batch of problems whose answers are sampled, and perhaps not yet graded."""

    drawn: Draw[EncodedProblem]
    phase: RolloutPhase


class Producer:
    """Samples and grades the problems of a stream, a batch of them in each round.

    Args:
        wanted: whether a problem is asked at all, when its turn comes.
        greedy_baseline: also draw the greedy answer to each problem.
        ahead: rounds that `run_ahead` may have under way; 0 begins nothing before it is asked for.
    """

    def __init__(
        self,
        collector: Collector,
        stream: ProblemStream[EncodedProblem],
        params: SamplingParams,
        wanted: Callable[[EncodedProblem], bool],
        *,
        greedy_baseline: bool = False,
        ahead: int = 0,
    ) -> None:
        self.collector = collector
        self.stream = stream
        self.params = params
        self.wanted = wanted
        self.greedy_baseline = greedy_baseline
        self.ahead = ahead
        self.position = 0
        """In the stream, behind the last problem handed over."""
        self._under_way: deque[_Round] = deque()
        self._again: deque[Draw[EncodedProblem]] = deque()
        """What was under way at the checkpoint that the run goes on from."""

    @property
    def epoch(self) -> int:
        """Number of the epoch that the last problem handed over belongs to, from 0."""
        return self.stream.epoch_of(max(0, self.position - 1))

    def next_round(self, rec: Step) -> list[Group]:
        """The groups of the next batch of the stream; times the phases `gen` and `reward` on `rec`.

        Raises:
            DataError: a whole pass over the data holds too few wanted problems.
        """
        if not self._under_way:
            self._begin(rec)
        begun = self._under_way.popleft()
        with begun.phase, rec.time("reward"):
            groups = begun.phase.groups()
        self.position = begun.drawn.end
        return groups

    def run_ahead(self, rec: Step) -> None:
        """Begin coming rounds with the weights that the sampler has now, as far as the bound allows."""
        while len(self._under_way) < self.ahead:
            self._begin(rec)

    def _begin(self, rec: Step) -> None:
        if self._again:
            drawn = self._again.popleft()
        else:
            start = self._under_way[-1].drawn.end if self._under_way else self.position
            drawn = self.stream.draw(start, self.wanted)
        phase = self.collector.begin(self.params, namespace=TRAINING, greedy_baseline=self.greedy_baseline)
        try:
            with rec.time("gen"):
                phase.sample(drawn.items, drawn.positions)
        except BaseException:
            phase.close()
            raise
        self._under_way.append(_Round(drawn, phase))

    def state(self) -> PartState:
        """The position in the stream, and the problems under way: a resumed run asks them again, in the same order
        and with the same random numbers."""
        under_way = [*(begun.drawn for begun in self._under_way), *self._again]
        rounds = [{"positions": drawn.positions, "end": drawn.end} for drawn in under_way]
        return PartState({"position": self.position, "under_way": rounds})

    def restore(self, state: PartState) -> None:
        """Raises CheckpointError for another entry."""
        state.check_format(PRODUCER, known=1)
        try:
            self.position = int(state.values["position"])
            rounds = [(list(map(int, r["positions"])), int(r["end"])) for r in state.values["under_way"]]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint's position in the data cannot be read: {error!r}") from error
        self._again = deque(Draw([self.stream.at(p) for p in positions], positions, end) for positions, end in rounds)
