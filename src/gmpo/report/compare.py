"""Several runs beside each other: kinds of runs, differences paired by seed, problems that flipped."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmpo.metrics.beta import t_quantile
from gmpo.records.run_folder import VALIDATION
from gmpo.report.reading import RunData, read_answers

SEEDS = ("trainer.seed", "data.seed", "actor_rollout_ref.rollout.seed")
LAST = 0.1
"""Share of the steps, at the end, over which an endpoint of training is the mean."""
ENDPOINTS: Sequence[tuple[str, tuple[str, str], int]] = (
    ("val/pass@1", ("pass@1, last validation", "pass@1，最后一次验证"), 1),
    ("val/completed_share", ("right and ended, last validation", "正确且自行结束，最后一次验证"), 1),
    ("critic/score/mean", ("reward, last tenth of the steps", "奖励，最后十分之一步"), 1),
    ("response_length/mean", ("tokens an answer", "回答词元数"), 0),
    ("response_length/clip_ratio", ("cut at the limit", "在上限处截断"), -1),
    ("actor/entropy", ("entropy", "熵"), 0),
    ("actor/log_ratio/var_within", ("variance of log-ratios", "对数比的方差"), 0),
    ("perf/throughput", ("tokens per second", "每秒词元数"), 1),
)
"""Metric, its title, whether more is better (1), worse (-1) or neither."""
MOST_FLIPS = 200


def compared(runs: Sequence[RunData], names: Sequence[str]) -> dict[str, Any]:
    """What a page shows of several runs: `groups` of runs of one kind (all that is learned from is the same but for the
    seeds), `changed` settings, `endpoints` with differences to the first group, `flips`."""
    kinds = [_kind(run) for run in runs]
    members: dict[str, list[int]] = {}
    for number, kind in enumerate(kinds):
        members.setdefault(kind, []).append(number)
    groups = list(members.values())
    changed = _changed([runs[group[0]] for group in groups])
    labels = _labels([runs[g[0]] for g in groups], [names[g[0]] for g in groups], [len(g) for g in groups], changed)
    endpoints, paired = [], False
    for metric, title, better in ENDPOINTS:
        values = [
            {_seed(runs[i]): v for i in group if (v := _endpoint(runs[i], metric)) is not None} for group in groups
        ]
        if not any(values):
            continue
        differences = [difference(values[0], other) for other in values[1:]]
        paired = paired or any(differences)
        means = [float(np.mean(list(v.values()))) if v else None for v in values]
        endpoints.append(
            {"metric": metric, "title": title, "better": better, "means": means, "differences": differences}
        )
    return {
        "groups": [{"label": label, "runs": group} for label, group in zip(labels, groups, strict=True)],
        "changed": changed,
        "endpoints": endpoints,
        "paired": paired,
        "flips": [_flips(runs, names, groups[0], other) for other in groups[1:]]
        or ([_flips(runs, names, [0], [1])] if len(runs) == 2 else []),
    }


def difference(first: Mapping[Any, float], other: Mapping[Any, float]) -> dict[str, Any] | None:
    """Mean of the differences of runs with the same seed, with the 95 % interval of Student's t, which one pair has
    not. None without a pair."""
    pairs = [other[seed] - first[seed] for seed in first if seed in other]
    if not pairs:
        return None
    mean = sum(pairs) / len(pairs)
    if len(pairs) < 2:
        return {"mean": mean, "low": None, "high": None, "pairs": 1}
    error = math.sqrt(sum((x - mean) ** 2 for x in pairs) / (len(pairs) - 1) / len(pairs))
    half = error * t_quantile(len(pairs) - 1)
    return {"mean": mean, "low": mean - half, "high": mean + half, "pairs": len(pairs)}


def _kind(run: RunData) -> str:
    if run.record is None:
        return str(run.folder)
    identity = {k: v for k, v in run.record.identity.items() if k not in SEEDS}
    return json.dumps([identity, dict(run.record.content)], sort_keys=True, default=str)


def _seed(run: RunData) -> Any:
    return run.settings.get("trainer.seed")


def _endpoint(run: RunData, metric: str) -> float | None:
    values = [m[metric] for m in run.history if metric in m and math.isfinite(m[metric])]
    if not values:
        return None
    count = 1 if metric.startswith("val/") else max(1, round(len(values) * LAST))
    return sum(values[-count:]) / count


def _changed(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    keys: dict[str, None] = {}
    for run in runs:
        if run.record is not None:
            keys |= dict.fromkeys([*run.record.identity, *run.record.content])
    rows = []
    for key in keys:
        if key in SEEDS:
            continue
        values = [_shown(run, key) for run in runs]
        if len(set(values)) > 1:
            rows.append({"key": key, "values": values})
    return rows


def _shown(run: RunData, key: str) -> str:
    if run.record is None:
        return "?"
    parts = {**run.record.idle, **run.record.content, **run.record.identity}
    text = json.dumps(parts.get(key), ensure_ascii=False, default=str) if key in parts else "–"
    return text.strip('"')[:60]


SHORT = ("actor_rollout_ref.actor.policy_loss.loss_mode", "actor_rollout_ref.actor.optim.lr", "algorithm.adv_estimator")
"""Settings that name a kind of run best, where they differ."""


def _labels(
    runs: Sequence[RunData], names: Sequence[str], sizes: Sequence[int], changed: Sequence[Mapping[str, Any]]
) -> list[str]:
    """By the setting that differs between the kinds; by the names of the runs where that tells them not apart."""
    for key in (*SHORT, *(row["key"] for row in changed)):
        row = next((row for row in changed if row["key"] == key), None)
        known = row is not None and "–" not in row["values"]
        if row is not None and known and len(set(row["values"])) == len(runs) and max(sizes) > 1:
            last = key.rpartition(".")[2]
            return [value if last == "loss_mode" else f"{last}={value}" for value in row["values"]]
    return [name if size == 1 else f"{name} +{size - 1}" for name, size in zip(names, sizes, strict=True)]


def _flips(runs: Sequence[RunData], names: Sequence[str], first: Sequence[int], other: Sequence[int]) -> dict[str, Any]:
    """Problems of the last validation that one run solved more often than not, and the other did not: the first pair of
    equal seeds, else the first run of each."""
    pairs = [(a, b) for a in first for b in other if _seed(runs[a]) == _seed(runs[b])]
    a, b = pairs[0] if pairs else (first[0], other[0])
    before, after = (_solved(runs[i]) for i in (a, b))
    both = [key for key in before if key in after]
    flipped = [k for k in both if (before[k] >= 0.5) != (after[k] >= 0.5)]
    flipped.sort(key=lambda k: before[k] - after[k])
    problems = [{"id": k, "before": before[k], "after": after[k]} for k in flipped[:MOST_FLIPS]]
    return {"from": names[a], "to": names[b], "of": len(both), "problems": problems}


def _solved(run: RunData) -> dict[str, float]:
    last = max((int(p.stem) for p in (run.folder / VALIDATION).glob("*.jsonl") if p.stem.isdecimal()), default=None)
    if last is None:
        return {}
    (_, rows), *_ = read_answers(run, VALIDATION, only=last)
    found: dict[str, list[bool]] = {}
    for row in rows:
        found.setdefault(str(row.get("problem")), []).append(row.get("verdict") == "correct")
    return {key: sum(rights) / len(rights) for key, rights in found.items()}
