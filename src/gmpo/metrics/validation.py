"""Metrics of a validation: verl's `val-core/` and `val-aux/` numbers, pass@k, and pass@1 with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from gmpo.metrics.estimates import extreme_of, majority, mean_interval, pass_at_k
from gmpo.metrics.updates import completed_share
from gmpo.records.rollout import Group
from gmpo.rewards.verdict import Verdict


def validation_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Per data source: mean@N of every number a scorer returned, best@k, worst@k, maj@k, pass@k; and for all problems
    together `val/pass@1` with its 95 % interval, mean length and share of answers cut at the limit.

    `val-core/<source>/<acc, else reward>/{mean,maj,best}@N` as verl, everything else under `val-aux/`. Answers may
    differ in number between problems only across data sources.
    """
    metrics: dict[str, float] = {}
    ordered = sorted(groups, key=lambda g: g.problem.data_source)
    for source, members in groupby(ordered, key=lambda g: g.problem.data_source):
        metrics |= _source_metrics(source, list(members))
    answers = [a for g in groups for a in g.graded]
    solved = [float(np.mean([a.grade.verdict is Verdict.CORRECT for a in g.graded])) for g in groups]
    low, high = mean_interval(solved, [len(g.graded) for g in groups])
    metrics |= {
        "val/pass@1": float(np.mean(solved)),
        "val/pass@1_low": low,
        "val/pass@1_high": high,
        "val/completed_share": completed_share(answers),
        "val/problems": float(len(groups)),
        "val/response_length/mean": float(np.mean([len(a.completion) for a in answers])),
        "val/response_length/clip_ratio": float(np.mean([a.completion.finish_reason == "length" for a in answers])),
    }
    for verdict in Verdict:
        metrics[f"val/{verdict}"] = float(sum(a.grade.verdict == verdict for a in answers))
        metrics[f"val/{verdict}_share"] = sum(a.grade.verdict == verdict for a in answers) / len(answers)
    return metrics


def _source_metrics(source: str, groups: Sequence[Group]) -> dict[str, float]:
    n = len(groups[0].graded)
    variables = _variables(groups)
    core = "acc" if "acc" in variables else "reward"
    metrics: dict[str, float] = {}
    for name, rows in variables.items():
        values = _estimates(rows, n)
        if name == core and n > 1:
            values |= _majority(groups, rows, n)
        for estimate, value in values.items():
            headline = name == core and estimate.startswith(("mean", "maj", "best")) and f"@{n}" in estimate
            metrics[f"val-{'core' if headline else 'aux'}/{source}/{name}/{estimate}"] = value
    for k in _powers_of_two(n):
        counts = [sum(a.grade.verdict is Verdict.CORRECT for a in g.graded) for g in groups]
        metrics[f"val-core/{source}/pass@{k}"] = float(np.mean([pass_at_k(c, n, k) for c in counts]))
    return metrics


def _variables(groups: Sequence[Group]) -> dict[str, list[list[float]]]:
    """Name -> values `[problem][answer]`: the reward, and every number the scorer returned for all answers it judged.

    An answer that was not judged (timeout, grader_error) counts as 0 there, as it does in the reward.
    """
    judged = [a.grade.extra for g in groups for a in g.graded if a.grade.reason is None]
    shared = set.intersection(*map(set, judged)) if judged else set()
    numbers = sorted(k for k in shared if all(isinstance(extra[k], bool | int | float) for extra in judged))
    rows = {"reward": [[a.reward for a in g.graded] for g in groups]}
    return rows | {k: [[float(a.grade.extra.get(k, 0.0)) for a in g.graded] for g in groups] for k in numbers}


def _estimates(rows: Sequence[Sequence[float]], n: int) -> dict[str, float]:
    values = {f"mean@{n}": float(np.mean(rows))}
    if n == 1:
        return values
    values[f"std@{n}"] = float(np.mean([np.std(row) for row in rows]))
    for k in _powers_of_two(n)[1:]:
        for label, best in (("best", True), ("worst", False)):
            both = np.mean([extreme_of(row, k, best=best) for row in rows], axis=0)
            values |= {f"{label}@{k}/mean": float(both[0]), f"{label}@{k}/std": float(both[1])}
    return values


def _majority(groups: Sequence[Group], rows: Sequence[Sequence[float]], n: int) -> dict[str, float]:
    """maj@k where every answer has a prediction or none was found; an answer without one votes for "no answer"."""
    predictions = [[a.grade.pred or "" for a in g.graded] for g in groups]
    if not any(p for row in predictions for p in row):
        return {}
    values: dict[str, float] = {}
    for k in _powers_of_two(n)[1:]:
        both = np.mean([majority(p, row, k) for p, row in zip(predictions, rows, strict=True)], axis=0)
        values |= {f"maj@{k}/mean": float(both[0]), f"maj@{k}/std": float(both[1])}
    return values


def _powers_of_two(n: int) -> list[int]:
    """1, 2, 4 .. up to n, and n itself: the k of verl's best@k."""
    return sorted({2**i for i in range(int(math.log2(n)) + 1)} | {n})
