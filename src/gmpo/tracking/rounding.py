"""Updates that rounding swallows: weights stored in bfloat16, with a learning rate below what they can resolve."""

from __future__ import annotations

from collections.abc import Callable, Mapping

MOVED, RATE, UPDATES = "actor/weights_moved", "actor/lr", "actor/updates"
FIRST_UPDATES = 8
"""Updates at the peak of the learning rate after which the share is judged, or fewer where the run ends before."""
FEWEST_MOVED = 0.5


class SwallowedUpdates:
    """Says once that most weights did not move, where the learner reports their share. A sink of the run.

    Steps in which the learning rate still rises are left out: in a warm-up little moves, and shall.

    Args:
        say: receives the line.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self.say = say
        self.said = False
        self.rate, self.updates, self.moved = 0.0, 0.0, 0.0

    def start(self, step: int) -> None:
        """The counting begins anew."""
        self.rate, self.updates, self.moved = 0.0, 0.0, 0.0

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if MOVED not in metrics or self.said:
            return
        if metrics[RATE] > self.rate:
            self.rate, self.updates, self.moved = metrics[RATE], 0.0, 0.0
        self.updates += metrics[UPDATES]
        self.moved += metrics[UPDATES] * metrics[MOVED]
        if self.updates >= FIRST_UPDATES:
            self._judge()

    def close(self) -> None:
        if self.updates and not self.said:
            self._judge()

    def _judge(self) -> None:
        self.said = True
        share = self.moved / self.updates
        if share < FEWEST_MOVED:
            self.say(
                f"warning: in the first {self.updates:.0f} updates at a learning rate of {self.rate:g}, {share:.1%} of "
                "the weights moved. They are stored in bfloat16, which resolves 1 part in 256, so smaller steps are "
                "lost to rounding. Set actor_rollout_ref.actor.fsdp_config.model_dtype=fp32 (the passes stay in bf16 "
                f"with fsdp_config.dtype), or raise actor_rollout_ref.actor.optim.lr. See {MOVED}."
            )
