"""The countdown game: is an expression made of the given numbers, each once, and does it reach the target?

The expression is parsed here, with exact fractions, because it comes from the policy and must not be evaluated as code.
Anything but integers and `+ - * / ( )` is not an answer.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from gmpo.rewards import answers
from gmpo.rewards.verdict import Grade, Verdict

MAX_CHARS = 200
"""Longest expression: a game has a handful of numbers."""
_TOKEN = re.compile(r"\s*(?:([0-9]{1,9})|([-+*/()]))")
_FRACTION = re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_TIMES = re.compile(r"(?<=[0-9)])\s*[xX]\s*(?=[0-9(])")
_SIGNS = (
    ("\\times", "*"),
    ("\\cdot", "*"),
    ("\\div", "/"),
    ("×", "*"),
    ("÷", "/"),
    ("−", "-"),
    ("\\left", ""),
    ("\\right", ""),
    ("$", ""),
    ("[", "("),
    ("]", ")"),
    ("==", "="),
)


class _NotAnExpression(ValueError):
    """The string is not an arithmetic expression."""


def score_countdown(text: str, ground_truth: str, extra_info: Mapping[str, Any], *, format_score: float = 0.0) -> Grade:
    """1 for an expression that uses each number exactly once and equals the target, else `format_score` where an
    expression was found and 0 where none was.

    The answer is what the last `<answer>` tags enclose, or the box in them, else the last box; `= target` is allowed.
    verl's tutorials give 0.1 for the format.
    """
    truth = json.loads(ground_truth)
    found = answers.tagged_answer(text)
    pred = answers.last_boxed(text if found is None else found)
    pred = found if pred is None else pred
    if pred is None:
        return Grade(Verdict.UNPARSED, 0.0, extra={"acc": 0})
    try:
        value, numbers = evaluate(pred, int(truth["target"]))
    except _NotAnExpression as error:
        return Grade(Verdict.UNPARSED, 0.0, pred=pred[:MAX_CHARS], extra={"acc": 0, "why": str(error)})
    right = value == int(truth["target"]) and Counter(numbers) == Counter(int(n) for n in truth["numbers"])
    verdict = Verdict.CORRECT if right else Verdict.WRONG
    return Grade(verdict, 1.0 if right else format_score, pred=pred, extra={"acc": int(right)})


def evaluate(expression: str, target: int | None = None) -> tuple[Fraction | None, list[int]]:
    """Value and numbers of an expression; the value is None after a division by 0.

    Raises:
        ValueError: it is not an expression, or too long; or the right side of its `=` is not `target`.
    """
    if len(expression) > MAX_CHARS:
        raise _NotAnExpression(f"longer than {MAX_CHARS} characters")
    for sign, plain in _SIGNS:
        expression = expression.replace(sign, plain)
    expression = _TIMES.sub("*", _FRACTION.sub(r"((\1)/(\2))", expression)).strip().removesuffix(".")
    left, equals, right = expression.partition("=")
    if equals and left.strip() == str(target):
        left, right = right, left
    if equals and right.strip() != str(target):
        raise _NotAnExpression("what stands beside = is not the target")
    parser = _Parser(_tokens(left))
    value = parser.sum()
    if parser.rest:
        raise _NotAnExpression(f"{parser.rest[-1]!r} does not belong there")
    return value, parser.numbers


def _tokens(text: str) -> list[str]:
    tokens, position = [], 0
    text = text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _NotAnExpression(f"{text[position]!r} is no part of an expression")
        tokens.append(match.group(1) or match.group(2))
        position = match.end()
    return tokens


class _Parser:
    """Recursive descent; the depth is bounded by `MAX_CHARS`."""

    def __init__(self, tokens: list[str]) -> None:
        self.rest = tokens[::-1]
        self.numbers: list[int] = []

    def sum(self) -> Fraction | None:
        value = self.product()
        while self.rest and self.rest[-1] in "+-":
            sign, other = self.rest.pop(), self.product()
            value = None if value is None or other is None else value + other if sign == "+" else value - other
        return value

    def product(self) -> Fraction | None:
        value = self.factor()
        while self.rest and self.rest[-1] in "*/(":
            sign = "*" if self.rest[-1] == "(" else self.rest.pop()
            other = self.factor()
            if value is None or other is None or (sign == "/" and other == 0):
                value = None
            else:
                value = value * other if sign == "*" else value / other
        return value

    def factor(self) -> Fraction | None:
        if not self.rest:
            raise _NotAnExpression("it ends too early")
        token = self.rest.pop()
        if token == "-":
            value = self.factor()
            return None if value is None else -value
        if token == "(":
            value = self.sum()
            if not self.rest or self.rest.pop() != ")":
                raise _NotAnExpression("a bracket is not closed")
            return value
        if not token.isdigit():
            raise _NotAnExpression(f"{token!r} does not belong there")
        self.numbers.append(int(token))
        return Fraction(int(token))
