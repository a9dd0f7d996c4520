"""A reward with a part for form, so that a model too small to solve GSM8K still has something to learn from.

0.1 for ending in `#### <number>`, 0.1 more for short calculations that are right (`<<3+4=7>>`), 1 for the right answer.
"""

from __future__ import annotations

import re
from typing import Any

from gmpo.rewards.answers import hash_number
from gmpo.rewards.math import same_number

CALCULATION = re.compile(r"<<(\d+)([-+*/])(\d+)=(\d+)>>")


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any]) -> dict[str, Any]:
    """verl's signature. `acc` decides the verdict; `score` is what the policy is trained on."""
    answer = hash_number(solution_str)
    right = answer is not None and same_number(answer, ground_truth)
    checks = [_holds(*match) for match in CALCULATION.findall(solution_str)]
    share = sum(checks) / len(checks) if checks else 0.0
    score = 1.0 if right else 0.1 * (answer is not None) + 0.1 * share
    return {"score": score, "acc": right, "pred": answer, "format": answer is not None, "calculations_right": share}


def _holds(left: str, sign: str, right: str, result: str) -> bool:
    a, b, c = int(left), int(right), int(result)
    if sign == "/":
        return b != 0 and a == b * c
    return {"+": a + b, "-": a - b, "*": a * b}[sign] == c
