"""gmpo: reinforcement-learning post-training of reasoning language models around Geometric-Mean Policy Optimization.

    import gmpo
    run = gmpo.train({"actor_rollout_ref.model.path": "my-model", "recipe": "gmpo"}, rows=rows, reward=my_function)

`gmpo --help` lists the programs. Torch is loaded when a program starts, not by `import gmpo`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gmpo.errors import BackendError, CheckpointError, ConfigError, DataError, GmpoError
from gmpo.version import __version__

if TYPE_CHECKING:
    from gmpo.api import Run, sft, train

__all__ = [
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "GmpoError",
    "Run",
    "__version__",
    "sft",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in ("Run", "sft", "train"):
        return getattr(importlib.import_module("gmpo.api"), name)
    raise AttributeError(f"module 'gmpo' has no attribute {name!r}")
