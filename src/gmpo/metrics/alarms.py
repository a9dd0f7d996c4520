"""What is wrong with a run that goes on all the same: signs in the metrics of its steps, each with where to look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gmpo.metrics.collapse import collapse

ALARMS = ("collapse", "length", "entropy", "truncated", "mismatch", "no_variance")
LEAST_ENTROPY = 0.005
"""Nats a token, below which a policy says one thing."""
MOST_TRUNCATED = 0.9
SHORTEST = 0.1
"""Of the mean length of the first steps."""
FIRST = 3
"""Steps that say how long answers were."""
MOST_MISMATCH = 0.1
"""Nats a token between sampler and learner (`rollout_corr/k3_kl`)."""


def alarms(steps: Sequence[Mapping[str, float]], *, compares: bool) -> dict[str, str]:
    """The alarms of the last of some training steps, by name, each as a sentence without a full stop.

    Args:
        steps: metrics of the run's steps in their order, validations among them.
        compares: advantages compare the answers to a problem.
    """
    own = [metrics for metrics in steps if "critic/score/mean" in metrics]
    if not own:
        return {}
    last, found = own[-1], dict[str, str]()
    if (fallen := collapse(steps)) is not None:
        found["collapse"] = f"{fallen}; look at the samples, and go on from an earlier checkpoint with a lower rate"
    length = last.get("response_length/mean")
    first = [m["response_length/mean"] for m in own[:FIRST] if "response_length/mean" in m]
    if length is not None and len(own) > FIRST and length < SHORTEST * sum(first) / len(first):
        found["length"] = (
            f"answers have {length:.0f} tokens and had {sum(first) / len(first):.0f} at first; look at what the "
            "shortest ones are rewarded for"
        )
    if (entropy := last.get("actor/entropy")) is not None and entropy < LEAST_ENTROPY:
        found["entropy"] = (
            f"the policy's entropy is {entropy:.2g} nats a token: it says one thing and explores no more; look at the "
            "learning rate, the temperature and clip_ratio_high"
        )
    if (cut := last.get("response_length/clip_ratio", 0.0)) > MOST_TRUNCATED:
        found["truncated"] = (
            f"{cut:.0%} of the answers are cut at data.max_response_length before their end; look at the samples: "
            "answers that repeat themselves, or a limit that is too low"
        )
    if (apart := last.get("rollout_corr/k3_kl", 0.0)) > MOST_MISMATCH:
        found["mismatch"] = (
            f"sampler and learner are {apart:.2g} nats a token apart (rollout_corr/k3_kl): they are two policies; look "
            "at their precision, and at algorithm.rollout_correction"
        )
    if compares and last.get("rollout/zero_variance_groups") == 1.0:
        wrong = last.get("rollout/all_wrong_groups", 0.0)
        found["no_variance"] = "the answers to each problem have the same reward, so that the step taught nothing; " + (
            "look at the reward and at how hard the problems are" if wrong > 0.5 else "the problems are too easy"
        )
    return found
