"""What a run says of itself while it goes on, once: that the policy fell apart, and that gradings fail."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from gmpo.metrics.collapse import STEP, collapse, fallen, stalled
from gmpo.metrics.conclusion import after, pass_rate
from gmpo.records.run_folder import CHECKPOINT

UNJUDGED = ("timeout", "grader_error")
"""Verdicts of answers without a judgement."""
RATE = "actor_rollout_ref.actor.optim.lr"


def _nothing() -> Sequence[Mapping[str, float]]:
    return ()


class Notices:
    """A sink of the run.

    Args:
        say: receives the lines.
        samples: where the answers of steps are, for the reader; validation: those of validations.
        compares: advantages compare the answers to a problem.
        past: what an earlier process recorded of the run, for a judgement of the whole of it.
    """

    def __init__(
        self,
        say: Callable[[str], object],
        samples: str,
        validation: str,
        *,
        compares: bool = True,
        past: Callable[[], Sequence[Mapping[str, float]]] = _nothing,
    ) -> None:
        self.compares = compares
        self.say = say
        self.samples = samples
        self.validation = validation
        self.past = past
        self.start(0)

    def start(self, step: int) -> None:
        """What failed in grading before is forgotten."""
        earlier = self.past() if step > 0 else ()
        self.history: list[Mapping[str, float]] = [m for m in earlier if m.get(STEP, math.inf) <= step]
        self.collapsed = self.fell = False
        self.failed, self.told = 0, 0

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Look at a step, or at a validation."""
        self.history.append({**metrics, STEP: step})
        if "critic/score/mean" in metrics and not self.collapsed:
            self._collapse(step)
        if "val/pass@1" in metrics and not self.fell and not self.collapsed:
            self._fall(step)
        self._gradings(step, metrics)
        self._skipped(step, metrics)

    def _collapse(self, step: int) -> None:
        steps = [m for m in self.history if "critic/score/mean" in m]
        if (found := collapse(self.history)) is not None:
            self.collapsed = True
            last = step - found.steps - 1  # the weights that sampled the last step with a right answer
            where = f"{CHECKPOINT}{last} or an older checkpoint, if one was kept," if last > 0 else "the start"
            self.say(
                f"warning: step {step}: the policy seems to have fallen apart: {found}. It seldom recovers: look at "
                f"{self.samples}, and go on from {where} with a lower {RATE}."
            )
        elif self.compares and (stop := stalled(steps)) is not None:
            self.collapsed = True
            self.say(f"warning: step {step}: {stop}. See {self.samples}.")

    def _fall(self, step: int) -> None:
        """Of validations, by more than chance."""
        if (fall := fallen(self.history)) is not None:
            self.fell = True
            best, last = fall
            self.say(
                f"warning: step {step}: pass@1 fell from {pass_rate(best)}{after(best)} to {pass_rate(last)}. Look at "
                f"{self.validation}; a lower {RATE} keeps the policy nearer to what it was."
            )

    def _skipped(self, step: int, metrics: Mapping[str, float]) -> None:
        """Said at every step that has one: a few in a row end the run."""
        if count := round(metrics.get("actor/skipped_updates", 0.0)):
            updates = f"{count} update{'s' * (count > 1)}"
            self.say(
                f"warning: step {step}: the gradient of {updates} was not finite, and the weights were left as they "
                f"were. The answers of such an update are in {self.samples}{step}.nonfinite.jsonl; a lower {RATE} "
                "helps where the policy's log-probs are not finite, and so does model_dtype=fp32."
            )

    def _gradings(self, step: int, metrics: Mapping[str, float]) -> None:
        """Said at the first failure, and whenever they are ten times as many."""
        parts = []
        for kind in UNJUDGED:
            in_step, held_out = round(metrics.get(f"reward/{kind}", 0.0)), round(metrics.get(f"val/{kind}", 0.0))
            self.failed += in_step + held_out
            parts += [f"{in_step} {kind}"] if in_step else []
            parts += [f"{held_out} {kind} in the validation"] if held_out else []
        if not parts or self.failed < max(1, 10 * self.told):
            return
        self.told = self.failed
        where = self.samples if any(metrics.get(f"reward/{kind}") for kind in UNJUDGED) else self.validation
        self.say(
            f"warning: step {step}: {self.failed} answers so far could not be graded (now {', '.join(parts)}); their "
            f"reward is 0. The reasons are in {where}; a run stops above reward_model.max_failed_share."
        )

    def close(self) -> None:
        """Nothing is held."""
