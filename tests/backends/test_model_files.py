"""What weight files hold beyond the model, and what they lack: refused where something would be lost, else said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from gmpo.backends.critic import load_value_model, load_value_model_with_notes, value_head
from gmpo.backends.models import ModelSource, load_model, load_model_with_notes
from gmpo.errors import BackendError

CPU = torch.device("cpu")
LAYER = "model.layers.0.self_attn"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def _add(folder: Path, *names: str) -> None:
    """Further weights of 3 numbers each."""
    saved: dict[str, Tensor] = {**load_file(folder / "model.safetensors"), **{name: torch.ones(3) for name in names}}
    save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})


def _load(folder: Path, **override: object) -> tuple[PreTrainedModel, list[str]]:
    return load_model_with_notes(ModelSource(str(folder), override_config=override), CPU)


def test_a_folder_with_the_models_weights_alone_has_no_notes(tiny_folder: Path) -> None:
    assert _load(tiny_folder)[1] == []


@pytest.mark.parametrize(
    "name",
    [
        f"{LAYER}.q_proj.lora_A.default.weight",
        f"base_model.{LAYER}.q_proj.lora_B.weight",
        f"{LAYER}.q_proj.base_layer.weight",
        "base_model.model.lm_head.modules_to_save.default.weight",
    ],
)
def test_an_adapter_among_the_weights_is_refused_with_the_way_to_merge_it(folder: Path, name: str) -> None:
    _add(folder, name)
    for load in (load_model, load_value_model):
        with pytest.raises(BackendError, match=rf"hold an adapter that is not merged.*{name}.*merge_and_unload"):
            load(ModelSource(str(folder)), CPU)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.7.mlp.up_proj.weight",  # more layers than config.json says
        f"{LAYER}.q_proj.bias",  # a bias that config.json leaves out
        f"{LAYER}.sinks",
        "module.model.norm.weight",  # the model's own, as a wrapper saves it
        "_orig_mod.model.norm.weight",
    ],
)
def test_a_weight_inside_the_models_own_parts_is_never_lost(folder: Path, name: str) -> None:
    _add(folder, name, "v_head.weight")
    for load in (load_model, load_value_model):
        with pytest.raises(BackendError, match=rf"has no place for 1 weights.*{name}.*config\.json"):
            load(ModelSource(str(folder)), CPU)


def test_fewer_layers_may_be_asked_for(folder: Path) -> None:
    """The second layer's 11 weights are left out, and that is said."""
    model, (said,) = _load(folder, num_hidden_layers=1)
    assert len(model.model.layers) == 1
    assert said.startswith("11 weights of the model's files are left out")


def test_parts_beside_the_model_are_left_out_and_named(folder: Path) -> None:
    names = ["mtp.fc.weight", "value_head.bias", "v_head.summary.bias", "v_head.summary.weight"]
    _add(folder, *names)
    _, (said,) = _load(folder)
    assert said.startswith("4 weights of the model's files are left out, for Qwen3ForCausalLM has no such part: ")
    assert said.endswith("mtp.fc.weight, v_head.summary.bias, v_head.summary.weight, ..")
    (of_critic,) = load_value_model_with_notes(ModelSource(str(folder)), CPU)[1]
    assert of_critic == said.replace("ForCausalLM", "ForTokenClassification")


def test_a_critic_lacks_a_language_models_head_and_that_is_not_worth_a_word(folder: Path) -> None:
    """A head in the files that is not the embedding; a value head among them is not used, and that is said."""
    size = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].shape
    saved = {**load_file(folder / "model.safetensors"), "lm_head.weight": torch.ones(size)}
    save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_value_model_with_notes(ModelSource(str(folder)), CPU)[1] == []
    saved["score.weight"] = torch.ones(1, size[1])
    save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    model, notes = load_value_model_with_notes(ModelSource(str(folder)), CPU)
    assert notes == ["the value head in the model's files (score.weight) is not used: every value begins at 0"]
    assert not value_head(model).weight.any()
    _add(folder, "mtp.fc.weight")
    left_out = load_value_model_with_notes(ModelSource(str(folder)), CPU)[1][0]
    assert left_out.startswith("1 weights of the model's files are left out")
    assert left_out.endswith("mtp.fc.weight")


def test_saved_buffers_that_the_model_computes_are_no_weights(folder: Path) -> None:
    _add(folder, "model.rotary_emb.cos_cached", f"{LAYER}.masked_bias", f"{LAYER}.rotary_emb.inv_freq")
    _, said = _load(folder)
    (line,) = said
    assert "saved buffers, which the model computes itself, are not read" in line


def test_an_index_that_names_a_missing_file_is_refused_with_its_name(tiny_folder: Path, tmp_path: Path) -> None:
    load_model(ModelSource(str(tiny_folder)), CPU).save_pretrained(tmp_path, max_shard_size="20KB")
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    assert _load(tmp_path)[1] == []
    parts[1].unlink()
    with pytest.raises(BackendError, match=rf"1 of the {len(parts)} weight files.*{parts[1].name}.*download"):
        load_model(ModelSource(str(tmp_path)), CPU)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(BackendError, match=r"index\.json is no index of weight files"):
        load_value_model(ModelSource(str(tmp_path)), CPU)


def test_an_index_beside_the_whole_file_is_not_read(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    assert _load(folder)[1] == []
