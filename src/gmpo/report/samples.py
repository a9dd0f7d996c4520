"""Answers as a report holds them: columns to filter by, and blocks of texts and of tokens, opened when needed.

A report has a size that it must not pass. Columns come first, then texts, then tokens: one problem of every step, the
next of every step, and so on, over steps that lie evenly over the run; what does not fit is counted.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gmpo.report.tokens import TokenTexts, token_record

VERDICTS = ("correct", "wrong", "unparsed", "timeout", "grader_error")
BLOCK = 400_000
"""Characters of texts in a block: more than the window of gzip, so that larger blocks would not be smaller together."""
SHARE_OF_TEXTS = 0.62
"""Of the room for answers; tokens get the rest."""
LONGEST_TEXT = 20_000
"""Characters of an answer that are kept: its first and last half."""
Answer = Mapping[str, Any]


@dataclass(slots=True)
class Samples:
    """The answers of a run, packed."""

    columns: dict[str, list[Any]] = field(default_factory=dict)
    """One entry an answer: step, kind (0 training, 1 validation), group, answer, verdict, reward, tokens, cut, text
    block, place in it, token block, place in it; blocks are -1 where they were left out."""
    problems: list[dict[str, Any]] = field(default_factory=list)
    """Prompt, reference and source by group number."""
    texts: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    """Answers without text, and answers whose recorded tokens are not here."""


def packed(value: Any) -> str:
    """JSON, gzip, base64. The same value gives the same text."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), 6, mtime=0)).decode()


def spread(steps: Sequence[int]) -> list[int]:
    """The steps in an order of which every beginning lies about evenly over them; the first and the last lead.

    Example: `spread([1, 2, 3, 4, 5]) == [1, 5, 3, 2, 4]`.
    """
    if len(steps) < 3:
        return list(steps)
    order, width = [0, len(steps) - 1], len(steps) - 1
    seen = set(order)
    parts = 2
    while len(order) < len(steps):
        for k in range(1, parts, 1):
            place = round(k * width / parts)
            if place not in seen:
                seen.add(place)
                order.append(place)
        parts *= 2
    return [steps[place] for place in order]


def gather(
    training: Iterable[tuple[int, Sequence[Answer]]],
    validation: Iterable[tuple[int, Sequence[Answer]]],
    *,
    room: int,
    texts_of: TokenTexts,
    loss: str,
    bounds: tuple[float, float] | None,
) -> Samples:
    """Pack the answers of a run into at most about `room` characters, whatever columns need included.

    Args:
        texts_of: token ids -> their texts.
        loss: `loss_mode` of the run, for the weight of each token.
        bounds: of log-ratios, below and above; None where the loss has none.
    """
    kept = Samples(columns={name: [] for name in COLUMNS})
    rows = [
        (step, kind, row)
        for kind, source in enumerate((training, validation))
        for step, answers in source
        for row in answers
    ]
    _index(kept, rows)
    room -= len(packed([kept.columns, kept.problems]))
    with_tokens = [n for n, (_, _, row) in enumerate(rows) if row.get("updates") and row.get("response_ids")]
    marked = set(with_tokens)
    order = _in_turn(kept.columns["step"], kept.columns["group"], marked)
    text_room = room if not with_tokens else int(room * SHARE_OF_TEXTS)
    used = _fill(kept.texts, kept.columns["text"], kept.columns["at"], _texts(rows, order), text_room)
    records = (
        (n, token_record(rows[n][2], texts_of, loss, bounds))
        for n in order
        if n in marked and kept.columns["text"][n] >= 0
    )
    used += _fill(kept.tokens, kept.columns["token"], kept.columns["tat"], records, room - used)
    rest = [n for n in order if kept.columns["text"][n] < 0]
    _fill(kept.texts, kept.columns["text"], kept.columns["at"], _texts(rows, rest), room - used)
    kept.left_out = {
        "answers": len(rows),
        "texts": sum(block < 0 for block in kept.columns["text"]),
        "tokens": sum(kept.columns["token"][n] < 0 for n in with_tokens),
    }
    return kept


