"""The driver's sampler: the embedded one in every rank, on gathered weights, each with its share of the problems."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from gmpo.backends.ranks.dealing import deal
from gmpo.backends.ranks.group import Ranks
from gmpo.errors import BackendError
from gmpo.ports import SampleRequest, SamplingParams, WeightSource
from gmpo.records.rollout import Completion


@dataclass(frozen=True, slots=True)
class RankWeights:
    """The policy's weights where they are: in the ranks. They do not pass through the driver."""

    version: int

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Raises BackendError: nothing in this process has them."""
        raise BackendError("the weights are in the ranks and do not pass through the driver.")


class RankedSampler:
    """A `Sampler` in the learner's ranks. An answer draws from its own stream, so many ranks draw what one draws.

    Args:
        drew: is called with the tokens of the answers to a problem, when they are there.
    """

    def __init__(self, ranks: Ranks, drew: Callable[[int], object] = lambda tokens: None) -> None:
        self.ranks = ranks
        self.drew = drew
        self.version = 0

    @property
    def shares_learner_weights(self) -> bool:
        """It computes with a copy of the learner's weights, by the same code, at the same precision."""
        return True

    def load(self, source: WeightSource) -> None:
        """See `gmpo.ports.Sampler`."""
        if not isinstance(source, RankWeights):
            raise BackendError(f"the ranks' sampler takes the ranks' own weights, not {type(source).__name__}.")
        self.version = source.version
        self.ranks.call(
            "load_sampler", lambda _: (source.version,), phase=f"handing over the weights of step {source.version}"
        )

    def close(self) -> None:
        """The ranks end with the learner."""

    def generate(
        self,
        requests: Sequence[SampleRequest],
        params: SamplingParams,
        finished: Callable[[int, Sequence[Completion]], None] | None = None,
    ) -> list[list[Completion]]:
        """See `gmpo.ports.Sampler`."""
        # An answer's length is not known before, so that each counts with its limit.
        costs = [len(request.prompt_ids) + params.n * request.limit(params) for request in requests]
        dealt = deal(costs, self.ranks.size)
        found: list[list[Completion]] = [[] for _ in requests]
        phase = f"sampling with the weights of step {self.version}"
        parts = [[requests[i] for i in own] for own in dealt]
        for number, (place, completions) in self.ranks.stream(
            "generate", lambda number: (parts[number], params), phase=phase
        ):
            request = dealt[number][place]
            found[request] = list(completions)
            self.drew(sum(len(one) for one in completions))
            if finished is not None:
                finished(request, found[request])
        return found
