"""`reward_model.*` and `custom_reward_function.*`: how answers become rewards."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from gmpo.config.fields import Name, Place, Section, setting


class OverlongBuffer(Section):
    """DAPO's soft punishment of long answers (arXiv 2503.14476, section 3.4)."""

    enable: bool = setting(False, "Subtract a penalty that grows over the last len tokens before max_resp_len.")
    len: int | None = setting(None, "Tokens over which the penalty grows from 0 to penalty_factor.", ge=1)
    penalty_factor: float = setting(1.0, "Penalty of an answer of max_resp_len tokens.", ge=0)
    log: bool = setting(
        False, "Report the penalty.", inert="it is always reported, as reward_parts/overlong_penalty/mean"
    )


class RewardKwargs(Section):
    """Arguments of the reward manager."""

    overlong_buffer_cfg: OverlongBuffer = Field(default_factory=OverlongBuffer)
    max_resp_len: int = setting(
        None, "Length at which the penalty is full, in tokens.", follows="data.max_response_length", ge=1
    )


class ExtraReward(Section):
    """A reward beside the main one."""

    path: Place = setting(..., "Python file with the function.")
    name: Name = setting("compute_score", "Name of the function, with verl's or TRL's signature.")
    label: Name | None = setting(None, "Its name in the metrics. null takes the function's.")
    weight: float = setting(1.0, "Factor of its score in the reward.")
    reward_kwargs: dict[str, Any] = setting({}, "Further keyword arguments of the function.")


class RewardModel(Section):
    """Rule-based rewards and the worker processes that compute them."""

    reward_manager: Literal["naive", "dapo", "gdpo"] = setting(
        "naive",
        "naive: the scorer's number is the reward. dapo: less a penalty for long answers, see "
        "reward_kwargs.overlong_buffer_cfg. gdpo: as naive; its name for adv_estimator=gdpo in verl.",
    )
    reward_kwargs: RewardKwargs = Field(default_factory=RewardKwargs)
    weight: float = setting(1.0, "Factor of the main score, where extra_rewards are added to it.", own=True)
    extra_rewards: tuple[ExtraReward, ...] = setting(
        (),
        "Further rewards, added with their weights: a list of {path: FILE, name: FUNCTION, weight: 0.1, label: NAME, "
        "reward_kwargs: {..}}. Right or wrong is what the main reward says.",
        own=True,
    )
    grader_workers: int | None = setting(
        None,
        "Grading processes. null takes the number of CPU cores, at most 16.",
        own=True,
        ge=1,
        role="execution",
        exact=True,
    )
    grader_timeout_s: float = setting(
        5.0,
        "Seconds of the processor that one grading may take; then its worker is replaced, and the verdict is timeout. "
        "By the clock it may take four times as long, and the verdict is then grader_error.",
        own=True,
        gt=0,
    )
    grader_memory_mb: int = setting(512, "Memory in MiB that one grading process may take.", own=True, ge=64)
    max_failed_share: float = setting(
        0.1,
        "The run stops when a larger share of a step's gradings ends in timeout or grader_error. Answers that a scorer "
        "refuses because they are too large to compute do not count.",
        own=True,
        ge=0,
        le=1,
        role="bookkeeping",
    )
    skip_special_tokens: bool = setting(
        True,
        "Leave special tokens out of the text that is graded, as verl does. False keeps them: for a tokenizer whose "
        "thinking or tool tags are special. The token that ends an answer is never part of its text.",
        own=True,
    )
    max_unmet_references: float = setting(
        0.05,
        "Each reference answer is graded against itself at the start. Those that fail are listed, and the run stops "
        "when a larger share of the rows has one.",
        own=True,
        ge=0,
        le=1,
    )
    scorer: Name | None = setting(
        None,
        "Scorer of all data sources: gsm8k, math, math_dapo, aime, math_verify, countdown or stories. null chooses it "
        "by the data source.",
        own=True,
    )
    scorers: dict[str, str] = setting(
        {}, "Scorer of single data sources, {SOURCE: NAME}. Goes before scorer.", own=True
    )
    thinking: Literal["strip", "require", "ignore"] | None = setting(
        None,
        "What scorers make of a thinking part. strip: what stands between the tags is no answer, and thinking that "
        "does not end has none. require: so, and an answer without finished thinking is unparsed. ignore: tags mean "
        "nothing, as in verl. null leaves it to the scorer (strip for all of them).",
        own=True,
    )
    thinking_tags: tuple[str, str] = setting(
        ("<think>", "</think>"), "What begins and what ends a thinking part.", own=True
    )
    require: Literal["boxed", "phrase", "any"] | None = setting(
        None,
        "Where the scorer math_verify finds the answer. boxed: in a box. phrase: also in <answer> tags, behind #### or "
        "'the answer is', or as a final count in bold. any: also as a last formula or as the whole of a short text. "
        "null is any.",
        own=True,
    )
    answer_rule: Literal["strict", "flexible", "flexible_no_commas"] | None = setting(
        None,
        "How the answer is found in a GSM8K solution: strict wants '#### 42', flexible the last number, "
        "flexible_no_commas too and ignores commas in it. "
        "null leaves it to the scorer (strict, as in verl).",
        own=True,
    )


class CustomRewardFunction(Section):
    """A reward function of the user's own, run in the same bounded workers."""

    path: Place | None = setting(
        None, "Python file with the function. null uses the scorer of the data source.", role="execution", exact=True
    )
    name: Name = setting("compute_score", "Name of the function, with verl's or TRL's signature.")
    reward_kwargs: dict[str, Any] = setting({}, "Further keyword arguments of the function.")
