"""Keys that are not in the tree: verl's keys under other names, verl's keys without a counterpart, and slips.

The tables are data: `verl_keys.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

_TABLES: Mapping[str, Any] = json.loads(Path(__file__).with_name("verl_keys.json").read_text("utf-8"))

MOVED: Mapping[str, str] = _TABLES["moved"]["train"]
"""Other spellings of verl -> ours. A section moves with all that is below it. The longest spelling that fits counts."""
SFT_MOVED: Mapping[str, str] = _TABLES["moved"]["sft"]

UNSUPPORTED: Mapping[str, str] = _TABLES["unsupported"]["train"]
"""Prefixes of keys that verl has and gmpo has not, with the reason: refused, unless the value asks for nothing (`OFF`).
The longest prefix that fits speaks."""
SFT_UNSUPPORTED: Mapping[str, str] = _TABLES["unsupported"]["sft"]

NO_COUNTERPART: Mapping[str, str] = _TABLES["no_counterpart"]
"""Prefixes of keys of verl that gmpo has not and that change no result: accepted with any value, and reported."""

NEUTRAL: Mapping[str, tuple[object, ...]] = {key: tuple(values) for key, values in _TABLES["neutral"].items()}
"""Unsupported key -> further values that ask for nothing, because they are verl's defaults or the neutral ones."""

REFUSED_VALUES: Mapping[tuple[str, str], str] = {
    (key, value): reason for key, reasons in _TABLES["refused_values"].items() for value, reason in reasons.items()
}
"""Values that verl knows and gmpo refuses, with the reason."""

OFF = (None, False, 0, 0.0, (), "", "disable", "disabled", "none", "null", "NONE")
"""Values that ask an unsupported key for nothing: accepted, and reported."""


def moved(path: str, table: Mapping[str, str]) -> tuple[str, str] | None:
    """The entry's old name and the path under its name here; None when it is not a moved one."""
    fitting = [old for old in table if path == old or path.startswith(f"{old}.")]
    if not fitting:
        return None
    old = max(fitting, key=len)
    return old, table[old] + path.removeprefix(old)


def unsupported(path: str, table: Mapping[str, str]) -> str | None:
    """Why a key of verl is not in the tree, or None when it is no key of verl.

    A prefix that is itself longer than the path's section also fits `lora_rank` for `lora`.
    """
    fitting = [prefix for prefix in table if path == prefix or path.startswith((f"{prefix}.", f"{prefix}_"))]
    return table[max(fitting, key=len)] if fitting else None


def without_counterpart(
    path: str, value: object, any_value: Mapping[str, str], refused: Mapping[str, str]
) -> str | None:
    """Why an unknown key of verl can be accepted without effect, or None when it cannot.

    Args:
        any_value: prefixes that change no result; refused: prefixes that are accepted at a value of `OFF` alone.
    """
    if reason := unsupported(path, any_value):
        return reason
    reason = unsupported(path, refused)
    if reason is None or ".megatron" in path or not asks_nothing(path, value):
        return None
    return f"the value asks for nothing ({reason})"


def asks_nothing(path: str, value: object) -> bool:
    """Whether the value of a key of verl that is not in the tree leaves things as they are without the key."""
    if isinstance(value, list | dict):
        return not value
    return value in NEUTRAL.get(path, ()) or (value is not True and value in OFF)


def nearest(path: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known paths most like an unknown one, best first; empty when none is close.

    Two things speak for a candidate: that it ends in the same names (`clip_ratio`, `actor.optim.lr`), and that it is
    spelled alike, as a whole or over as many names as the unknown path has (`loss_mod`).
    """
    names = path.split(".")
    scored = []
    for candidate in known:
        others = candidate.split(".")
        same = 0
        while same < min(len(names), len(others)) and names[-1 - same] == others[-1 - same]:
            same += 1
        tail = ".".join(others[-len(names) :])
        likeness = max(_likeness(path, candidate), _likeness(path, tail))
        if same or likeness >= 0.75:
            scored.append(((same, likeness, _likeness(path, candidate)), candidate))
    if not scored:
        return []
    scored.sort(key=lambda entry: entry[0], reverse=True)
    (_, best, _), _ = scored[0]
    return [candidate for (_, likeness, _), candidate in scored if likeness >= best - 0.1][:count]


def _likeness(one: str, other: str) -> float:
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return matcher.ratio() if matcher.quick_ratio() >= 0.6 else 0.0