def _in_turn(steps: Sequence[int], groups: Sequence[int], first: set[int]) -> list[int]:
    """The answers by number: a problem of every step, one with token records if any has, then a second of every, .."""
    by_step: dict[int, dict[int, list[int]]] = {}
    for number, (step, group) in enumerate(zip(steps, groups, strict=True)):
        by_step.setdefault(step, {}).setdefault(group, []).append(number)
    ordered = {
        step: sorted(found.values(), key=lambda members: members[0] not in first) for step, found in by_step.items()
    }
    spaced = spread(sorted(ordered))
    most = max(map(len, ordered.values()), default=0)
    return [n for turn in range(most) for step in spaced if turn < len(ordered[step]) for n in ordered[step][turn]]


def _texts(rows: Sequence[tuple[int, int, Answer]], order: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    return ((number, _text(rows[number][2])) for number in order)


COLUMNS = ("step", "kind", "group", "answer", "verdict", "reward", "tokens", "cut", "text", "at", "token", "tat")


def _index(kept: Samples, rows: Sequence[tuple[int, int, Answer]]) -> None:
    groups: dict[tuple[Any, ...], int] = {}
    columns = kept.columns
    for step, kind, row in rows:
        key = (step, kind, row.get("problem"))
        if key not in groups:
            groups[key] = len(groups)
            kept.problems.append({"id": str(row.get("problem", "")), "source": str(row.get("data_source", ""))})
        verdict = row.get("verdict")
        columns["step"].append(step)
        columns["kind"].append(kind)
        columns["group"].append(groups[key])
        columns["answer"].append(int(row.get("answer") or 0))
        columns["verdict"].append(VERDICTS.index(verdict) if verdict in VERDICTS else -1)
        columns["reward"].append(_number(row.get("reward", row.get("score"))))
        columns["tokens"].append(int(row.get("tokens") or 0))
        columns["cut"].append(int(row.get("finish_reason") == "length"))
        for name in ("text", "at", "token", "tat"):
            columns[name].append(-1)


def _number(value: Any) -> float | None:
    if isinstance(value, int | float) and np.isfinite(value):
        return round(float(value), 4)
    return None


def _text(row: Answer) -> dict[str, Any]:
    """What a person reads of an answer."""
    found = {
        "p": _prompt(row.get("input")),
        "o": _short(row["output"]),
        "g": str(row.get("gts", "")),
        "a": row.get("pred"),
        "r": row.get("reason"),
        "s": _number(row.get("score")),
        "q": row.get("reward_parts"),
    }
    return {key: value for key, value in found.items() if value not in (None, "")}


def _prompt(value: Any) -> str:
    if isinstance(value, list):
        return _short("\n".join(str(m.get("content", "")) for m in value if isinstance(m, dict)))
    return _short(str(value or ""))


def _short(text: str) -> str:
    half = LONGEST_TEXT // 2
    return text if len(text) <= LONGEST_TEXT else f"{text[:half]}\n[... {len(text) - LONGEST_TEXT} ...]\n{text[-half:]}"


def _fill(
    blocks: list[str], block_of: list[int], place_of: list[int], values: Iterator[tuple[int, Any]], room: int
) -> int:
    """Pack values into blocks until the room is used; returns the characters used."""
    used, size = 0, 0
    waiting: list[tuple[int, Any]] = []

    def close() -> bool:
        nonlocal used, size
        block = packed([value for _, value in waiting])
        fits = used + len(block) <= room
        while used + len(block) > room and len(waiting) > 1:  # the last block: what of it fits
            del waiting[len(waiting) // 2 :]
            block = packed([value for _, value in waiting])
        if used + len(block) <= room:
            for place, (number, _) in enumerate(waiting):
                block_of[number], place_of[number] = len(blocks), place
            blocks.append(block)
            used += len(block)
        waiting.clear()
        size = 0
        return fits

    # Small blocks near the end of the room, so that little of it is left.
    for number, value in values:
        waiting.append((number, value))
        size += len(json.dumps(value, ensure_ascii=False))
        if size >= min(BLOCK, max(20_000, (room - used) // 2)) and not close():
            return used
    if waiting:
        close()
    return used
