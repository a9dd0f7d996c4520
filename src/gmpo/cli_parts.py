"""What the commands share: late imports, paths, lines."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import typer
from rich.console import Console


def path_of(text: str) -> Path:
    """A path of the command line, as it is given; a blank one would be the folder in which we are."""
    if not text.strip():
        raise typer.BadParameter("it is empty: a variable of the shell that is not set?")
    return Path(text)


def late(module: str, name: str) -> Any:
    """Import when a command runs, so that help and checks start without torch."""
    return getattr(importlib.import_module(module), name)


def say(console: Console, line: str) -> None:
    """Print a line literally: a bracket in a path is not markup."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
