"""Rows of verl's schema -> `Problem` records, and the order in which a run visits them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = Mapping[str, str]
"""One chat message, for example `{"role": "user", "content": "2 + 2 = ?"}`."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem with a checkable answer."""

    id: str
    """Unique within its data set and stable between runs, for example `"train.parquet:17"`."""
    prompt: Sequence[Message]
    """The chat messages that the policy answers."""
    data_source: str
    """Name that selects the scorer, for example `"openai/gsm8k"`."""
    ground_truth: str
    """Reference answer as the scorer expects it, for example `"42"`."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """The row's `extra_info`, handed to reward functions unchanged."""
