"""Paths of a configuration tree: its leaves and what they allow, nested and dotted forms, values in schema types."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from gmpo.config.fields import Filled, OneOf, Role, Section

SectionT = TypeVar("SectionT", bound=Section)

_NUMBERS = {int: "an integer", float: "a number"}
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}
_DTYPES |= {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""Long and short names of a dtype, either way."""
_BOUNDS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))


@dataclass(frozen=True, slots=True)
class Leaf:
    """One setting. Example: the leaf of path `trainer.seed`, owner `Trainer`, name `seed`."""

    path: str
    owner: type[Section]
    """The section class that declares it."""
    field: FieldInfo

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    def _note(self, name: str) -> Any:
        extra = self.field.json_schema_extra
        return extra.get(name) if isinstance(extra, dict) else None

    @property
    def own(self) -> bool:
        """The key is not one of verl's."""
        return bool(self._note("own"))

    @property
    def follows(self) -> str | None:
        """The path of the setting whose value it takes when the user gives none."""
        path: str | None = self._note("follows")
        return path

    @property
    def derived(self) -> str | None:
        """The rule that gives the value when the user gives none: the setting that it follows, or another in words."""
        rule: str | None = self.follows or self._note("derived")
        return rule

    @property
    def inert(self) -> str | None:
        """Why the key has no effect; None when it has one."""
        reason: str | None = self._note("inert")
        return reason

    @property
    def role(self) -> Role:
        """What a changed value means to a run that goes on."""
        role: Role = self._note("role") or "identity"
        return role

    @property
    def exact(self) -> bool:
        """Of role `execution`: a changed value changes no number at all."""
        return bool(self._note("exact"))

    @property
    def nullable(self) -> bool:
        return NoneType in _alternatives(self.field.annotation)

    @property
    def kind(self) -> Any:
        """The type without null: `int`, `float`, `bool`, `str`, `dict`, `tuple` or `Literal`; the first of several."""
        return self.kinds[0]

    @property
    def kinds(self) -> tuple[Any, ...]:
        """All types that the setting takes, without null."""
        return tuple(get_origin(kind) or kind for kind, _ in self._types)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values, or the values of a list's items, when they are enumerated; else nothing."""
        return self._types[0][1]

    @property
    def filled(self) -> Filled | None:
        """What its text, or each text of its list, names; None where a text may be blank."""
        found = (_filled(kind) for kind in _alternatives(self.field.annotation))
        bare = (note for note in self.field.metadata if isinstance(note, Filled))
        return next(bare, None) or next((one for one in found if one is not None), None)

    @property
    def _noun(self) -> str | None:
        if self.filled is None:
            return None
        noun = self.filled.noun
        return f"a list of {noun.removeprefix('a ')}s" if self.kind is tuple else noun

    @property
    def _types(self) -> tuple[tuple[Any, tuple[str, ...]], ...]:
        """Each type without null, bare of annotations, with its choices."""
        kinds = (kind for kind in _alternatives(self.field.annotation) if kind is not NoneType)
        return tuple(_bare(kind, self.field.metadata) for kind in kinds)

    @property
    def allowed(self) -> str:
        """What the setting accepts, in words: `"an integer >= 1, or null"`."""
        words = ", or ".join(self._noun or _in_words(kind, choices) for kind, choices in self._types)
        bounds = " and ".join(
            f"{sign} {at if isinstance(at := getattr(bound, name), int) else format(at, 'g')}"
            for name, sign in _BOUNDS
            for bound in self.field.metadata
            if getattr(bound, name, None) is not None
        )
        return f"{words}{' ' * bool(bounds)}{bounds}{', or null' * self.nullable}"


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _filled(kind: Any) -> Filled | None:
    """The `Filled` of an annotated text, or of a list's items."""
    if get_origin(kind) is tuple:
        return _filled(get_args(kind)[0])
    notes = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    return next((note for note in notes if isinstance(note, Filled)), None)


