"""What a loss on an LM head of 152 thousand tokens costs: time over its bare products, memory over its inputs.

    python benchmarks/loss_head.py [--threads 1 2] [--widths 256 896] [--env FOLDER] [--json FILE]

2,048 tokens in 16 answers of 128 (or 2 of 1,024: longer than a tile), hidden width H, float32: the GMPO loss on
log-probs with the entropy reported, forward and backward to hidden states and head. The floor is the three products
alone, hidden x head, gradient x head and gradient x hidden. Peers: all logits and autograd ("naive"), the fused head of
TRL, the chunked loss of Liger (GRPO's, for it has none of GMPO; no entropy).

Each variant has a process of its own, where it and the floor take turns; medians of 5 and their ratio. The memory is
the peak of the process over what it had with its inputs, less the head's gradient.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers

TOKENS, VOCABULARY, REPEATS = 2048, 151_936, 5
VARIANTS = {
    "gmpo, answers of 128": "gmpo",
    "gmpo, answers of 1,024": "gmpo-long",
    "naive": "naive",
    "TRL": "trl",
    "Liger": "liger",
}
PEAK = resource.RUSAGE_SELF


def measure(variant: str, width: int, threads: int, fast: bool) -> dict[str, Any]:
    """In a process of its own."""
    import torch

    torch.set_num_threads(threads)
    if fast:
        torch.set_float32_matmul_precision("medium")
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, width, generator=generator).requires_grad_()
    weight = (0.05 * torch.randn(VOCABULARY, width, generator=generator)).requires_grad_()
    weight.grad = torch.zeros_like(weight)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    length = 1024 if variant == "gmpo-long" else 128
    rows = TOKENS // length
    advantages = torch.randn(rows, generator=generator)
    before = resource.getrusage(PEAK).ru_maxrss
    run = _variant(variant, hidden, weight, targets, length, advantages)
    run()
    peak = resource.getrusage(PEAK).ru_maxrss

    logits, of_hidden = torch.empty(TOKENS, VOCABULARY), torch.empty(TOKENS, width)

    def floor() -> None:
        with torch.no_grad():
            torch.mm(hidden, weight.T, out=logits)
            torch.mm(logits, weight, out=of_hidden)
            assert weight.grad is not None
            torch.addmm(weight.grad, logits.T, hidden, out=weight.grad)

    floor()
    times: dict[str, list[float]] = {"variant": [], "floor": []}
    for _ in range(REPEATS):
        for name, what in (("floor", floor), ("variant", run)):
            start = time.perf_counter()
            what()
            times[name].append(time.perf_counter() - start)
    seconds, bare = (statistics.median(times[name]) for name in ("variant", "floor"))
    ratio = statistics.median(a / b for a, b in zip(times["variant"], times["floor"], strict=True))
    return {
        "seconds": seconds,
        "floor_s": bare,
        "ratio": ratio,
        "spread": [min(times["variant"]), max(times["variant"])],
        "over_inputs_mib": (peak - before) / 1024 - (0 if variant.startswith("gmpo") else _extra_mib(variant, width)),
    }


def _extra_mib(variant: str, width: int) -> float:
    """Peers make the head's gradient anew before it is added to what is there; that copy is not held against them."""
    return VOCABULARY * width * 4 / 2**20 if variant in ("naive", "trl", "liger") else 0.0


def _variant(name: str, hidden: Any, weight: Any, targets: Any, length: int, advantages: Any) -> Callable[[], object]:
    import torch

    rows = len(advantages)
    mask = torch.ones(rows, length, dtype=torch.bool)

    def gmpo_loss(logp: Any, some: slice = slice(None)) -> Any:
        from gmpo.algo.sequence_losses import geo_mean

        r = logp.view(-1, length)
        advantage = advantages[some].unsqueeze(1).expand_as(r)
        surrogate = geo_mean(r, r.detach(), advantage, mask[some], clip_low=0.4, clip_high=0.4)
        return surrogate.values.sum() / rows

    heads: list[Any] = []

    def gmpo() -> object:
        from gmpo.ops.linear_logprob import Head
        from gmpo.ops.linear_loss import linear_loss

        heads.append(heads[0] if heads else Head(weight))
        there, weight.grad, hidden.grad = [weight.grad], None, None
        loss, entropy = linear_loss(
            heads[0],
            hidden,
            targets,
            [length] * rows,
            lambda some, logp, _: gmpo_loss(logp, some),
            entropy="value",
            weight_grad=there.pop(),
        )
        loss.backward()
        return entropy

    def naive() -> object:
        hidden.grad = None
        logits = hidden @ weight.T
        logp = torch.log_softmax(logits, -1)
        with torch.no_grad():
            entropy = -(logp.exp() * logp).sum(-1)
        gmpo_loss(logp.gather(1, targets.unsqueeze(1)).squeeze(1)).backward()
        return entropy

    def trl() -> object:
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

        hidden.grad = None
        logp, entropy, *_ = ChunkedLogProbFunction.apply(
            hidden, weight, None, targets, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("log_probs", "entropy")
        )
        gmpo_loss(logp).backward()
        return entropy

    def liger() -> object:
        from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOLoss

        hidden.grad = None
        loss = LigerFusedLinearGRPOLoss(
            beta=0.0,
            compiled=False,
            use_ref_model=False,
            chunk_size=8,
            epsilon_low=0.4,
            epsilon_high=0.4,
            loss_type="grpo",
            importance_sampling_level="sequence",
        )
        value, _ = loss(hidden.view(rows, length, -1), weight, targets.view(rows, length), mask.long(), advantages)
        value.backward()
        return value

    return {"gmpo": gmpo, "gmpo-long": gmpo, "naive": naive, "trl": trl, "liger": liger}[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 896])
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--fast-product", action="store_true", help='all with set_float32_matmul_precision("medium")')
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inside", nargs=3, help=argparse.SUPPRESS)
    peers.add_option(parser)
    a = parser.parse_args()
    if a.inside:
        print(json.dumps(measure(a.inside[0], int(a.inside[1]), int(a.inside[2]), a.fast_product)))
        return
    python, found = peers.trl(a.env), []
    for threads in a.threads:
        for width in a.widths:
            print(f"\nH = {width}, V = {VOCABULARY:,}, N = {TOKENS:,}, float32, {threads} thread(s)")
            print(f"{'':24} {'seconds':>8} {'floor':>8} {'ratio':>6} {'over inputs':>12}")
            for label in a.only:
                command = [str(python), __file__, "--inside", VARIANTS[label], str(width), str(threads)]
                command += ["--fast-product"] if a.fast_product else []
                out = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=sys.stderr, text=True).stdout
                row = json.loads(out.splitlines()[-1])
                found.append({"variant": label, "H": width, "threads": threads, "fast": a.fast_product, **row})
                print(
                    f"{label:24} {row['seconds']:8.2f} {row['floor_s']:8.2f} {row['ratio']:6.2f} "
                    f"{row['over_inputs_mib']:8.0f} MiB",
                    flush=True,
                )
    if a.json:
        peers.record(a.json, found)


if __name__ == "__main__":
    main()
