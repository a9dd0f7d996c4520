"""Reinforcement-learning post-training of reasoning language models around Geometric-Mean Policy Optimization.

    import gmpo
    run = gmpo.train({"actor_rollout_ref.model.path": "my-model", "recipe": "gmpo"}, rows=rows, reward=my_function)
    gmpo.grade("The answer is \\boxed{0.5}.", "1/2").verdict

`train` trains by reinforcement, `sft` on answers, `grade` grades one answer; `Run` is what the first two return. Errors
are kinds of `GmpoError`. `gmpo --help` lists the programs. Torch is loaded when a program starts, not by `import gmpo`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gmpo.errors import BackendError, CheckpointError, ConfigError, DataError, GmpoError
from gmpo.version import __version__

if TYPE_CHECKING:
    from gmpo.api import Run, sft, train
    from gmpo.rewards.single import grade

__all__ = [
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "GmpoError",
    "Run",
    "__version__",
    "grade",
    "sft",
    "train",
]

_LATE = {"Run": "gmpo.api", "sft": "gmpo.api", "train": "gmpo.api", "grade": "gmpo.rewards.single"}
"""Name -> the module that has it, imported when it is asked for."""


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(importlib.import_module(_LATE[name]), name)
    raise AttributeError(f"module 'gmpo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
