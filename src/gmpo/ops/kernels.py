"""Which implementation of `gmpo.ops.blocks.Blocks` a device gets."""

from __future__ import annotations

import importlib
from importlib.util import find_spec

import torch

from gmpo.ops.blocks import Blocks, TorchBlocks


def blocks_for(device: torch.device) -> Blocks:
    """Triton's on a GPU, if it is installed (PyTorch for CUDA brings it along), else torch's."""
    if device.type != "cuda" or find_spec("triton") is None:
        return TorchBlocks()
    made: Blocks = importlib.import_module("gmpo.ops.blocks_triton").TritonBlocks()
    return made
