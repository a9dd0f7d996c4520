"""Fingerprints of Python functions: what they do, and the values that they hold."""

from __future__ import annotations

import dis
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from numbers import Number
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from gmpo.records.fingerprint import of_json

TEXT = "text"
PYTHON = f"bytecode of Python {sys.version_info.major}.{sys.version_info.minor}"
PLAIN = (type(None), Number, str, bytes, type(...), re.Pattern, PurePath, Enum)
"""Values that their `repr` tells apart."""
MEMBERS = (*PLAIN, list, tuple, set, frozenset, Mapping, FunctionType, staticmethod, classmethod, property)
"""What a class holds that makes its objects what they are; descriptors of the machinery are not among it."""


@dataclass(frozen=True, slots=True)
class FunctionPrint:
    """A function as a run record keeps it."""

    name: str
    prints: Mapping[str, str]
    """Way of reading -> fingerprint: `PYTHON`, and `TEXT`, which another version of Python reads alike."""
    unseen: tuple[str, ...]
    """Places of objects that cannot be compared, each with its type: `closure table (DataFrame)`."""


def of_function(function: Callable[..., Any]) -> FunctionPrint:
    """Fingerprint of a function, `functools.partial`, method or object that is called.

    Seen are: bytecode, constants and names, those of nested functions included; defaults; what a closure holds, what
    `partial` binds and an object's attributes, where these are plain values, containers of them, or functions; global
    values, functions and classes of the function's own package that it names. Code of other packages goes by its name.
    """
    name = _name(function)
    readers = {PYTHON: _Reader(text=False), TEXT: _Reader(text=True)}
    package = _package(function)
    prints = {way: of_json([name, reader.value(function, name, package)]) for way, reader in readers.items()}
    return FunctionPrint(name, prints, tuple(dict.fromkeys(readers[PYTHON].unseen)))


def same_function(then: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether two `prints` are of one function: by bytecode under one version of Python, else by text."""
    way = PYTHON if PYTHON in then and PYTHON in now else TEXT
    return then.get(way) == now.get(way)


@dataclass(slots=True)
class _Reader:
    """Turns values into JSON that is equal for equal values."""

    text: bool
    """Read functions as their source text where there is one."""
    unseen: list[str] = field(default_factory=list)
    _seen: dict[int, int] = field(default_factory=dict)
    """Id of a function, a class, an object or a container that can change -> its number: each is read once."""
    _kept: list[Any] = field(default_factory=list)
    """What was read lives on, so that no id is given twice."""

    def value(self, value: Any, place: str, package: str) -> Any:
        if isinstance(value, PLAIN):
            return [type(value).__name__, repr(value)]
        if isinstance(value, CodeType):
            return self._code(value, place, package)
        if isinstance(value, ModuleType):
            return ["module", value.__name__]
        if isinstance(value, tuple):
            return ["tuple", *(self.value(item, place, package) for item in value)]
        if isinstance(value, frozenset):
            return ["set", *sorted((self.value(item, place, package) for item in value), key=str)]
        if id(value) in self._seen:
            return ["again", self._seen[id(value)]]
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        if isinstance(value, list):
            return ["list", *(self.value(item, place, package) for item in value)]
        if isinstance(value, set):
            return self.value(frozenset(value), place, package)
        if isinstance(value, Mapping):
            return ["mapping", *([self.value(part, place, package) for part in item] for item in value.items())]
        return self._callable(value, place, package)

    def _callable(self, value: Any, place: str, package: str) -> Any:
        if isinstance(value, FunctionType):
            return self._function(value, place, package)
        if isinstance(value, partial):
            bound = (value.args, value.keywords)
            arguments = [self.value(part, f"argument of {_name(value)}", package) for part in bound]
            return ["partial", self.value(value.func, place, package), *arguments]
        if isinstance(value, MethodType):
            return ["method", *(self.value(part, place, package) for part in (value.__func__, value.__self__))]
        if isinstance(value, staticmethod | classmethod):
            return self.value(value.__func__, place, package)
        if isinstance(value, property):
            return self.value(value.fget, place, package)
        if isinstance(value, type):
            return self._class(value, place, package)
        if (wrapped := getattr(value, "__wrapped__", None)) is not None:  # functools.cache
            return [type(value).__qualname__, self.value(wrapped, place, package)]
        if isinstance(value, BuiltinFunctionType):
            return ["builtin", value.__module__, value.__qualname__]
        if type(value).__module__ == "dataclasses":  # its marks in the functions that it writes
            return ["mark", type(value).__qualname__]
        if _package(type(value)) == package:
            held = getattr(value, "__dict__", {})
            slots = {name: getattr(value, name, None) for name in getattr(type(value), "__slots__", ())}
            attributes = [
                [name, self.value(item, f"attribute {name}", package)]
                for name, item in sorted({**held, **slots}.items())
            ]
            return ["object", self.value(type(value), place, package), attributes]
        self.unseen.append(f"{place} ({type(value).__qualname__})")
        return ["unseen", type(value).__qualname__]

    def _function(self, function: FunctionType, place: str, package: str) -> Any:
        if _package(function) != package:
            return ["function", function.__module__, function.__qualname__]
        code = function.__code__
        inner = ["code", self._code(code, place, package)]
        inner.append(self.value(function.__defaults__, f"default of {place}", package))
        inner.append(self.value(function.__kwdefaults__, f"default of {place}", package))
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                held = cell.cell_contents
            except ValueError:  # not filled yet
                continue
            inner.append([name, self.value(held, f"closure {name}", package)])
        for name in sorted(_globals(code) & function.__globals__.keys()):
            inner.append([name, self.value(function.__globals__[name], f"global {name}", package)])
        return inner

    def _class(self, kind: type, place: str, package: str) -> Any:
        found: list[Any] = ["class", kind.__module__, kind.__qualname__]
        if _package(kind) != package:
            return found
        found.append([self.value(base, place, package) for base in kind.__bases__])
        for name, item in sorted(vars(kind).items()):
            # Double underscores: functions of the class, or what Python and its decorators keep there.
            if isinstance(item, MEMBERS) and (isinstance(item, FunctionType) or not name.startswith("__")):
                found.append([name, self.value(item, f"{kind.__qualname__}.{name}", package)])
        return found

    def _code(self, code: CodeType, place: str, package: str) -> Any:
        if self.text:
            try:
                return inspect.getsource(code)
            except Exception:  # it reads and parses the file that the code says it comes from, which may be anything
                pass
        constants = [self.value(constant, place, package) for constant in code.co_consts]
        return [code.co_code.hex(), constants, code.co_names, code.co_varnames, code.co_freevars]


def _name(function: Callable[..., Any]) -> str:
    if isinstance(function, partial):
        return _name(function.func)
    return getattr(function, "__qualname__", None) or type(function).__qualname__


def _globals(code: CodeType) -> set[str]:
    """Global names that a code object and those within it read."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_globals(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


def _package(value: Any) -> str:
    """Topmost package of what a function, a class or an object is made of."""
    if isinstance(value, partial):
        return _package(value.func)
    if isinstance(value, MethodType):
        return _package(value.__func__)
    module = str(getattr(value, "__module__", None) or getattr(type(value), "__module__", None) or "")
    if isinstance(value, FunctionType) and module == "builtins":
        return ""  # made by `exec` in a namespace without a name
    return module.partition(".")[0]
