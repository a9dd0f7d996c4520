"""Functions are known by what they do and by the values that they hold, and what cannot be seen is named."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from gmpo.records.functions import PYTHON, TEXT, of_function, same_function

BONUS = 1.0
LOG = logging.getLogger(__name__)


def _same(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    return same_function(of_function(one).prints, of_function(other).prints)


def executed(text: str) -> Callable[..., Any]:
    """The function `score` of a text, whose source nobody finds again."""
    space: dict[str, Any] = {}
    exec(text, space)
    found: Callable[..., Any] = space["score"]
    return found


def closure(held: Any) -> Callable[[str], Any]:
    def score(answer: str) -> Any:
        return held, len(answer)

    return score


def nested(held: float) -> Callable[[str], float]:
    return partial(lambda answer, inner: inner(answer)[0], inner=closure(held))


def weighted(answer: str, weight: float = 1.0, *, offset: float = 0.0) -> float:
    return weight * len(answer) + offset


def with_defaults(weight: float, offset: float) -> Callable[..., float]:
    def score(answer: str, weight: float = weight, *, offset: float = offset) -> float:
        return weight * len(answer) + offset

    return score


class Scorer:
    """A reward that is an object."""

    scale = 1.0

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, answer: str) -> float:
        return self.scale * self.length(answer)

    def length(self, answer: str) -> float:
        return self.weight * len(answer)


@dataclass(frozen=True)
class Record:
    weights: dict[str, float] = field(default_factory=dict)

    def __call__(self, answer: str) -> float:
        return self.weights.get(answer, 0.0)


@cache
def cached(answer: str) -> float:
    return float(len(answer))


def helper(answer: str) -> float:
    return BONUS * len(answer)


def helped(answer: str) -> float:
    return helper(answer)


def logged(answer: str) -> float:
    LOG.info("graded")
    return 1.0


TEMPLATE = "def score(answer):\n    return {0} * len([word for word in answer if word != {1!r}])"


@pytest.mark.parametrize(
    ("make", "one", "other"),
    [
        (lambda n: executed(TEMPLATE.format(n, "a")), 1.0, 2.0),
        (lambda word: executed(TEMPLATE.format(1.0, word)), "a", "b"),  # in the code within the code
        (lambda name: executed(f"def score(answer):\n    return answer.{name}()"), "upper", "lower"),
        (lambda n: partial(weighted, weight=n), 1.0, -1.0),
        (lambda n: partial(weighted, "text", n), 1.0, -1.0),
        (closure, 0.1, 0.5),
        (closure, (1, "a"), (1, "b")),
        (closure, {"a": [1.0]}, {"a": [2.0]}),
        (nested, 1.0, 2.0),
        (lambda n: with_defaults(n, 0.0), 1.0, 2.0),
        (lambda n: with_defaults(1.0, n), 1.0, 2.0),
        (Scorer, 1.0, 2.0),
        (lambda n: Scorer(n).length, 1.0, 2.0),
        (lambda n: Record({"a": n}), 1.0, 2.0),
        (lambda n: (lambda answer: 1.0, lambda answer: 2.0)[n], 0, 1),  # two on a line of source
    ],
)
def test_another_constant_is_another_function_and_the_same_one_is_the_same(make: Any, one: Any, other: Any) -> None:
    assert _same(make(one), make(one))
    assert not _same(make(one), make(other))
    assert of_function(make(one)).unseen == ()


def test_what_a_function_names_in_its_own_package_belongs_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before, scorer = of_function(helped).prints, of_function(Scorer(1.0)).prints
    monkeypatch.setitem(globals(), "BONUS", 2.0)
    assert not same_function(before, of_function(helped).prints)
    monkeypatch.setattr(Scorer, "scale", 2.0)
    assert not same_function(scorer, of_function(Scorer(1.0)).prints)
    assert of_function(cached).unseen == ()


def test_a_function_that_reaches_itself_is_read_once() -> None:
    scorer: Any = Scorer(1.0)
    scorer.again = [scorer]
    assert _same(scorer, scorer)


def test_what_cannot_be_compared_is_named_with_its_place() -> None:
    assert of_function(closure(object())).unseen == ("closure held (object)",)
    assert of_function(logged).unseen == ("global LOG (Logger)",)
    assert of_function(partial(weighted, weight=object())).unseen == ("argument of weighted (object)",)
    scorer: Any = Scorer(1.0)
    scorer.table = object()
    assert of_function(scorer).unseen == ("attribute table (object)",)
    assert _same(closure(object()), closure(object()))


def test_under_another_version_of_python_the_text_decides() -> None:
    prints = of_function(helped).prints
    assert prints.keys() == {PYTHON, TEXT}
    other = {"bytecode of Python 2.7": "other", TEXT: prints[TEXT]}
    assert same_function(other, prints)
    assert not same_function({**other, TEXT: "other"}, prints)


def test_every_process_finds_the_same_fingerprint(tmp_path: Path) -> None:
    """The order of a set and the places of objects differ between processes."""
    program = tmp_path / "program.py"
    program.write_text(
        "from gmpo.records.functions import of_function\n"
        "words = frozenset(['a', 'b', 'c'])\n"
        "def score(answer):\n    return answer in words or answer in {'d', 'e', 'f'}\n"
        "print(of_function(score))\n"
    )
    command, said = [sys.executable, str(program)], set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        said.add(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
    assert len(said) == 1
