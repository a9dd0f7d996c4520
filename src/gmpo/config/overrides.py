"""verl's override forms: `key=value`, `+key=value`, `++key=value`, with Hydra's way of writing values.

Values are read here and not by a YAML parser, because YAML reads several of verl's forms otherwise: `{a:1}` as the key
`a:1`, `1e-6` as a text, `*.parquet` and `a: b` as syntax.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from gmpo.errors import ConfigError

_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9_]*)")
_FLOAT = re.compile(r"[+-]?((\d+\.\d*|\.\d+)([eE][+-]?\d+)?|\d+[eE][+-]?\d+|inf|nan)")
_WORDS = {"true": True, "false": False, "null": None}
_NONE = "none"
_CLOSING = {"[": "]", "{": "}"}
_KEY = re.compile(r"[A-Za-z_][\w/-]*(\.[\w/-]+)*")


Kind = Literal["text", "text or null", "texts or null", "free", "other"]
"""What a setting takes. `free`: any value, below a setting such as `override_config`.

To Hydra `null` is null and `None` is a text of four letters. So it is here where a text must stand or anything may;
where null may stand, it is null, since that is what is meant: in verl it would be a file or folder of the name None."""


@dataclass(frozen=True, slots=True)
class Override:
    """One argument of the command line. Example: `trainer.seed=3` is `Override("trainer.seed", 3)`."""

    path: str
    value: Any
    none_as_null: bool = False
    """The value was written `none`, without quotes, which a setting that takes texts could also hold as a text."""


def _other(path: str) -> Kind:
    return "other"


def parse_override(argument: str, kind: Callable[[str], Kind] = _other) -> Override | None:
    """Read one argument; None for one that names what is the case anyway.

    Args:
        kind: what the setting of a path takes. For a text, a value without quotes is taken as written.

    Raises:
        ConfigError: it is not of the form `KEY=VALUE`, or a bracket or quote in the value is not closed.
    """
    key, equals, raw = argument.partition("=")
    key, raw = key.strip(), raw.strip()
    if key.startswith("~"):
        raise ConfigError(f"{argument!r}: a key cannot be deleted. Leave it out, or set {key[1:]}=null where allowed.")
    if key in ("--config-name", "-cn") and raw.strip("'\"").removesuffix(".yaml") == "ppo_trainer":
        return None  # verl's own default.
    if key in ("--config-name", "--config-path", "--config-dir", "-cn", "-cp", "-cd"):
        raise ConfigError(
            f"{argument!r}: there are no Hydra configuration names here. Use --config FILE.yaml for a file of your own "
            "or recipe=NAME for one that comes with gmpo."
        )
    if key == "hydra" or key.startswith("hydra."):
        raise ConfigError(f"{argument!r}: Hydra is not used here; remove it. trainer.default_local_dir is the folder.")
    path = key.removeprefix("+").removeprefix("+")
    if not equals or not _KEY.fullmatch(path):
        raise ConfigError(f"{argument!r} is not of the form KEY=VALUE, like trainer.total_epochs=2.")
    try:
        taken = kind(path)
        if raw.lower() == _NONE:
            literal = taken in ("text", "free")
            return Override(path, raw if literal else None, none_as_null="null" in taken)
        return Override(path, _parse_text(raw) if taken in ("text", "text or null") else parse_value(raw))
    except ValueError as error:
        raise ConfigError(f"{argument!r}: {error}") from error


def parse_overrides(arguments: Iterable[str], kind: Callable[[str], Kind] = _other) -> tuple[list[Override], list[str]]:
    """Read all arguments: the overrides in their order, and the messages of those that cannot be read."""
    overrides, problems = [], []
    for argument in arguments:
        try:
            override = parse_override(argument, kind)
            overrides += [override] if override is not None else []
        except ConfigError as error:
            problems.append(str(error))
    return overrides, problems


def parse_value(text: str) -> Any:
    """The value that a text stands for: null, bool, int, float, text, list or mapping.

    Raises:
        ValueError: a bracket or quote is not closed, or an item of a mapping has no key.
    """
    text = text.strip()
    if text[:1] in _CLOSING:
        if text[-1] != _CLOSING[text[0]]:
            raise ValueError(f"{text} does not end in {_CLOSING[text[0]]}")
        items = _split(text[1:-1], ",")
        if items and not items[-1].strip():
            items.pop()  # a comma after the last item
        if text[0] == "[":
            return [parse_value(item) for item in items]
        return dict(_parse_item(item) for item in items)
    if text[:1] in ("'", '"'):
        return _unquote(text)
    return _parse_scalar(text)


def _parse_text(text: str) -> str | None:
    if text.lower() == "null":
        return None
    return _unquote(text) if text[:1] in ("'", '"') else text


def _parse_item(item: str) -> tuple[str, Any]:
    key, *value = _split(item, ":")
    name = key.strip()
    if not name or not value:
        raise ValueError(f"{item.strip()!r} is not of the form key: value")
    return _unquote(name) if name[0] in "'\"" else name, parse_value(":".join(value))


def _parse_scalar(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def _unquote(text: str) -> str:
    quote = text[0]
    if len(text) < 2 or _end_of_quote(text, 0) != len(text) - 1:
        raise ValueError(f"the quote {quote} is not closed at the end of {text}")
    return re.sub(r"\\([\\'\"])", r"\1", text[1:-1])


def _end_of_quote(text: str, start: int) -> int:
    """Index of the quote that closes the one at `start`; the text's length when there is none."""
    index = start + 1
    while index < len(text) and text[index] != text[start]:
        index += 2 if text[index] == "\\" else 1
    return min(index, len(text))


def _split(text: str, separator: str) -> list[str]:
    """Cut at the separators that stand outside quotes and brackets."""
    parts, depth, start, index = [], 0, 0, 0
    while index < len(text):
        character = text[index]
        if character in "'\"" and text[:index].rstrip()[-1:] in ("", "[", "{", ",", ":"):  # not an apostrophe
            index = _end_of_quote(text, index)
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == separator and depth == 0:
            parts.append(text[start:index])
            start = index + 1
        index += 1
    if depth:
        raise ValueError(f"brackets are not balanced in {text}")
    return [*parts, text[start:]] if text.strip() else []
