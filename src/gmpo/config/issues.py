"""What a rule over several settings can find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from gmpo.config.derive import Given
from gmpo.config.schema import Config
from gmpo.config.schema_sft import SftConfig
from gmpo.config.tree import leaves

ROWS, VAL_ROWS = "rows=", "val_rows="
"""Stand among the given keys when the caller hands over problems in place of data.train_files or data.val_files."""

Severity = Literal["error", "unavailable", "inert", "warning"]


@dataclass(frozen=True, slots=True)
class Issue:
    """What a rule found.

    `error`: the settings make no sense together. `unavailable`: they do, but this version cannot train with them.
    `inert`: the key has no effect; kept only for keys that the user gave. `warning`: it trains, and may surprise.
    """

    severity: Severity
    path: str
    reason: str
    involves: tuple[str, ...] = ()
    """Further paths it follows from: when one of them is wrong in itself, this issue is not shown."""


def error(path: str, reason: str, *involves: str) -> Issue:
    return Issue("error", path, reason, involves)


def unavailable(path: str, reason: str) -> Issue:
    return Issue("unavailable", path, reason)


def inert(reason: str, *paths: str) -> Iterator[Issue]:
    for path in paths:
        yield Issue("inert", path, reason)


def below(prefix: str) -> Iterator[str]:
    """The paths of all settings of a section of `Config`."""
    return (path for path in leaves(Config) if path.startswith(f"{prefix}."))


def warning(path: str, reason: str) -> Issue:
    return Issue("warning", path, reason)


Rule = Callable[[Config, Given], Iterator[Issue]]
SftRule = Callable[[SftConfig, Given], Iterator[Issue]]
