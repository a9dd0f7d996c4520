"""What a run came to, in sentences: whether it got better, and why it could not learn where it did not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gmpo.metrics.collapse import STEP, collapse, fallen, stalled

History = Sequence[Mapping[str, float]]


def conclusion(history: History, *, compares: bool = True) -> list[str]:
    """Sentences for the end of a run, from the metrics of its steps and validations in order.

    Args:
        compares: advantages compare the answers to a problem, so that nothing is learned from equal rewards.
    """
    steps = [metrics for metrics in history if "critic/score/mean" in metrics]
    return [*_validations([m for m in history if "val/pass@1" in m]), *_learning(history, steps, compares)]


def pass_rate(metrics: Mapping[str, float]) -> str:
    """`0.312 (0.270-0.356)`: pass@1 with its 95 % interval."""
    low, high = metrics.get("val/pass@1_low"), metrics.get("val/pass@1_high")
    interval = "" if low is None or high is None else f" ({low:.3f}-{high:.3f})"
    return f"{metrics['val/pass@1']:.3f}{interval}"


def after(metrics: Mapping[str, float]) -> str:
    """` after step 40`; nothing where the step is not known."""
    return f" after step {metrics[STEP]:.0f}" if STEP in metrics else ""


def _validations(found: History) -> Iterator[str]:
    if not found:
        return
    first, last = found[0], found[-1]
    if len(found) == 1:
        yield f"pass@1 {pass_rate(last)}"
        return
    low, high = "val/pass@1_low", "val/pass@1_high"
    if not {low, high} <= first.keys() & last.keys():
        verdict = "no interval is known"
    elif last[low] > first[high]:
        verdict = "better: the 95 % intervals do not overlap"
    elif last[high] < first[low]:
        verdict = "worse: the 95 % intervals do not overlap"
    else:
        verdict = "no difference that can be told: the 95 % intervals overlap"
    yield f"pass@1 {pass_rate(first)} -> {pass_rate(last)}: {verdict}"
    if (fall := fallen(found)) is not None and fall[0] != first:
        yield f"pass@1 was highest{after(fall[0])}, {pass_rate(fall[0])}, and fell since: prefer a checkpoint of then"


def _learning(history: History, steps: History, compares: bool) -> Iterator[str]:
    if not steps:
        return
    wrong = _mean([m.get("rollout/all_wrong_groups", 0.0) for m in steps])
    right = _mean([m.get("rollout/all_right_groups", 0.0) for m in steps])
    alike = [m.get("rollout/zero_variance_groups", 0.0) for m in steps]
    if compares:
        yield (
            f"problems without a right answer: {wrong:.0%}, with right ones only: {right:.0%}; answers whose problem "
            f"teaches nothing, because all its rewards are equal: {_mean(alike):.0%}"
        )
    else:
        shares = [m.get("reward/correct_share", 0.0) for m in steps]
        ends = f"{shares[0]:.0%} in the first step, {shares[-1]:.0%} in the last"
        yield f"right answers: {_mean(shares):.0%} of all, {ends}"
    rates = [m["actor/lr"] for m in steps if "actor/lr" in m]
    if rates and max(rates) == 0.0:
        yield "nothing was learned: the learning rate was 0 in every step"
    elif compares and min(alike) == 1.0:
        yield (
            "nothing could be learned: the answers to each problem always had the same reward. "
            f"{_why(steps, wrong, right)}"
        )
    elif not compares and (reward := _only_reward(steps)) is not None:
        what = f"nothing could be learned: every answer had the reward {reward:g}."
        yield f"{what} {_why(steps, wrong, right)}"
    elif (found := collapse(history)) is not None:
        yield (
            f"the policy fell apart: {found}. Look at samples/, and go on from a checkpoint before that with a lower "
            "actor_rollout_ref.actor.optim.lr"
        )
    elif compares and (stop := stalled(steps)) is not None:
        yield f"{stop}. Where that was not meant, lower actor_rollout_ref.actor.optim.lr: answers differ for longer"


def _only_reward(steps: History) -> float | None:
    """The one score that all answers of a run had."""
    extremes = {m[f"critic/score/{end}"] for m in steps for end in ("min", "max") if f"critic/score/{end}" in m}
    return extremes.pop() if len(extremes) == 1 else None


def _why(steps: History, wrong: float, right: float) -> str:
    if right == 1.0:
        return "All answers were right: these problems are solved already. Give harder ones"
    if wrong == 0.0 and right == 0.0:
        return "Right and wrong answers got the same reward: the reward does not tell them apart"
    if right > 0.0:
        return (
            f"{wrong:.0%} of the problems had wrong answers only and {right:.0%} right ones only, none had both: they "
            "are too hard or solved already. Give problems between, or ask for more answers to each "
            "(actor_rollout_ref.rollout.n)"
        )
    unparsed = _mean([m.get("reward/unparsed_share", 0.0) for m in steps])
    cut = _mean([m.get("response_length/clip_ratio", 0.0) for m in steps])
    causes = []
    if unparsed > 0.5:
        causes.append(
            f"{unparsed:.0%} of the answers have none that the scorer can read: does the prompt say in which form, and "
            "does the model know it (a warm-up with gmpo sft)?"
        )
    if cut > 0.5:
        causes.append(f"{cut:.0%} were cut at data.max_response_length: raise it")
    return "No answer was right. " + " ".join(causes or ["The problems are too hard for this model: give easier ones"])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
