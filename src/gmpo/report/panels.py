"""Which curves a report has. The page draws what stands here, and nothing is named twice."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["train", "validation"]


@dataclass(frozen=True, slots=True)
class Panel:
    """A small plot on the common axis of steps."""

    id: str
    title: tuple[str, str]
    """English, Chinese."""
    series: tuple[tuple[str, str], ...]
    """Metric -> its label in the plot; the first one is the headline."""
    band: tuple[str, str] | None = None
    """Metrics of the lower and the upper edge around the first series."""
    unit: Literal["", "share", "seconds", "tokens"] = ""
    stacked: bool = False
    points: bool = False
    """Few values with steps between them that have none."""
    log: bool = False


PANELS = (
    Panel(
        "reward",
        ("Reward and right answers", "奖励与正确回答"),
        (
            ("critic/score/mean", "reward"),
            ("reward/correct_share", "right"),
            ("reward/completed_share", "right and ended"),
        ),
    ),
    Panel(
        "validation",
        ("Validation: pass@1 with 95 % interval", "验证：pass@1 与 95 % 区间"),
        (("val/pass@1", "pass@1"), ("val/completed_share", "right and ended")),
        band=("val/pass@1_low", "val/pass@1_high"),
        points=True,
    ),
    Panel("loss", ("Supervised loss", "监督损失"), (("train/loss", "loss"), ("val/loss", "held out"))),
    Panel(
        "groups",
        ("Problems by their answers", "题目按回答分类"),
        (
            ("rollout/zero_variance_groups", "all alike"),
            ("rollout/all_right_groups", "all right"),
            ("rollout/all_wrong_groups", "all wrong"),
        ),
        unit="share",
    ),
    Panel("entropy", ("Entropy", "熵"), (("actor/entropy", "entropy"),)),
    Panel(
        "length",
        ("Tokens of an answer", "回答的词元数"),
        (("response_length/mean", "mean"),),
        band=("response_length/min", "response_length/max"),
        unit="tokens",
    ),
    Panel(
        "truncated",
        ("Answers cut at the limit", "在上限处截断的回答"),
        (("response_length/clip_ratio", "training"), ("val/response_length/clip_ratio", "validation")),
        unit="share",
    ),
    Panel(
        "verdicts",
        ("Verdicts", "判定"),
        (
            ("reward/correct_share", "correct"),
            ("reward/wrong_share", "wrong"),
            ("reward/unparsed_share", "unparsed"),
            ("reward/timeout_share", "timeout"),
            ("reward/grader_error_share", "grader_error"),
        ),
        unit="share",
        stacked=True,
    ),
    Panel(
        "kl",
        ("KL", "KL"),
        (
            ("actor/ppo_kl", "old, current"),
            ("actor/kl_loss", "reference (loss)"),
            ("actor/reward_kl_penalty", "reference (reward)"),
        ),
    ),
    Panel(
        "gradient",
        ("Gradient norm", "梯度范数"),
        (("actor/grad_norm", "mean"), ("actor/grad_norm_max", "largest"), ("train/grad_norm", "norm")),
    ),
    Panel("rate", ("Learning rate", "学习率"), (("actor/lr", "rate"), ("train/lr", "rate"))),
    Panel(
        "mismatch",
        ("Sampler against learner", "采样器与学习器之差"),
        (("training/rollout_logprobs_diff_max", "largest log-prob difference"), ("rollout_corr/k3_kl", "KL")),
        log=True,
    ),
    Panel(
        "staleness",
        ("Staleness of the answers", "回答的陈旧程度"),
        (
            ("training/off_policy/trajectory_staleness/mean", "last token"),
            ("training/off_policy/trajectory_staleness_worst/max", "first token, worst"),
        ),
    ),
    Panel("speed", ("Tokens per second", "每秒词元数"), (("perf/throughput", "tokens/s"),)),
    Panel(
        "time",
        ("Seconds by phase", "各阶段秒数"),
        (
            ("timing_s/gen", "gen"),
            ("timing_s/reward", "reward"),
            ("timing_s/old_log_prob", "old_log_prob"),
            ("timing_s/update_actor", "update_actor"),
            ("timing_s/testing", "testing"),
            ("timing_s/save_checkpoint", "save_checkpoint"),
        ),
        unit="seconds",
        stacked=True,
    ),
)

RATIO = (
    *(f"actor/log_ratio/{q}" for q in ("min", "q0.1", "q1", "q50", "q99", "q99.9", "max", "var_within")),
    *(f"actor/seq_ratio/{q}" for q in ("mean", "min", "max")),
    "actor/clip_share/positive",
    "actor/clip_share/negative",
    "actor/ess",
    "actor/updates",
    "actor/capped_sequences",
)
"""What the ratio panel is drawn from."""


def metrics_of(panels: Collection[Panel] = PANELS) -> list[str]:
    """Every metric that a page shows, each once."""
    names = [name for p in panels for name in (*(s for s, _ in p.series), *(p.band or ()))]
    return list(dict.fromkeys([*names, *RATIO]))


def drawn(history_names: Collection[str], constant: Mapping[str, bool]) -> list[Panel]:
    """The panels of which there is anything to see: a staleness that is always 0 is nothing."""
    dull = {"staleness"}
    return [
        panel
        for panel in PANELS
        if any(name in history_names for name, _ in panel.series)
        and not (panel.id in dull and all(constant.get(name, True) for name, _ in panel.series))
    ]
