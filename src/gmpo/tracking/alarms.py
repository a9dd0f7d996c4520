"""Alarms of a run that goes on: said once each, counted in every step, kept in its record; or its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from gmpo.metrics.alarms import ALARMS, alarms
from gmpo.metrics.collapse import STEP


class Alarms:
    """Looks at the metrics of every step before they are recorded.

    Args:
        say: receives a line for the user, at the first step of an alarm.
        keep: step, name and text of an alarm, for the run's record.
        stop: is told why, where the run shall end; None lets it go on.
        compares: advantages compare the answers to a problem.
        past: what an earlier process recorded of the run.
    """

    def __init__(
        self,
        say: Callable[[str], object],
        keep: Callable[[int, str, str], object],
        stop: Callable[[str], object] | None,
        *,
        compares: bool,
        past: Callable[[], Sequence[Mapping[str, float]]],
    ) -> None:
        self.say = say
        self.keep = keep
        self.stop = stop
        self.compares = compares
        self.past = past
        self._history: list[Mapping[str, float]] = []
        self._said: set[str] = set()

    def start(self, step: int) -> None:
        """The run goes on after `step` steps."""
        earlier = self.past() if step > 0 else ()
        self._history = [m for m in earlier if m.get(STEP, math.inf) <= step]
        self._said.clear()

    def look(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """`alarm/<name>` of each alarm, 1 where there is one; nothing for a validation."""
        self._history.append({**metrics, STEP: step})
        if "critic/score/mean" not in metrics:
            return {}
        found = alarms(self._history, compares=self.compares)
        for name in found.keys() - self._said:
            self._said.add(name)
            self.keep(step, name, found[name])
            if name != "collapse":  # which the notices tell, with the checkpoint to go on from
                self.say(f"warning: step {step}: alarm ({name}): {found[name]}.")
        if found and self.stop is not None:
            name = min(found, key=ALARMS.index)
            self.stop(f"step {step}: alarm ({name}): {found[name]}")
        return {f"alarm/{name}": float(name in found) for name in ALARMS}
