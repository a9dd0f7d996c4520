"""The whole pipeline on a CPU in minutes: a model from scratch, a warm-up, GMPO, and what changed.

It only calls public functions (`make_model`, `story_rows`, `gmpo.sft`, `gmpo.train`).
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gmpo.api import Run, sft, train
from gmpo.backends.tiny_model import make_model, word_tokenizer
from gmpo.build.start import check_writable
from gmpo.data.files import write_parquet
from gmpo.data.stories import demonstration_rows, keys_of, story_rows, vocabulary
from gmpo.errors import ConfigError
from gmpo.metrics.conclusion import conclusion
from gmpo.records.run_folder import read_metrics
from gmpo.report.build import read_report, write_report

BEGUN = "quickstart.json"
"""File that says which seed the folder was begun with."""
TRAIN_ROWS, TEST_ROWS, WARMUP_STEPS, WARMUP_BATCH = 4096, 512, 1000, 32
PROBLEMS, ANSWERS, UPDATES, STEPS, EVALUATE_EVERY = 32, 8, 4, 80, 20


def quickstart(out: Path, *, seed: int, console: Console) -> dict[str, Any] | int:
    """Run everything below `out` and return what `out/summary.json` holds; where it was interrupted the exit status of
    the signal, and the same call goes on.

    Raises:
        ConfigError: `out` holds something else than an unfinished quickstart of this seed.
    """
    _begin(out, seed)
    seconds: dict[str, float] = {}
    console.rule("1  data and model")
    start = time.perf_counter()
    _make_data(out / "data", seed)
    parameters = make_model(out / "model", word_tokenizer(vocabulary()), seed=seed)
    console.print(f"{parameters:,} parameters, random weights -> {out / 'model'}", highlight=False, soft_wrap=True)
    seconds["prepare"] = time.perf_counter() - start

    console.rule("2  warm-up: imitate a class in which most overlook the last sentence")
    start = time.perf_counter()
    warm = sft(warmup_settings(out, seed), console=console, label="warm-up")
    seconds["warm-up"] = time.perf_counter() - start
    if not warm.finished:
        _say_interrupted(console, "the warm-up", warm, "it goes on from the checkpoint")
        return warm.stopped_by

    console.rule("3  GMPO: only the right answer is rewarded")
    start = time.perf_counter()
    run = train(training_settings(out, seed), console=console, label="gmpo")
    seconds["train"] = time.perf_counter() - start
    if not run.finished:
        _say_interrupted(console, "the training", run, "it goes on from the checkpoint")
        return run.stopped_by

    summary = summarise(run.folder, seed, parameters, seconds)
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    report = run.folder / "report.html"
    write_report(read_report([run.folder]), report)
    console.rule("4  what changed")
    console.print(table(summary))
    for text in (*notes(summary), "", how_to_go_on(out, run.model, run.folder, report)):
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    return summary


def _begin(out: Path, seed: int) -> None:
    """Make the folder, and write down in it whose it is."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file: name a folder")
    begun = out / BEGUN
    try:
        if out.exists() and any(out.iterdir()) and _seed_in(begun) != seed:
            raise ConfigError(
                f"--out {out} is not empty, and what it holds is no quickstart of seed {seed}: name another folder "
                "with --out, or remove it"
            )
        if (out / "summary.json").exists():
            raise ConfigError(f"{out} holds a finished quickstart: name another folder with --out, or remove it")
        check_writable(out, "--out")
        out.mkdir(parents=True, exist_ok=True)
        begun.write_text(json.dumps({"seed": seed}))
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot write there: {error}. Name another folder with --out.") from error


def _seed_in(begun: Path) -> int | None:
    """The seed that a folder was begun with; None where the file does not say."""
    try:
        seed: int = json.loads(begun.read_text())["seed"]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    return seed


def _say_interrupted(console: Console, phase: str, run: Run, then: str) -> None:
    done = f"stopped in {phase}, after {run.steps} of {run.total_steps} steps"
    console.print(f"{done}; with the same command {then}", markup=False, highlight=False, soft_wrap=True)


