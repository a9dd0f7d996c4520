"""What a run was made with, so that its figures can be read years later."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path

import torch

from gmpo.version import __version__

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "pyarrow", "numpy", "mpmath", "pydantic")


def write_environment(folder: Path, device: str) -> None:
    """`environment.json`: versions, processor, threads, device and the command line."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        "gmpo": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": device,
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "command": sys.argv,
    }
    (folder / "environment.json").write_text(json.dumps(environment, indent=1) + "\n")
