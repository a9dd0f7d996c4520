"""Problems -> token ids of their prompts, through the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from string import ascii_letters
from typing import Any, Literal, Protocol

from gmpo.data.problems import Problem
from gmpo.errors import ConfigError, DataError

CLOCK = "strftime_now"
"""The function by which a chat template writes the time."""
Truncation = Literal["error", "left", "right", "middle"]


class ChatTokenizer(Protocol):
    """The part of a `transformers` tokenizer that is used here; importing its type would import torch."""

    @property
    def chat_template(self) -> Any:
        """The Jinja template, or several by name; None when the model has none."""

    @property
    def apply_chat_template(self) -> Callable[..., Any]:
        """Messages and keyword arguments -> ids."""

    @property
    def get_chat_template(self) -> Callable[..., str]:
        """Template or its name, and tools -> the template that `apply_chat_template` takes."""


@dataclass(frozen=True, slots=True)
class EncodedProblem:
    """A problem with its prompt as the policy reads it."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    """[P] ids of the templated prompt, including the opening of the assistant's turn."""


@dataclass(frozen=True, slots=True)
class EncodedProblems:
    """The problems that fit the prompt limit, and how many did not."""

    items: tuple[EncodedProblem, ...]
    """In the order of the data set."""
    dropped: int
    """Problems left out because their prompt is longer than allowed."""
    truncated: int
    """Problems whose prompt was cut to the limit."""


def writes_the_time(tokenizer: ChatTokenizer) -> bool:
    """Whether what the chat template renders depends on the clock. Of several templates, whether any does."""
    return CLOCK in str(tokenizer.chat_template)


def encode_prompts(
    problems: Sequence[Problem],
    tokenizer: ChatTokenizer,
    *,
    max_prompt_length: int,
    truncation: Truncation = "error",
    filter_overlong: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    moment: datetime | None = None,
    template_key: str = "actor_rollout_ref.model.custom_chat_template",
) -> EncodedProblems:
    """Template and tokenize every prompt and apply the length limit of `max_prompt_length` tokens.

    `moment` is what a template's `strftime_now` writes; None leaves it the clock. `template_key` is the setting that
    takes another template, for messages.

    A longer prompt is dropped with `filter_overlong`; else `truncation` decides: `left` and `right` cut that end off,
    `middle` keeps both ends, `error` refuses the data set.
    Raises: DataError for a tokenizer without chat template, a row that the template refuses, a prompt that is too long
    under `error`, and when no problem is left; ConfigError for arguments out of range.
    """
    _check_arguments(max_prompt_length, truncation, chat_template_kwargs or {})
    if not tokenizer.chat_template:
        raise DataError(
            f"the tokenizer has no chat template, so messages cannot become a prompt: set {template_key} to a Jinja "
            "template, or take an instruction-tuned model"
        )
    kwargs = chat_template_kwargs or {}
    if moment is not None:
        kwargs = _with_moment(tokenizer, kwargs, moment)
    encoded = [EncodedProblem(p, _prompt_ids(p, tokenizer, kwargs, template_key)) for p in problems]
    overlong = [item for item in encoded if len(item.prompt_ids) > max_prompt_length]
    if filter_overlong:
        kept = [item for item in encoded if len(item.prompt_ids) <= max_prompt_length]
    elif overlong and truncation == "error":
        raise DataError(_overlong_message(overlong, len(encoded), max_prompt_length))
    else:
        kept = [_cut(item, max_prompt_length, truncation) for item in encoded]
    if not kept:
        raise DataError(_nothing_left_message(overlong, max_prompt_length))
    dropped, truncated = (len(overlong), 0) if filter_overlong else (0, len(overlong))
    return EncodedProblems(tuple(kept), dropped, truncated)


def _keep_both_ends(ids: tuple[int, ...], limit: int) -> tuple[int, ...]:
    head = limit // 2
    return ids[:head] + ids[len(ids) - (limit - head) :]


TRUNCATIONS: Mapping[str, Callable[[tuple[int, ...], int], tuple[int, ...]]] = {
    "left": lambda ids, limit: ids[-limit:],
    "right": lambda ids, limit: ids[:limit],
    "middle": _keep_both_ends,
}
"""Name -> what remains of ids that are longer than a limit of at least 1. An odd middle keeps one more at the end."""

_RESERVED = frozenset(
    {"tokenize", "add_generation_prompt", "return_dict", "return_tensors", "padding", "truncation", "max_length"}
)
"""Arguments of `apply_chat_template` that gmpo sets itself."""

