"""Rules over rewards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from gmpo.config.derive import FILTER_METRIC, Given
from gmpo.config.issues import Issue, error, inert, warning
from gmpo.config.schema import Config

KWARGS = "reward_model.reward_kwargs"
BUFFER = f"{KWARGS}.overlong_buffer_cfg"


def overlong_penalty(config: Config, given: Given) -> Iterator[Issue]:
    reward, data = config.reward_model, config.data
    buffer, longest = reward.reward_kwargs.overlong_buffer_cfg, reward.reward_kwargs.max_resp_len
    numbers = (f"{BUFFER}.len", f"{BUFFER}.penalty_factor", f"{KWARGS}.max_resp_len")
    if reward.reward_manager != "dapo":
        yield from inert("only reward_model.reward_manager=dapo takes arguments", f"{BUFFER}.enable", *numbers)
    elif not buffer.enable:
        yield from inert(f"{BUFFER}.enable is off", *numbers)
    elif buffer.len is None:
        yield error(f"{BUFFER}.len", "must be given: the tokens over which the penalty grows", f"{BUFFER}.enable")
    elif buffer.len > longest:
        yield error(f"{BUFFER}.len", f"is larger than {KWARGS}.max_resp_len = {longest}", f"{KWARGS}.max_resp_len")
    elif longest < data.max_response_length:
        reason = (
            f"answers between it and data.max_response_length = {data.max_response_length} lose more than the factor"
        )
        yield warning(f"{KWARGS}.max_resp_len", reason)
    elif longest - buffer.len >= data.max_response_length:
        reason = (
            f"no answer of at most data.max_response_length = {data.max_response_length} tokens reaches the penalty"
        )
        yield warning(f"{KWARGS}.max_resp_len", reason)


def extra_rewards(config: Config, given: Given) -> Iterator[Issue]:
    reward, path = config.reward_model, "reward_model.extra_rewards"
    labels = Counter(extra.label or extra.name for extra in reward.extra_rewards)
    if repeated := [label for label, count in labels.items() if count > 1]:
        yield error(path, f"has several rewards called {', '.join(repeated)}; give each a label of its own")
    if reserved := labels.keys() & {"main", "overlong_penalty"}:
        yield error(
            path, f"calls a reward {', '.join(sorted(reserved))}, which means another one; give it another label"
        )


def filter_metric(config: Config, given: Given) -> Iterator[Issue]:
    groups = config.algorithm.filter_groups
    if groups.enable and groups.metric == "acc" and FILTER_METRIC not in given:
        reason = (
            "is acc, because reward_manager=dapo makes rewards differ by length alone: with seq_reward groups "
            "without a "
            "right answer would be kept. Give it to choose"
        )
        yield warning(FILTER_METRIC, reason)


RULES = (overlong_penalty, extra_rewards, filter_metric)
"""In the order in which they are reported."""
