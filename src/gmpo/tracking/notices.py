"""What a run says of itself while it goes on, once: that the policy fell apart, and that gradings fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gmpo.metrics.collapse import collapse, stalled
from gmpo.records.run_folder import CHECKPOINT

UNJUDGED = ("timeout", "grader_error")
"""Verdicts of answers without a judgement."""


class Notices:
    """A sink of the run.

    Args:
        say: receives the lines.
        samples: where the answers are, for the reader.
        compares: advantages compare the answers to a problem.
    """

    def __init__(self, say: Callable[[str], object], samples: str, *, compares: bool = True) -> None:
        self.compares = compares
        self.say = say
        self.samples = samples
        self.start(0)

    def start(self, step: int) -> None:
        """What came before is forgotten."""
        self.steps: list[Mapping[str, float]] = []
        self.collapsed = False
        self.failed, self.told = 0, 0

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Look at a step."""
        if "critic/score/mean" not in metrics:
            return
        self.steps.append(metrics)
        if not self.collapsed and (found := collapse(self.steps)) is not None:
            self.collapsed = True
            last = step - found.steps
            where = f"{CHECKPOINT}{last} or an older checkpoint" if last > 0 else "the start"
            self.say(
                f"warning: step {step}: the policy seems to have fallen apart: {found}. It seldom recovers: look at "
                f"{self.samples}, and go on from {where} with a lower actor_rollout_ref.actor.optim.lr."
            )
        elif not self.collapsed and self.compares and (stop := stalled(self.steps)) is not None:
            self.collapsed = True
            self.say(f"warning: step {step}: {stop}. See {self.samples}.")
        self._gradings(step, metrics)

    def _gradings(self, step: int, metrics: Mapping[str, float]) -> None:
        """Said at the first failure, and whenever they are ten times as many."""
        now = {kind: round(metrics.get(f"reward/{kind}", 0.0)) for kind in UNJUDGED}
        self.failed += sum(now.values())
        if self.failed < max(1, 10 * self.told):
            return
        self.told = self.failed
        kinds = ", ".join(f"{count} {kind}" for kind, count in now.items() if count)
        self.say(
            f"warning: step {step}: {self.failed} answers so far could not be graded (in this step {kinds}); their "
            f"reward is 0. The reasons are in {self.samples}; a run stops above reward_model.max_failed_share."
        )

    def close(self) -> None:
        """Nothing is held."""
