"""Supervised fine-tuning: the loss is the mean negative log-likelihood, it falls, and lengths mean what they say."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

import gmpo
from gmpo.backends.devices import out_of_memory_hint
from gmpo.build.policy import SUPERVISED_MEMORY
from gmpo.config import SftConfig
from gmpo.config.tree import leaves
from gmpo.data.stories import demonstration_rows
from gmpo.errors import BackendError, ConfigError, DataError
from gmpo.records.run_folder import read_metrics
from gmpo.training.supervised import LossCourse


@pytest.fixture
def settings(bench: Any) -> dict[str, Any]:
    return {
        "model.path": str(bench.model),
        "data.train_batch_size": 8,
        "data.max_length": 96,
        "optim.lr": 1e-2,
        "trainer.total_training_steps": 6,
        "trainer.device": "cpu",
        "trainer.default_local_dir": str(bench.folder / "sft"),
        "trainer.logger": [],
    }


QUIET = Console(quiet=True)


def _loss_by_hand(folder: Path, rows: list[dict[str, Any]]) -> float:
    """Mean over all answer tokens, the end token included, of `-log p(token | what is before)`, row by row."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    total, tokens = 0.0, 0
    for row in rows:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        answer = [*tokenizer.encode(row["extra_info"]["answer"], add_special_tokens=False), tokenizer.eos_token_id]
        with torch.no_grad():
            logp = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
        total -= sum(float(logp[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))
        tokens += len(answer)
    return total / tokens


def test_the_first_loss_is_the_mean_likelihood_and_the_loss_falls(bench: Any, settings: dict[str, Any]) -> None:
    rows = demonstration_rows(8, seed=0)
    run = gmpo.sft(settings, rows=rows, console=QUIET)
    losses = [m["train/loss"] for m in run.history]
    assert losses[0] == pytest.approx(_loss_by_hand(bench.model, rows), rel=1e-5)
    assert losses[-1] < 0.8 * losses[0]
    assert run.finished
    assert _loss_by_hand(run.model, rows) < losses[-1]


def test_micro_batches_change_the_loss_by_rounding_alone(bench: Any, settings: dict[str, Any]) -> None:
    rows = demonstration_rows(8, seed=0)
    losses = []
    for size in (8, 2, 1):
        own = {"data.micro_batch_size_per_gpu": size, "trainer.default_local_dir": str(bench.folder / f"by-{size}")}
        run = gmpo.sft({**settings, **own}, rows=rows, console=QUIET)
        losses.append([m["train/loss"] for m in run.history])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[2] == pytest.approx(losses[0], rel=1e-3)


def test_held_out_rows_are_measured_after_each_epoch_and_at_the_end(bench: Any, settings: dict[str, Any]) -> None:
    held_out = demonstration_rows(3, seed=1, split="held-out")
    files = {
        "data.train_files": bench.write_rows(demonstration_rows(16, seed=0)),
        "data.val_files": bench.write_rows(held_out, "val.parquet"),
        "trainer.total_training_steps": 5,
    }
    run = gmpo.sft({**settings, **files}, console=QUIET)
    assert [("val/loss" in m) for m in run.history] == [False, True, False, True, True]
    assert run.history[-1]["val/loss"] == pytest.approx(_loss_by_hand(run.model, held_out), rel=1e-5)


def test_every_demonstration_is_learned_once_per_epoch(bench: Any, settings: dict[str, Any]) -> None:
    run = gmpo.sft({**settings, "trainer.total_epochs": 3}, rows=demonstration_rows(16, seed=0), console=QUIET)
    assert run.total_steps == 6
    tokens = [m["perf/total_num_tokens"] for m in run.history]
    assert tokens[0] + tokens[1] == tokens[2] + tokens[3] == tokens[4] + tokens[5]


def test_rows_are_limited_like_files(bench: Any, settings: dict[str, Any]) -> None:
    limited = {**settings, "data.max_samples": 8, "trainer.total_training_steps": None, "trainer.total_epochs": 2}
    assert gmpo.sft(limited, rows=demonstration_rows(16, seed=0), console=QUIET).total_steps == 2


def test_the_same_call_elsewhere_gives_the_same_model(
    bench: Any, settings: dict[str, Any], weights: Callable[[Path], dict[str, torch.Tensor]]
) -> None:
    rows = demonstration_rows(16, seed=0)
    first = weights(gmpo.sft(settings, rows=rows, console=QUIET).model)
    elsewhere = {**settings, "trainer.default_local_dir": str(bench.folder / "elsewhere")}
    second = weights(gmpo.sft(elsewhere, rows=rows, console=QUIET).model)
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())


