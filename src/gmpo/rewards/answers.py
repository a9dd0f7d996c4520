"""Extract the answer from a response. Pure string functions: each returns the answer, or None when there is none.

The conventions are those of verl's scorers (`verl/utils/reward_score`), so that a score means the same in both.
Only ASCII digits count as digits, and every function takes time linear in the length of the response.
"""

from __future__ import annotations

import re

TAIL_CHARS = 300
"""The GSM8K and DAPO conventions look at this many characters at the end of a response only, as verl does."""

_HASH_NUMBER = re.compile(r"#### (-?[0-9.,]+)")
_NUMBER_LIKE = re.compile(r"-?[0-9.,]+")
_NUMBER = re.compile(r"-?[.,]?[0-9][0-9.,]*")
_ANSWER_LINE = re.compile(r"answer\s*:\s*([^\n]+)", re.IGNORECASE)
_STORY_ANSWER = re.compile(r"[0-9]+(?: +[0-9]+)*")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_BETWEEN = re.compile(r"(?:[\s,;$&]|\\[()\[\],; ]|\\q?quad|\\text\{ *and *\}|and\b){0,30}")
_TAG = re.compile(r"</?answer>")
_BRACE = re.compile(r"[{}]")


def hash_number(text: str) -> str | None:
    """The number after the last `#### `, commas removed: GSM8K's strict convention.

    A full stop that touches the number stays in it, as in verl: `"#### 42."` gives `"42."`.
    """
    found = _HASH_NUMBER.findall(text[-TAIL_CHARS:])
    return found[-1].replace(",", "") if found else None


def last_number_as_written(text: str) -> str | None:
    """The last run of digits, commas and full stops that is not a lone full stop: verl's flexible GSM8K convention.

    Commas stay, so `"6,250"` is not `"6250"`, and a comma that stands alone counts as a number; `last_number` does
    neither.
    """
    found = [run for run in _NUMBER_LIKE.findall(text[-TAIL_CHARS:]) if run != "."]
    return found[-1] if found else None


def last_number(text: str) -> str | None:
    """The last number, commas and a full stop at its end removed: `"so 1,250."` gives `"1250"`."""
    found = _NUMBER.findall(text[-TAIL_CHARS:])
    return found[-1].replace(",", "").rstrip(".") if found else None


def last_boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}`, `\fbox{...}` or `\boxed x` holds; None also when its brace is never closed.

    The form without a brace ends at the next `$` or at the end of the line.
    """
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    start = boxes[-1].end()
    if text[start : start + 1] == " ":
        bare = text[start:].lstrip(" ")
        if not bare.startswith("{"):
            return re.split(r"[$\n]", bare, maxsplit=1)[0].strip() or None
        start = len(text) - len(bare)
    return _inside_braces(text, start)


def box_at(text: str, start: int, limit: int | None = None) -> tuple[str, int] | None:
    r"""What the box holds whose `\boxed` ends at `start`, and where it ends; None for one without content or end."""
    if text[start : start + 1] == " ":
        bare = text[start:].lstrip(" ")
        if not bare.startswith("{"):
            word = re.match(r"[^$\n.,]+", bare)
            if word is None or len(word.group().split()) > 1:
                return None
            return word.group().strip(), len(text) - len(bare) + word.end()
        start = len(text) - len(bare)
    inside = _inside_braces(text, start, None if limit is None else start + limit)
    return None if inside is None else (inside, start + len(inside) + 2)


def all_boxed(text: str) -> str | None:
    r"""What the last box holds; several boxes that nothing but `,`, `and`, `$` separates are one list. None without."""
    found: list[str] = []
    before: int | None = None
    for box in reversed(list(_BOX.finditer(text))[-50:]):
        inside = box_at(text, box.end())
        if inside is None:
            continue
        content, end = inside
        if before is not None and not _BETWEEN.fullmatch(text[end:before]):
            break
        found.append(content)
        before = box.start()
    return ", ".join(reversed(found)) if found else None


def _inside_braces(text: str, start: int, end: int | None = None) -> str | None:
    """What the pair of braces that opens at `text[start]` holds; None when none opens there or it is not closed."""
    if text[start : start + 1] != "{":
        return None
    depth = 0
    for brace in _BRACE.finditer(text, start, len(text) if end is None else end):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[start + 1 : brace.start()]
    return None


def answer_line(text: str) -> str | None:
    """What follows the last `Answer:` on its line, in any case: the convention of Minerva and DAPO."""
    found = _ANSWER_LINE.findall(text[-TAIL_CHARS:])
    return found[-1].strip() if found else None


def last_formula(text: str) -> str | None:
    """What the last pair of dollar signs encloses, or, where there is none, the last 200 characters' last line."""
    parts = text.rsplit("$", 2)
    if len(parts) == 3:
        return parts[1]
    return text[-200:].strip().rpartition("\n")[2] or None


def tagged_answer(text: str) -> str | None:
    """What the last pair of tags `<answer>...</answer>` encloses."""
    tags = list(_TAG.finditer(text))
    for opening, closing in zip(reversed(tags[:-1]), reversed(tags), strict=False):
        if opening.group() == "<answer>" and closing.group() == "</answer>":
            return text[opening.end() : closing.start()].strip() or None
    return None


def story_answer(text: str) -> str | None:
    """The number after the last `####`, its digits separated by blanks or not: `"... #### 4 2"` gives `"42"`.

    Anything but digits and blanks up to the end of the line makes it no answer.
    """
    _, marker, rest = text.rpartition("####")
    line = rest.split("\n", 1)[0].strip(" ")
    if not marker or _STORY_ANSWER.fullmatch(line) is None:
        return None
    return line.replace(" ", "")
