"""A dress rehearsal of a recipe on this machine, before it runs on 64 GPUs: same settings, everything small.

    python examples/rehearse.py OUT --train gsm8k.parquet --val test.parquet -- recipe=gmpo_qwen2_5_7b_math

makes a tiny model of random weights (`--experts 8`: a mixture of experts), warms it up to answer in the form that the
rows' scorer reads, and runs three steps of the recipe, the third of them after a resume. What is after `--` are the
words of `gmpo train`; sizes, lengths and places are replaced. The model solves nothing: what is rehearsed are the
settings, the data, the grading, validation, checkpoints and the resume. So that a guess is right now and then, and the
answers to a problem differ, only problems with one of the most frequent reference answers are asked.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console

import gmpo
from gmpo.backends.tiny_model import bpe_tokenizer, make_model
from gmpo.config import load
from gmpo.data.files import read_rows, write_parquet
from gmpo.streams import uniform

A, R, REF = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.ref"
RESPONSE, BUFFER, PROBLEMS = 32, 16, 16

SMALL = {
    "trainer.nnodes": 1,
    "trainer.n_gpus_per_node": 1,
    "trainer.logger": ["console"],
    "trainer.test_freq": 2,
    "trainer.save_freq": 1,
    "trainer.total_epochs": None,
    "trainer.val_before_train": False,
    "trainer.log_val_generations": 1,
    f"{R}.name": "hf",
    f"{R}.tensor_model_parallel_size": 1,
    f"{A}.ulysses_sequence_parallel_size": 1,
    f"{REF}.ulysses_sequence_parallel_size": 1,
    f"{A}.fsdp_config.fsdp_size": -1,
    f"{A}.ppo_mini_batch_size": 4,
    f"{A}.use_dynamic_bsz": True,
    f"{A}.ppo_micro_batch_size_per_gpu": None,
    f"{A}.ppo_max_token_len_per_gpu": 4096,
    f"{R}.log_prob_use_dynamic_bsz": True,
    f"{R}.log_prob_micro_batch_size_per_gpu": None,
    f"{R}.log_prob_max_token_len_per_gpu": 4096,
    f"{REF}.log_prob_use_dynamic_bsz": True,
    f"{REF}.log_prob_micro_batch_size_per_gpu": None,
    f"{REF}.log_prob_max_token_len_per_gpu": 4096,
    "data.train_batch_size": PROBLEMS,
    "data.val_max_samples": 16,
    "data.max_prompt_length": 384,
    "data.max_response_length": RESPONSE,
    "data.filter_overlong_prompts": True,
    "actor_rollout_ref.model.override_config": {},
}
"""What a rehearsal replaces in every recipe."""

SMALL_DAPO = {
    "reward_model.reward_kwargs.max_resp_len": RESPONSE,
    "reward_model.reward_kwargs.overlong_buffer_cfg.len": BUFFER,
}


def answer_form(prompt: str) -> str:
    """How a prompt wants its answer."""
    if "####" in prompt:
        return "#### {}"
    return "\\boxed{{{}}}" if "boxed" in prompt else "Answer: {}"


def guessable(files: list[str], out: Path, *, answers: int = 4, longest: int = 400) -> list[dict[str, Any]]:
    """The rows with a short prompt and one of the most frequent reference answers; written to `out`, too."""
    rows = [row for file in files for _, row in read_rows(Path(file))]
    rows = [row for row in rows if len(row["prompt"][-1]["content"]) <= longest]
    truths = Counter(row["reward_model"]["ground_truth"] for row in rows)
    frequent = {truth for truth, _ in truths.most_common(answers)}
    kept = [row for row in rows if row["reward_model"]["ground_truth"] in frequent]
    write_parquet(kept, out)
    return kept


def demonstrations(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Rows whose answers have the right form, any row's reference answer and a random length: some right, some cut."""
    made = []
    for i, row in enumerate(rows):
        length, other = uniform(2, seed, i)
        truth = rows[int(other * len(rows))]["reward_model"]["ground_truth"]
        words = "so " * int(length * length * 1.3 * RESPONSE)
        made.append({**row, "response": words + answer_form(row["prompt"][-1]["content"]).format(truth)})
    return made


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--train", nargs="+", required=True)
    arguments.add_argument("--val", nargs="+", required=True)
    arguments.add_argument("--experts", type=int, default=0)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--warm-up", type=int, default=60, help="updates of the warm-up")
    arguments.add_argument("words", nargs="+", metavar="KEY=VALUE", help="words of `gmpo train`, after --")
    given = arguments.parse_args()
    rehearse(
        given.out,
        given.words,
        train=given.train,
        val=given.val,
        experts=given.experts,
        seed=given.seed,
        warm_up=given.warm_up,
        console=Console(),
    )


def rehearse(
    out: Path,
    words: list[str],
    *,
    train: list[str],
    val: list[str],
    experts: int,
    seed: int,
    warm_up: int,
    console: Console,
) -> list[gmpo.Run]:
    """Warm-up, two steps, a resume and a third step; the runs of the latter two."""
    rows = guessable(train, out / "train.parquet")
    prompts = [row["prompt"][-1]["content"] for row in rows]
    model = out / "model"
    tokenizer = bpe_tokenizer([*prompts, "so so Answer: #### \\boxed{}"], size=1024)
    make_model(model, tokenizer, seed=seed, max_positions=1024, experts=experts)
    warm = gmpo.sft(
        {
            "model.path": str(model),
            "data.train_batch_size": 32,
            "data.max_length": 512,
            "data.truncation": "left",
            "data.response_key": "response",
            "optim.lr": 3e-3,
            "trainer.total_training_steps": warm_up,
            "trainer.logger": ["console"],
            "trainer.default_local_dir": str(out / "warm-up"),
        },
        rows=demonstrations(rows, seed),
        console=console,
    )
    resolved = load(words)
    small = {
        **SMALL,
        **(SMALL_DAPO if resolved.config.reward_model.reward_manager == "dapo" else {}),
        "data.train_files": [str(out / "train.parquet")],
        "data.val_files": val,
        "actor_rollout_ref.model.path": str(warm.model),
        "trainer.default_local_dir": str(out / "run"),
    }
    # A run whose rate depends on its length is another run when it is longer: in both the rate is that of three steps.
    small["actor_rollout_ref.actor.optim.total_training_steps"] = 3
    runs = []
    for steps in (2, 3):
        length = {"trainer.total_training_steps": steps}
        runs.append(gmpo.train([*words, *(f"{k}={_word(v)}" for k, v in {**small, **length}.items())], console=console))
    return runs


def _word(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(repr(str(item)) for item in value)}]"
    return "null" if value is None else str(value)


if __name__ == "__main__":
    main()
