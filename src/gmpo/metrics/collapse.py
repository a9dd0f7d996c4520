"""What a policy lost while it was trained, by more than chance explains: its right answers, or the differences between
answers that it could learn from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

WRONG, RIGHT, ALIKE = "rollout/all_wrong_groups", "rollout/all_right_groups", "rollout/zero_variance_groups"
STEP_PROBLEMS, STEP = "rollout/problems", "training/global_step"
PASS, VAL_PROBLEMS = "val/pass@1", "val/problems"
SPOILT = {"response_length/clip_ratio": "cut at the limit", "reward/unparsed_share": "without a readable answer"}
"""Shares of answers that are seldom 1, and are where a policy writes noise or repeats itself."""
CHANCE = 1e-6
"""Of a false alarm by one sign, in any one look at a run whose problems are drawn at random."""
DEVIATIONS = 4.75
"""Of a normal variable, which passes them with probability `CHANCE`."""

Steps = Sequence[Mapping[str, float]]


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


def collapse(history: Steps) -> Collapse | None:
    """The collapse that a run ends in, from the metrics of its steps and validations in their order; None without one.

    It ends in one where its last steps have no right answer, and one of these signs says that this is no chance:

    - Problems with a right answer vanished. Were they as frequent at the end as before, all `solved` ones would fall
      into the earlier part with a probability of at most (before / (before + after)) ^ solved, since problems are drawn
      without replacement. Problems of steps and of validations are counted apart, and the probabilities multiplied.
    - All answers are cut, or none can be read (`SPOILT`), which was not so before: the same bound of the share of
      answers that were neither, where a problem counts once, however many answers it has.
    """
    steps = [metrics for metrics in history if "critic/score/mean" in metrics]
    end = _start_of_end(steps, WRONG)
    if not 0 < end < len(steps):
        return None
    chances = [_log_chance(steps, WRONG, _solved, STEP_PROBLEMS, end) + _unsolved_validations(history)]
    for share in SPOILT:
        begun = max(end, _start_of_end(steps, share))
        chances.append(_log_chance(steps, share, _share_of(share), STEP_PROBLEMS, begun))
    early, late = steps[:end], steps[end:]
    solved, before, after = sum(map(_solved, early)), _problems(early), _problems(late)
    if solved == 0 or min(chances) > math.log(CHANCE):
        return None
    return Collapse(round(solved), round(before), round(after), len(late), tuple(_signs(early[0], late[-1])))


def fallen(history: Steps) -> tuple[Mapping[str, float], Mapping[str, float]] | None:
    """The best validation and the last one, where the last is worse by more than `DEVIATIONS` standard errors of the
    difference, which are those of the two intervals. None without such a fall."""
    found = [m for m in history if {PASS, f"{PASS}_low", f"{PASS}_high"} <= m.keys()]
    if len(found) < 2:
        return None
    best, last = max(found[:-1], key=lambda m: m[PASS]), found[-1]
    error = math.hypot(*((m[f"{PASS}_high"] - m[f"{PASS}_low"]) / (2 * 1.96) for m in (best, last)))
    return (best, last) if best[PASS] - last[PASS] > DEVIATIONS * error else None


def stalled(steps: Steps) -> str | None:
    """In words, that a run whose advantages compare the answers to a problem ends in steps that taught nothing, though
    earlier ones did; the bound is that of problems in `collapse`. None where it does not, and where all is solved."""
    end = _start_of_end(steps, ALIKE)
    if not 0 < end < len(steps):
        return None
    late = steps[end:]
    wrong, right = (sum(m.get(name, 0.0) for m in late) / len(late) for name in (WRONG, RIGHT))
    if right == 1.0 or _log_chance(steps, ALIKE, _share_of(ALIKE), STEP_PROBLEMS, end) > math.log(CHANCE):
        return None
    signs = "; ".join(_signs(steps[0], late[-1]))
    count = f"{len(late)} step{'s' * (len(late) > 1)}"
    return (
        f"nothing was learned in the last {count}: the answers to each problem had the same reward, {wrong:.0%} of the "
        f"problems wrong ones only and {right:.0%} right ones only{f' ({signs})' if signs else ''}"
    )


def _start_of_end(steps: Steps, share: str) -> int:
    """Where the steps at the end begin in which a share is 1."""
    end = len(steps)
    while end > 0 and steps[end - 1].get(share, 0.0) == 1.0:
        end -= 1
    return end


def _log_chance(parts: Steps, share: str, having: Callable[[Mapping[str, float]], float], size: str, end: int) -> float:
    """Log of the bound on the probability that all problems `having` something lie before `end`; 0 where that says
    nothing."""
    before, after = (sum(m.get(size, 0.0) for m in some) for some in (parts[:end], parts[end:]))
    if before == 0 or after == 0 or any(m.get(share, 0.0) != 1.0 for m in parts[end:]):
        return 0.0
    return sum(map(having, parts[:end])) * math.log(before / (before + after))


def _unsolved_validations(history: Steps) -> float:
    """The log of the bound for validations; those at the end have no right answer."""
    found = [{**m, WRONG: float(m[PASS] == 0.0)} for m in history if PASS in m]
    end = _start_of_end(found, WRONG)
    return _log_chance(found, WRONG, lambda m: m[PASS] * m.get(VAL_PROBLEMS, 0.0), VAL_PROBLEMS, end)


def _share_of(share: str) -> Callable[[Mapping[str, float]], float]:
    """Problems, of which those are left out that have a share."""
    return lambda m: m.get(STEP_PROBLEMS, 0.0) * (1.0 - m.get(share, 1.0))


_solved = _share_of(WRONG)


def _problems(steps: Steps) -> float:
    return sum(m.get(STEP_PROBLEMS, 0.0) for m in steps)


def _signs(first: Mapping[str, float], last: Mapping[str, float]) -> list[str]:
    signs = []
    shown = {
        "actor/entropy": ("entropy", "{:.3g}"),
        "response_length/mean": ("tokens an answer", "{:.0f}"),
        **{share: (label, "{:.0%}") for share, label in SPOILT.items()},
    }
    for name, (label, form) in shown.items():
        then, now = first.get(name), last.get(name)
        if then is not None and now is not None and abs(now - then) > 0.5 * max(abs(then), abs(now)):
            signs.append(f"{label} {form.format(then)} -> {form.format(now)}")
    if last.get("actor/grad_norm") == 0.0:
        signs.append("gradient 0")
    return signs
