"""Serialise a user's reward function for the worker processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import cloudpickle

from gmpo.errors import ConfigError
from gmpo.rewards.custom import reward_function
from gmpo.rewards.worker import PortableFunction


@dataclass(frozen=True, slots=True)
class FunctionFile:
    """Where a user's reward function is: `custom_reward_function.path` and `.name`."""

    path: str
    """A Python file, or `pkg://package.module`."""
    name: str = "compute_score"


def portable(function: FunctionFile | Callable[..., Any] | None, kwargs: Mapping[str, Any]) -> PortableFunction | None:
    """The function, serialised for a worker; None for None.

    Raises ConfigError when a callable fits neither signature, or it or `kwargs` cannot be pickled. A file is not
    imported here: its code runs in workers only.
    """
    if function is None:
        return None
    if isinstance(function, FunctionFile):
        path = function.path
        absolute = path if path.startswith("pkg://") else str(Path(path).expanduser().absolute())
        return PortableFunction((absolute, function.name), _pickled(dict(kwargs), "reward_kwargs"))
    reward_function(function, kwargs)
    with _ByValue(function):
        return PortableFunction(_pickled(function, "The reward function"), _pickled(dict(kwargs), "reward_kwargs"))


def _pickled(value: Any, name: str) -> bytes:
    try:
        return bytes(cloudpickle.dumps(value))
    except Exception as error:
        raise ConfigError(
            f"{name} cannot be sent to a grading worker: {error}. It must not hold open files, locks or models; "
            f"define the function in a file and set custom_reward_function.path and custom_reward_function.name."
        ) from error


class _ByValue:
    """Pickles a function by value where another process could not import its module by name (a notebook, a script)."""

    def __init__(self, function: Callable[..., Any]) -> None:
        while isinstance(function, partial):
            function = function.func
        name = getattr(function, "__module__", None) or type(function).__module__
        importable = name in sys.builtin_module_names or PathFinder.find_spec(name.partition(".")[0]) is not None
        self._module = None if name == "__main__" or importable else sys.modules.get(name)

    def __enter__(self) -> None:
        if self._module is not None:
            cloudpickle.register_pickle_by_value(self._module)

    def __exit__(self, *_: object) -> None:
        if self._module is not None:
            cloudpickle.unregister_pickle_by_value(self._module)
