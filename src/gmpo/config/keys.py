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

GATES: Mapping[str, Mapping[str, Any]] = _TABLES["gates"]
"""Prefixes of keys of verl that nothing reads while a switch is off -> the switch, and its values that mean off. At
them any value is accepted and reported. The longest prefix speaks, over all tables."""

UNSET: Mapping[str, tuple[object, ...]] = {key: tuple(values) for key, values in _TABLES["unset"].items()}
"""Spelling of a key in verl -> values by which verl says that it is not given. verl keeps the older names of moved keys
as a tree of nulls."""

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
    prefix = _longest(path, table)
    return None if prefix is None else table[prefix]


def _longest(path: str, table: Iterable[str]) -> str | None:
    """The longest prefix of a table that fits the path."""
    fitting = [prefix for prefix in table if path == prefix or path.startswith((f"{prefix}.", f"{prefix}_"))]
    return max(fitting, key=len, default=None)


def without_counterpart(
    path: str, value: object, any_value: Mapping[str, str], refused: Mapping[str, str], given: Mapping[str, object]
) -> str | None:
    """Why an unknown key of verl can be accepted without effect, or None when it cannot.

    Args:
        any_value: prefixes that change no result; refused: prefixes that are accepted at a value of `OFF` alone, or
            while their switch (`GATES`) is off.
        given: all given keys that are not in the tree, with their values: switches among them.
    """
    if path.rpartition(".")[2] == "_target_":
        return "the name of a class of verl's, which Hydra would make; gmpo reads the keys beside it"
    harmless, reason = _longest(path, any_value), _longest(path, refused)
    if harmless is not None and (reason is None or len(harmless) >= len(reason)):
        return any_value[harmless]
    if reason is None:
        return None
    gate = switched_off(path, given)
    if gate is not None and len(gate) >= len(reason):
        return f"{GATES[gate]['switch']} is off ({refused[reason]})"
    if ".megatron" in path or not asks_nothing(path, value):
        return None
    return f"the value asks for nothing ({refused[reason]})"


def switched_off(path: str, given: Mapping[str, object]) -> str | None:
    """The prefix of `GATES` that fits a key whose switch is off; None for the switch itself."""
    gate = _longest(path, GATES)
    if gate is None or path == GATES[gate]["switch"]:
        return None
    value = given.get(GATES[gate]["switch"])
    return gate if value in GATES[gate]["off"] else None


def asks_nothing(path: str, value: object) -> bool:
    """Whether the value of a key of verl that is not in the tree leaves things as they are without the key."""
    if isinstance(value, list | dict):
        return not value or value in NEUTRAL.get(path, ())
    if path in (gate["switch"] for gate in GATES.values()) and value in _off(path):
        return True
    return value in NEUTRAL.get(path, ()) or (value is not True and value in OFF)


def _off(switch: str) -> tuple[object, ...]:
    """The values at which a switch is off."""
    return tuple(value for gate in GATES.values() if gate["switch"] == switch for value in gate["off"])


ALIKE = 0.8
"""Share of two names' letters that agree in order, from which one may be a slip of the other."""
FEW = 3
"""Settings of one name, at most, of which one may be meant under a section that is not theirs."""


def nearest(path: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known paths that an unknown one is a slip of, best first; empty when none is near.

    Near is a path whose last name is the same or alike (or ends in it: `epochs`) and whose section is too, as far as
    one is written; one that is alike as a whole, dots and underscores confused; a setting to which more was added; and,
    where few settings have that very name, each of them.
    """
    names = path.split(".")
    near: list[tuple[tuple[int, float, float], str]] = []
    namesakes: list[tuple[tuple[int, float, float], str]] = []
    for candidate in known:
        others = candidate.split(".")
        same = 0
        while same < min(len(names), len(others)) and names[-1 - same] == others[-1 - same]:
            same += 1
        tail = ".".join(others[-len(names) :])
        sections = ".".join(names[:-1]), tail.rpartition(".")[0]
        beside = len(names) == 1 or sections[0] == sections[1] or _likeness(*sections) >= ALIKE
        likeness = (
            _likeness(names[-1], others[-1]) if beside else max(_likeness(path, candidate), _likeness(path, tail))
        )
        score = (same, likeness, _likeness(path, candidate))
        if (
            same >= 2
            or (beside and _alike(names[-1], others[-1]))
            or _flat(path) == _flat(candidate)
            or path.startswith(f"{candidate}.")
        ):
            near.append((score, candidate))
        elif same:
            namesakes.append((score, candidate))
    found = near or (namesakes if len(namesakes) <= FEW else [])
    found.sort(key=lambda entry: entry[0], reverse=True)
    return [candidate for (_, likeness, _), candidate in found if likeness >= found[0][0][1] - 0.1][:count]


def _alike(written: str, name: str) -> bool:
    """A slip, or one is the beginning or the end of the other: `save_frequency`, `temp`, `epochs`."""
    short, long = sorted((written, name), key=len)
    begins = len(short) >= 4 and long.startswith(short) and not written.startswith(f"{name}_")
    swapped = sorted(written) == sorted(name)
    return begins or swapped or name.endswith(f"_{written}") or _likeness(written, name) >= ALIKE


def _flat(path: str) -> str:
    return path.replace(".", "").replace("_", "")


def _likeness(one: str, other: str) -> float:
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return matcher.ratio() if matcher.quick_ratio() >= 0.6 else 0.0
