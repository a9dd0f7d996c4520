"""Rotations that depend on the length of a row: used while they are constant, refused beyond."""

from __future__ import annotations

import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedModel

from gmpo.backends.devices import Device
from gmpo.backends.family import unlike
from gmpo.backends.models import ModelSource, check_positions, length_of_rotations
from gmpo.errors import BackendError

BORDER = 30


def phi3(kind: str) -> PreTrainedModel:
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": BORDER}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [1.0, 4.0, 16.0, 64.0]}
    torch.manual_seed(0)
    return Phi3ForCausalLM(
        Phi3Config(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=64,
            initializer_range=0.3,
            pad_token_id=0,
            max_position_embeddings=120,
            original_max_position_embeddings=BORDER,
            rope_parameters=rope,
        )
    ).eval()


def test_within_the_border_the_model_agrees_with_itself_and_beyond_it_a_row_depends_on_its_end() -> None:
    """The log-prob of the first 20 tokens, with 8 and with 20 more behind them: equal, or not within 0.001 nats."""
    model = phi3("longrope")
    assert length_of_rotations(model.config) == ("longrope", BORDER)
    assert unlike(model, Device(torch.device("cpu"), torch.float32)) is None
    ids = torch.arange(1, 41).unsqueeze(0)
    with torch.no_grad():
        short, border, long = (model(input_ids=ids[:, :n], use_cache=False).logits[0, :20] for n in (20, BORDER, 40))
    assert torch.allclose(short, border, atol=1e-5)
    assert float((short - long).abs().max()) > 1e-3


def test_longer_rows_are_refused_with_the_border_and_the_remedy() -> None:
    model = phi3("longrope")
    check_positions(model, BORDER, "all", ModelSource("any"))
    with pytest.raises(
        BackendError, match=f"actor_rollout_ref.model.path \\(longrope\\) are others for rows beyond {BORDER} tokens"
    ):
        check_positions(model, BORDER + 1, "all", ModelSource("any"))
    with pytest.raises(BackendError, match="made for 120 positions"):
        check_positions(model, 121, "all", ModelSource("any"))