def _make_data(folder: Path, seed: int) -> None:
    """Held-out problems first; warm-up and training never see a problem with the same numbers."""
    test = story_rows(TEST_ROWS, seed=seed, split="test")
    held_out = keys_of(test)
    write_parquet(test, folder / "test.parquet")
    write_parquet(story_rows(TRAIN_ROWS, seed=seed, split="train", exclude=held_out), folder / "train.parquet")
    demonstrations = demonstration_rows(WARMUP_STEPS * WARMUP_BATCH, seed=seed, exclude=held_out)
    write_parquet(demonstrations, folder / "demonstrations.parquet")


def warmup_settings(out: Path, seed: int) -> dict[str, Any]:
    """Settings of the warm-up, as `gmpo sft` takes them."""
    return {
        "model.path": str(out / "model"),
        "data.train_files": str(out / "data" / "demonstrations.parquet"),
        "data.train_batch_size": WARMUP_BATCH,
        "data.micro_batch_size_per_gpu": WARMUP_BATCH,
        "data.max_length": 96,
        "optim.lr": 3e-3,
        "optim.betas": [0.9, 0.95],
        "optim.warmup_steps_ratio": 0.03,
        "optim.min_lr_ratio": 0.1,
        "trainer.total_epochs": 1,
        "trainer.default_local_dir": str(out / "warm-up"),
        "trainer.logger": ["console"],
        "trainer.seed": seed,
    }


def training_settings(out: Path, seed: int) -> dict[str, Any]:
    """Settings of the reinforcement learning, as `gmpo train` takes them."""
    return {
        "recipe": "gmpo",
        "actor_rollout_ref.model.path": str(out / "warm-up" / "huggingface"),
        "actor_rollout_ref.model.enable_gradient_checkpointing": False,
        "data.train_files": str(out / "data" / "train.parquet"),
        "data.val_files": str(out / "data" / "test.parquet"),
        "data.train_batch_size": PROBLEMS,
        "data.max_prompt_length": 40,
        "data.max_response_length": 48,
        "actor_rollout_ref.rollout.n": ANSWERS,
        "actor_rollout_ref.rollout.max_num_seqs": PROBLEMS * ANSWERS,
        "actor_rollout_ref.rollout.val_kwargs.temperature": 1.0,
        "actor_rollout_ref.rollout.val_kwargs.do_sample": True,
        "actor_rollout_ref.actor.ppo_mini_batch_size": PROBLEMS // UPDATES,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": PROBLEMS // UPDATES * ANSWERS,
        "actor_rollout_ref.actor.optim.lr": 2e-4,
        "actor_rollout_ref.actor.optim.betas": [0.9, 0.95],
        "actor_rollout_ref.actor.optim.weight_decay": 0.0,
        "actor_rollout_ref.actor.optim.lr_scheduler_type": "linear",
        "trainer.total_training_steps": STEPS,
        "trainer.test_freq": EVALUATE_EVERY,
        "trainer.default_local_dir": str(out / "run"),
        "trainer.logger": ["console", "tensorboard"],
        "trainer.seed": seed,
    }


def summarise(run: Path, seed: int, parameters: int, seconds: Mapping[str, float]) -> dict[str, Any]:
    """The numbers of `summary.json`, from the metrics in the run's folder."""
    history = [one.values for one in read_metrics(run)]
    validations = [m for m in history if "val/pass@1" in m]
    before, after = validations[0], validations[-1]
    steps = [m for m in history if "actor/grad_norm" in m]
    phases = sorted({k for m in steps for k in m if k.startswith("timing_s/")} - {"timing_s/step"})
    return {
        "seed": seed,
        "parameters": parameters,
        "problems": int(before["val/problems"]),
        "pass@1_before": before["val/pass@1"],
        "pass@1_before_interval": [before["val/pass@1_low"], before["val/pass@1_high"]],
        "pass@1_after": after["val/pass@1"],
        "pass@1_after_interval": [after["val/pass@1_low"], after["val/pass@1_high"]],
        "verdict": conclusion([before, after])[0].partition("): ")[2],
        "pass@1_curve": {int(m["training/global_step"]): m["val/pass@1"] for m in validations},
        "response_length_before": before["val/response_length/mean"],
        "response_length_after": after["val/response_length/mean"],
        "log_ratio_min": min(m["actor/log_ratio/min"] for m in steps if "actor/log_ratio/min" in m),
        "log_ratio_max": max(m["actor/log_ratio/max"] for m in steps if "actor/log_ratio/max" in m),
        "clip_share_positive": _mean(steps, "actor/clip_share/positive"),
        "clip_share_negative": _mean(steps, "actor/clip_share/negative"),
        "seconds": {
            **{k: round(v, 2) for k, v in seconds.items()},
            **{f"train/{p.removeprefix('timing_s/')}": round(sum(m.get(p, 0.0) for m in steps), 2) for p in phases},
        },
    }