@pytest.mark.parametrize(("truncation", "cut"), [("right", "end"), ("left", "beginning")])
def test_a_demonstration_that_is_too_long_loses_the_end_that_truncation_names(
    bench: Any, settings: dict[str, Any], truncation: str, cut: str
) -> None:
    """The first loss of a row that is cut by one token, by hand."""
    (row,) = demonstration_rows(1, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(bench.model)
    model = AutoModelForCausalLM.from_pretrained(bench.model)
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    answer = [*tokenizer.encode(row["extra_info"]["answer"], add_special_tokens=False), tokenizer.eos_token_id]
    limit = len(prompt) + len(answer) - 1
    prompt, answer = (prompt, answer[:-1]) if cut == "end" else (prompt[1:], answer)
    with torch.no_grad():
        logp = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    expected = -sum(float(logp[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)) / len(answer)
    changes = {"data.train_batch_size": 1, "data.max_length": limit, "trainer.total_training_steps": 1}
    run = gmpo.sft({**settings, **changes, "data.truncation": truncation}, rows=[row], console=QUIET)
    assert run.history[0]["train/loss"] == pytest.approx(expected, rel=1e-5)
    elsewhere = {"trainer.default_local_dir": str(bench.folder / "refused")}
    with pytest.raises(DataError, match=rf"exceed data.max_length={limit}.*data.truncation=right"):
        gmpo.sft({**settings, **changes, **elsewhere}, rows=[row], console=QUIET)


def test_the_answer_may_stand_in_another_column(bench: Any, settings: dict[str, Any]) -> None:
    rows = [{"question": row["prompt"][0]["content"], "solution": "1 2 #### 1 2"} for row in bench.rows[:8]]
    keys = {"data.prompt_key": "question", "data.response_key": "solution"}
    assert gmpo.sft({**settings, **keys}, rows=rows, console=QUIET).finished
    with pytest.raises(DataError, match=r"row 1: there is no `extra_info.answer`; the row holds question, solution"):
        gmpo.sft({**settings, "data.prompt_key": "question"}, rows=rows, console=QUIET)


def test_ctrl_c_keeps_the_model_so_far_and_the_command_goes_on_bit_for_bit(
    bench: Any, settings: dict[str, Any], command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, lines: Any
) -> None:
    """A real signal to this process, sent while the second update is recorded: the third is the last one."""
    from gmpo.tracking.sinks import JsonLines

    write = JsonLines.write

    def write_and_interrupt(self: JsonLines, step: int, metrics: Any) -> None:
        write(self, step, metrics)
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(JsonLines, "write", write_and_interrupt)
    files = {"data.train_files": bench.write_rows(demonstration_rows(8, seed=0))}
    scheduled = {**settings, **files, "optim.lr_scheduler_type": "cosine"}
    outcome = command("sft", *(f"{key}={value}" for key, value in scheduled.items()))
    assert outcome.code == 130
    assert "Stopping after this step." in outcome.out
    assert f"stopped after 3 of 6 steps; the model so far: {bench.folder / 'sft' / 'huggingface'}" in outcome.out
    assert "the same command goes on from the checkpoint" in outcome.out
    AutoModelForCausalLM.from_pretrained(bench.folder / "sft" / "huggingface")
    monkeypatch.undo()
    whole = gmpo.sft({**scheduled, "trainer.default_local_dir": str(bench.folder / "whole")}, console=QUIET)
    resumed = command("sft", *(f"{key}={value}" for key, value in scheduled.items()))
    assert resumed.code == 0
    assert "going on after step 3 from" in resumed.out
    first = whole.history[0]["train/loss"]
    assert f"loss of an answer's token: {first:.4g} in update 1" in resumed.out
    metrics = [
        [
            {k: v for k, v in line["data"].items() if "/" in k and not k.startswith(("timing_s", "perf"))}
            for line in found
        ]
        for found in (lines(bench.folder / place / "metrics.jsonl") for place in ("sft", "whole"))
    ]
    assert metrics[0] == metrics[1]
    assert len(metrics[0]) == 6
    models = [bench.folder / place / "huggingface" / "model.safetensors" for place in ("sft", "whole")]
    assert models[0].read_bytes() == models[1].read_bytes()


def test_a_killed_fine_tuning_goes_on_from_its_newest_checkpoint(
    bench: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint after every second of 6 updates, and the process gone after the fifth."""
    from gmpo.tracking.sinks import JsonLines

    saving = {**settings, "trainer.save_freq": 2, "trainer.max_ckpt_to_keep": 1}
    tune = partial(gmpo.sft, rows=demonstration_rows(16, seed=0), console=QUIET)
    folder = bench.folder / "sft"
    pid = os.fork()
    if pid == 0:
        write = JsonLines.write

        def last(self: JsonLines, step: int, metrics: Any) -> None:
            write(self, step, metrics)
            newest = folder / "latest_checkpointed_iteration.txt"
            while step == 5 and newest.read_text() != "4":  # it is written behind the training
                time.sleep(0.01)
            if step == 5:
                os.kill(os.getpid(), signal.SIGKILL)

        JsonLines.write = last  # type: ignore[method-assign]
        try:
            tune(saving)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    run = tune(saving)
    assert [m["training/global_step"] for m in run.history] == [5, 6]
    assert [p.name for p in folder.glob("global_step_*")] == ["global_step_6"]
    whole = tune({**saving, "trainer.default_local_dir": str(bench.folder / "whole")})
    assert [m["train/loss"] for m in whole.history][4:] == [m["train/loss"] for m in run.history]
    assert (run.model / "model.safetensors").read_bytes() == (whole.model / "model.safetensors").read_bytes()


def test_rows_beyond_the_models_positions_are_refused_and_the_last_that_fits_is_learned(
    bench: Any, settings: dict[str, Any]
) -> None:
    """The longest row takes exactly the positions there are, or one more; a held-out row counts."""
    tokenizer = AutoTokenizer.from_pretrained(bench.model)

    def tokens(row: dict[str, Any]) -> int:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        return len(prompt) + len(tokenizer.encode(row["extra_info"]["answer"], add_special_tokens=False)) + 1

    short, *_, long = sorted(demonstration_rows(9, seed=0), key=tokens)
    longest = tokens(long)
    assert tokens(short) < longest - 1
    one = {**settings, "data.train_batch_size": 1, "trainer.total_training_steps": 1}
    enough = {"model.override_config": {"max_position_embeddings": longest}}
    short_of = {"model.override_config": {"max_position_embeddings": longest - 1}}
    named = rf"make {longest} tokens, .* {longest - 1} positions.*model\.override_config"
    held_out = {"data.val_files": bench.write_rows([long], "val.parquet")}
    for number, (rows, changes) in enumerate((([long], {}), ([short], held_out))):
        place = {**one, **changes, "trainer.default_local_dir": str(bench.folder / f"positions-{number}")}
        with pytest.raises(BackendError, match=named):
            gmpo.sft({**place, **short_of}, rows=rows, console=QUIET)
        assert gmpo.sft({**place, **enough, "trainer.allow_changed_config": True}, rows=rows, console=QUIET).finished


def test_a_chat_template_can_be_given(bench: Any, settings: dict[str, Any]) -> None:
    """The first loss is that of prompts which the given template renders; the run keeps it, and another one is another
    run."""
    (row,) = demonstration_rows(1, seed=0)
    template = "{{ messages[0]['content'] }}"
    tokenizer = AutoTokenizer.from_pretrained(bench.model)
    model = AutoModelForCausalLM.from_pretrained(bench.model)
    prompt = tokenizer.encode(row["prompt"][0]["content"], add_special_tokens=False)
    answer = [*tokenizer.encode(row["extra_info"]["answer"], add_special_tokens=False), tokenizer.eos_token_id]
    with torch.no_grad():
        logp = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    expected = -sum(float(logp[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)) / len(answer)
    given = {"model.custom_chat_template": template, "data.train_batch_size": 1, "trainer.total_training_steps": 1}
    run = gmpo.sft({**settings, **given}, rows=[row], console=QUIET)
    assert run.history[0]["train/loss"] == pytest.approx(expected, rel=1e-5)
    assert AutoTokenizer.from_pretrained(run.model).chat_template == template
    with pytest.raises(ConfigError, match="chat template: "):
        gmpo.sft({**settings, **given, "model.custom_chat_template": None}, rows=[row], console=QUIET)


# What it says


def test_the_end_says_the_first_and_the_last_loss(
    bench: Any, command: Callable[..., Any], settings: dict[str, Any]
) -> None:
    files = bench.write_rows(demonstration_rows(16, seed=0))
    words = [f"{key}={value}" for key, value in {**settings, "data.train_files": files}.items()]
    outcome = command("sft", *words)
    first, last = (read["train/loss"] for read in _metrics(bench.folder / "sft"))
    assert outcome.code == 0
    assert f"loss of an answer's token: {first:.4g} in update 1, {last:.4g} in update 6\n" in outcome.out
    assert "warning" not in outcome.out


def _metrics(folder: Path) -> list[dict[str, float]]:
    history = [dict(one.values) for one in read_metrics(folder)]
    return [history[0], history[-1]]


@pytest.mark.parametrize(
    ("rate", "code", "words"),
    [
        (
            "3",
            0,
            ("it rises instead of falling; the learning rate is 2.95; lower optim.lr", "warning: loss of an answer"),
        ),
        ("1e18", 1, ("the loss is nan, not a number", "DivergedError: step ", "Lower optim.lr")),
        ("1e40", 1, ("DivergedError: step 1, update: the weights are not finite", "Lower optim.lr, and begin again.")),
    ],
)
def test_a_loss_that_rises_or_is_no_number_is_said_under_the_keys_of_sft(
    bench: Any, command: Callable[..., Any], settings: dict[str, Any], rate: str, code: int, words: tuple[str, ...]
) -> None:
    files = bench.write_rows(demonstration_rows(16, seed=0))
    changed = {**settings, "data.train_files": files, "optim.lr": rate, "optim.warmup_steps_ratio": 0}
    changed |= {"trainer.total_training_steps": 12}
    outcome = command("sft", *(f"{key}={value}" for key, value in changed.items()))
    said = outcome.out + outcome.err
    assert outcome.code == code, said
    for one in words:
        assert one in said
    assert said.count("it rises instead") <= 1
    assert "actor_rollout_ref" not in said
    assert "from a checkpoint" not in said


def test_a_loss_that_rises_is_said_once_and_batches_that_differ_are_no_rise() -> None:
    told: list[str] = []
    course = LossCourse(told.append)
    for loss in (1.0, 2.9, 0.5, 3.1, 9.0, float("nan"), float("inf"), 0.4):
        course.add(loss, 0.1)
    course.conclude()
    assert [line.partition(";")[0] for line in told] == [
        "warning: update 4: the loss is 3.1 and was 1 at first: it rises instead of falling",
        "warning: update 6: the loss is nan, not a number",
        "loss of an answer's token: 1 in update 1, 0.4 in update 8",
    ]


def test_every_message_about_the_model_names_the_keys_of_sft(
    bench: Any, command: Callable[..., Any], settings: dict[str, Any]
) -> None:
    files = bench.write_rows(demonstration_rows(16, seed=0))

    def said(changes: dict[str, Any]) -> str:
        changed = {**settings, "data.train_files": files, **changes}
        outcome = command("sft", *(f"{key}={value}" for key, value in changed.items()))
        assert outcome.code in (1, 2), outcome.out
        assert "actor_rollout_ref" not in outcome.err
        assert "gmpo train" not in outcome.err
        return str(outcome.err)

    model = Path(shutil.copytree(bench.model, bench.folder / "model"))
    here = {"model.path": model}
    assert "data.train_files: is empty" in said({"data.train_files": "[]"})
    assert "model.path: is not given" in said({"model.path": "null"})
    assert "give a template that takes it in model.custom_chat_template." in said(
        {"model.custom_chat_template": "{{ raise_exception('no') }}"}
    )
    (model / "chat_template.jinja").unlink()
    assert "set model.custom_chat_template to a Jinja template" in said(here)
    for file in model.glob("tokenizer*"):
        file.unlink()
    assert "Put the tokenizer files beside the model in model.path." in said(here)
    (model / "model.safetensors").write_bytes(b"")
    shutil.copytree(bench.model, model, dirs_exist_ok=True, ignore=shutil.ignore_patterns("model.safetensors"))
    assert "model.safetensors cannot be read" in said(here)
    with pytest.raises(BackendError) as caught, out_of_memory_hint("updating the policy", SUPERVISED_MEMORY):
        raise MemoryError
    assert "Lower one of\n  data.micro_batch_size_per_gpu: demonstrations per pass\n  data.max_le" in str(caught.value)
    for line in SUPERVISED_MEMORY:
        assert line.partition(":")[0] in leaves(SftConfig)
