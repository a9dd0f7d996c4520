"""What a simulation says of activations, and the command."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config

from gmpo.backends.devices import Device
from gmpo.build.simulation import causal_model, kept_bytes
from gmpo.cli import main

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CPU = Device(torch.device("cpu"), torch.float32)


def test_what_a_backward_pass_keeps_is_what_a_real_one_keeps() -> None:
    """Storages that autograd saves in a real pass over 20 tokens, weights and buffers apart."""
    model = causal_model(Qwen2Config(**SHAPE), torch.float32)
    apart = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in apart:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model.base_model(
            input_ids=torch.zeros(1, 20, dtype=torch.long),
            position_ids=torch.arange(20).unsqueeze(0),
            attention_mask=torch.empty(1, 1, 0, 0),
            use_cache=False,
        )
    real = sum(t.untyped_storage().nbytes() for t in kept.values())
    assert kept_bytes(Qwen2Config(**SHAPE), 20, CPU, recompute=False) == pytest.approx(real, rel=0.05)


def test_activations_grow_with_tokens_and_recomputation_keeps_a_layers_input() -> None:
    """Twice the tokens keep twice as much; with recomputation 3 layers keep their inputs, and one of them the rest."""
    whole = [kept_bytes(Qwen2Config(**SHAPE), n, CPU, recompute=False) for n in (64, 128)]
    assert whole[1] == pytest.approx(2 * whole[0], rel=0.02)
    few = kept_bytes(Qwen2Config(**SHAPE), 128, CPU, recompute=True)
    inputs = 3 * 128 * 32 * 4
    assert inputs < few < whole[1] / 3 + 3 * inputs


def test_the_command_simulates_a_model_by_name_on_64_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Qwen2.5-0.5B, 494,032,768 parameters: 24 layers make 2 x 24 + 1 all-gathers and 24 + 1 reduce-scatters."""
    words = ["trainer.nnodes=8", "trainer.n_gpus_per_node=8", "actor_rollout_ref.model.path=Qwen/Qwen2.5-0.5B"]
    monkeypatch.setattr("sys.argv", ["gmpo", "check", "--simulate", *words])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().out
    assert "simulated: 494,032,768 parameters on 64 ranks, 64 to a copy" in shown
    assert "49 x all-gather, a micro-batch" in shown
    assert "25 x reduce-scatter, a micro-batch" in shown
    (weights,) = [line.split() for line in shown.splitlines() if line.strip().startswith("weights  ")]
    assert weights[-1] == "1.00"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["actor_rollout_ref.model.path=mine"], "not among the built-in shapes"),
        (["actor_rollout_ref.model.path=Qwen/Qwen2.5-0.5B", "actor_rollout_ref.model.lora_rank=8"], "lora_rank"),
    ],
)
def test_what_cannot_be_simulated_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.setattr("sys.argv", ["gmpo", "check", "--simulate", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())
