"""The command line: help at once, `check` with every section, versions, and words that look like options."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest
import typer

from gmpo.cli import app, first_clause
from gmpo.config import load
from gmpo.config.layers import recipes
from gmpo.tracking.sinks import JsonLines
from gmpo.version import __version__

Command = Callable[..., Any]

PUBLISHED = (
    "algorithm.adv_estimator=grpo",
    "data.train_files=['/data/gsm8k/train.parquet', '/data/math/train.parquet']",
    "data.val_files=['/data/gsm8k/test.parquet', '/data/math/test.parquet']",
    "data.train_batch_size=1024",
    "data.max_prompt_length=1024",
    "data.max_response_length=1024",
    "data.filter_overlong_prompts=True",
    "data.truncation=error",
    "actor_rollout_ref.model.path=Qwen/Qwen2.5-Math-7B",
    "actor_rollout_ref.actor.optim.lr=1e-6",
    "actor_rollout_ref.model.use_remove_padding=True",
    "actor_rollout_ref.actor.ppo_mini_batch_size=256",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
    "actor_rollout_ref.actor.use_kl_loss=False",
    "actor_rollout_ref.actor.kl_loss_coef=0.001",
    "actor_rollout_ref.actor.kl_loss_type=low_var_kl",
    "actor_rollout_ref.actor.entropy_coeff=0",
    "actor_rollout_ref.actor.policy_loss.loss_mode=geo_mean",
    "actor_rollout_ref.actor.clip_ratio_low=0.4",
    "actor_rollout_ref.actor.clip_ratio_high=0.4",
    "actor_rollout_ref.actor.checkpoint.save_contents=['hf_model']",
    "actor_rollout_ref.rollout.name=vllm",
    "actor_rollout_ref.rollout.n=5",
    "trainer.logger=['console','wandb']",
    "trainer.n_gpus_per_node=8",
    "trainer.critic_warmup=0",
    "trainer.total_epochs=15",
)
"""Settings of a published command for eight devices, data and model elsewhere."""


def test_help_names_every_command_and_every_command_has_help_with_an_example(command: Command) -> None:
    outcome = command("--help")
    assert outcome.code == 0
    for name in ("train", "sft", "check", "verl", "data", "quickstart"):
        assert f" {name} " in outcome.out
        own = command(name, "--help")
        assert own.code == 0
        assert "Usage: gmpo " + name in own.out
    assert "recipe=gmpo" in command("train", "--help").out


def test_without_a_command_there_is_help(command: Command) -> None:
    outcome = command()
    assert "Usage: gmpo" in outcome.out + outcome.err


def test_the_version_is_the_packages(command: Command) -> None:
    outcome = command("--version")
    assert (outcome.code, outcome.out) == (0, f"gmpo {__version__}\n")


def test_an_unknown_command_is_refused(command: Command) -> None:
    outcome = command("trian")
    assert outcome.code == 2
    assert "No such command 'trian'" in outcome.err


def test_help_and_check_load_no_torch() -> None:
    """A process of its own, whose modules are its own."""
    program = (
        "import sys\n"
        "from gmpo.cli import app\n"
        "for words in (['--help'], ['check', 'recipe=gmpo']):\n"
        "    try:\n"
        "        app(words)\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'math_verify'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stdout


def test_check_shows_what_a_published_command_comes_to_and_what_is_not_available(command: Command) -> None:
    outcome = command("check", "--all", *PUBLISHED)
    assert outcome.code == 0
    sections = ("configuration", "derived numbers", "honoured", "derived (", "without effect", "not here", "verdict")
    positions = [outcome.out.index(section) for section in sections]
    assert positions == sorted(positions)
    shown = " ".join(outcome.out.split())
    assert "updates per step 4 ceil(1024 / ppo_mini_batch_size 256) x ppo_epochs 1" in shown
    assert "answers per step 5,120" in shown
    assert "steps per epoch ?" in shown
    unavailable = shown[shown.index("not here") :]
    assert "actor_rollout_ref.rollout.name = vllm" in unavailable
    assert "trainer.n_gpus_per_node = 8" in unavailable
    inert = shown[shown.index("without effect") : shown.index("not here")]
    assert "actor_rollout_ref.actor.kl_loss_coef = 0.001 actor_rollout_ref.actor.use_kl_loss is off" in inert
    assert "trainer.critic_warmup = 0" in inert


def test_check_is_short_by_default_and_ends_in_a_verdict(bench: Any, command: Command) -> None:
    """What is listed is what was given; the last lines say whether a run starts and what --all adds."""
    outcome = command("check", *PUBLISHED)
    assert not re.search(r"^(configuration|derived \(|  weights)", outcome.out, re.MULTILINE)
    last = " ".join(outcome.out.split())[-260:]
    (missing,) = re.findall(r"not here \((\d+)\)", outcome.out)
    assert f"not ready: `gmpo train` would not start here, for the {missing} things listed under `not here`" in last
    assert last.endswith("keys that follow from others, and the memory item by item.")
    ready = command("check", *bench.arguments())
    assert "ready: `gmpo train` would start with these settings" in ready.out
    assert "not here" not in ready.out
    assert len(ready.out.splitlines()) < 60


def test_a_saved_configuration_is_told_by_what_differs_from_the_defaults(bench: Any, command: Command) -> None:
    """A file that names every key: those at their default are counted, the others listed, and --all lists all."""
    file = bench.folder / "whole.yaml"
    file.write_text(load(["trainer.seed=7"]).tree_yaml())
    outcome = command("check", "--config", str(file))
    listed = [line.strip() for line in outcome.out.splitlines() if line.startswith("  ") and " = " in line]
    assert [line for line in listed if line.startswith("trainer.seed")] == ["trainer.seed = 7"]
    assert not [line for line in listed if line.startswith("trainer.save_freq")]
    (number,) = re.findall(r"honoured \((\d+)\)", outcome.out)
    (hidden,) = re.findall(r"and (\d+) keys at the default value", outcome.out.partition("without effect")[0])
    assert int(number) > int(hidden) > 50
    assert "trainer.save_freq = -1" in command("check", "--all", "--config", str(file)).out


def test_check_counts_rows_that_are_here_and_refuses_a_batch_that_is_larger(bench: Any, command: Command) -> None:
    outcome = command("check", *bench.arguments())
    assert outcome.code == 0
    assert "floor(12 rows / 4)" in " ".join(outcome.out.split())
    outcome = command("check", *bench.arguments({"data.train_batch_size": 16}))
    assert outcome.code == 2
    assert "data.train_batch_size = 16 is larger than the data set, which has 12 rows" in outcome.err


def test_words_that_look_like_options_reach_the_settings_and_are_explained(command: Command) -> None:
    outcome = command("train", "--config-name=mine", "recipe=gmpo")
    assert outcome.code == 2
    assert "--config-name" in outcome.err


def test_data_writes_stories_that_train_reads(bench: Any, command: Command) -> None:
    out = bench.folder / "stories"
    outcome = command("data", "stories", "--out", str(out), "--size", "12", "--seed", "3")
    assert outcome.code == 0
    assert f"{out / 'train.parquet'}: 12 rows" in outcome.out
    outcome = command("train", *bench.arguments({"data.train_files": out / "train.parquet"}))
    assert outcome.code == 0
    assert f"done after 2 steps; model: {bench.folder / 'run' / 'huggingface'}" in outcome.out


def test_a_file_and_words_unite_and_the_words_win(bench: Any, command: Command) -> None:
    """Of the file's keys those alone are spoken of that were set: `data.return_raw_chat` here, at its default."""
    assert command("train", *bench.arguments({"data.return_raw_chat": True})).code == 0
    again = command(
        "train",
        "--config",
        str(bench.folder / "run" / "config.yaml"),
        f"trainer.default_local_dir={bench.folder / 'again'}",
        "trainer.total_training_steps=1",
    )
    assert again.code == 0
    assert "done after 1 step;" in again.out
    notes = [line for line in again.out.splitlines() if line.startswith("no effect")]
    assert len(notes) == 1
    assert notes[0].startswith("no effect: 1 key is given with the default value")


