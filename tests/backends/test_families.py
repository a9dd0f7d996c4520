"""Every causal family of the installed transformers: sampler, learner and gradient are those of plain passes, or the
family
is refused by name before anything starts. `benchmarks/families.py` prints what is seen here."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging import version
from transformers import AutoModelForTokenClassification, PreTrainedModel

from gmpo.backends.critic import value_head
from gmpo.backends.devices import Device
from gmpo.backends.family import require_family, unlike
from gmpo.errors import BackendError

FILE = Path(__file__).parents[2] / "benchmarks" / "families.py"
SPEC = importlib.util.spec_from_file_location("families", FILE)
assert SPEC is not None
assert SPEC.loader is not None
families = importlib.util.module_from_spec(SPEC)
sys.modules["families"] = families
SPEC.loader.exec_module(families)
CPU = Device(torch.device("cpu"), torch.float32)

BEFORE = "bart bert bert-generation big_bird bigbird_pegasus blenderbot blenderbot-small camembert cpmant data2vec-text"
REFUSED = frozenset(
    f"{BEFORE} electra ernie marian mbart megatron-bert mvp pegasus plbart prophetnet rembert roberta "
    "roberta-prelayernorm roc_bert roformer trocr whisper xlm-roberta xlm-roberta-xl xlnet xmod openai-gpt "
    # Layers with a state of their own that read padding, or whose cache is none of the library's usual ones.
    "deepseek_v4 dory falcon_mamba mamba minimax recurrent_gemma rwkv xlstm bailing_hybrid".split()
)
"""Families that the start refuses. Most are encoders, or decoders of an encoder's output."""
OLDER = version.parse(transformers.__version__) < version.parse("5.24")
REFUSED_ONCE = frozenset(["mamba2"] if OLDER else [])
"""Refused with the code that older versions of the library have of them."""
NOT_MADE: dict[str, str] = {
    **dict.fromkeys(
        ("emu3", "mllama", "musicgen", "musicgen_melody", "git", "phi4_multimodal"), "reads images or sounds"
    ),
    **dict.fromkeys(
        ("blt", "longcat_flash", "dots3_note", "dots3_note_text", "xlm"), "its sizes have names of their own"
    ),
    **dict.fromkeys(("cohere_compass_text", "dbrx", "dots1", "nemotron"), "its own default does not build when small"),
    **dict.fromkeys(("gemma4_assistant", "qwen4_exp", "qwen4_exp_text", "reformer"), "nor this one's"),
    "zamba": "ties layers by number, of which the small one has none",
}
"""Families of which no small model is made here: not tested, so nothing is said of them."""
NOT_MADE_ONCE = frozenset(["gemma4_unified_assistant"])
ROUNDS: Mapping[str, float] = {"zamba2": 1e-3, "nemotron_h": 1e-3}
"""Nats by which the library's own decoding step differs from its pass over a row, on random weights."""


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_family_is_trained_rightly_or_refused(family: str) -> None:
    try:
        model = families.tiny_model(family)
    except Exception:
        assert family in NOT_MADE or (OLDER and family in NOT_MADE_ONCE)
        return
    assert family not in NOT_MADE, "it can be made, so it is tested"
    if unlike(model, CPU) is not None:
        assert family in REFUSED | REFUSED_ONCE
        with pytest.raises(BackendError, match=f"model_type '{model.config.model_type}'\\) cannot be trained here"):
            require_family(model, CPU, "folder")
        return
    assert family not in REFUSED
    found = families.apart(model)
    assert found.learner <= 2e-5
    assert found.gradient <= 1e-4
    assert found.sampler <= ROUNDS.get(family, 2e-5)


@pytest.fixture
def qwen() -> PreTrainedModel:
    return families.tiny_model("qwen2")


def test_a_model_that_draws_in_training_is_refused(qwen: PreTrainedModel) -> None:
    """Noise that training mode does not switch: of 1e-3, far below what a log-prob would show."""
    layer: Any = qwen.model.layers[0].mlp
    layer.register_forward_hook(lambda _module, _inputs, out: out + 1e-4 * torch.rand(()))
    assert "draws random numbers" in str(unlike(qwen, CPU))


def test_a_model_that_reads_padding_is_refused(qwen: PreTrainedModel) -> None:
    layer: Any = qwen.model.layers[0].mlp
    layer.register_forward_hook(lambda _module, _inputs, out: out + out.mean(1, keepdim=True))
    assert "one padded pass" in str(unlike(qwen, CPU))


def test_an_error_of_the_models_code_is_named(qwen: PreTrainedModel) -> None:
    def fails(_module: Any, inputs: tuple[Any, ...], _kwargs: Any) -> None:
        if inputs[0].shape[1] == 1:
            raise KeyError("state")

    qwen.model.layers[0].mlp.register_forward_pre_hook(fails, with_kwargs=True)
    with pytest.raises(BackendError, match="decoding with a cache ends in an error of its own code \\(KeyError"):
        require_family(qwen, CPU, "folder")


def test_a_critic_is_compared_by_its_hidden_states_though_its_head_is_zero() -> None:
    """A causal backbone passes; one that reads padding, draws, or sees what comes later is refused by that use."""

    def critic(family: str) -> PreTrainedModel:
        config = families.tiny_model(family).config
        config.num_labels = 1
        made: PreTrainedModel = AutoModelForTokenClassification.from_config(config)
        with torch.no_grad():
            for parameter in value_head(made).parameters():
                parameter.zero_()
        return made

    require_family(critic("qwen2"), CPU, "folder", critic=True)
    bert = critic("bert")
    assert "the beginning of a row alone gives other hidden states" in str(unlike(bert, CPU, critic=True))
    with pytest.raises(BackendError, match=r"\(model_type 'bert'\) cannot be trained here.*Its values would not"):
        require_family(bert, CPU, "folder", critic=True)
    reads, draws = critic("qwen2"), critic("qwen2")
    layer: Any = reads.model.layers[0].mlp
    layer.register_forward_hook(lambda _module, _inputs, out: out + out.mean(1, keepdim=True))
    assert "one padded pass gives other hidden states" in str(unlike(reads, CPU, critic=True))
    layer = draws.model.layers[0].mlp
    layer.register_forward_hook(lambda _module, _inputs, out: out + 1e-6 * torch.rand(()))
    assert "draws random numbers" in str(unlike(draws, CPU, critic=True))
