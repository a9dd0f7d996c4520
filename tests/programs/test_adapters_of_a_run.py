"""Runs that train adapters: they go on bit for bit, and come out as a whole model."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import gmpo

A, M = "actor_rollout_ref.actor", "actor_rollout_ref.model"
LORA = {f"{M}.lora_rank": 4, f"{M}.lora_alpha": 8, f"{A}.use_kl_loss": True, f"{A}.kl_loss_coef": 0.1}
FOUR = {**LORA, "trainer.total_training_steps": 4, "trainer.save_freq": 2}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.tensor([[5, 9, 7, 12, 30]])).logits
    return found


def test_a_run_goes_on_bit_for_bit_and_is_merged(
    bench: Any, lines: Callable[[Path], Any], command: Callable[..., Any]
) -> None:
    said = Console(record=True, width=200, file=StringIO())
    straight = bench.train(FOUR, run="straight", console=said)
    base_size = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(bench.model).parameters())
    # One layer of width 32 with 2 heads of 16, 1 of keys, and 64 inside: rank 4 on 7 products.
    small = 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    assert f"{base_size + small:,} parameters, of which adapters train {small:,}, on cpu" in said.export_text()
    bench.train({**FOUR, "trainer.total_training_steps": 2}, run="two")
    rest = bench.train(FOUR, run="two")
    assert rest.steps == 4
    files = [run.model / "adapter_model.safetensors" for run in (straight, rest)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (straight.model / "model.safetensors").exists()
    moved = lines(straight.folder / "metrics.jsonl")[-1]["data"]
    assert moved["actor/kl_loss"] > 0, "the reference is the policy without its adapters, which have moved"
    assert lines(straight.folder / "metrics.jsonl")[0]["data"]["actor/kl_loss"] < moved["actor/kl_loss"]

    base = AutoModelForCausalLM.from_pretrained(bench.model)
    adapted = logits(PeftModel.from_pretrained(base, straight.model))
    assert float((adapted - logits(AutoModelForCausalLM.from_pretrained(bench.model))).abs().max()) > 1e-3
    for name, source in (("final", straight.folder), ("step", straight.folder / "global_step_4"), ("own", rest.model)):
        out = bench.folder / "out" / name
        assert command("export", str(source), "--out", str(out)).code == 0
        merged = AutoModelForCausalLM.from_pretrained(out)
        torch.testing.assert_close(logits(merged), adapted, rtol=0, atol=1e-5)
        again = command("export", str(source), "--out", str(out))
        assert again.code == 2
        assert "is there already" in " ".join(again.err.split())


def test_a_checkpoint_of_all_weights_is_exported_too(bench: Any, command: Callable[..., Any]) -> None:
    run = bench.train({"trainer.save_freq": 2, f"{A}.checkpoint.save_contents": ["model"]})
    out = bench.folder / "out"
    assert command("export", str(run.folder / "global_step_2"), "--out", str(out), "--dtype", "bf16").code == 0
    model = AutoModelForCausalLM.from_pretrained(out)
    final = AutoModelForCausalLM.from_pretrained(run.model)
    assert next(model.parameters()).dtype == torch.bfloat16
    named = dict(final.named_parameters())
    assert all(torch.equal(p, named[n].bfloat16()) for n, p in model.named_parameters())


@pytest.mark.parametrize(
    ("dtype", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_any_step_and_any_model_is_written_in_any_precision(
    bench: Any, command: Callable[..., Any], dtype: str, kind: torch.dtype
) -> None:
    run = bench.train({"trainer.save_freq": 1})
    for source, step, expected in (
        (run.folder, ["--step", "1"], run.folder / "global_step_1" / "actor" / "model.safetensors"),
        (run.folder, [], run.model / "model.safetensors"),
        (bench.model, [], bench.model / "model.safetensors"),
    ):
        out = bench.folder / f"out-{source.name}-{len(step)}"
        assert command("export", str(source), "--out", str(out), "--dtype", dtype, *step).code == 0
        model = AutoModelForCausalLM.from_pretrained(out)
        held = load_file(expected)
        assert all(torch.equal(p, held[n].to(kind)) for n, p in model.named_parameters() if n in held)
        assert {p.dtype for p in model.parameters()} == {kind}


def test_what_fp16_cannot_hold_and_a_damaged_checkpoint_are_refused(bench: Any, command: Callable[..., Any]) -> None:
    run = bench.train({"trainer.save_freq": 1})
    out = bench.folder / "out"
    model = AutoModelForCausalLM.from_pretrained(run.model)
    next(model.parameters()).data[0, 0] = 1e5
    model.save_pretrained(run.model)
    refused = command("export", str(run.folder), "--out", str(out), "--dtype", "fp16")
    assert refused.code == 1
    assert "1 weights are too large for fp16" in " ".join(refused.err.split())
    file = run.folder / "global_step_1" / "actor" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"oops")
    damaged = command("export", str(run.folder), "--step", "1", "--out", str(out))
    assert damaged.code == 1
    assert "does not hold what was written" in " ".join(damaged.err.split())
    assert not out.exists()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "nowhere", "is no folder"),
        (lambda folder: folder, "holds no checkpoint"),
        (lambda folder: folder / "run", "holds no checkpoint after step 7: there are 1, 2"),
    ],
)
def test_what_is_no_model_to_export_is_told(
    bench: Any, command: Callable[..., Any], make: Callable[[Path], Path], said: str
) -> None:
    folder = make(bench.folder)
    step = []
    if folder.name == "run":
        bench.train({"trainer.save_freq": 1})
        step = ["--step", "7"]
    ended = command("export", str(folder), "--out", str(bench.folder / "out"), *step)
    assert ended.code == 1
    assert said in " ".join(ended.err.split())


def test_another_rank_is_another_run(bench: Any) -> None:
    bench.train({**LORA, "trainer.save_freq": 1})
    with pytest.raises(gmpo.errors.ConfigError, match="lora_rank: 4 -> 2"):
        bench.train({**LORA, f"{M}.lora_rank": 2, "trainer.total_training_steps": 3})


def test_fine_tuning_trains_adapters_too(bench: Any) -> None:
    rows = [{**row, "extra_info": {"answer": "7 pens ."}} for row in bench.rows]
    settings = {
        "model.path": str(bench.model),
        "model.lora_rank": 2,
        "data.train_batch_size": 4,
        "data.response_key": "extra_info.answer",
        "optim.lr": 1e-2,
        "trainer.total_epochs": 2,
        "trainer.logger": [],
        "trainer.device": "cpu",
        "trainer.default_local_dir": str(bench.folder / "sft"),
    }
    run = gmpo.sft(settings, rows=rows, console=bench.console)
    assert (run.model / "adapter_config.json").is_file()
    assert run.history[-1]["train/loss"] < run.history[0]["train/loss"]
