"""Bad input gets a clear error: the place, the value, the cause and the remedy, an exit code, and never a traceback.

Every case is a command line. The fixture `command` fails on a traceback.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from gmpo.backends.tiny_model import make_model, word_tokenizer
from gmpo.data.stories import demonstration_rows, vocabulary
from gmpo.errors import BackendError

A, R, M = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"
CONFIG, OTHER = 2, 1
"""Exit codes: of settings that make no sense, and of everything else."""


@pytest.fixture
def refused(bench: Any, command: Callable[..., Any]) -> Callable[..., str]:
    """Runs `gmpo train` with changed settings, expects its refusal with an exit code, and gives back the message."""

    def run(changes: dict[str, Any], code: int) -> str:
        outcome = command("train", *bench.arguments(changes))
        assert outcome.code == code, outcome.out + outcome.err
        assert not (bench.folder / "run" / "huggingface").exists()
        return str(outcome.err)

    return run


@pytest.fixture
def model_copy(bench: Any) -> Path:
    """A model folder to break."""
    return Path(shutil.copytree(bench.model, bench.folder / "model"))


# Settings


def test_all_wrong_settings_are_listed_together_with_the_nearest_key_the_range_and_the_reason(
    refused: Callable[..., str],
) -> None:
    said = refused(
        {
            f"{A}.optim.learning_rate": 1e-3,
            "loss_mode": "geo_mean",
            f"{A}.clip_ratio": "narrow",
            f"{R}.temperature": -1,
            "data.truncation": "lef",
            f"{A}.ppo_mini_batch_size": 8,
        },
        CONFIG,
    )
    assert said.startswith("ConfigError: 6 problems in the configuration:\n")
    for words in (
        f"{A}.optim.learning_rate = 0.001 (command line)\n      unknown key",
        f"{A}.policy_loss.loss_mode",
        f"{A}.clip_ratio = 'narrow' (command line)\n      must be a number >= 0",
        f"{R}.temperature = -1 (command line)\n      must be a number > 0",
        "must be one of error, left, right, middle. Did you mean left?",
        f"{A}.ppo_mini_batch_size = 8 (command line)\n      is larger than data.train_batch_size = 4",
    ):
        assert words in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({f"{R}.n": 1}, f"{R}.n = 1 (command line)\n      gives grpo nothing to compare"),
        (
            {f"{A}.ppo_micro_batch_size_per_gpu": 3},
            "does not divide the 8 answers of a mini-batch (ppo_mini_batch_size 2 x rollout.n 4); nearest that do: 1",
        ),
        (
            {"data.train_batch_size": 16},
            "data.train_batch_size = 16 is larger than the data set, which has 12 rows: not one step is possible",
        ),
        ({"trainer.val_only": True}, "trainer.val_only = True"),
        ({"trainer.resume_mode": "resume_path"}, "must be given with trainer.resume_mode=resume_path"),
        ({"trainer.logger": "[console,wandbb]"}, "trainer.logger"),
        ({M + ".path": "null"}, "actor_rollout_ref.model.path: is not given"),
        ({"data.train_files": "[]"}, "data.train_files is not set: it names the training problems"),
        ({"recipe": "gpmo"}, "gmpo"),
    ],
)
def test_settings_that_are_impossible_say_why(refused: Callable[..., str], changes: dict[str, Any], words: str) -> None:
    assert words in refused(changes, CONFIG)


def test_a_missing_or_broken_settings_file_is_named(command: Callable[..., Any], tmp_path: Path) -> None:
    outcome = command("train", "--config", str(tmp_path / "none.yaml"))
    assert (outcome.code, str(tmp_path / "none.yaml") in outcome.err) == (CONFIG, True)
    (tmp_path / "broken.yaml").write_text("trainer: [1, 2")
    outcome = command("train", "--config", str(tmp_path / "broken.yaml"))
    assert (outcome.code, "broken.yaml" in outcome.err) == (CONFIG, True)


@pytest.mark.parametrize("program", ["train", "sft"])
def test_a_folder_that_cannot_be_written_to_is_known_before_the_model_is_loaded(
    bench: Any, command: Callable[..., Any], program: str
) -> None:
    (bench.folder / "file").touch()
    place = bench.folder / "file" / "run"
    files = f"data.train_files={bench.write_rows()}"
    words = [f"{M}.path=/no/model"] if program == "train" else ["model.path=/no/model"]
    outcome = command(program, *words, files, f"trainer.default_local_dir={place}")
    assert outcome.code == CONFIG
    assert f"trainer.default_local_dir={place}: cannot write there: " in outcome.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")
def test_cuda_where_there_is_none_is_refused(refused: Callable[..., str]) -> None:
    assert "trainer.device=cuda, but torch sees no CUDA device" in refused({"trainer.device": "cuda"}, OTHER)


# Data


def test_a_missing_file_names_what_is_there_instead(bench: Any, refused: Callable[..., str]) -> None:
    bench.write_rows(name="train.parquet")
    said = refused({"data.train_files": bench.folder / "trian.parquet"}, OTHER)
    assert f"there is no file {bench.folder / 'trian.parquet'}. Did you mean train.parquet?" in said
    said = refused({"data.val_files": bench.folder / "test.parquet"}, OTHER)
    assert f"there is no file {bench.folder / 'test.parquet'}" in said


def test_a_missing_column_is_named_with_those_that_are_there(bench: Any, refused: Callable[..., str]) -> None:
    rows = [{("question" if k == "prompt" else k): v for k, v in row.items()} for row in bench.rows]
    said = refused({"data.train_files": bench.write_rows(rows, "renamed.parquet")}, OTHER)
    assert "renamed.parquet, row 1: there is no column `prompt`. Columns present: " in said
    assert "question" in said
    assert "data.prompt_key" in said
    assert "there is no column `source`" in refused({"data.reward_fn_key": "source"}, OTHER)


def test_a_file_without_rows_is_refused(bench: Any, refused: Callable[..., str]) -> None:
    (bench.folder / "empty.jsonl").write_text("\n")
    said = refused({"data.train_files": bench.folder / "empty.jsonl"}, OTHER)
    assert f"{bench.folder / 'empty.jsonl'} has no rows" in said


@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        ('{"data_source": "gmpo/stories", "prompt": [', "invalid JSON"),
        ('{"data_source": "gmpo/stories", "prompt": 5, "reward_model": {"ground_truth": "1"}}', "`prompt` must be"),
        ('{"data_source": "gmpo/stories", "prompt": "a", "reward_model": {}}', "`ground_truth`"),
        ('{"data_source": null, "prompt": "a", "reward_model": {"ground_truth": "1"}}', "`data_source` must be a name"),
        ("[1, 2]", "a row must be an object"),
    ],
)
def test_a_malformed_row_is_named_with_its_file_and_number(
    bench: Any, refused: Callable[..., str], bad: str, cause: str
) -> None:
    file = bench.folder / "rows.jsonl"
    file.write_text("\n".join([*(json.dumps(row) for row in bench.rows[:4]), bad]))
    said = refused({"data.train_files": file}, OTHER)
    assert f"{file}, row 5" in said
    assert cause in said


def test_a_word_that_the_tokenizer_does_not_know_is_named_with_its_row(bench: Any, refused: Callable[..., str]) -> None:
    rows = [*bench.rows[:4], {**bench.rows[4], "prompt": [{"role": "user", "content": "how many zebras ?"}]}]
    said = refused({"data.train_files": bench.write_rows(rows, "zebras.parquet")}, OTHER)
    assert "zebras.parquet:5" in said


def test_a_data_source_without_scorer_lists_the_known_and_the_remedy(bench: Any, refused: Callable[..., str]) -> None:
    rows = [{**row, "data_source": "openai/gsm9k"} for row in bench.rows]
    files = {"data.train_files": bench.write_rows(rows, "other.parquet"), "custom_reward_function.path": "null"}
    said = refused(files, OTHER)
    assert "No scorer for data_source 'openai/gsm9k'. Did you mean 'openai/gsm8k'?" in said
    assert "custom_reward_function.path" in said


# Lengths. Of the twelve stories some have more than 24 tokens with the template, some have not.


@pytest.fixture
def lengths(bench: Any) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(bench.model)
    found = [
        len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False))
        for row in bench.rows
    ]
    assert 0 < sum(n > 24 for n in found) < 9
    return found


def test_a_prompt_that_is_too_long_is_an_error_with_its_row_its_length_and_the_ways_out(
    refused: Callable[..., str], lengths: list[int]
) -> None:
    said = refused({"data.max_prompt_length": 24}, OTHER)
    first = next(i for i, n in enumerate(lengths) if n > 24)
    assert f"train.parquet:{first + 1}: the prompt has {lengths[first]} tokens" in said
    assert f"{sum(n > 24 for n in lengths)} of 12 prompts are longer, the longest has {max(lengths)}" in said
    for remedy in ("data.filter_overlong_prompts=True", "data.truncation=left", f"to {max(lengths)}"):
        assert remedy in said


@pytest.mark.parametrize("truncation", ["left", "right", "middle"])
def test_truncation_keeps_the_part_that_it_names_and_the_number_cut_is_shown(
    bench: Any,
    command: Callable[..., Any],
    lengths: list[int],
    lines: Callable[[Path], list[dict[str, Any]]],
    truncation: str,
) -> None:
    settings = {
        "data.max_prompt_length": 24,
        "data.truncation": truncation,
        "data.train_batch_size": 12,
        f"{A}.ppo_mini_batch_size": 12,
        "trainer.total_training_steps": 1,
        "trainer.sample_groups": -1,
        "trainer.token_record_groups": 12,
    }
    outcome = command("train", *bench.arguments(settings))
    assert outcome.code == 0
    assert f"12 problems ({sum(n > 24 for n in lengths)} prompts cut), " in outcome.out
    tokenizer = AutoTokenizer.from_pretrained(bench.model)
    keep = {"left": lambda x: x[-24:], "right": lambda x: x[:24], "middle": lambda x: x[:12] + x[-12:]}[truncation]
    cut = 0
    for sample in lines(bench.folder / "run" / "samples" / "1.jsonl"):
        whole = tokenizer.apply_chat_template(sample["input"], add_generation_prompt=True, return_dict=False)
        cut += len(whole) > 24
        assert sample["prompt_ids"] == (keep(whole) if len(whole) > 24 else whole)
    assert cut == 4 * sum(n > 24 for n in lengths)


def test_the_filter_shows_how_many_it_dropped_and_refuses_to_leave_nothing(
    bench: Any, command: Callable[..., Any], lengths: list[int], refused: Callable[..., str]
) -> None:
    dropped = sum(n > 24 for n in lengths)
    settings = {"data.max_prompt_length": 24, "data.filter_overlong_prompts": True, "data.train_batch_size": 2}
    said = refused({**settings, "data.max_prompt_length": 5}, OTHER)
    assert f"all 12 prompts are longer than data.max_prompt_length=5 tokens, the shortest has {min(lengths)}" in said
    settings["data.val_files"] = bench.write_rows(bench.rows, "val.parquet")
    outcome = command("train", *bench.arguments(settings))
    assert outcome.code == 0
    lost = f"({dropped} overlong ones dropped)"
    assert f"{12 - dropped} problems {lost}, {12 - dropped} {lost} for validation" in outcome.out


# Models


def test_a_model_folder_without_weights_or_configuration_says_what_is_missing(
    model_copy: Path, refused: Callable[..., str]
) -> None:
    (model_copy / "model.safetensors").unlink()
    assert f"model folder {model_copy} has no weights (*.safetensors)" in refused({M + ".path": model_copy}, OTHER)
    (model_copy / "config.json").unlink()
    assert f"model folder {model_copy} has no config.json" in refused({M + ".path": model_copy}, OTHER)
    said = refused({M + ".path": model_copy / "nothing"}, OTHER)
    assert "is neither a folder on this machine nor a hub name" in said


def test_weights_that_cannot_be_read_are_an_error_of_the_model(model_copy: Path, refused: Callable[..., str]) -> None:
    file = model_copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert f"weight file {file} cannot be read" in refused({M + ".path": model_copy}, OTHER)


def test_a_model_folder_without_tokenizer_names_the_remedy(model_copy: Path, refused: Callable[..., str]) -> None:
    for file in model_copy.glob("*token*"):
        file.unlink()
    said = refused({M + ".path": model_copy}, OTHER)
    assert f"cannot load a tokenizer from '{model_copy}'" in said
    assert "actor_rollout_ref.model.tokenizer_path" in said


def test_a_tokenizer_without_chat_template_names_the_remedy_and_the_remedy_works(
    bench: Any, model_copy: Path, refused: Callable[..., str], command: Callable[..., Any]
) -> None:
    (model_copy / "chat_template.jinja").unlink()
    said = refused({M + ".path": model_copy}, OTHER)
    assert "the tokenizer has no chat template" in said
    assert "actor_rollout_ref.model.custom_chat_template" in said
    template = "{% for m in messages %}<user> {{ m.content }} {% endfor %}<assistant>"
    remedy = {M + ".path": model_copy, M + ".custom_chat_template": template}
    assert command("train", *bench.arguments(remedy)).code == 0


def test_a_tokenizer_of_another_model_is_refused(bench: Any, refused: Callable[..., str]) -> None:
    larger = bench.folder / "larger"
    words = word_tokenizer([*vocabulary(), "zebra", "yak"])
    make_model(larger, words, seed=0, hidden=32, layers=1, heads=2, head_dim=16, intermediate=64)
    said = refused({M + ".tokenizer_path": larger}, OTHER)
    assert "they do not belong together" in said


# Rewards


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def compute_score(:\n    pass\n", ["cannot be imported as a reward function", "SyntaxError"]),
        ("import nothing_of_this_name\n", ["ModuleNotFoundError: No module named 'nothing_of_this_name'"]),
        ("def score(solution_str):\n    return 1.0\n", ["has no function 'compute_score'", "It has: score."]),
        ("def compute_score(text):\n    return 1.0\n", ["must have a parameter solution_str", "Its parameters: text."]),
        (None, ["custom_reward_function.path: there is no file"]),
    ],
)
def test_a_reward_file_that_cannot_be_used_is_known_before_anything_is_sampled(
    bench: Any, command: Callable[..., Any], model_copy: Path, source: str | None, words: list[str]
) -> None:
    file = bench.folder / "mine.py"
    if source is not None:
        file.write_text(source)
    # The model cannot be loaded either: the reward function, which is sooner at hand, is looked at first.
    (model_copy / "model.safetensors").unlink()
    outcome = command("train", *bench.arguments({"custom_reward_function.path": file, M + ".path": model_copy}))
    assert outcome.code == CONFIG
    assert all(word in outcome.err for word in words)
    assert "step:" not in outcome.out
    assert not (bench.folder / "run" / "samples").exists()


CRASHES_ON_ODD_DIGITS = """
def compute_score(data_source, solution_str, ground_truth, extra_info):
    if set("13579") & set(solution_str.split()):
        raise ZeroDivisionError("an odd digit")
    return 0.0