_WRITTEN = "written_by_strftime"
_MACRO = f"""\
{{% macro {CLOCK}(format) %}}{{% set read = namespace(code='') %}}{{% for c in format %}}\
{{% if read.code %}}{{% set read.code = read.code + c %}}\
{{% if read.code in {_WRITTEN} %}}{{{{ {_WRITTEN}[read.code] }}}}{{% set read.code = '' %}}{{% endif %}}\
{{% elif c == '%' %}}{{% set read.code = c %}}{{% else %}}{{{{ c }}}}{{% endif %}}{{% endfor %}}{{{{ read.code }}}}\
{{% endmacro %}}
"""
"""The newline at its end is the macro's own (`trim_blocks`): the template's first line begins a line."""


def _check_arguments(max_prompt_length: int, truncation: str, chat_template_kwargs: Mapping[str, Any]) -> None:
    if max_prompt_length < 1:
        raise ConfigError(f"data.max_prompt_length={max_prompt_length}: a prompt needs at least 1 token")
    known = ("error", *TRUNCATIONS)
    if truncation not in known:
        raise ConfigError(f"data.truncation={truncation!r}: must be one of {', '.join(known)}")
    reserved = sorted(_RESERVED.intersection(chat_template_kwargs))
    if reserved:
        raise ConfigError(
            f"data.apply_chat_template_kwargs sets {', '.join(reserved)}, which gmpo decides itself: remove it. "
            "Use data.max_prompt_length and data.truncation for lengths."
        )


def _prompt_ids(
    problem: Problem, tokenizer: ChatTokenizer, kwargs: Mapping[str, Any], template_key: str
) -> tuple[int, ...]:
    messages = [dict(message) for message in problem.prompt]
    try:
        ids = tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=False, **kwargs
        )
    except Exception as error:  # a template is a program of the model's author and may raise anything
        roles = ", ".join(message["role"] for message in messages)
        if "UNK" in str(error):
            raise DataError(
                f"{problem.id}: the tokenizer has no token for a word of this prompt, and none for unknown words "
                f"({error}). It was made for other texts: write the prompt in its words, or take another model."
            ) from error
        raise DataError(
            f"{problem.id}: the chat template fails on this prompt (roles: {roles}): {error}. Change the row, or "
            f"give a template that takes it in {template_key}."
        ) from error
    if not ids:
        raise DataError(f"{problem.id}: the chat template renders this row as an empty prompt")
    return tuple(ids)


def _with_moment(tokenizer: ChatTokenizer, kwargs: Mapping[str, Any], moment: datetime) -> dict[str, Any]:
    """Arguments under which `strftime_now` writes the moment. A template is given data, no functions, so the function
    is a macro before the template, and what each of its codes stands for is data."""
    codes = [f"%{flag}{letter}" for flag in ("", *"-_0^#") for letter in ascii_letters] + ["%%"]
    template = tokenizer.get_chat_template(kwargs.get("chat_template"), kwargs.get("tools"))
    return {**kwargs, "chat_template": _MACRO + template, _WRITTEN: {code: moment.strftime(code) for code in codes}}


def _cut(item: EncodedProblem, limit: int, truncation: str) -> EncodedProblem:
    if len(item.prompt_ids) <= limit:
        return item
    return replace(item, prompt_ids=TRUNCATIONS[truncation](item.prompt_ids, limit))


def _overlong_message(overlong: Sequence[EncodedProblem], total: int, limit: int) -> str:
    first, longest = overlong[0], max(len(item.prompt_ids) for item in overlong)
    return (
        f"{first.problem.id}: the prompt has {len(first.prompt_ids)} tokens, more than data.max_prompt_length={limit}; "
        f"{len(overlong)} of {total} prompts are longer, the longest has {longest}. Drop them with "
        f"data.filter_overlong_prompts=True, cut them with data.truncation=left (right, middle), or raise "
        f"data.max_prompt_length to {longest}."
    )


def _nothing_left_message(overlong: Sequence[EncodedProblem], limit: int) -> str:
    if not overlong:
        return "the data set is empty: there is no prompt to encode"
    shortest = min(len(item.prompt_ids) for item in overlong)
    return (
        f"data.filter_overlong_prompts leaves nothing: all {len(overlong)} prompts are longer than "
        f"data.max_prompt_length={limit} tokens, the shortest has {shortest}. Raise data.max_prompt_length."
    )
