"""What the driver's handles expect of the processes behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from gmpo.backends.ranks.rank import Whereabouts


class Ranks(Protocol):
    """Processes that each hold a `Rank`. A call returns when all have answered; where one fails the group is of no use
    any more."""

    where: Sequence[Whereabouts]

    @property
    def size(self) -> int: ...

    def call(self, method: str, arguments: Callable[[int], tuple[Any, ...]], *, phase: str) -> list[Any]:
        """`method` on every rank; results by rank.

        Args:
            arguments: of a rank's call.
            phase: what it is for, in the message about a failure.

        Raises:
            GmpoError: what a rank raised of its kinds.
            BackendError: a rank died or does not answer; it is named, with the phase.
        """
        ...

    def call_first(self, method: str, *arguments: Any, phase: str) -> Any:
        """`method` on the first rank alone, beside what it is doing; nothing that all must take part in."""
        ...

    def stream(
        self, method: str, arguments: Callable[[int], tuple[Any, ...]], *, phase: str
    ) -> Iterator[tuple[int, Any]]:
        """What the ranks' generators yield, each with its rank, as it comes; errors as in `call`."""
        ...

    def close(self) -> None:
        """End the processes. May be called twice."""
        ...
