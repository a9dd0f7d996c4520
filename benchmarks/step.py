"""A whole GMPO step, sampling to the last update, of gmpo and of TRL: seconds, tokens per second and peak memory.

    python benchmarks/step.py [--cases small large] [--threads 1] [--env FOLDER] [--json FILE]

8 prompts of 6 tokens x 8 answers of exactly 64 tokens, four updates of 16 answers on each rollout, GMPO with clip 0.4,
no KL, AdamW, float32, random weights, random rewards. small: a Qwen3 of 0.86 M parameters and 512 tokens; large: one of
43 M and 151,936. TRL runs `GMPOTrainer` with gradient checkpointing off and each of the micro-batches 16 and 8; its
best counts. gmpo runs its defaults, and once more as GRPO. The peak is the process's resident memory.

The floor is the matrix products alone: 2 x weights x tokens for sampling, at the speed of products of 64 rows, and
6 x weights x tokens for the updates, at that of 1,024 rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import peers

PROMPTS, ANSWERS, TOKENS, UPDATES = 8, 8, 64, 4
SHAPES: dict[str, dict[str, Any]] = {
    "small": {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4},
    "large": {"vocab_size": 151_936, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6},
}
ROLLOUTS = {"small": 8, "large": 5}
"""Measured, after one that is not."""
MICRO = (16, 8)
WORDS = [f"w{i}" for i in range(28)]
REWARD = '''"""Any reward that tells answers apart will do: without differences there would be nothing to learn from."""
import random


def compute_score(data_source, solution_str, ground_truth, extra_info):
    return random.random()
'''


def prepare(case: str, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    from gmpo.backends.tiny_model import word_tokenizer

    torch.manual_seed(0)
    tokenizer = word_tokenizer(WORDS)
    config = Qwen3Config(
        **SHAPES[case],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=SHAPES[case]["hidden_size"] // 4,
        tie_word_embeddings=case == "large",
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def gmpo_step(case: str, folder: Path, loss: str) -> dict[str, Any]:
    from rich.console import Console

    import gmpo

    reward = folder / "reward.py"
    reward.write_text(REWARD)
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    rows = [
        {
            "data_source": "any",
            "prompt": [{"role": "user", "content": " ".join(WORDS[i : i + 4])}],
            "reward_model": {"style": "rule", "ground_truth": "none"},
        }
        for i in range(PROMPTS)
    ]
    with tempfile.TemporaryDirectory() as out:
        run = gmpo.train(
            {
                "recipe": "gmpo",
                f"{actor}.policy_loss.loss_mode": loss,
                "actor_rollout_ref.model.path": str(folder),
                "actor_rollout_ref.model.enable_gradient_checkpointing": False,
                "custom_reward_function.path": str(reward),
                "data.train_batch_size": PROMPTS,
                "data.max_prompt_length": 8,
                "data.max_response_length": TOKENS,
                f"{rollout}.n": ANSWERS,
                f"{rollout}.ignore_eos": True,
                f"{actor}.ppo_mini_batch_size": PROMPTS // UPDATES,
                f"{actor}.optim.lr": 1e-6,
                "trainer.total_training_steps": ROLLOUTS[case] + 1,
                "trainer.total_epochs": None,
                "trainer.logger": [],
                "trainer.default_local_dir": out,
            },
            rows=rows,
            console=Console(quiet=True),
        )
    steps = [m for m in run.history if "timing_s/step" in m][1:]
    return {
        "seconds": [m["timing_s/step"] for m in steps],
        "parts": {
            name: statistics.median(m[f"timing_s/{name}"] for m in steps)
            for name in ("gen", "reward", "old_log_prob", "update_actor")
        },
    }


def trl_step(case: str, folder: Path, micro: int) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    rollouts = ROLLOUTS[case] + 1
    update = PROMPTS * ANSWERS // UPDATES
    config = GMPOConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=update // micro,
        steps_per_generation=PROMPTS * ANSWERS // micro,
        num_generations=ANSWERS,
        max_completion_length=TOKENS,
        generation_kwargs={"min_new_tokens": TOKENS},
        epsilon=0.4,
        beta=0.0,
        learning_rate=1e-6,
        max_steps=rollouts * UPDATES,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
    )
    numbers = iter(range(10**9))
    trainer = GMPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        reward_funcs=lambda completions, **_: [next(numbers) * 7919 % 256 / 255 for _ in completions],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": " ".join(WORDS[i : i + 6])} for i in range(PROMPTS)]),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[Clock()],
    )
    trainer.train()
    whole = ends[UPDATES - 1 :: UPDATES]
    return {"seconds": [b - a for a, b in itertools.pairwise(whole)]}


def floor(case: str, threads: int) -> dict[str, Any]:
    """Seconds of the products, and their speeds."""
    import torch

    torch.set_num_threads(threads)
    shape = SHAPES[case]
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    layer = hidden * hidden * 2 + 2 * hidden * (hidden // 2) + 3 * hidden * inner
    weights = layer * shape["num_hidden_layers"] + shape["vocab_size"] * hidden

    def speed(rows: int) -> float:
        """Flops a second of the head's product, the largest one."""
        a, w = torch.randn(rows, hidden), torch.randn(shape["vocab_size"], hidden)
        out = torch.empty(rows, shape["vocab_size"])
        times = []
        for _ in range(8):
            start = time.perf_counter()
            torch.mm(a, w.T, out=out)
            times.append(time.perf_counter() - start)
        return 2 * rows * w.numel() / statistics.median(times[3:])

    tokens = PROMPTS * ANSWERS * TOKENS
    few, many = speed(PROMPTS * ANSWERS), speed(1024)
    return {"seconds": [2 * weights * tokens / few + 6 * weights * tokens / many], "speeds": [few, many]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--cases", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inside", nargs=4, help=argparse.SUPPRESS)
    peers.add_option(parser)
    a = parser.parse_args()
    if a.inside:
        _measure(*a.inside)
        return
    python, found = peers.trl(a.env), []
    for threads in a.threads:
        for case in a.cases:
            with tempfile.TemporaryDirectory() as name:
                prepare(case, Path(name))
                bare = _inside(sys.executable, "floor", case, name, threads)["median"]
                print(f"\n{case}, {threads} thread(s); floor of the products {bare:.2f} s")
                print(f"{'':22} {'seconds':>8} {'over floor':>10} {'tok/s':>7} {'peak':>9}")
                runs = [("gmpo", sys.executable, "geo_mean"), ("gmpo, GRPO", sys.executable, "vanilla")]
                runs += [(f"TRL, micro-batch {m}", str(python), f"trl-{m}") for m in MICRO]
                for label, interpreter, what in runs:
                    row = _inside(interpreter, what, case, name, threads)
                    found.append({"case": case, "threads": threads, "what": label, "floor_s": bare, **row})
                    speed = PROMPTS * ANSWERS * TOKENS / row["median"]
                    print(
                        f"{label:22} {row['median']:8.2f} {row['median'] / bare:10.2f} {speed:7.0f} "
                        f"{row['peak_mib']:5.0f} MiB   {row.get('parts', '')}",
                        flush=True,
                    )
    if a.json:
        peers.record(a.json, found)


def _measure(what: str, case: str, folder: str, threads: str) -> None:
    import torch

    torch.set_num_threads(int(threads))
    if what == "floor":
        row = floor(case, int(threads))
    elif what.startswith("trl-"):
        row = trl_step(case, Path(folder), int(what.removeprefix("trl-")))
    else:
        row = gmpo_step(case, Path(folder), what)
    row["median"] = statistics.median(row["seconds"])
    row["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(row))


def _inside(python: str, what: str, case: str, folder: str, threads: int) -> Any:
    command = [python, __file__, "--inside", what, case, folder, str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
