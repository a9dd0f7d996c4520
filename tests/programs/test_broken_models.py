"""Model folders that are broken, each in one way: a message that names what, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

Command = Callable[..., Any]
Break = Callable[[Path], object]
WEIGHTS = "model.safetensors"
AGAIN = "Copy or download the model folder again"


def field(file: str = "config.json", **values: Any) -> Break:
    """Fields of a file replaced."""

    def change(folder: Path) -> None:
        found = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(found | values))

    return change


def content(file: str, text: bytes) -> Break:
    return lambda folder: (folder / file).write_bytes(text)


def half(folder: Path) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def no_numbers(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["model.layers.0.mlp.up_proj.weight"][:2, 0] = torch.tensor([float("nan"), float("inf")])
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def a_folder_of_the_name(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def a_part_missing(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    parts = {
        "lm_head.weight": "model-00002-of-00002.safetensors",
        "model.norm.weight": "model-00001-of-00002.safetensors",
    }
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": parts}))


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("weights")


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


SEEN: dict[str, tuple[Break, tuple[str, ...]]] = {
    "more layers than their kinds": (field(num_hidden_layers=3), ("config.json", "num_hidden_layers")),
    "kinds of layers of another model": (field(layer_types=["full_attention"] * 5), ("config.json", "layer_types")),
    "a text for a number": (field(hidden_size="big"), ("config.json", "hidden_size")),
    "a model_type that there is not": (field(model_type="nosuch"), ("config.json", "nosuch")),
    "no model_type": (content("config.json", b"{}"), ("config.json", "model_type")),
    "config.json cut off": (content("config.json", b'{"model_type": "qwen3", '), ("config.json cannot be read", AGAIN)),
    "config.json a list": (content("config.json", b"[1]"), ("config.json is no JSON object but a list",)),
    "config.json no text": (content("config.json", b"\xff\xfe\x00\x01"), ("config.json cannot be read", AGAIN)),
    "tokenizer.json cut off": (content("tokenizer.json", b"{"), ("tokenizer.json cannot be read", AGAIN)),
    "tokenizer.json of nothing": (content("tokenizer.json", b"{}"), ("tokenizer", "added_tokens")),
    "tokenizer_config.json cut off": (
        content("tokenizer_config.json", b"{"),
        ("tokenizer_config.json cannot be read",),
    ),
    "generation_config.json cut off": (
        content("generation_config.json", b"{"),
        ("generation_config.json cannot be read",),
    ),
    "an end token that is no id": (
        field("generation_config.json", eos_token_id="x"),
        ("eos_token_id = 'x'", "generation_config.json"),
    ),
    "a template cut off": (
        content("chat_template.jinja", b"{% for m in messages %}{{ m "),
        ("chat template", "template"),
    ),
    "a template that refuses": (content("chat_template.jinja", b"{{ raise_exception('no roles') }}"), ("no roles",)),
    "weights cut off": (half, (WEIGHTS, "broke off", AGAIN)),
    "weights empty": (content(WEIGHTS, b""), (WEIGHTS, AGAIN)),
    "weights something else": (content(WEIGHTS, b"<html>404 not found, sorry</html>"), (WEIGHTS, AGAIN)),
    "weights a folder": (a_folder_of_the_name, (WEIGHTS, "is no file")),
    "a part of the weights missing": (a_part_missing, ("model-00002-of-00002.safetensors", "not there")),
    "a file": (a_file, ("is a file",)),
    "nothing in it": (emptied, ("no config.json",)),
}
"""What can be seen without the weights' values: how it is broken, and what the message says."""
IN_THE_WEIGHTS: dict[str, tuple[Break, tuple[str, ...]]] = {
    "another width": (field(hidden_size=48), ("config.json describes another model", "embed_tokens", "32]", "48]")),
    "another vocabulary": (field(vocab_size=999), ("config.json describes another model", "999")),
    "weights that are no numbers": (no_numbers, ("2 of its weights not finite", "model.layers.0.mlp.up_proj.weight")),
}


