"""Metrics of the distance between sampler and learner, and of what was done about it: verl's `rollout_corr/*`."""

from __future__ import annotations

import torch
from torch import Tensor

from gmpo.algo.masks import sequence_mean, sequence_sum

LIMIT = 20.0


def mismatch(old: Tensor, rollout: Tensor, mask: Tensor) -> dict[str, float]:
    """Perplexities and divergences of `[B, T]` log-probs on the same tokens; r = old - rollout.

    `kl` and `k3_kl` estimate KL(sampler || learner); `chi2_*` is the mean squared weight less 1.
    """
    rows = mask.any(dim=1)
    if not bool(rows.any()):
        return {}
    r = (old - rollout).masked_fill(~mask, 0.0).double()
    training = -sequence_mean(old.double(), mask)[rows]
    sampling = -sequence_mean(rollout.double(), mask)[rows]
    apart = training - sampling
    bounded = r[mask].clamp(-LIMIT, LIMIT)
    total = sequence_sum(r, mask)[rows].clamp(-LIMIT, LIMIT)
    values = {
        "training_ppl": training.exp().mean(),
        "training_log_ppl": training.mean(),
        "rollout_ppl": sampling.exp().mean(),
        "rollout_log_ppl": sampling.mean(),
        "kl": -r[mask].mean(),
        "k3_kl": (torch.expm1(bounded) - bounded).mean(),
        "log_ppl_diff": apart.mean(),
        "log_ppl_abs_diff": apart.abs().mean(),
        "log_ppl_diff_max": apart.max(),
        "log_ppl_diff_min": apart.min(),
        "ppl_ratio": apart.exp().mean(),
        "chi2_token": (2 * bounded).exp().mean() - 1,
        "chi2_seq": (2 * total).exp().mean() - 1,
    }
    return {f"rollout_corr/{name}": float(value) for name, value in values.items()} | _probabilities(
        old[mask].double(), rollout[mask].double()
    )


def _probabilities(a: Tensor, b: Tensor) -> dict[str, float]:
    """How far the probabilities of the sampled tokens are apart: 0 up to rounding when both compute alike."""
    apart = (a.exp() - b.exp()).abs()
    metrics = {
        "training/rollout_probs_diff_mean": float(apart.mean()),
        "training/rollout_probs_diff_max": float(apart.max()),
        "training/rollout_probs_diff_std": float(apart.std(correction=0)),
        "training/rollout_logprobs_diff_max": float((a - b).abs().max()),
    }
    if a.numel() > 1 and a.exp().std() > 0 and b.exp().std() > 0:
        both = torch.stack([a.exp(), b.exp()])
        metrics["training/rollout_actor_probs_pearson_corr"] = float(torch.corrcoef(both)[0, 1])
    return metrics


def weight_stats(log_ratio: Tensor, mask: Tensor, low: float, high: float, *, level: str) -> dict[str, float]:
    """Of importance weights over tokens, and of their mean per response (`seq_*`): before they are cut or normalised,
    but for `std` and `eff_sample_size`, whose weights are held within [low, high].

    So did verl to 0.7. Since 0.8 it has `mean`, `std`, `eff_sample_size`, `max` and `min` of level `token` and `seq_*`
    of the weights after the cut, and the shares of tokens beyond `low` and `high` of those before it.

    Args:
        log_ratio: `[B, T]`, learner less sampler.
        mask: the sampled tokens, those included that a rejection takes out of the loss.
        level: `token`, or `sequence` for the sum on each of a response's tokens.
    """
    rows = mask.any(dim=1)
    if not bool(rows.any()):
        return {}
    logs = log_ratio.double().masked_fill(~mask, 0.0)
    if level == "sequence":
        logs = sequence_sum(logs, mask).unsqueeze(1).expand_as(logs)
    weights = logs.clamp(-LIMIT, LIMIT).exp()
    w = weights[mask]
    held = w.clamp(low, high)
    per_row = sequence_mean(weights, mask)[rows]
    values = {
        "mean": w.mean(),
        "max": w.max(),
        "min": w.min(),
        "std": held.std(correction=0),
        "eff_sample_size": held.sum() ** 2 / (len(held) * (held**2).sum()),
        "ratio_fraction_high": (w > high).double().mean(),
        "ratio_fraction_low": (w < low).double().mean(),
        "seq_mean": per_row.mean(),
        "seq_std": per_row.std(correction=1) if len(per_row) > 1 else torch.zeros(()),
        "seq_max": per_row.max(),
        "seq_min": per_row.min(),
        "seq_max_deviation": (per_row - 1.0).abs().max(),
        "seq_fraction_high": (per_row > high).double().mean(),
        "seq_fraction_low": (per_row < low).double().mean(),
    }
    return {f"rollout_corr/rollout_is_{name}": float(value) for name, value in values.items()}


def rejection_stats(rule: str, before: Tensor, after: Tensor) -> dict[str, float]:
    """Shares of tokens that a rule took out of the loss, and of responses that lost one at least, as verl counts; rule
    "" stands for all rules together."""
    tokens, rows = before.sum(), before.any(dim=1)
    gone = (before & ~after).any(dim=1)
    prefix = f"rollout_corr/rollout_rs_{rule}_" if rule else "rollout_corr/rollout_rs_"
    return {
        f"{prefix}masked_fraction": float((before & ~after).sum() / tokens.clamp(min=1)),
        f"{prefix}seq_masked_fraction": float(gone.sum() / rows.sum().clamp(min=1)),
    }
