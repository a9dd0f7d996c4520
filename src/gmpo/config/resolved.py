"""The outcome of loading: the complete configuration, and an account of every key that the user gave."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from omegaconf import OmegaConf

from gmpo.config.derive import Derived
from gmpo.config.fields import Section
from gmpo.config.layers import GIVEN
from gmpo.config.tree import merge, nest

ConfigT = TypeVar("ConfigT", bound=Section)

SAVED = f"""\
# The complete configuration, to be read again with --config. `{GIVEN}` records what was set; that counts as set again,
# and so does what is changed below it. All else is a default or follows from what is set, also from what is changed.
"""


@dataclass(frozen=True, slots=True)
class Note:
    """A key and what there is to say about it. Example: `Note("trainer.critic_warmup", "there is no critic")`."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Ignored:
    """A key of verl that this tree has not, whose value changes nothing."""

    path: str
    value: Any
    reason: str


@dataclass(frozen=True, slots=True)
class Resolved(Generic[ConfigT]):
    """A checked configuration. Every given key is honoured, inert or unavailable."""

    config: ConfigT
    values: Mapping[str, Any]
    """Path -> value of what the user set, a recipe's included. A free-form setting such as `override_config` is one
    path."""
    derived: tuple[Derived, ...]
    """Values with an effect that follow from others, because the user gave none."""
    inert: tuple[Note, ...]
    """Given keys without effect."""
    ignored: tuple[Ignored, ...]
    """Given keys of verl that are not in the tree and change nothing."""
    unavailable: tuple[Note, ...]
    """What this version cannot train with; `gmpo check` shows it and `gmpo train` refuses."""
    warnings: tuple[Note, ...]
    idle: frozenset[str]
    """Those keys of `inert` and `ignored` that ask for nothing: they stand at the value that they have without."""

    @property
    def given(self) -> frozenset[str]:
        """Paths that the user set."""
        return frozenset(self.values)

    inert_paths: frozenset[str] = frozenset()
    """Paths of all settings that have no effect in this configuration, given or not."""

    @property
    def honoured(self) -> frozenset[str]:
        """Given keys that have their effect."""
        return self.given - {note.path for note in (*self.inert, *self.unavailable)}

    @property
    def without_effect(self) -> tuple[Note, ...]:
        """Given keys that ask for something and change nothing."""
        notes = (*self.inert, *(Note(key.path, key.reason) for key in self.ignored))
        return tuple(note for note in notes if note.path not in self.idle)

    def to_yaml(self) -> str:
        """The whole tree as YAML, with what was set. Loading it as a file gives an equal configuration and an
        equal account of it."""
        given = {path: _plain(self.values[path]) for path in sorted(self.values)}
        return SAVED + _yaml({GIVEN: given, **merge(as_tree(self.config), nest(_plain(self.values)))})

    def tree_yaml(self) -> str:
        """The whole tree alone, for display."""
        return _yaml(as_tree(self.config))


def _yaml(tree: Mapping[str, Any]) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(dict(tree)))


def as_tree(config: Section) -> dict[str, Any]:
    """The configuration as nested dictionaries and lists, as YAML writes them."""
    tree: dict[str, Any] = _plain(config.model_dump())
    return tree


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    # A resolved text is final: what looks like an interpolation in it must not be one when it is read again.
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
