"""Where tensors live and in which precision products run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from gmpo.errors import BackendError

Dtype = torch.dtype  # in a class with a field `torch` the name means that

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Names of `fsdp_config.dtype` and `model_dtype`."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device and the dtype of its matrix products; weights and optimizer state stay float32."""

    torch: torch.device
    compute: Dtype

    def autocast(self) -> AbstractContextManager[object]:
        """Run products in the compute dtype."""
        if self.compute is torch.float32:
            return nullcontext()
        return torch.autocast(self.torch.type, dtype=self.compute)


def pick_device(name: str, compute: str | None) -> Device:
    """`auto` takes the first CUDA device if there is one. Compute dtype None: bfloat16 on CUDA, float32 on the CPU.

    Raises:
        BackendError: CUDA was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise BackendError("trainer.device=cuda, but torch sees no CUDA device here. Use trainer.device=cpu or auto.")
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    dtype = DTYPES[compute] if compute is not None else torch.bfloat16 if kind == "cuda" else torch.float32
    return Device(torch.device(kind), dtype)


def use_any_length(device: torch.device) -> None:
    """Leave cuDNN's attention out for this process, which plans anew for each shape that it meets: in decoding that is
    every token, in training every micro-batch. torch's other kernels take any length as it comes."""
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def describe(device: Device) -> str:
    """For people: `cpu, 2 threads, float32`."""
    dtype = str(device.compute).removeprefix("torch.")
    if device.torch.type == "cuda":
        return f"{torch.cuda.get_device_name(device.torch)}, {dtype}"
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' * (threads > 1)}, {dtype}"


MEMORY = (
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu (or ppo_micro_batch_size_per_gpu): tokens per pass",
    "actor_rollout_ref.rollout.max_num_seqs: answers sampled side by side",
    "data.max_response_length: tokens per answer",
)
"""The settings of `gmpo train` that memory depends on."""


@contextmanager
def out_of_memory_hint(phase: str, settings: Sequence[str] = MEMORY) -> Iterator[None]:
    """Turn an out-of-memory error of `phase` into one that names the settings to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and "can't allocate memory" not in str(error):
            raise
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        listed = "\n".join(f"  {setting}" for setting in settings)
        raise BackendError(f"out of memory while {phase}: {first_line}\nLower one of\n{listed}") from error
