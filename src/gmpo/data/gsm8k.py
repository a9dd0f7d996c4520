"""GSM8K: 8,792 word problems of primary school (Cobbe et al. 2021, arXiv 2110.14168)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gmpo.data.files import Row
from gmpo.data.instructions import HASH, INSTRUCTIONS
from gmpo.data.rows import math_row, text_field
from gmpo.errors import DataError

DATA_SOURCE = "openai/gsm8k"
INSTRUCTION = INSTRUCTIONS[HASH].after.strip()

_FINAL_ANSWER = re.compile(r"#### (-?[0-9.,]+)")


def convert(row: Mapping[str, Any], split: str, index: int) -> Row:
    """A row of GSM8K's own format (`question`, `answer`) -> a row of verl's schema, as its preprocessing writes it.

    Raises: DataError for a missing field and for a solution without final answer.
    """
    question, solution = text_field(row, "question"), text_field(row, "answer")
    return math_row(
        DATA_SOURCE,
        f"{question} {INSTRUCTION}",
        final_answer(solution),
        {"split": split, "index": index, "answer": solution, "question": question},
    )


def final_answer(solution: str) -> str:
    """The number after `####` without thousands separators: `"... #### 1,234"` -> `"1234"`."""
    found = _FINAL_ANSWER.search(solution)
    if found is None:
        raise DataError(f"`answer` does not end in `#### NUMBER` but in {solution[-40:]!r}")
    return found.group(1).replace(",", "")
