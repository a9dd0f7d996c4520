r"""MATH: 12,500 competition problems (Hendrycks et al. 2021, arXiv 2103.03874)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gmpo.data.files import Row
from gmpo.data.instructions import BOXED, INSTRUCTIONS
from gmpo.data.rows import math_row, text_field
from gmpo.errors import DataError

DATA_SOURCE = "DigitalLearningGmbH/MATH-lighteval"
INSTRUCTION = INSTRUCTIONS[BOXED].after.strip()

ERRATA: Mapping[str, str] = {
    "For any integer $n>1$, the number of prime numbers greater than $n!+1$": "0",
    "You are given a sequence of $58$ terms; each term has the form $P+n$": "0",
}
r"""How a problem begins -> its answer, for the two training problems whose solution ends in an empty `\boxed{}`."""


def convert(row: Mapping[str, Any], split: str, index: int) -> Row:
    """A row of MATH's own format (`problem`, `solution`, `level`, `type`) -> a row of verl's schema.

    As verl's preprocessing writes it, without blanks around the answer; `extra_info` also keeps the solution, the bare
    problem, level and type.
    Raises: DataError for a missing field and for a solution without boxed answer.
    """
    problem, solution = text_field(row, "problem"), text_field(row, "solution")
    answer = boxed_answer(solution).strip() or _erratum(problem)
    return math_row(
        DATA_SOURCE,
        f"{problem} {INSTRUCTION}",
        answer,
        {
            "split": split,
            "index": index,
            "answer": solution,
            "question": problem,
            "level": row.get("level"),
            "type": row.get("type"),
        },
    )


def boxed_answer(solution: str) -> str:
    r"""What the last `\boxed{...}` (or `\fbox{...}`, or `\boxed x`) holds, with its inner braces."""
    start = max(solution.rfind(r"\boxed"), solution.rfind(r"\fbox"))
    if start < 0:
        raise DataError(rf"`solution` has no \boxed{{}} with the answer; it ends in {solution[-40:]!r}")
    rest = solution[start:].removeprefix(r"\boxed").removeprefix(r"\fbox")
    if rest.startswith(" ") and not rest.lstrip().startswith("{"):
        return rest[1:].split("$")[0]
    depth = 0
    for position, char in enumerate(rest):
        depth += (char == "{") - (char == "}")
        if char == "}" and depth == 0:
            return rest[rest.index("{") + 1 : position]
    raise DataError(rf"the last \boxed{{ of `solution` is not closed: {rest[:40]!r}")


def _erratum(problem: str) -> str:
    for beginning, answer in ERRATA.items():
        if problem.startswith(beginning):
            return answer
    raise DataError(r"the last \boxed{} of `solution` is empty")
