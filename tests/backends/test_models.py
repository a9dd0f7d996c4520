"""Loading models and tokenizers: what a folder must hold, and that each gap has a message of its own."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, GPT2Config, PreTrainedModel, PreTrainedTokenizerFast

from gmpo.backends.models import (
    ModelSource,
    check_positions,
    check_vocabulary,
    load_config,
    load_generation,
    load_model,
    load_tokenizer,
    pad_token_id,
    resolve,
    stop_token_ids,
)
from gmpo.backends.tiny_model import make_model, word_tokenizer
from gmpo.errors import BackendError

CPU = torch.device("cpu")


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder, to be damaged."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def load(folder: Path, **options: Any) -> PreTrainedModel:
    return load_model(ModelSource(str(folder), **options), CPU)


def edit(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


# --- what loads


def test_a_folder_gives_the_weights_it_holds_in_float32(tiny_folder: Path) -> None:
    model = load(tiny_folder)
    saved = load_file(tiny_folder / "model.safetensors")
    parameters = dict(model.named_parameters())
    assert saved.keys() == parameters.keys()
    assert all(torch.equal(parameters[name], saved[name]) for name in saved)
    assert {p.dtype for p in parameters.values()} == {torch.float32}


def test_weights_in_half_precision_are_trained_in_float32(folder: Path) -> None:
    saved = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder / "config.json", dtype="bfloat16")
    model = load(folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_every_dropout_is_switched_off(folder: Path, tmp_path: Path) -> None:
    edit(folder / "config.json", attention_dropout=0.1)
    assert load_config(ModelSource(str(folder))).attention_dropout == 0.0
    GPT2Config(resid_pdrop=0.1, embd_pdrop=0.2, attn_pdrop=0.3).save_pretrained(tmp_path / "gpt2")
    config = load_config(ModelSource(str(tmp_path / "gpt2")))
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.0, 0.0, 0.0)


def test_fields_of_the_configuration_can_be_replaced(tiny_folder: Path) -> None:
    source = ModelSource(str(tiny_folder), override_config={"rms_norm_eps": 1e-3, "attn_implementation": "eager"})
    assert load_config(source).rms_norm_eps == 1e-3
    model = load_model(source, CPU)
    assert model.config._attn_implementation == "eager"
    assert model.model.norm.variance_epsilon == 1e-3


def test_the_same_seed_makes_the_same_model(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    state = torch.get_rng_state()
    sizes = {"hidden": 8, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 8, "intermediate": 8}
    counts = [make_model(tmp_path / str(i), words, seed=seed, **sizes) for i, seed in enumerate((1, 1, 2))]
    one, same, other = (load_file(tmp_path / str(i) / "model.safetensors") for i in range(3))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert counts[0] == sum(tensor.numel() for tensor in one.values())
    assert torch.equal(torch.get_rng_state(), state), "and leaves the caller's random numbers alone"


# --- what is missing


@pytest.mark.parametrize("path", ["/no/such/folder", "./model", "~/model", "model", "a/b/c"])
def test_a_path_that_is_neither_folder_nor_hub_name_is_named(path: str) -> None:
    with pytest.raises(BackendError, match=f"model path '{path}' is neither a folder on this machine nor a hub name"):
        resolve(path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A server in the place of the hub that takes connections; closed, it takes none."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


@pytest.mark.usefixtures("hub")
def test_a_hub_name_is_left_to_the_library_where_the_hub_answers() -> None:
    assert resolve("Qwen/Qwen2.5-Math-7B") == "Qwen/Qwen2.5-Math-7B"


def test_without_a_hub_a_name_that_was_never_downloaded_says_how_to_bring_the_model(hub: socket.socket) -> None:
    hub.close()
    with pytest.raises(BackendError, match=r"no such folder in .*127\.0\.0\.1 is not reachable") as raised:
        resolve("some/model-of-nobody")
    assert "hf download some/model-of-nobody --local-dir FOLDER" in str(raised.value)


def test_without_a_hub_an_earlier_download_is_taken(
    hub: socket.socket, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.close()
    repository = tmp_path / "cache" / "models--some--model"
    shutil.copytree(folder, repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    monkeypatch.setattr("gmpo.backends.hub.CACHE", str(tmp_path / "cache"))
    assert resolve("some/model") == "some/model"
    assert constants.HF_HUB_OFFLINE


def test_a_folder_without_configuration_says_what_a_model_folder_holds(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"has no config\.json.* holds config\.json"):
        load(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "no-such-model"}', "{}"])
def test_a_configuration_that_cannot_be_read_is_named(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(BackendError, match=r"config\.json (cannot be read|is no JSON object|of model)"):
        load(folder)


def test_a_folder_without_weights_hints_at_save_contents(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(BackendError, match=r"has no weights \(\*\.safetensors\).*save_contents"):
        load(folder)


def test_a_weight_file_that_breaks_off_is_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BackendError, match=r"model\.safetensors cannot be read.* broke off"):
        load(folder)


def test_a_missing_parameter_is_refused_and_never_random(folder: Path) -> None:
    saved = load_file(folder / "model.safetensors")
    del saved["model.layers.1.mlp.up_proj.weight"]
    save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackendError, match=r"1 parameters are not in its weight files.*layers\.1\.mlp\.up_proj"):
        load(folder)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    edit(folder / "config.json", intermediate_size=48)
    with pytest.raises(BackendError, match=r"down_proj\.weight' is \[32, 64\] in the weight files and \[32, 48\]"):
        load(folder)


def test_an_unknown_field_to_replace_is_named(tiny_folder: Path) -> None:
    with pytest.raises(BackendError, match=r"override_config\.rope_tetha: Qwen3Config has no field of this name"):
        load(tiny_folder, override_config={"rope_tetha": 1e6})


def test_a_folder_without_tokenizer_says_where_to_put_one(folder: Path) -> None:
    for file in (*folder.glob("tokenizer*"), *folder.glob("special_tokens*"), *folder.glob("chat_template*")):
        file.unlink()
    with pytest.raises(BackendError, match=r"cannot load a tokenizer(.|\n)*actor_rollout_ref\.model\.tokenizer_path"):
        load_tokenizer(ModelSource(str(folder)))


# --- tokenizers and end tokens


def test_a_chat_template_can_be_replaced(tiny_folder: Path) -> None:
    source = ModelSource(str(tiny_folder))
    own = load_tokenizer(source)
    assert own.apply_chat_template([{"role": "user", "content": "w1"}], tokenize=False) == "<user> w1 "
    other = load_tokenizer(source, chat_template="{{ messages[0]['content'] }}")
    assert other.apply_chat_template([{"role": "user", "content": "w1"}], tokenize=False) == "w1"


def test_a_tokenizer_with_more_ids_than_the_model_embeds_is_refused(
    tiny_folder: Path, words: PreTrainedTokenizerFast
) -> None:
    model = load(tiny_folder)
    check_vocabulary(model, words)
    check_vocabulary(model, word_tokenizer(["a"]))  # models often embed more than is used
    with pytest.raises(BackendError, match="ids up to 32, the model embeds only 32: they do not belong together"):
        check_vocabulary(model, word_tokenizer([f"w{i}" for i in range(29)]))


@pytest.mark.parametrize(
    ("of_tokenizer", "of_model", "expected"),
    [("<eos>", 1, {1}), ("<eos>", [5, 6], {1, 5, 6}), ("<eos>", None, {1}), (None, 9, {9}), (None, [9, 4], {4, 9})],
)
def test_every_end_token_of_tokenizer_and_generation_configuration_counts(
    tiny_folder: Path,
    words: PreTrainedTokenizerFast,
    of_tokenizer: str | None,
    of_model: Any,
    expected: set[int],
) -> None:
    model = load(tiny_folder)
    tokenizer = load_tokenizer(ModelSource(str(tiny_folder)))
    tokenizer.eos_token = of_tokenizer
    model.generation_config = GenerationConfig(eos_token_id=of_model)
    assert stop_token_ids(model.generation_config, tokenizer) == expected


def test_a_model_without_any_end_token_is_refused(tiny_folder: Path) -> None:
    model = load(tiny_folder)
    tokenizer = load_tokenizer(ModelSource(str(tiny_folder)))
    tokenizer.eos_token = None
    model.generation_config = GenerationConfig()
    with pytest.raises(BackendError, match=r"no answer could ever end\. Set eos_token"):
        stop_token_ids(model.generation_config, tokenizer)


@pytest.mark.parametrize(("pad", "expected"), [("<pad>", 0), (None, 1)])
def test_an_end_token_pads_where_there_is_no_padding_token(tiny_folder: Path, pad: str | None, expected: int) -> None:
    tokenizer = load_tokenizer(ModelSource(str(tiny_folder)))
    tokenizer.pad_token = pad
    assert pad_token_id(tokenizer, frozenset({1, 7})) == expected


def test_the_fresh_policies_of_these_tests_are_alike(fresh_policy: Callable[[], PreTrainedModel]) -> None:
    a, b = fresh_policy().state_dict(), fresh_policy().state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_row_longer_than_the_models_positions_is_refused_with_the_numbers(tiny_folder: Path) -> None:
    model = load_model(ModelSource(str(tiny_folder)), torch.device("cpu"))
    limit = model.config.max_position_embeddings
    source = ModelSource("any", key="critic.model.path", override_key="critic.model.override_config")
    check_positions(model, limit, "all", source)
    said = rf"make {limit + 1} tokens, but the model of critic\.model\.path is made for {limit} positions"
    with pytest.raises(BackendError, match=rf"{said}.*critic\.model\.override_config\.max_pos.*={limit + 1}"):
        check_positions(model, limit + 1, "all", source)


@pytest.mark.parametrize("generation", [{"eos_token_id": [1, 5]}, None, {}])
def test_end_tokens_are_known_before_the_model_is_loaded(folder: Path, generation: dict[str, Any] | None) -> None:
    file = folder / "generation_config.json"
    file.unlink(missing_ok=True)
    if generation is not None:
        file.write_text(json.dumps(generation))
    assert load_generation(ModelSource(str(folder))).eos_token_id == load(folder).generation_config.eos_token_id