@pytest.mark.parametrize(
    ("method", "at", "reached", "mode", "how"),
    [
        ("start", 0, 1, "auto", "the same command"),
        ("start", 0, 1, "disable", "trainer.resume_mode=auto"),
        ("write", 1, 2, "auto", "the same command"),
    ],
)
def test_a_signal_at_any_moment_ends_the_run_after_a_step_that_is_saved(
    bench: Any,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    at: int,
    reached: int,
    mode: str,
    how: str,
) -> None:
    """A real signal before the first step, and one between a step's last look at the signals and its end."""
    original = getattr(JsonLines, method)

    def interrupting(self: JsonLines, step: int, *rest: Any) -> None:
        original(self, step, *rest)
        if step == at:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(JsonLines, method, interrupting)
    outcome = command("train", *bench.arguments({"trainer.resume_mode": mode, "trainer.total_training_steps": 3}))
    assert outcome.code == 130
    assert f"stopped after {reached} of 3 steps; {how} goes on from there" in outcome.out
    assert (bench.folder / "run" / f"global_step_{reached}").is_dir()


def test_after_sigterm_the_exit_status_is_143_and_the_run_goes_on(
    bench: Any, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = JsonLines.write

    def terminating(self: JsonLines, step: int, metrics: Any) -> None:
        original(self, step, metrics)
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(JsonLines, "write", terminating)
    words = bench.arguments({"trainer.total_training_steps": 3})
    outcome = command("train", *words)
    assert outcome.code == 143
    assert "stopped after 2 of 3 steps; the same command goes on from there" in outcome.out


def test_a_signal_in_the_last_step_ends_a_run_that_is_done(
    bench: Any, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = JsonLines.write

    def interrupting(self: JsonLines, step: int, metrics: Any) -> None:
        original(self, step, metrics)
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(JsonLines, "write", interrupting)
    outcome = command("train", *bench.arguments())
    assert outcome.code == 0
    assert "done after 2 steps" in outcome.out


def test_check_lists_what_is_not_here_and_ready_exits_with_three(bench: Any, command: Command) -> None:
    """Model, data, column, reward function: each alone is found, and a run that could start exits with 0."""
    words = bench.arguments()
    assert command("check", "--ready", *words).code == 0
    model, rows = bench.folder / "empty", bench.write_rows([{"prompt": "x", "data_source": "s"}] * 4, "other.parquet")
    model.mkdir()
    (model / "config.json").write_text("{}")
    for word, said in {
        f"actor_rollout_ref.model.path={model}": "has no weights",
        "actor_rollout_ref.model.path=/nowhere/model": "there is no such folder",
        "actor_rollout_ref.model.path=Org/Model": "not in the hub's cache",
        "data.train_files=nowhere.parquet": "there is no file nowhere.parquet",
        f"data.train_files={rows}": "there is no column `reward_model`",
        "custom_reward_function.path=nowhere.py": "there is no file nowhere.py",
        "custom_reward_function.name=other": "defines no function other; it has compute_score",
        "trainer.device=cuda": "there is no CUDA device",
    }.items():
        outcome = command("check", *words, word)
        assert outcome.code == 0
        assert said in " ".join(outcome.out.split()).partition("not here")[2]
        assert command("check", "--ready", *words, word).code == 3
    assert command("check", "--ready", *words, "trainer.n_gpus_per_node=8").code == 3
    assert command("check", "--ready", *words, "trainer.typo=8").code == 2


def test_check_knows_the_scorers_and_the_largest_seed(bench: Any, command: Command) -> None:
    words = bench.arguments({"custom_reward_function.path": "null"})
    assert "There is no scorer 'gsm8'" not in command("check", "--ready", *words, "reward_model.scorer=gsm8k").out
    outcome = command("check", "--ready", *words, "reward_model.scorer=gsm8")
    assert (outcome.code, "There is no scorer 'gsm8'" in outcome.out) == (3, True)
    outcome = command("check", "--ready", *words, "reward_model.scorers={gmpo/stories: gsm8}")
    assert (outcome.code, "There is no scorer 'gsm8'" in outcome.out) == (3, True)
    assert command("check", *words, f"trainer.seed={2**63 - 1}").code == 0
    outcome = command("check", *words, f"trainer.seed={2**63}")
    assert (outcome.code, "an integer >= 0 and <= 9223372036854775807" in outcome.err) == (2, True)


def test_an_option_that_would_be_ignored_is_refused(bench: Any, command: Command) -> None:
    one, two = bench.folder / "one.yaml", bench.folder / "two.yaml"
    for file in (one, two):
        file.write_text("trainer: {seed: 1}")
    assert "--config is given 2 times" in command("check", "--config", str(one), "--config", str(two)).err
    outcome = command("data", "stories", "--out", str(bench.folder / "s"), "--drop-contaminated")
    assert outcome.code == 2
    assert "--against" in outcome.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("data", "countdown", "--size", "0"), "'--size'"),
        (("data", "gsm8k", "--size", "-5"), "'--size'"),
        (("data", "stories", "--size", "1e3"), "'--size'"),
        (("data", "stories", "--seed", "-1"), "'--seed'"),
        (("data", "stories", "--seed", str(2**63)), "'--seed'"),
        (("quickstart", "--seed", "-1"), "'--seed'"),
        (("quickstart", "--seed", str(2**63)), "'--seed'"),
    ],
)
def test_a_number_out_of_range_is_refused_before_anything_is_written(
    bench: Any, command: Command, words: tuple[str, ...], said: str
) -> None:
    outcome = command(*words, "--out", str(bench.folder / "out"))
    assert (outcome.code, f"Invalid value for {said}" in outcome.err) == (2, True), outcome.err
    assert not (bench.folder / "out").exists()


