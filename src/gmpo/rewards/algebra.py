r"""Decide by computer algebra whether two answers are equal: Math-Verify, with its known traps avoided.

Call it in a worker with limits only: an answer such as `9^{9^{9^{9}}}` keeps it busy for ever. Its own time limits are
switched off, because they use signals and do not stop every case; the worker is killed from outside. The package is
imported on first use, so that a worker that needs no algebra starts at once.

The traps: a bare `x^2 + 1` or `(1,2)` parses to nothing, and then every comparison is silently false, so answers are
put between dollar signs; `3.8e35` reads as `3.8 * e * 35`; `\$36` ends the formula; a word reads as a product of
letters, so `yes` would equal `sye`.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_IN_MATH = re.compile(r"\$|\\boxed|\\\(|\\\[")
_E_NOTATION = re.compile(r"(?<![A-Za-z0-9.])([+-]?[0-9]+(?:\.[0-9]*)?|[+-]?\.[0-9]+)[eE]([+-]?[0-9]+)(?![A-Za-z0-9.])")
_WORDS = re.compile(r"[A-Za-z]{3,}(?:[ '-][A-Za-z]+)*\.?")
_TEXT_MACRO = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox)\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether a response holds an answer and whether it equals the reference."""

    equal: bool
    pred: str | None
    """The answer as found, None when there is none."""


def equal_by_math_verify(gold: str, pred: str) -> bool:
    r"""Whether two bare answers are equal: `equal_by_math_verify("1/2", "\\frac{2}{4}")` is True.

    May run for ever and may take much memory: see above.
    """
    gold_words, pred_words = _as_words(gold), _as_words(pred)
    if gold_words is not None and pred_words is not None:
        return gold_words == pred_words
    return _verify(_parse(_in_math(gold)), _parse(_in_math(pred)))


def compare_text(gold: str, text: str) -> Comparison:
    """Extract the answer from a response as Math-Verify does, and compare it with a bare reference answer."""
    found = _parse(text)
    if not found:
        return Comparison(equal=False, pred=None)
    return Comparison(equal=_verify(_parse(_in_math(gold)), found), pred=str(found[-1]))


def load() -> None:
    """Import Math-Verify now (about half a second), so that it does not count against the first answer's limit."""
    # It warns on every call that its time limits are off, and logs a traceback for what it cannot read.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL + 1)
    _parse("$1$")


def _parse(text: str) -> Sequence[Any]:
    parsed: Sequence[Any] = importlib.import_module("math_verify").parse(text, parsing_timeout=None)
    return parsed


def _verify(gold: Sequence[Any], pred: Sequence[Any]) -> bool:
    return bool(importlib.import_module("math_verify").verify(gold, pred, timeout_seconds=None))


def _as_words(answer: str) -> str | None:
    """The answer in one case if it is plain words, None if it may be a formula. `"xy"` may be one, `"yes"` not."""
    bare = _TEXT_MACRO.sub(r"\1", answer).strip(" $")
    return bare.casefold().rstrip(".") if _WORDS.fullmatch(bare) else None


def _in_math(answer: str) -> str:
    """Put a bare answer between dollar signs and write `1e6` so that it is read as a power of ten."""
    answer = _E_NOTATION.sub(r"\1 \\times 10^{\2}", answer.replace("\\$", ""))
    return answer if _IN_MATH.search(answer) else f"${answer}$"