"""


def test_a_crashing_reward_stops_the_run_above_the_share_with_reasons_and_never_counts_as_wrong(
    bench: Any,
    command: Callable[..., Any],
    refused: Callable[..., str],
    lines: Callable[[Path], list[dict[str, Any]]],
) -> None:
    file = bench.folder / "crashes.py"
    file.write_text(CRASHES_ON_ODD_DIGITS)
    settings = {"custom_reward_function.path": file, "trainer.sample_groups": -1, "trainer.total_training_steps": 1}
    said = refused({**settings, "reward_model.max_failed_share": 0.0}, OTHER)
    assert "of 16 answers" in said
    assert "limit 0%) could not be graded (grader_error " in said
    assert f"ZeroDivisionError: an odd digit ({file}, line 4)" in said

    outcome = command("train", *bench.arguments({**settings, "reward_model.max_failed_share": 1.0}))
    assert outcome.code == 0
    verdicts = {s["output"]: s["verdict"] for s in lines(bench.folder / "run" / "samples" / "1.jsonl")}
    assert set(verdicts.values()) == {"grader_error", "wrong"}
    assert all((v == "grader_error") == bool(set("13579") & set(text.split())) for text, v in verdicts.items())


def test_a_reward_that_never_ends_is_a_timeout_and_stops_the_run(bench: Any, refused: Callable[..., str]) -> None:
    file = bench.folder / "hangs.py"
    file.write_text("def compute_score(solution_str):\n    while True:\n        pass\n")
    settings = {"data.train_batch_size": 2, f"{R}.n": 2, "reward_model.grader_timeout_s": 0.1}
    said = refused({**settings, "custom_reward_function.path": file}, OTHER)
    assert "4 of 4 answers (100%, limit 10%) could not be graded (timeout 4)" in said
    assert "no result within 0.1 s" in said


# Memory


SETTINGS_TO_LOWER = (
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu (or ppo_micro_batch_size_per_gpu)",
    "actor_rollout_ref.rollout.max_num_seqs",
    "data.max_response_length",
)


def test_an_answer_longer_than_any_memory_names_the_settings_to_lower(refused: Callable[..., str]) -> None:
    positions = {M + ".override_config": f"{{max_position_embeddings: {2 * 10**15}}}"}
    endless = {**positions, "data.max_response_length": 10**15, f"{A}.ppo_micro_batch_size_per_gpu": 4}
    said = refused(endless, OTHER)
    assert "out of memory while sampling: " in said
    assert all(setting in said for setting in SETTINGS_TO_LOWER)


@contextmanager
def _spare_memory(mebibytes: int) -> Iterator[None]:
    """This process may take so much more address space than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + mebibytes * 2**20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are enforced on Linux")
