"""Rows that carry an answer -> prompts and answers for supervised learning."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from gmpo.data.files import find_files, read_rows
from gmpo.data.problems import Problem, prompt_messages
from gmpo.data.prompts import ChatTokenizer, EncodedProblems, encode_prompts
from gmpo.errors import DataError


@dataclass(frozen=True, slots=True)
class EncodedDemonstration:
    """A prompt and the answer to imitate, the end token included."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


def load_demonstrations(
    files: Sequence[str | Path], *, prompt_key: str, response_key: str, limit: int = -1
) -> list[Problem]:
    """Problems whose `ground_truth` is the answer to imitate.

    Args:
        prompt_key, response_key: columns; dots descend into nested ones (`extra_info.answer`).
        limit: number of rows to read; -1 all.

    Raises: DataError for a missing or empty file, a missing column, an answer that is not a string.
    """
    located = ((path, n, row) for path in find_files(files) for n, row in read_rows(path))
    chosen = islice(located, limit if limit >= 0 else None)
    found = [
        _demonstration(row, f"{path.name}:{n}", f"{path}, row {n}", prompt_key, response_key) for path, n, row in chosen
    ]
    if not found:
        raise DataError(f"no demonstrations in {', '.join(map(str, files))}")
    return found


def demonstrations_from_rows(rows: Iterable[Mapping[str, Any]], *, prompt_key: str, response_key: str) -> list[Problem]:
    """The same for rows given in Python."""
    found = [
        _demonstration(row, f"rows:{n}", f"rows, row {n}", prompt_key, response_key)
        for n, row in enumerate(rows, start=1)
    ]
    if not found:
        raise DataError("rows holds no demonstrations")
    return found


def _demonstration(row: Mapping[str, Any], id_: str, place: str, prompt_key: str, response_key: str) -> Problem:
    answer = _at(row, response_key, place)
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(f"{place}: `{response_key}` must be a string to imitate, found {answer!r}")
    prompt = prompt_messages(_at(row, prompt_key, place), f"{place}: `{prompt_key}`")
    return Problem(id=id_, prompt=prompt, data_source="demonstration", ground_truth=answer)


def _at(row: Mapping[str, Any], key: str, place: str) -> Any:
    value: Any = row
    for depth, name in enumerate(parts := key.split(".")):
        if not isinstance(value, Mapping) or name not in value:
            present = ", ".join(map(str, value)) if isinstance(value, Mapping) else f"a {type(value).__name__}"
            where = ".".join(parts[:depth]) or "the row"
            raise DataError(f"{place}: there is no `{key}`; {where} holds {present}")
        value = value[name]
    return value


def rendered(problems: Sequence[Problem], tokenizer: ChatTokenizer, moment: datetime | None) -> EncodedProblems:
    """The prompts through the chat template. Prompt and answer have one limit between them, so a prompt has none."""
    key = "model.custom_chat_template"
    return encode_prompts(problems, tokenizer, max_prompt_length=sys.maxsize, moment=moment, template_key=key)


def encode_demonstrations(
    problems: Sequence[Problem],
    tokenizer: ChatTokenizer,
    encode_answer: Callable[[str], Sequence[int]],
    *,
    end_id: int,
    max_length: int,
    truncation: str,
    moment: datetime | None = None,
) -> list[EncodedDemonstration]:
    """Prompts through the chat template, answers as plain text followed by the end token.

    Args:
        encode_answer: string -> ids without special tokens.
        max_length: most tokens of prompt and answer together.
        truncation: `error` refuses a longer row; `right` cuts the end of the answer off (end token included), `left`
            the beginning of the prompt.
        moment: as of `encode_prompts`.

    Raises: DataError as `encode_prompts` does, and for a row beyond `max_length` under `error`, or whose prompt leaves
        no room for an answer.
    """
    prompts = rendered(problems, tokenizer, moment).items
    encoded = []
    for item in prompts:
        prompt, answer = item.prompt_ids, (*_answer_ids(item.problem, encode_answer), end_id)
        excess = len(prompt) + len(answer) - max_length
        if excess > 0:
            prompt, answer = _shortened(item.problem.id, prompt, answer, excess, max_length, truncation)
        encoded.append(EncodedDemonstration(prompt, answer))
    return encoded


def _answer_ids(problem: Problem, encode_answer: Callable[[str], Sequence[int]]) -> Sequence[int]:
    try:
        return encode_answer(problem.ground_truth)
    except Exception as error:  # a tokenizer without an entry for unknown words raises a plain Exception
        raise DataError(
            f"{problem.id}: the tokenizer cannot read the answer {problem.ground_truth!r}: {error}. Change the row, or "
            "take a model whose tokenizer reads any text."
        ) from error


def _shortened(
    id_: str, prompt: tuple[int, ...], answer: tuple[int, ...], excess: int, max_length: int, truncation: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if truncation == "right" and excess < len(answer):
        return prompt, answer[:-excess]
    if truncation == "left" and excess < len(prompt):
        return prompt[excess:], answer
    raise DataError(
        f"{id_}: prompt {len(prompt)} + answer {len(answer)} tokens exceed data.max_length={max_length}. Raise it, "
        "leave the row out, or cut with data.truncation=right (end of the answer) or left (beginning of the prompt)."
    )