def test_a_file_in_the_place_of_a_folder_and_a_drop_of_every_row_are_refused(bench: Any, command: Command) -> None:
    file = bench.write_rows()
    outcome = command("quickstart", "--out", file)
    assert (outcome.code, outcome.err) == (2, f"ConfigError: --out {file} is a file: name a folder\n")
    rows = ("data", "stories", "--size", "3", "--out", str(bench.folder / "s"))
    assert command(*rows).code == 0
    again = (*rows[:-1], str(bench.folder / "t"), "--against", str(bench.folder / "s" / "train.parquet"))
    outcome = command(*again, "--drop-contaminated")
    assert (outcome.code, "--drop-contaminated leaves no row of train: all 3 are" in outcome.err) == (1, True)


def test_a_seed_that_chooses_nothing_is_said(bench: Any, command: Command) -> None:
    file = bench.folder / "train.jsonl"
    file.write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    words = ("data", "gsm8k", "--from", str(file), "--out", str(bench.folder / "out"))
    assert "--seed" not in command(*words).out
    assert "--seed changed nothing" in command(*words, "--seed", "3").out
    assert "--seed" not in command(*words, "--seed", "3", "--size", "1").out


def test_an_empty_path_on_the_command_line_is_refused_by_every_option_and_argument(command: Command) -> None:
    """Click would read it as the folder in which we are."""
    refused = set()
    for registered in app.registered_commands:
        hints = get_type_hints(registered.callback)
        for option in typer.main.get_command(app).commands[registered.callback.__name__].params:
            if "Path" in str(hints[option.name]):
                words = ["countdown"] * (option.name != "script" and registered.callback.__name__ == "data")
                words += ["--out", "new"] * (registered.callback.__name__ == "export" and option.name == "folder")
                words += [] if option.name in ("script", "folder", "run", "runs") else [max(option.opts, key=len)]
                outcome = command(registered.callback.__name__, *words, " ")
                said = " ".join(re.sub("[│╭╮╰╯─]", " ", outcome.err).split())
                assert (outcome.code, "it is empty: a variable of the shell that is not set?" in said) == (2, True), (
                    said
                )
                refused.add((registered.callback.__name__, option.name))
    assert refused >= {("data", "against"), ("data", "source"), ("quickstart", "out"), ("train", "config")}
    assert ("verl", "script") in refused


