"""What a run came to, as findings: a name, how bad it is, the figures behind it, the panel that shows it, what to try.

The decisions that `gmpo train` prints at its end are the same functions (`metrics.collapse`, `metrics.conclusion`). The
others are thresholds, each beside its reason. Sentences in both languages stand in `wording`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from gmpo.metrics.beta import t_quantile
from gmpo.metrics.collapse import ALIKE, RIGHT, STEP, WRONG, collapse, fallen, stalled

Level = Literal["good", "note", "bad"]
Metrics = Mapping[str, float]

CUT, UNPARSED, SCORE, SOLVED = (
    "response_length/clip_ratio",
    "reward/unparsed_share",
    "critic/score/mean",
    "reward/correct_share",
)
MOST_CUT = 0.25
"""Share of answers at the limit from which the limit, and not the policy, decides much of the reward."""
FAR = 5.0
"""A log-ratio of a token beyond which the old policy says nothing of the new one: 150 times as likely, or less."""
FEW = 0.5
"""Effective sample size below which half of the tokens carry nothing."""
HELD = 0.05
"""Share of tokens that a bound may cut before the bound decides the update."""
FEW_TELL = 0.15
"""Share of problems with different rewards below which most of a step is computed for nothing."""
ENDS = 10
"""Steps at the beginning and at the end that are compared, at most a fifth of all."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know about a run."""

    kind: str
    level: Level
    panel: str
    """Name of the panel that shows it."""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """What the sentences of `wording` are filled with."""


def findings(
    history: Sequence[Metrics], *, status: str, reason: str = "", compares: bool = True, rate: float | None = None
) -> list[Finding]:
    """The findings of a run, the headline first, then from bad to good.

    Args:
        history: metrics of steps and validations in order, with `training/global_step`.
        status: see `RunData.status`.
        compares: advantages compare the answers to a problem, so that equal rewards teach nothing.
        rate: the learning rate that was set.
    """
    steps = [m for m in history if SCORE in m]
    found = [
        replace(one, numbers={**one.numbers, "rate": rate}) for one in _all(history, steps, status, reason, compares)
    ]
    order = {"bad": 0, "note": 1, "good": 2}
    found.sort(key=lambda one: order[one.level])
    if not found:
        found.append(Finding("unclear", "note", "reward"))
    return found


def _all(
    history: Sequence[Metrics], steps: Sequence[Metrics], status: str, reason: str, compares: bool
) -> Iterator[Finding]:
    if not steps:
        if any("train/loss" in m for m in history):
            losses = [m["train/loss"] for m in history if "train/loss" in m]
            yield Finding("supervised", "note", "loss", {"before": losses[0], "after": losses[-1]})
        else:
            yield Finding("empty", "note" if status == "running" else "bad", "reward", {"reason": reason})
        if status == "failed" and history:
            yield Finding("crashed", "bad", "legs", {"reason": reason, "step": 0})
        return
    last = int(history[-1][STEP])
    broken = list(_broken(history, steps, compares))
    yield from broken
    if status == "failed":
        yield Finding("crashed", "bad", "legs", {"reason": reason, "step": last})
    yield from _warnings(steps, {one.kind for one in broken}, compares)
    if not {"collapsed", "nothing", "no_rate", "hacking"} & {one.kind for one in broken}:
        yield from _progress(history, steps)


def _broken(history: Sequence[Metrics], steps: Sequence[Metrics], compares: bool) -> Iterator[Finding]:
    rates = [m["actor/lr"] for m in steps if "actor/lr" in m]
    cut, unparsed = _mean(steps, CUT), _mean(steps, UNPARSED)
    if rates and max(rates) == 0.0:
        yield Finding("no_rate", "bad", "gradient")
    elif (found := collapse(history)) is not None:
        before, after, error = _ends(steps)
        if after - before > 4 * error:  # a policy that falls apart loses its reward; this one gained
            shares = (_ends(steps, SOLVED)[0], 0.0)
            numbers: dict[str, Any] = {"reward_before": before, "reward_after": after, "solved": shares}
            yield Finding("hacking", "bad", "reward", numbers)
            return
        begun = int(steps[-found.steps][STEP])
        numbers = {"solved": found.solved, "before": found.before, "after": found.after, "steps": found.steps}
        yield Finding("collapsed", "bad", "reward", {**numbers, "step": begun, "signs": "; ".join(found.signs)})
        return
    elif compares and (said := stalled(steps)) is not None:
        alike = next(i for i in range(len(steps), 0, -1) if steps[i - 1].get(ALIKE) != 1.0)
        yield Finding("stalled", "bad", "groups", {"step": int(steps[alike][STEP]), "said": said})
    elif compares and all(m.get(ALIKE) == 1.0 for m in steps):
        yield Finding("nothing", "bad", "groups", {"wrong": _mean(steps, WRONG), "right": _mean(steps, RIGHT)})
    late = _late(steps)
    if (share := _mean(late, CUT)) > MOST_CUT:
        yield Finding(
            "cut", "bad", "length", {"share": share, "mean": cut, "length": _mean(late, "response_length/mean")}
        )
    if (share := _mean(late, UNPARSED)) > 0.5:
        yield Finding("unreadable", "bad", "verdicts", {"share": share, "mean": unparsed})
    failed = _mean(steps, "reward/timeout_share") + _mean(steps, "reward/grader_error_share")
    if failed > 0.01:
        yield Finding("grader", "bad", "verdicts", {"share": failed})


