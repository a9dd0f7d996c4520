"""Rows of verl's schema, for the modules that write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gmpo.data.files import Row
from gmpo.errors import DataError


def math_row(data_source: str, question: str, ground_truth: str, extra_info: Row) -> Row:
    """One mathematical problem as verl's preprocessing writes it: one user message, graded by a rule."""
    return {
        "data_source": data_source,
        "prompt": [{"role": "user", "content": question}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": ground_truth},
        "extra_info": extra_info,
    }


def text_field(row: Mapping[str, Any], name: str) -> str:
    """A field that must be a string and not blank. Raises: DataError, which names the columns present."""
    if name not in row:
        raise DataError(f"there is no column `{name}`. Columns present: {', '.join(map(str, row))}")
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"`{name}` must be a string, found {value!r}")
    return value
