"""What docs/metrics.md says of each metric: the one source of every "i" in a report."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PAGES: Mapping[str, str] = {"en": "metrics.md", "zh": "metrics_CN.md"}
"""Language -> page."""
PLACES = (Path(__file__).parent / "docs", Path(__file__).parents[3] / "docs")
"""In an installed package, and in a checkout."""
ANY = {"<N>": r"\d+", "<k>": r"\d+"}
_CELL = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True, slots=True)
class MetricDoc:
    """A row of the page, as Markdown without links."""

    formula: str
    expect: str


@cache
def _rows(language: str) -> tuple[tuple[re.Pattern[str], MetricDoc], ...]:
    file = next((place / PAGES[language] for place in PLACES if (place / PAGES[language]).is_file()), None)
    if file is None:
        return ()
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("| `"):
            continue
        cells = [cell.strip() for cell in _CELL.split(line)[1:-1]]
        doc = MetricDoc(*(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", cell) for cell in cells[1:3]))
        for quoted in re.findall(r"`([^`]+)`", cells[0]):
            rows += [(_pattern(name), doc) for name in _expanded(quoted)]
    return tuple(rows)


def describe(name: str, language: str) -> MetricDoc | None:
    """The row of a metric; None where the page has none, or is not there."""
    return next((doc for pattern, doc in _rows(language) if pattern.fullmatch(name)), None)


def _expanded(name: str) -> Iterator[str]:
    """`a/{x,y}` -> `a/x`, `a/y`."""
    parts = [part[1:-1].split(",") if part.startswith("{") else [part] for part in re.split(r"(\{[^}]*\})", name)]
    yield from ("".join(choice) for choice in itertools.product(*parts))


def _pattern(name: str) -> re.Pattern[str]:
    parts = re.split(r"(<\w+>)", name)
    return re.compile("".join(ANY.get(p, ".+") if p.startswith("<") else re.escape(p) for p in parts))