def _warnings(steps: Sequence[Metrics], known: set[str], compares: bool) -> Iterator[Finding]:
    if (far := _off_policy(steps)) is not None:
        yield far
    if known & {"collapsed", "nothing", "cut", "hacking"}:
        return
    late = _late(steps)
    wrong, right, alike = _mean(late, WRONG), _mean(late, RIGHT), _mean(late, ALIKE)
    if compares and 1.0 - alike < FEW_TELL:
        kind = "too_easy" if right > wrong else "too_hard"
        yield Finding(
            kind, "note" if right > wrong else "bad", "groups", {"right": right, "wrong": wrong, "alike": alike}
        )


def _off_policy(steps: Sequence[Metrics]) -> Finding | None:
    """The step in which the policy went furthest from the one that sampled, where that is too far."""
    far = [
        m for m in steps if max(abs(m.get("actor/log_ratio/q0.1", 0.0)), abs(m.get("actor/log_ratio/q99.9", 0.0))) > FAR
    ]
    few = [m for m in steps if m.get("actor/ess", 1.0) < FEW]
    held = [m for m in steps if max(m.get(f"actor/clip_share/{sign}", 0.0) for sign in ("positive", "negative")) > HELD]
    if not far and not few and len(held) <= max(1, len(steps) // 10):
        return None
    worst = max(far or few or held, key=lambda m: abs(m.get("actor/log_ratio/min", 0.0)))
    numbers = {
        "steps": len({int(m[STEP]) for m in (*far, *few, *held)}),
        "of": len(steps),
        "step": int(worst[STEP]),
        "low": worst.get("actor/log_ratio/min", 0.0),
        "high": worst.get("actor/log_ratio/max", 0.0),
        "ess": min(m.get("actor/ess", 1.0) for m in steps),
        "held": max(max(m.get(f"actor/clip_share/{sign}", 0.0) for sign in ("positive", "negative")) for m in steps),
    }
    return Finding("off_policy", "bad", "ratio", numbers)


def _progress(history: Sequence[Metrics], steps: Sequence[Metrics]) -> Iterator[Finding]:
    checks = [m for m in history if {"val/pass@1", "val/pass@1_low", "val/pass@1_high"} <= m.keys()]
    before, after, error = _ends(steps)
    rose = after - before > 4 * error and after > before
    numbers: dict[str, Any] = {"reward_before": before, "reward_after": after}
    if len(checks) > 1:
        first, last = checks[0], checks[-1]
        numbers |= {"before": _rate(first), "after": _rate(last), "step": int(last[STEP])}
        better, worse = (
            last["val/pass@1_low"] > first["val/pass@1_high"],
            last["val/pass@1_high"] < first["val/pass@1_low"],
        )
        if (drop := fallen(checks)) is not None:
            best = {"best": _rate(drop[0]), "best_step": int(drop[0][STEP])}
            yield Finding("fell", "bad", "validation", {**numbers, **best})
        elif worse:
            yield Finding("fell", "bad", "validation", {**numbers, "best": _rate(first), "best_step": int(first[STEP])})
        if better:
            yield Finding("learning", "good", "validation", numbers)
        elif rose:
            yield Finding("hacking", "bad", "reward", numbers)
        elif not worse:
            yield Finding("flat", "note", "validation", numbers)
        return
    solved_before, solved_after, solved_error = _ends(steps, SOLVED)
    if rose and solved_after - solved_before <= 2 * solved_error and SOLVED in steps[-1]:
        yield Finding("hacking", "bad", "reward", {**numbers, "solved": (solved_before, solved_after)})
    elif rose:
        yield Finding("reward_rose", "good", "reward", numbers)
    elif len(steps) >= 10:
        yield Finding("reward_flat", "note", "reward", numbers)


def _rate(metrics: Metrics) -> tuple[float, float, float]:
    return metrics["val/pass@1"], metrics["val/pass@1_low"], metrics["val/pass@1_high"]


def _ends(steps: Sequence[Metrics], name: str = SCORE) -> tuple[float, float, float]:
    """Mean of a metric over the first steps, over the last, and the standard error of their difference."""
    count = max(1, min(ENDS, len(steps) // 5))
    first, last = ([m.get(name, 0.0) for m in part] for part in (steps[:count], steps[-count:]))
    means = [sum(part) / count for part in (first, last)]
    if count < 2:
        return means[0], means[1], math.inf
    squares = sum((x - mean) ** 2 for part, mean in zip((first, last), means, strict=True) for x in part)
    error = math.sqrt(squares / (2 * count - 2) * 2 / count)
    return means[0], means[1], max(error * t_quantile(2 * count - 2) / 1.96, 1e-9)


def _late(steps: Sequence[Metrics]) -> Sequence[Metrics]:
    return steps[-max(1, min(ENDS, len(steps) // 5)) :]


def _mean(steps: Sequence[Metrics], name: str) -> float:
    return sum(m.get(name, 0.0) for m in steps) / len(steps)
