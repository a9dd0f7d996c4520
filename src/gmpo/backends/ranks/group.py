"""What the driver's handles expect of the processes behind them."""

from __future__ import annotations

import os
import secrets
import sys
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

    def call_aside(self, method: str, *arguments: Any, phase: str) -> None:
        """`method` on every rank, beside what it is doing; nothing in which ranks wait for each other."""
        ...

    def stream(
        self, method: str, arguments: Callable[[int], tuple[Any, ...]], *, phase: str
    ) -> Iterator[tuple[int, Any]]:
        """What the ranks' generators yield, each with its rank, as it comes; errors as in `call`."""
        ...

    def close(self) -> None:
        """End the processes. May be called twice."""
        ...


def prepare_ray() -> None:
    """Ray's own settings, which it reads when it is imported: nothing is reported to anyone, and a cluster that is
    started here takes work from those who have its token alone. (Ray would write a token of its own to a file that all
    users of the machine can read.)"""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if "ray" not in sys.modules and "RAY_ADDRESS" not in os.environ and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
