"""Duplicate problems: within a data set, and between a training set and an evaluation set.

Two questions are the same when their words are, ignoring case, punctuation and LaTeX spacing. They are nearly the same
when half of the evaluation problem's 8-grams of words occur in one training problem: the n-gram overlap of
contamination reports, with a threshold.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

RUN = 8
"""Words in an n-gram."""
NEAR_SHARE = 0.5

_SPACING = re.compile(r"\\(?:left|right|displaystyle|quad|qquad|!|,|;|:|\s)|\$")
_WORD = re.compile(r"[^\W_]+|[-+*/^=<>|\\]")


@dataclass(frozen=True, slots=True)
class Overlap:
    """A training problem that contains an evaluation problem."""

    train: int
    """Position in the training set."""
    evaluation: int
    """Position in the evaluation set."""
    share: float
    """Share of the evaluation problem's n-grams that the training problem contains."""
    exact: bool
    """Word for word; else nearly."""


def words(question: str) -> tuple[str, ...]:
    """The words and operators of a question, in lower case."""
    return tuple(_WORD.findall(_SPACING.sub(" ", question).lower().replace("dfrac", "frac").replace("tfrac", "frac")))


def duplicates(questions: Iterable[str]) -> int:
    """Problems that an earlier one of the same set repeats word for word."""
    counts = Counter(words(question) for question in questions)
    return sum(counts.values()) - len(counts)


def overlaps(train: Sequence[str], evaluation: Sequence[str]) -> list[Overlap]:
    """Every pair of a training and an evaluation problem that are the same, or nearly; by evaluation problem, the most
    alike first. Time is linear in both sets' lengths, not in their product."""
    tokens = [words(question) for question in evaluation]
    runs = [_runs(t) for t in tokens]
    by_words: dict[tuple[str, ...], list[int]] = defaultdict(list)
    by_run: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, t in enumerate(tokens):
        by_words[t].append(i)
        for run in runs[i]:
            by_run[run].append(i)
    found = []
    for j, question in enumerate(train):
        t = words(question)
        same = by_words.get(t, [])
        found += [Overlap(j, i, 1.0, exact=True) for i in same]
        shared = Counter(i for run in _runs(t) for i in by_run.get(run, ()))
        shares = ((i, count / len(runs[i])) for i, count in shared.items() if i not in same)
        found += [Overlap(j, i, share, exact=False) for i, share in shares if share >= NEAR_SHARE]
    return sorted(found, key=lambda o: (o.evaluation, not o.exact, -o.share, o.train))


def most_alike(found: Sequence[Overlap]) -> list[Overlap]:
    """Of each evaluation problem, the first of `overlaps`."""
    return list({o.evaluation: o for o in reversed(found)}.values())[::-1]


def _runs(tokens: Sequence[str]) -> frozenset[tuple[str, ...]]:
    return frozenset(tuple(tokens[k : k + RUN]) for k in range(len(tokens) - RUN + 1))
