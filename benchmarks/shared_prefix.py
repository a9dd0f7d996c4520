"""What it saves to compute a group's prompt once, and what a token costs as answers grow longer.

    python benchmarks/shared_prefix.py [--threads 1 2] [--part group length] [--json FILE]

`group`: a group of 8 answers of 64 tokens to a prompt of 512, a Qwen3 of 6 M parameters, float32. An update is the
forward and backward pass of a weighted sum of log-probs; scoring is the forward pass without gradient. Separate rows
are one padded micro-batch of the 8, logits at response positions only in both. Times are medians of alternating
repeats; the gradients are compared.

`length`: as many answers of one length to a prompt of 128 as make 8,192 response tokens, with activation recomputation
off. The peak is resident memory above what the process had before.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import peers
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from gmpo.backends.devices import Device
from gmpo.backends.packed import response_hidden, share_prefixes
from gmpo.ops.logprob import token_logprobs
from gmpo.records.batch import Batch

CPU = Device(torch.device("cpu"), torch.float32)
VOCABULARY = 2048
GROUP = {"prompt": 512, "response": 64, "answers": 8}
LENGTHS, PROMPT, BUDGET = (128, 1024, 8192), 128, 8192
REPEATS = 5


def policy() -> PreTrainedModel:
    """A Qwen3 of 5.8 M parameters with random weights, the same in each call."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=896,
        tie_word_embeddings=True,
        max_position_embeddings=16_384,
        attn_implementation="sdpa",
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def group_of(prompt: int, response: int, answers: int) -> Batch:
    """One group of random tokens; all answers equally long."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(VOCABULARY, (1, prompt), generator=generator).expand(answers, prompt)
    responses = torch.randint(VOCABULARY, (answers, response), generator=generator)
    real = torch.ones(responses.shape, dtype=torch.bool)
    return Batch(
        prompts,
        torch.ones(prompts.shape, dtype=torch.bool),
        responses,
        response_mask=real,
        sampled_mask=real,
        group=torch.zeros(answers, dtype=torch.long),
        index=torch.arange(answers),
        rewards=torch.zeros(answers),
        rollout_logp=torch.zeros(responses.shape),
    )


def logprobs(model: PreTrainedModel, batch: Batch) -> Tensor:
    """`[N]` of all response tokens."""
    hidden = response_hidden(model, batch, CPU, mask=batch.response_mask)
    return token_logprobs(model.lm_head(hidden), batch.response_ids[batch.response_mask], temperature=1.0)


def update(model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
    """The gradient of a weighted sum of log-probs."""
    model.train().zero_grad()
    logp = logprobs(model, batch)
    (logp * torch.randn(len(logp), generator=torch.Generator().manual_seed(1))).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def score(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Log-probs without gradient."""
    with torch.no_grad():
        return logprobs(model.eval(), batch)


def medians(runs: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Median milliseconds of each, in turns, after one turn that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - begin))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def group_figures() -> dict[str, float]:
    """Times of separate and packed rows, and the largest difference of a parameter's gradient relative to its norm."""
    separate, packed, batch = policy(), policy(), group_of(**GROUP)
    refused = share_prefixes(packed, CPU)
    assert refused is None, refused
    wanted = {name: gradient.clone() for name, gradient in update(separate, batch).items()}
    got = update(packed, batch)
    assert got.keys() == wanted.keys()
    difference = max(float((got[name] - wanted[name]).norm() / wanted[name].norm()) for name in wanted)
    assert difference < 1e-5, f"the gradients differ by {difference:.1e}"
    times = medians(
        {
            "update, separate rows": lambda: update(separate, batch),
            "update, shared prompt": lambda: update(packed, batch),
            "scoring, separate rows": lambda: score(separate, batch),
            "scoring, shared prompt": lambda: score(packed, batch),
        }
    )
    return {
        **times,
        "update ratio": times["update, shared prompt"] / times["update, separate rows"],
        "scoring ratio": times["scoring, shared prompt"] / times["scoring, separate rows"],
        "gradient difference": difference,
    }


def length_figures(threads: int) -> list[dict[str, float]]:
    """Time and memory of an update of `BUDGET` response tokens, by the length of the answers."""
    # A fresh process each: memory that one length leaves behind would hide what the next one needs.
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, max_tasks_per_child=1) as pool:
        return list(pool.map(length_row, LENGTHS, [threads] * len(LENGTHS)))


def length_row(length: int, threads: int) -> dict[str, float]:
    """One row of the table of lengths."""
    torch.set_num_threads(threads)
    model, batch = policy(), group_of(PROMPT, length, BUDGET // length)
    refused = share_prefixes(model, CPU)
    assert refused is None, refused
    update(model, group_of(PROMPT, 2, 1))
    before = _gib("VmRSS")
    times = medians({"update": lambda: update(model, batch)})
    return {
        "response": length,
        "answers": BUDGET // length,
        "us_per_token": 1000 * times["update"] / (BUDGET + PROMPT),
        "attention_gflop": _attention_flop(length) / 1e9,
        "peak_gib": _gib("VmHWM") - before,
    }


def _attention_flop(length: int) -> float:
    """Arithmetic of an update's attention: 7 products of 2 x head width each per visible pair (2 forward, 5 backward),
    4 heads of 64, 6 layers."""
    pairs = PROMPT**2 / 2 + (BUDGET // length) * (length * PROMPT + length**2 / 2)
    return pairs * 7 * 2 * 64 * 4 * 6


def _gib(name: str) -> float:
    """`VmRSS`, resident memory now, or `VmHWM`, its peak (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) / 2**20


def print_group(threads: int, figures: Mapping[str, float]) -> None:
    print(f"group of {GROUP['answers']}, prompt {GROUP['prompt']}, response {GROUP['response']}; threads: {threads}")
    for kind in ("update", "scoring"):
        print(f"  {kind:8} separate rows {figures[f'{kind}, separate rows']:7.0f} ms", end="")
        print(f"   shared prompt {figures[f'{kind}, shared prompt']:6.0f} ms   ratio {figures[f'{kind} ratio']:.3f}")
    print(f"  largest relative difference of a parameter's gradient: {figures['gradient difference']:.1e}")


def print_lengths(threads: int, rows: Sequence[Mapping[str, float]]) -> None:
    print(f"update of {BUDGET} response tokens, prompt {PROMPT}; threads: {threads}")
    print(f"  {'response':>8} {'answers':>8} {'us/token':>9} {'attention GFLOP':>16} {'peak GiB':>9}")
    for row in rows:
        print(f"  {row['response']:8} {row['answers']:8} {row['us_per_token']:9.0f} ", end="")
        print(f"{row['attention_gflop']:16.0f} {row['peak_gib']:9.2f}")
    extra = rows[-1]["us_per_token"] - rows[0]["us_per_token"]
    speed = (rows[-1]["attention_gflop"] - rows[0]["attention_gflop"]) / (extra * 1e-6 * (BUDGET + PROMPT))
    print(f"  what the longest cost more than the shortest is attention at {speed:.0f} GFLOP/s")


def main() -> None:
    """Print the tables, and write the figures as JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--part", nargs="+", choices=("group", "length"), default=["group", "length"])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        if "group" in arguments.part:
            figures[f"group, {threads} threads"] = group = group_figures()
            print_group(threads, group)
        if "length" in arguments.part:
            figures[f"length, {threads} threads"] = rows = length_figures(threads)
            print_lengths(threads, rows)
    if arguments.json:
        peers.record(arguments.json, figures)


if __name__ == "__main__":
    main()