@pytest.fixture
def broken(story_model: Path, tmp_path: Path) -> Callable[[Break], Path]:
    def make(change: Break) -> Path:
        folder = Path(shutil.copytree(story_model, tmp_path / "broken"))
        change(folder)
        return folder

    return make


@pytest.mark.parametrize("case", [*SEEN, *IN_THE_WEIGHTS])
def test_training_and_fine_tuning_name_it_and_leave_nothing(
    bench: Any, command: Command, broken: Callable[[Break], Path], case: str
) -> None:
    change, words = (SEEN | IN_THE_WEIGHTS)[case]
    model = broken(change)
    outcome = command("train", *bench.arguments({"actor_rollout_ref.model.path": model}))
    assert outcome.code == 1
    said = outcome.err.replace("\n", " ")
    assert not [word for word in words if word not in said], outcome.err
    assert not (bench.folder / "run").exists(), "a start that is refused leaves nothing"
    rows = bench.write_rows([{**row, "extra_info": {"answer": "1"}} for row in bench.rows], "sft.parquet")
    tuned = bench.folder / "tuned"
    outcome = command(
        "sft",
        f"model.path={model}",
        f"data.train_files={rows}",
        "data.train_batch_size=4",
        f"trainer.default_local_dir={tuned}",
    )
    assert outcome.code == 1
    said = outcome.err.replace("\n", " ")
    assert not [word for word in words if word not in said], outcome.err
    assert "actor_rollout_ref" not in outcome.err
    assert not tuned.exists()


@pytest.mark.parametrize("case", SEEN)
def test_a_check_of_readiness_sees_what_needs_no_weights(
    bench: Any, command: Command, broken: Callable[[Break], Path], case: str
) -> None:
    model = broken(SEEN[case][0])
    outcome = command("check", "--ready", *bench.arguments({"actor_rollout_ref.model.path": model}))
    assert outcome.code == 3
    assert "not ready" in outcome.out


def test_a_check_of_readiness_makes_the_start_of_a_training(bench: Any, command: Command) -> None:
    """Prompts that do not fit, and a data source that no scorer grades."""
    assert command("check", "--ready", *bench.arguments()).code == 0
    short = bench.arguments({"data.max_prompt_length": 1})
    elsewhere = [word for word in bench.arguments() if not word.startswith("custom_reward_function")]
    bench.write_rows([{**row, "data_source": "elsewhere"} for row in bench.rows])
    for words, said in ((short, "max_prompt_length"), (elsewhere, "elsewhere")):
        outcome = command("check", "--ready", *words)
        assert outcome.code == 3
        assert said in outcome.out
        assert command("train", *words).code == 1


@pytest.mark.parametrize(
    "place", ["under/a/file", "of another seed"], ids=["below a file", "a folder that holds something else"]
)
def test_a_quickstart_says_where_it_cannot_write(command: Command, tmp_path: Path, place: str) -> None:
    (tmp_path / "under").write_text("no folder")
    (tmp_path / "of another seed").mkdir()
    (tmp_path / "of another seed" / "notes.txt").write_text("mine")
    outcome = command("quickstart", "--out", str(tmp_path / place))
    assert outcome.code in (1, 2)
    assert f"--out {tmp_path / place}" in outcome.err.replace("\n", " ") or "--out=" in outcome.err
    assert (tmp_path / "under").read_text() == "no folder"


def test_a_check_of_readiness_tells_a_refused_setting_under_its_key(bench: Any, command: Command) -> None:
    """`require` is for a scorer that grades none of these rows."""
    words = [word for word in bench.arguments() if not word.startswith("custom_reward_function")]
    outcome = command("check", "--ready", *words, "reward_model.require=boxed")
    assert outcome.code == 3
    assert "reward_model.require" in outcome.out
