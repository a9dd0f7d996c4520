"""Settings and functions of rewards -> the graders of a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from gmpo.config import Config
from gmpo.data.problems import Problem
from gmpo.errors import ConfigError
from gmpo.rewards.agreement import check_agreement
from gmpo.rewards.combined import MAIN, Component, Rewards
from gmpo.rewards.grader import Grader, GraderSpec
from gmpo.rewards.portable import FunctionFile
from gmpo.rewards.references import PlacedReference, check_references
from gmpo.rewards.scorers import Scoring
from gmpo.rewards.shaping import OverlongPenalty

RewardFunction = Callable[..., Any]


def build_rewards(
    config: Config, functions: Sequence[RewardFunction], weights: Sequence[float] | None, problems: Iterable[Problem]
) -> Rewards:
    """The rewards of a run: `functions` if given, else `custom_reward_function`, else the scorer of each data source;
    and what `reward_model` adds.

    Raises:
        ConfigError, DataError: wrong weights, a data source without a scorer; before anything is sampled.
    """
    custom, reward = config.custom_reward_function, config.reward_model
    weight_of = factors(functions, weights)
    grader = partial(
        _grader,
        workers=reward.grader_workers or min(16, os.cpu_count() or 1),
        timeout_s=reward.grader_timeout_s,
        memory_mb=reward.grader_memory_mb,
    )
    if functions:
        main = Component(MAIN, reward.weight * weight_of[0], grader(functions[0], custom.reward_kwargs))
    elif custom.path is not None:
        main = Component(MAIN, reward.weight, grader(FunctionFile(custom.path, custom.name), custom.reward_kwargs))
    else:
        asked = [(p.data_source, p.prompt[-1]["content"]) for p in problems]
        sources = sorted({source for source, _ in asked})
        scoring = _scoring(config, sources)
        any_number = reward.answer_rule in ("flexible", "flexible_no_commas")
        by_rule = frozenset(s for s in sources if "method" in scoring.scorer_for(s).options)
        check_agreement(asked, lenient=by_rule if any_number else frozenset(), scoring=scoring)
        options = {} if reward.answer_rule is None else {source: {"method": reward.answer_rule} for source in by_rule}
        main = Component(MAIN, reward.weight, grader(None, {}, options=options, scoring=scoring))
    extra = [
        Component(_name_of(function, number), factor, grader(function, {}))
        for number, (function, factor) in enumerate(zip(functions[1:], weight_of[1:], strict=True), start=2)
    ]
    extra += [
        Component(e.label or e.name, e.weight, grader(FunctionFile(e.path, e.name), e.reward_kwargs))
        for e in reward.extra_rewards
    ]
    return Rewards(main, extra, penalty=_overlong_penalty(config), max_failed_share=reward.max_failed_share)


def factors(functions: Sequence[RewardFunction], weights: Sequence[float] | None) -> list[float]:
    """The weight of each function: 1 where none are given.

    Raises:
        ConfigError: there are not as many weights as functions.
    """
    if weights is not None and len(weights) != len(functions):
        raise ConfigError(f"{len(weights)} reward_weights are given for {len(functions)} reward functions")
    return [1.0] * len(functions) if weights is None else [float(weight) for weight in weights]


def _scoring(config: Config, sources: Sequence[str]) -> Scoring:
    """How the scorers of these data sources are chosen.

    Raises ConfigError, DataError for a scorer that does not exist, a source without one, a setting without effect.
    """
    reward = config.reward_model
    scoring = Scoring(reward.scorer, reward.scorers, reward.thinking, reward.thinking_tags, reward.require)
    scoring.check()
    if unused := sorted(set(reward.scorers) - set(sources)):
        raise ConfigError(
            f"reward_model.scorers names {', '.join(unused)}, and no problem is from there. The data sources of this "
            f"run: {', '.join(sources)}."
        )
    if scoring.require is not None and not any("require" in scoring.scorer_for(s).options for s in sources):
        raise ConfigError(
            f"reward_model.require={scoring.require} has no effect: it is for the scorer math_verify, which grades "
            f"none of {', '.join(sources)}. Leave it out, or set reward_model.scorer=math_verify."
        )
    for source in sources:
        scoring.scorer_for(source)
    return scoring


def check_run_references(config: Config, rewards: Rewards, problems: Iterable[Problem]) -> str | None:
    """What to say about references that cannot be met, once the graders have started; None where there are none.

    Raises DataError when there are more than `reward_model.max_unmet_references` allows.
    """
    placed = [PlacedReference(p.id, p.data_source, p.ground_truth) for p in problems]
    return check_references(rewards.main.grader, placed, config.reward_model.max_unmet_references)


def hidden_thinking(config: Config, rewards: Rewards, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What to say where scorers are to leave thinking out and its tags never reach them; None where they do.

    Raises ConfigError where `reward_model.thinking` asks for it by name.
    """
    scoring = rewards.main.grader.scoring
    if scoring is None or scoring.thinking == "ignore" or not config.reward_model.skip_special_tokens:
        return None
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special = added | set(tokenizer.all_special_tokens)
    hidden = [tag for tag in scoring.thinking_tags if any(token and token in tag for token in special)]
    if not hidden:
        return None
    line = (
        f"{' and '.join(hidden)}: special tokens of the tokenizer, which are left out of the text that is graded, so "
        "that scorers take thinking for the answer. Set reward_model.skip_special_tokens=False to keep them, or "
        "reward_model.thinking=ignore to grade the thinking too, as verl does."
    )
    if scoring.thinking is not None:
        raise ConfigError(f"reward_model.thinking={scoring.thinking} has no effect. {line}")
    return f"warning: {line}"


def _grader(
    function: RewardFunction | FunctionFile | None,
    kwargs: Mapping[str, Any],
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    scoring: Scoring | None = None,
    **bounds: Any,
) -> Grader:
    spec = GraderSpec(function=function, kwargs=kwargs, options=options or {}, scoring=scoring or Scoring(), **bounds)
    return Grader(spec)


def _name_of(function: RewardFunction, number: int) -> str:
    """How a function's reward is called in the metrics."""
    return f"{getattr(function, '__name__', 'reward').strip('<>')}_{number}"


def _overlong_penalty(config: Config) -> OverlongPenalty | None:
    reward = config.reward_model
    buffer = reward.reward_kwargs.overlong_buffer_cfg
    if reward.reward_manager != "dapo" or not buffer.enable:
        return None
    assert buffer.len is not None, "a rule asks for it"
    return OverlongPenalty(reward.reward_kwargs.max_resp_len, buffer.len, buffer.penalty_factor)
