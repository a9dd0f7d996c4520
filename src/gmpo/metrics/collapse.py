"""What a policy lost while it was trained, by more than chance explains: its right answers, or the differences between
answers that it could learn from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WRONG, RIGHT, ALIKE = "rollout/all_wrong_groups", "rollout/all_right_groups", "rollout/zero_variance_groups"
STEP_PROBLEMS = "rollout/problems"
CHANCE = 1e-6
"""Of a false alarm, in any one look at a run whose problems are drawn at random."""


@dataclass(frozen=True, slots=True)
class Collapse:
    """Problems with a right answer, before and after they vanished."""

    solved: int
    """Problems before with at least one right answer."""
    before: int
    after: int
    """Problems since, none of which has one."""
    steps: int
    """Steps since."""
    signs: tuple[str, ...] = ()
    """What else changed, in words."""

    def __str__(self) -> str:
        count = f"{self.steps} step{'s' * (self.steps > 1)}"
        signs = f" ({'; '.join(self.signs)})" if self.signs else ""
        return (
            f"no problem of the last {count} had a right answer (0 of {self.after}), {self.solved} of {self.before} "
            f"before{signs}"
        )


def collapse(steps: Sequence[Mapping[str, float]]) -> Collapse | None:
    """The collapse that the metrics of a run's steps, in their order, end in; None without one.

    If right answers came as often at the end as before, that all `solved` problems fall into the earlier part has a
    probability of at most (before / (before + after)) ^ solved: they would be drawn without replacement from all. The
    alarm is given where this is below `CHANCE`.
    """
    return _vanished(steps, WRONG)


def stalled(steps: Sequence[Mapping[str, float]]) -> str | None:
    """In words, that a run whose advantages compare the answers to a problem ends in steps that taught nothing, though
    earlier ones did; the bound is that of `collapse`. None where it does not, and where all is solved."""
    found = _vanished(steps, ALIKE)
    if found is None:
        return None
    late = steps[-found.steps :]
    wrong, right = (sum(m.get(name, 0.0) for m in late) / len(late) for name in (WRONG, RIGHT))
    if right == 1.0:
        return None
    signs = f" ({'; '.join(found.signs)})" if found.signs else ""
    count = f"{found.steps} step{'s' * (found.steps > 1)}"
    return (
        f"nothing was learned in the last {count}: the answers to each problem had the same reward, {wrong:.0%} of the "
        f"problems wrong ones only and {right:.0%} right ones only{signs}"
    )


def _vanished(steps: Sequence[Mapping[str, float]], without: str) -> Collapse | None:
    """Steps at the end in which the share `without` is 1."""
    end = len(steps)
    while end > 0 and steps[end - 1].get(without, 0.0) == 1.0:
        end -= 1
    early, late = steps[:end], steps[end:]
    if not early or not late:
        return None
    sizes = [m.get(STEP_PROBLEMS, 0.0) for m in steps]
    before, after = sum(sizes[:end]), sum(sizes[end:])
    having = sum(size * (1.0 - m.get(without, 1.0)) for size, m in zip(sizes, early, strict=False))
    if after == 0 or having * math.log(before / (before + after)) > math.log(CHANCE):
        return None
    return Collapse(round(having), round(before), round(after), len(late), tuple(_signs(early[0], late[-1])))


def _signs(first: Mapping[str, float], last: Mapping[str, float]) -> list[str]:
    signs = []
    shown = {
        "actor/entropy": ("entropy", "{:.3g}"),
        "response_length/mean": ("tokens an answer", "{:.0f}"),
        "response_length/clip_ratio": ("cut at the limit", "{:.0%}"),
        "reward/unparsed_share": ("without a readable answer", "{:.0%}"),
    }
    for name, (label, form) in shown.items():
        then, now = first.get(name), last.get(name)
        if then is not None and now is not None and abs(now - then) > 0.5 * max(abs(then), abs(now)):
            signs.append(f"{label} {form.format(then)} -> {form.format(now)}")
    if last.get("actor/grad_norm") == 0.0:
        signs.append("gradient 0")
    return signs