def _mean(steps: Sequence[Mapping[str, float]], name: str) -> float:
    values = [m[name] for m in steps if name in m]
    return sum(values) / len(values) if values else 0.0


def table(summary: Mapping[str, Any]) -> Table:
    """What was measured before and after, in less than 80 columns."""
    (low0, high0), (low1, high1) = summary["pass@1_before_interval"], summary["pass@1_after_interval"]
    shown = Table(f"{summary['problems']} held-out stories", header_style="bold")
    shown.add_column("before GMPO", justify="right")
    shown.add_column(f"after {max(summary['pass@1_curve'])} steps", justify="right")
    shown.add_row(
        "pass@1 (95 % interval)",
        f"{summary['pass@1_before']:.3f} ({low0:.3f}-{high0:.3f})",
        f"[bold]{summary['pass@1_after']:.3f}[/] ({low1:.3f}-{high1:.3f})",
    )
    lengths = (summary[f"response_length_{when}"] for when in ("before", "after"))
    shown.add_row("answer length, tokens", *(f"{length:.1f}" for length in lengths))
    return shown


def notes(summary: Mapping[str, Any]) -> list[str]:
    """What else there is to say of a run: verdict, curve, the tokens' ratios, seconds."""
    curve, seconds = summary["pass@1_curve"], summary["seconds"]
    phases = {"data and model": "prepare", "warm-up": "warm-up", "GMPO with its evaluations": "train"}
    return [
        summary["verdict"],
        f"pass@1 after {', '.join(map(str, curve))} steps: {', '.join(f'{v:.2f}' for v in curve.values())}",
        f"log-ratios of tokens over the training: {summary['log_ratio_min']:.2f} to {summary['log_ratio_max']:.2f}",
        f"tokens cut by a bound: {summary['clip_share_positive']:.2%} where A > 0, "
        f"{summary['clip_share_negative']:.2%} where A < 0",
        f"{sum(seconds[phase] for phase in phases.values()):.0f} s: "
        + ", ".join(f"{name} {seconds[phase]:.0f}" for name, phase in phases.items()),
    ]


def how_to_go_on(out: Path, model: Path, run: Path, report: Path) -> str:
    """Where everything is, and commands to copy."""
    again = f"  gmpo train --config {shlex.quote(str(run / 'config.yaml'))} \\\n    "
    evaluation = shlex.quote(f"actor_rollout_ref.model.path={model}")
    evaluated, grpo = (shlex.quote(f"trainer.default_local_dir={out / name}") for name in ("evaluation", "grpo"))
    return (
        f"report    {report}, for a browser\n"
        f"model     {model}\n"
        f"metrics   {run / 'metrics.jsonl'}\n"
        f"curves    tensorboard --logdir {shlex.quote(str(run))}\n"
        f"answers   {run / 'samples'}, {run / 'validation'}\n\n"
        "Use the model: AutoModelForCausalLM.from_pretrained of transformers reads its\n"
        'folder; "After the training" in README.md has more. Evaluate it:\n'
        f"{again}trainer.val_only=True \\\n    {evaluation} \\\n    {evaluated}\n"
        "The same with GRPO, to compare:\n"
        f"{again}recipe=grpo {grpo}"
    )