def _bare(kind: Any, notes: Iterable[Any]) -> tuple[Any, tuple[str, ...]]:
    """A type without its annotations, and the texts it (or a list's item) is limited to: by `Literal` or `one_of`."""
    if get_origin(kind) is Annotated:
        kind, *notes = get_args(kind)
    if get_origin(kind) is tuple:
        return kind, _bare(get_args(kind)[0], ())[1]
    if get_origin(kind) is Literal:
        return kind, get_args(kind)
    return kind, next((note.names for note in notes if isinstance(note, OneOf)), ())


def _in_words(kind: Any, choices: Sequence[str]) -> str:
    if get_origin(kind) is tuple:
        if get_args(kind)[-1] is not Ellipsis:
            return f"a list of {len(get_args(kind))} numbers"
        if isinstance(get_args(kind)[0], type) and issubclass(get_args(kind)[0], Section):
            return "a list of objects"
        return f"a list of {', '.join(choices)}" if choices else "a list of texts"
    if choices:
        return f"one of {', '.join(choices)}"
    if get_origin(kind) is dict:
        return "keys with values, like {key: value}"
    return _NUMBERS.get(kind, "True or False" if kind is bool else "a text")


@functools.cache
def leaves(root: type[Section]) -> Mapping[str, Leaf]:
    """All settings of a tree by path, in the order of declaration."""
    return {leaf.path: leaf for leaf in _walk(root, "")}


def _walk(section: type[Section], prefix: str) -> Iterator[Leaf]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _walk(field.annotation, f"{prefix}{name}.")
        else:
            yield Leaf(prefix + name, section, field)


@functools.cache
def sections(root: type[Section]) -> frozenset[str]:
    """Paths of all inner nodes, for example `actor_rollout_ref.actor`."""
    parts = [path.split(".") for path in leaves(root)]
    return frozenset(".".join(part[:depth]) for part in parts for depth in range(1, len(part)))


def enclosing(root: type[Section], path: str) -> tuple[str, str] | None:
    """A free-form setting above a path, and the rest of the path below it: `(..override_config, "rope.theta")`."""
    names = path.split(".")
    for end in range(1, len(names)):
        leaf = leaves(root).get(".".join(names[:end]))
        if leaf is not None and leaf.kind is dict:
            return leaf.path, ".".join(names[end:])
    return None


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """One nested mapping over another: mappings are united, everything else is replaced."""
    united = dict(below)
    for key, value in above.items():
        old = united.get(key)
        united[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return united


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted paths -> nested keys; values are taken as they are."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return nested


def get(config: Section, path: str) -> Any:
    """The value at a path."""
    node: Any = config
    for name in path.split("."):
        node = getattr(node, name)
    return node


def replace(config: SectionT, path: str, value: Any) -> SectionT:
    """The same tree with another value at a path. The value is not checked."""
    name, _, rest = path.partition(".")
    return config.model_copy(update={name: replace(getattr(config, name), rest, value) if rest else value})


def shown(value: Any) -> str:
    """A value as a user would write it."""
    if isinstance(value, tuple):
        return repr(list(value))
    return "null" if value is None else repr(value)


def coerce(leaf: Leaf, value: Any) -> Any:
    """Bring a value into the setting's type where no information is lost; anything else is left for the check.

    `1e3` for an integer, a number for a text, one text for a list of texts, `a,b` for a list of names, null for an
    empty list, and hyphens in a name for the underscores that stand in ours (`clip-cov`).
    """
    if leaf.kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if leaf.kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list | tuple) and tuple in leaf.kinds:
        return tuple(_spelled(leaf, item) for item in value)
    if leaf.kind is tuple:
        if isinstance(value, str):
            return tuple(_spelled(leaf, item.strip()) for item in value.split(",")) if leaf.choices else (value,)
        if value is None and get_args(leaf.field.annotation)[-1] is Ellipsis:
            return ()
    return _spelled(leaf, value)


def _spelled(leaf: Leaf, value: Any) -> Any:
    """A name as its table spells it, a dtype by its other name too.

    An unquoted `none` was read as null, which a name of that spelling takes back.
    """
    if value is None and not leaf.nullable and "none" in leaf.choices:
        return "none"
    if isinstance(value, str) and value not in leaf.choices:
        for name in (value.replace("-", "_"), _DTYPES.get(value)):
            if name in leaf.choices:
                return name
    return value
