"""The versions and the machine of a run, so that its numbers can be interpreted years later."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gmpo.records.run_folder import Difference
from gmpo.version import __version__

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "pyarrow", "numpy", "mpmath", "pydantic")
ROUNDING = ("gmpo", "torch_threads", "device")
"""What may change the numbers of a run that goes on, beside the libraries that compute them."""
COMPUTING = ("torch", "transformers", "numpy")


def environment(device: str, products: Mapping[str, Any]) -> dict[str, Any]:
    """Versions, processor, threads, device and the command line, as `environment.json` holds them.

    Args:
        products: the float32 matrix products in effect, see `gmpo.backends.products.Product.report`.
    """
    return {
        "gmpo": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "processors": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": device,
        "products": dict(products),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "command": sys.argv,
    }


def processor_name() -> str:
    """The processor's name as it gives it itself, with its family and model, as two of one name may differ; empty where
    nobody knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = found.get("model name") or platform.processor()
    if "cpu family" in found and "model" in found:
        return f"{name} (family {found['cpu family']}, model {found['model']})"
    return name


def differing(file: Path, now: Mapping[str, Any]) -> tuple[Difference, ...]:
    """What differs from the environment in `file` and may change the numbers; nothing where the file cannot be read."""
    try:
        then = json.loads(file.read_text())
        before = _of_the_numbers(then)
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    after = _of_the_numbers(now)
    return tuple(Difference(key, before[key], after[key]) for key in after if before[key] != after[key])


def _of_the_numbers(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ROUNDING} | {name: found["libraries"][name] for name in COMPUTING}
