"""Devices, compute precision and what becomes of an out-of-memory error."""

from __future__ import annotations

import pytest
import torch

from gmpo.backends.devices import describe, out_of_memory_hint, pick_device
from gmpo.errors import BackendError

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")


@no_cuda
def test_auto_is_the_cpu_in_float32_where_there_is_no_cuda() -> None:
    device = pick_device("auto", None)
    assert (device.torch.type, device.compute) == ("cpu", torch.float32)
    n = torch.get_num_threads()
    assert describe(device) == f"cpu, {n} thread{'s' * (n > 1)}, float32"


@no_cuda
def test_cuda_where_there_is_none_is_refused_with_the_remedy() -> None:
    with pytest.raises(BackendError, match=r"torch sees no CUDA device here\. Use trainer\.device=cpu or auto"):
        pick_device("cuda", None)


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_products_run_in_the_compute_dtype_and_weights_stay_float32(name: str, dtype: torch.dtype) -> None:
    device = pick_device("cpu", name)
    layer = torch.nn.Linear(4, 4)
    with device.autocast():
        assert layer(torch.ones(1, 4)).dtype is dtype
    assert layer.weight.dtype is torch.float32


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB\nmore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
)
def test_out_of_memory_names_phase_and_settings(error: RuntimeError) -> None:
    with (
        pytest.raises(BackendError, match="out of memory while updating the policy") as raised,
        out_of_memory_hint("updating the policy"),
    ):
        raise error
    for setting in ("ppo_max_token_len_per_gpu", "max_num_seqs", "max_response_length"):
        assert setting in str(raised.value)
    assert "more" not in str(raised.value)


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match="shapes do not match"), out_of_memory_hint("sampling"):
        raise RuntimeError("shapes do not match")
