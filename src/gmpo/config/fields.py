"""What every setting declares about itself, and the base of every section of the tree."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class Section(BaseModel):
    """A node of the configuration tree. Unknown keys, implicit conversions and later changes are refused."""

    # `model` and `model_dtype` are keys of the tree, so pydantic's reserved prefix is lifted. Validators are built on
    # first use, so that a command that needs none starts sooner.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )


def setting(
    default: Any,
    description: str,
    *,
    own: bool = False,
    derived: str | None = None,
    inert: str | None = None,
    **bounds: Any,
) -> Any:
    """A field of a `Section`.

    `own`: the key is not one of verl's. `inert`: the key is accepted and has no effect, for this reason. `bounds`:
    `gt`, `ge`, `lt`, `le`, in the field's unit.

    `derived`: the rule that gives the value when the user gives none (or null). Such a field has the default None,
    although its type may exclude it: pydantic does not check defaults, and loading replaces every such None and then
    checks the whole tree, so readers of a loaded tree never meet it.
    """
    notes: dict[str, JsonValue] = {"own": own, "derived": derived, "inert": inert}
    return Field(default=default, description=description, json_schema_extra=notes, **bounds)