def test_the_help_of_train_lists_the_recipes(command: Command) -> None:
    out = command("train", "--help").out
    shown = " ".join(out.split())
    assert all(f"{name}: " in shown for name in recipes())
    assert "dr_grpo: Dr. GRPO (arXiv 2503.20783) " in shown
    assert "as the GMPO example of verl 0.9 sets it " in shown
    assert not re.search(r"\n( *\n){3}", out)


@pytest.mark.parametrize(
    ("text", "clause"),
    [
        ("Dr. GRPO (x): without a division.", "Dr. GRPO (x)"),
        ("As verl 0.9 sets it. More.", "As verl 0.9 sets it"),
        ("One; two", "One"),
        ("No stop", "No stop"),
    ],
)
def test_a_recipe_is_named_by_its_first_clause(text: str, clause: str) -> None:
    assert first_clause(text) == clause


@pytest.mark.parametrize("name", ["train", "sft", "check", "verl", "data", "quickstart"])
def test_the_help_of_a_command_has_a_command_to_copy_and_names_the_docs(command: Command, name: str) -> None:
    """The command stands on lines of its own, none longer than the screen, with a backslash where it goes on."""
    text = command(name, "--help").out
    lines = [line.rstrip() for line in text.partition("╭")[0].splitlines()]
    start = next(number for number, line in enumerate(lines) if re.match(r" +gmpo ", line))
    end = next(number for number in range(start, len(lines)) if not lines[number])
    assert lines[start].split()[:2] == ["gmpo", name]
    assert all(line.endswith("\\") for line in lines[start : end - 1])
    assert "docs/" in text or "README.md" in text