def test_a_machine_that_runs_out_of_memory_names_the_settings_to_lower(bench: Any, refused: Callable[..., str]) -> None:
    bench.train(run="warm")  # loads what a first run loads
    many = {f"{R}.n": 8000, f"{R}.max_num_seqs": 32000, f"{A}.ppo_micro_batch_size_per_gpu": 16000}
    with _spare_memory(64):
        said = refused(many, OTHER)
    assert "out of memory while sampling: " in said
    assert all(setting in said for setting in SETTINGS_TO_LOWER)


# Supervised learning


def _sft(bench: Any) -> tuple[str, str]:
    return f"model.path={bench.model}", f"trainer.default_local_dir={bench.folder / 'sft'}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: {**row, "extra_info": {"answer": 5}}, "row 2: `extra_info.answer` must be a string to imitate"),
        (lambda row: {**row, "extra_info": {}}, "row 2: there is no `extra_info.answer`"),
        (lambda row: {**row, "extra_info": {"answer": "forty two"}}, "rows.jsonl:2: the tokenizer cannot read"),
    ],
)
def test_a_row_that_cannot_be_learned_is_named(
    bench: Any, command: Callable[..., Any], change: Callable[[Any], Any], words: str
) -> None:
    rows = demonstration_rows(4, seed=0)
    rows[1] = change(rows[1])
    file = bench.folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    outcome = command("sft", *_sft(bench), f"data.train_files={file}", "data.train_batch_size=2")
    assert outcome.code == OTHER
    assert words in outcome.err


