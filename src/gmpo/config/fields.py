"""What every setting declares about itself, and the base of every section of the tree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, JsonValue
from pydantic_core import CoreSchema, core_schema

Role = Literal["identity", "execution", "bookkeeping"]
"""What a changed setting means to a run that goes on: see `setting`."""


class Section(BaseModel):
    """A node of the configuration tree. Unknown keys, implicit conversions and later changes are refused."""

    # `model` and `model_dtype` are keys of the tree, so pydantic's reserved prefix is lifted. Validators are built on
    # first use, so that a command that needs none starts sooner.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )


@dataclass(frozen=True, slots=True)
class OneOf:
    """The texts that a setting takes, where they are the names of a table: `Annotated[str, one_of(TABLE)]`."""

    names: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(list(self.names))


@dataclass(frozen=True, slots=True)
class Filled:
    """A text that names something, so that a blank one is a mistake: mostly a variable of the shell that is not set."""

    noun: str
    """What it is, with an article. Example: `"a path"`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.str_schema(pattern=r"\S")


Place = Annotated[str, Filled("a path")]
"""A file, a folder, or a model on the hub. Every setting that leads to one is of this type."""
Name = Annotated[str, Filled("a name")]
"""A column, a function, a run."""
Text = Annotated[str, Filled("a text")]
"""Any other text that says nothing when it is blank."""


def one_of(names: Iterable[str]) -> OneOf:
    """A text among `names`, in their order."""
    return OneOf(tuple(names))


def setting(
    default: Any,
    description: str,
    *,
    own: bool = False,
    follows: str | None = None,
    derived: str | None = None,
    inert: str | None = None,
    role: Role = "identity",
    exact: bool = False,
    **bounds: Any,
) -> Any:
    """A field of a `Section`.

    `own`: the key is not one of verl's. `inert`: the key is accepted and has no effect, for this reason. `bounds`:
    `gt`, `ge`, `lt`, `le`, in the field's unit.

    `follows`: the path of the setting whose value it takes when the user gives none (or null). `derived`: in words, any
    other rule that then gives the value; `gmpo.config.derive` holds it. Such a field has the default None, although its
    type may exclude it: pydantic does not check defaults, and loading replaces every such None and then checks the
    whole tree, so readers of a loaded tree never meet it.

    `role`: what it means when a run goes on under another value. `identity`: it would be another run, so it is refused.
    `execution`: where and how the same is computed; it goes on and is recorded, and the same numbers come out but for
    rounding, or, with `exact`, bit for bit. `bookkeeping`: what is recorded, and when the run ends.
    """
    notes: dict[str, JsonValue] = {
        "own": own,
        "follows": follows,
        "derived": derived,
        "inert": inert,
        "role": role,
        "exact": exact,
    }
    return Field(default=default, description=description, json_schema_extra=notes, **bounds)
