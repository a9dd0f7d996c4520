"""Memory of this process under verl's metric names."""

from __future__ import annotations

import resource

import torch

GIB = 1024.0**3


def peak_memory() -> dict[str, float]:
    """Peak resident memory of the process, and peaks of the CUDA allocator where there is one, in GiB."""
    metrics = {"perf/cpu_memory_used_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB}
    if torch.cuda.is_available():
        metrics["perf/max_memory_allocated_gb"] = torch.cuda.max_memory_allocated() / GIB
        metrics["perf/max_memory_reserved_gb"] = torch.cuda.max_memory_reserved() / GIB
    return metrics
