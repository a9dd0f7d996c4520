"""What the log-ratios of a run say about its method, in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from gmpo.metrics.collapse import STEP
from gmpo.objectives import LOSSES
from gmpo.report.reading import RunData

ACTOR = "actor_rollout_ref.actor"
SAME = 0.01
"""Variance of log-ratios within an answer below which its arithmetic and geometric mean agree within 0.5 %."""
Both = dict[str, str]


def loss_of(data: RunData) -> str:
    """`loss_mode` of a run; empty where it is not known."""
    return str(data.settings.get(f"{ACTOR}.policy_loss.loss_mode") or "")


def bounds_of(data: RunData) -> tuple[float, float] | None:
    """How far a log-ratio may go below and above 0 before the loss cuts it; None where the loss has no such bounds."""
    traits = LOSSES.get(loss_of(data))
    low, high = (
        data.settings.get(f"{ACTOR}.clip_ratio_{end}", data.settings.get(f"{ACTOR}.clip_ratio"))
        for end in ("low", "high")
    )
    numbers = isinstance(low, int | float) and isinstance(high, int | float)
    if traits is None or "clip_low" not in traits.all_numbers or traits.divergence or not numbers:
        return None
    if traits.log_clip:
        return float(low), float(high)
    return (-math.log(1 - low) if low < 1 else math.inf), math.log1p(high)


def ratio_sentences(
    history: Sequence[Mapping[str, float]], loss: str, bounds: tuple[float, float] | None
) -> list[Both]:
    """What follows from the figures; nothing without updates."""
    steps = [m for m in history if "actor/log_ratio/q50" in m]
    return list(_sentences(steps, loss, bounds)) if steps else []


def _sentences(steps: Sequence[Mapping[str, float]], loss: str, bounds: tuple[float, float] | None) -> Iterator[Both]:
    if max(m.get("actor/updates", 1.0) for m in steps) <= 1:
        yield {
            "en": "One update per rollout: every ratio is 1 when it is used, no bound can bind, and the gradients of "
            "GMPO and GRPO with a mean over answers are the same.",
            "zh": "每次采样只更新一次：使用时比值都是 1，界不起作用，GMPO 与按回答平均的 GRPO 梯度相同。",
        }
        return
    worst = max(steps, key=lambda m: m.get("actor/log_ratio/var_within", 0.0))
    variance = worst.get("actor/log_ratio/var_within", 0.0)
    half = math.expm1(min(variance / 2, 50.0))
    if variance < SAME:
        yield {
            "en": f"The variance of log-ratios within an answer is at most {variance:.2g} (step {worst[STEP]:.0f}), so "
            f"that arithmetic and geometric mean differ by at most about {half:.2%}: here the mean cannot make a "
            "difference between GRPO and GMPO.",
            "zh": f"回答内对数比的方差至多 {variance:.2g}（第 {worst[STEP]:.0f} 步），算术平均与几何平均至多相差约 "
            f"{half:.2%}：在此，平均方式不可能使 GRPO 与 GMPO 有别。",
        }
    else:
        count = sum(m.get("actor/log_ratio/var_within", 0.0) >= SAME for m in steps)
        size = f"{half:.1%}" if half < 10 else "> 1000 %"
        yield {
            "en": f"In {count} of {len(steps)} steps the variance of log-ratios within an answer is above {SAME}, up "
            f"to {variance:.2g} in step {worst[STEP]:.0f}: arithmetic and geometric mean differ by up to {size} there. "
            "Which mean is taken matters.",
            "zh": f"{len(steps)} 步中有 {count} 步回答内对数比的方差高于 {SAME}，第 {worst[STEP]:.0f} 步达 "
            f"{variance:.2g}：算术平均与几何平均在那里相差至 {size}。取哪种平均是有影响的。",
        }
    low, high = min(m["actor/log_ratio/q0.1"] for m in steps), max(m["actor/log_ratio/q99.9"] for m in steps)
    if bounds is not None and loss not in ("gspo", "gspo_token"):
        share = max(abs(low) / bounds[0], high / bounds[1])
        yield {
            "en": f"99.8 % of the tokens of every step stay between {low:.2g} and {high:.2g}; the bounds stand at "
            f"{-bounds[0]:.2g} and {bounds[1]:.2g}, "
            + (
                f"{1 / share:.0f} times as far."
                if 0 < share < 0.5
                else "and are reached."
                if share >= 1
                else "not far off."
            ),
            "zh": f"每一步 99.8 % 的词元在 {low:.2g} 与 {high:.2g} 之间；界为 {-bounds[0]:.2g} 与 {bounds[1]:.2g}，"
            + (f"远 {1 / share:.0f} 倍。" if 0 < share < 0.5 else "已触及。" if share >= 1 else "相距不远。"),
        }
    positive, negative = (
        max(m.get(f"actor/clip_share/{sign}", 0.0) for m in steps) for sign in ("positive", "negative")
    )
    if positive == negative == 0.0:
        yield {
            "en": "No bound cut a token in any step; a wider one would change nothing.",
            "zh": "没有任何一步的词元被界截断；放宽界不会改变任何东西。",
        }
    else:
        yield {
            "en": f"The bound cut at most {positive:.2%} of the tokens with A > 0, and {negative:.2%} of those with "
            "A < 0.",
            "zh": f"界至多截断 A > 0 词元的 {positive:.2%}，A < 0 词元的 {negative:.2%}。",
        }
    if (capped := sum(m.get("actor/capped_sequences", 0.0) for m in steps)) > 0:
        yield {
            "en": f"The exponent of {capped:.0f} answers was held at 20: the policy moved absurdly far.",
            "zh": f"{capped:.0f} 个回答的指数被限制在 20：策略移动得过远。",
        }