def test_a_batch_that_is_larger_than_the_demonstrations_is_refused(bench: Any, command: Callable[..., Any]) -> None:
    files = f"data.train_files={bench.write_rows(demonstration_rows(4, seed=0))}"
    outcome = command("sft", *_sft(bench), files, "data.train_batch_size=8")
    assert outcome.code == CONFIG
    assert "data.train_batch_size = 8 is larger than the data set, which has 4 rows" in outcome.err


def test_a_prompt_longer_than_the_limit_names_a_setting_that_sft_has(bench: Any, command: Callable[..., Any]) -> None:
    files = f"data.train_files={bench.write_rows(demonstration_rows(4, seed=0))}"
    small = ("data.train_batch_size=2", "data.max_length=10")
    for truncation in ("error", "left", "right"):
        outcome = command("sft", *_sft(bench), files, *small, f"data.truncation={truncation}")
        assert outcome.code == OTHER
        assert "data.max_length=10" in outcome.err
        assert "max_prompt_length" not in outcome.err


def test_a_critic_of_another_path_is_looked_at_as_the_policy_is(bench: Any) -> None:
    """One that sees later tokens, and one with fewer ids than the tokenizer has."""
    for name, size, said in (("bert", 64, "model_type 'bert'"), ("small", 8, "the model embeds only 8")):
        config = BertConfig(
            vocab_size=size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            initializer_range=0.5,
        )  # fmt: skip
        torch.manual_seed(0)
        BertForMaskedLM(config).save_pretrained(bench.folder / name)
        other = {
            "recipe": None,
            "algorithm.adv_estimator": "gae",
            "actor_rollout_ref.actor.policy_loss.loss_mode": "vanilla",
            "critic.model.path": str(bench.folder / name),
        }
        with pytest.raises(BackendError, match=said):
            bench.train(other, run=f"by-{name}")


