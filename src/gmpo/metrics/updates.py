"""Metrics of a training step, computed from its records under verl's names.

Everything here is a pure function of what was sampled and of what the learner returned; nothing is measured twice.
Names that verl does not have are marked "own" in `docs/metrics.md`, which lists formula and healthy range of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from gmpo.metrics.mismatch import mismatch
from gmpo.ports import Update
from gmpo.records.batch import Batch
from gmpo.records.rollout import Graded, Group
from gmpo.rewards.verdict import Verdict

QUANTILES = {"q0.1": 0.001, "q1": 0.01, "q50": 0.5, "q99": 0.99, "q99.9": 0.999}
"""Suffix -> probability of the log-ratio quantiles."""


def _summary(name: str, values: Tensor) -> dict[str, float]:
    x = values.double()
    if x.numel() == 0:
        return {}
    return {f"{name}/mean": float(x.mean()), f"{name}/max": float(x.max()), f"{name}/min": float(x.min())}


def step_metrics(
    groups: Sequence[Group],
    batch: Batch,
    minis: Sequence[Batch],
    updates: Sequence[Update],
    reported: Sequence[Mapping[str, float]],
    *,
    step: int,
    max_prompt_length: int,
) -> dict[str, float]:
    """All metrics of one training step.

    Args:
        batch: the credited batch; `minis[k]` of it is the mini-batch of `updates[k]`.
        reported: what the step's phases report themselves. Of a name that is there twice the last one counts, and
            these count more than what is computed here: a phase that compares sampler and learner saw more tokens.
        step: training steps behind the weights that the step began with.
    """
    metrics = {
        **rollout_metrics(groups, max_prompt_length=max_prompt_length),
        **staleness_metrics(batch, step=step),
        **batch_metrics(batch),
        **update_metrics(minis, updates),
    }
    for own in reported:
        metrics |= own
    return metrics


def rollout_metrics(groups: Sequence[Group], *, max_prompt_length: int) -> dict[str, float]:
    """Lengths, scores and verdicts of what was sampled.

    `response_length/clip_ratio` is the share of answers cut at the limit (not of those that happen to end there).
    """
    answers = [graded for group in groups for graded in group.graded]
    prompts = torch.tensor([len(group.prompt_ids) for group in groups for _ in group.graded])
    responses = torch.tensor([len(a.completion) for a in answers])
    cut = torch.tensor([a.completion.finish_reason == "length" for a in answers])
    verdicts = [a.grade.verdict for a in answers]
    metrics = {
        **_summary("prompt_length", prompts),
        "prompt_length/clip_ratio": float((prompts >= max_prompt_length).double().mean()),
        **_summary("response_length", responses),
        "response_length/clip_ratio": float(cut.double().mean()),
        **_summary("critic/score", torch.tensor([a.grade.score for a in answers])),
        "perf/total_num_tokens": float(prompts.sum() + responses.sum()),
    }
    rights = [[graded.grade.verdict == Verdict.CORRECT for graded in group.graded] for group in groups]
    metrics["rollout/problems"] = float(len(groups))
    metrics["rollout/all_right_groups"] = sum(map(all, rights)) / len(rights)
    metrics["rollout/all_wrong_groups"] = sum(not any(one) for one in rights) / len(rights)
    for part in answers[0].parts:
        metrics[f"reward_parts/{part}/mean"] = float(np.mean([a.parts[part] for a in answers]))
    for verdict in Verdict:
        metrics[f"reward/{verdict}"] = float(verdicts.count(verdict))
        metrics[f"reward/{verdict}_share"] = verdicts.count(verdict) / len(answers)
    metrics["reward/completed_share"] = completed_share(answers)
    return metrics


def completed_share(answers: Sequence[Graded]) -> float:
    """Share of answers that are right and ended by themselves: what is left of success without the length limit."""
    done = [a.grade.verdict == Verdict.CORRECT and a.completion.finish_reason == "stop" for a in answers]
    return sum(done) / len(done)


def staleness_metrics(batch: Batch, *, step: int) -> dict[str, float]:
    """How far the weights that sampled the batch are behind those that learn from it, in weight versions.

    Args:
        step: training steps behind the learner's weights.
    """
    if batch.weight_versions is None:
        return {}
    first, last = batch.weight_versions.unbind(1)
    return {
        **_summary("training/off_policy/trajectory_spans", last - first + 1),
        **_summary("training/off_policy/trajectory_staleness", step - last),
        **_summary("training/off_policy/trajectory_staleness_worst", step - first),
    }


def batch_metrics(batch: Batch) -> dict[str, float]:
    """Rewards, advantages and entropy."""
    mask = batch.sampled_mask
    metrics = {"rollout/zero_variance_groups": float(batch.unanimous.double().mean())}
    if batch.token_rewards is not None:
        metrics |= _summary("critic/rewards", (batch.token_rewards * mask).sum(1))
    if batch.advantage is not None:
        metrics |= _summary("critic/advantages", batch.advantage[mask])
    if batch.entropy is not None and mask.any():
        metrics["actor/entropy"] = float(batch.entropy[mask].double().mean())
    return metrics


def update_metrics(batches: Sequence[Batch], updates: Sequence[Update]) -> dict[str, float]:
    """What the updates of one step did: `batches[k]` is the mini-batch of `updates[k]`.

    Log-ratios are raw (before any bound) and pooled over all updates of the step, on the tokens that were computed.
    """
    metrics = _scalar_metrics(updates) | _single_update_mismatch(batches, updates)
    pooled = [_tokens(batch, update) for batch, update in zip(batches, updates, strict=True) if len(update.rows)]
    if not pooled:
        return metrics
    d = np.concatenate([p["d"] for p in pooled])
    positive = np.concatenate([p["positive"] for p in pooled])
    negative = np.concatenate([p["negative"] for p in pooled])
    cut = np.concatenate([p["cut"] for p in pooled])
    lower = np.concatenate([p["lower"] for p in pooled])
    quantiles = np.quantile(d, list(QUANTILES.values()))
    metrics |= {f"actor/log_ratio/{name}": float(q) for name, q in zip(QUANTILES, quantiles, strict=True)}
    weights = np.exp(np.clip(d, -20, 20))
    metrics |= {
        "actor/log_ratio/min": float(d.min()),
        "actor/log_ratio/max": float(d.max()),
        "actor/log_ratio/var_within": float(np.mean(np.concatenate([p["var_within"] for p in pooled]))),
        "actor/ppo_kl": float(-d.mean()),
        "actor/ess": float(weights.sum() ** 2 / (len(d) * (weights**2).sum())),
        "actor/pg_clipfrac": float((cut & ~lower).mean()),
        "actor/pg_clipfrac_lower": float(lower.mean()),
        "actor/clip_share/positive": float(cut[positive].mean()) if positive.any() else 0.0,
        "actor/clip_share/negative": float(cut[negative].mean()) if negative.any() else 0.0,
    }
    ratios = torch.cat([u.sequence_ratio for u in updates])
    metrics |= _summary("actor/seq_ratio", ratios)
    metrics["actor/capped_sequences"] = float(sum(int(u.capped.sum()) for u in updates))
    return metrics


def _scalar_metrics(updates: Sequence[Update]) -> dict[str, float]:
    """Means over the step's updates: a scalar over tokens or answers is the mean over all of them (`Update.counted`).

    `grad_norm` leaves out the skipped updates, whose norm is not finite.
    """
    names = dict.fromkeys(name for update in updates for name in update.scalars)
    metrics = {}
    for name in names:
        found = [u for u in updates if name in u.scalars and np.isfinite(u.scalars[name])]
        if found:
            values, weights = [u.scalars[name] for u in found], [u.counted.get(name, 1) for u in found]
            metrics[f"actor/{name}"] = float(np.average(values, weights=weights))
    norms = [u.scalars["grad_norm"] for u in updates if not u.skipped]
    if norms:
        metrics["actor/grad_norm_max"] = float(max(norms))
    metrics["actor/skipped_updates"] = float(sum(u.skipped for u in updates))
    metrics["actor/updates"] = float(len(updates))
    return metrics


def _single_update_mismatch(batches: Sequence[Batch], updates: Sequence[Update]) -> dict[str, float]:
    """Sampler against learner where old log-probs were not computed: the one update saw the sampler's weights."""
    if len(updates) != 1 or batches[0].old_logp is not None or not len(updates[0].rows):
        return {}
    rows = updates[0].rows
    mask = batches[0].sampled_mask[rows]
    logp, sampled = updates[0].logp, batches[0].rollout_logp[rows]
    return mismatch(logp, sampled, mask)


def _tokens(batch: Batch, update: Update) -> dict[str, np.ndarray]:
    """The sampled tokens of an update's rows, flat: log-ratio, sign of the advantage, which were cut."""
    mask = batch.sampled_mask[update.rows]
    d = torch.zeros_like(update.logp) if batch.old_logp is None else update.logp - batch.old_logp[update.rows]
    advantage = batch.advantage[update.rows] if batch.advantage is not None else torch.zeros_like(d)
    lengths = mask.sum(1).clamp(min=1)
    kept = d.masked_fill(~mask, 0.0).double()
    mean = kept.sum(1) / lengths
    spread = ((kept - mean.unsqueeze(1)) ** 2).masked_fill(~mask, 0.0).sum(1) / lengths
    return {
        "d": d[mask].double().numpy(),
        "positive": (advantage > 0)[mask].numpy(),
        "negative": (advantage < 0)[mask].numpy(),
        "cut": (update.clipped | update.clipped_lower)[mask].numpy(),
        "lower": update.clipped_lower[mask].numpy(),
        "var_within": spread.numpy(),
    }
