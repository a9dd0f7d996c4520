"""What a run came to, in sentences: whether it got better, and why it could not learn where it did not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

History = Sequence[Mapping[str, float]]


def conclusion(history: History) -> list[str]:
    """Sentences for the end of a run, from the metrics of its steps and validations in order."""
    steps = [metrics for metrics in history if "critic/score/mean" in metrics]
    return [*_validations([m for m in history if "val/pass@1" in m]), *_learning(steps)]


def pass_rate(metrics: Mapping[str, float]) -> str:
    """`0.312 (0.270-0.356)`: pass@1 with its 95 % interval."""
    low, high = metrics.get("val/pass@1_low"), metrics.get("val/pass@1_high")
    interval = "" if low is None or high is None else f" ({low:.3f}-{high:.3f})"
    return f"{metrics['val/pass@1']:.3f}{interval}"


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


def _learning(steps: History) -> Iterator[str]:
    if not steps:
        return
    alike = [m.get("rollout/zero_variance_groups", 0.0) for m in steps]
    wrong = [m.get("rollout/all_wrong_groups", 0.0) for m in steps]
    right = [m.get("rollout/all_right_groups", 0.0) for m in steps]
    yield (
        f"problems whose answers were all alike: {_mean(alike):.0%} (all wrong {_mean(wrong):.0%}, all right "
        f"{_mean(right):.0%})"
    )
    rates = [m["actor/lr"] for m in steps if "actor/lr" in m]
    if rates and max(rates) == 0.0:
        yield "nothing was learned: the learning rate was 0 in every step"
    elif min(alike) == 1.0:
        yield f"nothing could be learned: the answers to each problem always had the same reward. {_why(steps, wrong)}"
    elif _fell_apart(steps):
        yield (
            "the policy fell apart: there were right answers at first, and none in the last steps. Look at samples/; "
            "a lower actor_rollout_ref.actor.optim.lr is the first thing to try"
        )


def _why(steps: History, wrong: Sequence[float]) -> str:
    if min(wrong) < 1.0:
        return "They are solved already, or the reward does not tell answers apart: give harder problems"
    unparsed = _mean([m.get("reward/unparsed_share", 0.0) for m in steps])
    cut = _mean([m.get("response_length/clip_ratio", 0.0) for m in steps])
    causes = []
    if unparsed > 0.5:
        causes.append(
            f"{unparsed:.0%} of the answers have none that the scorer can read: does the prompt say in which "
            "form, and does "
            "the model know it (a warm-up with gmpo sft)?"
        )
    if cut > 0.5:
        causes.append(f"{cut:.0%} were cut at data.max_response_length: raise it")
    return "No answer was right. " + " ".join(causes or ["The problems are too hard for this model: give easier ones"])


def _fell_apart(steps: History) -> bool:
    """No right answer in the last quarter of at least eight steps, and some in the first."""
    quarter = len(steps) // 4
    if quarter < 2:
        return False
    shares = [m.get("reward/correct_share", 0.0) for m in steps]
    return max(shares[:quarter]) > 0.0 and max(shares[-quarter:]) == 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