REFERENCE = {"actor_rollout_ref.actor.use_kl_loss": True}
CRITIC = {
    "recipe": None,
    "algorithm.adv_estimator": "gae",
    "actor_rollout_ref.actor.policy_loss.loss_mode": "vanilla",
}
OTHER_MODELS = [
    (REFERENCE, "actor_rollout_ref.ref.model.path", "actor_rollout_ref.model.override_config"),
    (CRITIC, "critic.model.path", "critic.model.override_config"),
]


@pytest.mark.parametrize(("needs_it", "key", "override"), OTHER_MODELS)
def test_another_model_that_has_too_few_positions_for_a_row_is_named_by_its_key(
    bench: Any, needs_it: dict[str, Any], key: str, override: str
) -> None:
    """As many positions as the longest row has tokens are enough; one less is not."""
    other = bench.folder / "other"
    shape: dict[str, Any] = {"hidden": 32, "layers": 1, "heads": 2, "head_dim": 16, "intermediate": 64}
    make_model(other, word_tokenizer(vocabulary()), seed=1, max_positions=8, **shape)
    settings = {**needs_it, key: str(other), "trainer.total_training_steps": 1}
    with pytest.raises(BackendError, match=f"the model of {key} is made for 8 positions") as caught:
        bench.train(settings)
    (tokens,) = re.findall(r"make ([0-9]+) tokens", str(caught.value))
    assert f"{override}.max_position_embeddings={tokens}." in str(caught.value)
    make_model(other, word_tokenizer(vocabulary()), seed=1, max_positions=int(tokens) - 1, **shape)
    with pytest.raises(BackendError, match=f"the model of {key} is made for {int(tokens) - 1} positions"):
        bench.train(settings)
    make_model(other, word_tokenizer(vocabulary()), seed=1, max_positions=int(tokens), **shape)
    assert bench.train(settings).finished


@pytest.mark.parametrize(("needs_it", "key", "override"), OTHER_MODELS)
def test_what_another_models_files_hold_beyond_it_is_said_or_refused_with_its_key(
    bench: Any, needs_it: dict[str, Any], key: str, override: str
) -> None:
    """A copy of the policy holds nothing to speak of; a tower beside it is named; a layer inside it would be lost."""
    other = Path(shutil.copytree(bench.model, bench.folder / "other"))
    console = Console(file=StringIO(), width=1000)
    settings = {**needs_it, key: str(other), "trainer.total_training_steps": 1}
    bench.train(settings, run="copy", console=console)
    assert "left out" not in console.file.getvalue()
    saved = {**load_file(other / "model.safetensors"), "tower.weight": torch.ones(3)}
    save_file(saved, other / "model.safetensors", metadata={"format": "pt"})
    bench.train(settings, run="tower", console=console)
    assert f"note: {key}: 1 weights of the model's files are left out" in console.file.getvalue()
    save_file({**saved, "model.layers.9.w": torch.ones(3)}, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackendError, match=rf"{other}' \({key}\): .* has no place for 1 weights"):
        bench.train(settings, run="lost")
