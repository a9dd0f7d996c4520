"""Head, sampler and a whole GMPO step on one CUDA device: seconds, what the device could do them in, and peak memory.

    python benchmarks/on_cuda.py [--only head sampler step] [--json FILE] [--quick]

The floor is max(operations / rate of a large bfloat16 product, bytes / rate of a large copy); both rates are measured
first, on this device. Bytes are those that must move: weights and their gradient once, the cache of a step once.
Bfloat16 products, float32 weights, random numbers throughout; medians of 5 after a warm-up, the peak is the
allocator's over the measured calls.

head:    the GMPO loss behind a head of 152 thousand tokens, entropy reported, answers of 512 tokens: forward and
         backward to hidden states and head (three products), and the log-probs alone (one). By Triton's kernels, by
         torch's operations, by autograd through all logits.
sampler: 128 tokens to 8 prompts of 128, 64 or 256 answers side by side, no stop token, for models of the shapes of
         Qwen2.5-0.5B and 1.5B; and the library's own decoding, and cuDNN's attention in the first rollout.
step:    16 prompts of 100 tokens x 8 answers of 256, four updates, the shape of Qwen2.5-0.5B, sampling to the last
         update.

`--quick` runs everything in tiny shapes on whatever device there is, to see that it runs; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from gmpo.algo.sequence_losses import geo_mean
from gmpo.backends.devices import Device, use_any_length
from gmpo.backends.tiny_model import word_tokenizer
from gmpo.backends.torch_sampler import TorchSampler
from gmpo.backends.weights import LiveWeights
from gmpo.ops import linear_logprob
from gmpo.ops.blocks import Blocks, TorchBlocks
from gmpo.ops.kernels import blocks_for
from gmpo.ops.linear_logprob import Head, token_values
from gmpo.ops.linear_loss import linear_loss
from gmpo.ports import SampleRequest, SamplingParams

REPEATS = 5
QWEN = {"vocab_size": 151_936, "tie_word_embeddings": True, "max_position_embeddings": 4096}
HALF = {**QWEN, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2}  # fmt: skip
LARGER = {**QWEN, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
          "num_key_value_heads": 2}  # fmt: skip
TINY = {**HALF, "vocab_size": 515, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
KNOWN = 151_665
"""Tokens of Qwen2.5's tokenizer."""
REWARD = '''"""Any reward that tells answers apart will do."""
import random


def compute_score(data_source, solution_str, ground_truth, extra_info):
    return random.random()
'''


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    device: torch.device
    heads: tuple[tuple[int, int], ...]
    tokens: tuple[int, ...]
    answer: int
    models: dict[str, dict[str, Any]]
    rows: tuple[int, ...]
    prompt: int
    length: int
    step: dict[str, Any]
    problems: int
    step_prompt: int
    step_length: int
    known: int
    product: int
    copy: int


def plan(quick: bool) -> Plan:
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if quick:
        return Plan(where, ((16, 1030),), (64,), 16, {"tiny": TINY}, (8,), 5, 4, TINY, 2, 4, 4, 400, 128, 2**16)
    models = {"0.5B": HALF, "1.5B": LARGER}
    heads = ((896, 151_936), (3584, 152_064))
    return Plan(where, heads, (4096, 16_384), 512, models, (64, 256), 128, 128, HALF, 16, 100, 256, KNOWN, 8192, 2**31)


class Ruler:
    """Times calls on a device and knows its two rates."""

    def __init__(self, p: Plan) -> None:
        self.where, self.cuda = p.device, p.device.type == "cuda"
        a, b = (torch.randn(p.product, p.product, device=self.where, dtype=torch.bfloat16) for _ in range(2))
        self.flops = 2 * p.product**3 / self.seconds(lambda: a @ b, warm=3, repeats=10)[0]
        source = torch.randint(0, 255, (p.copy,), dtype=torch.uint8, device=self.where)
        target = torch.empty_like(source)
        self.bytes = 2 * p.copy / self.seconds(lambda: target.copy_(source), warm=3, repeats=10)[0]
        self.rows: list[dict[str, Any]] = []

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(
        self, call: Callable[[], object], *, warm: int = 1, repeats: int = REPEATS
    ) -> tuple[float, list[float], float]:
        """Median, extremes, and the peak of the allocator in GiB."""
        for _ in range(warm):
            call()
        self.wait()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            self.wait()
            times.append(time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.cuda else 0.0
        return statistics.median(times), [min(times), max(times)], peak

    def floor(self, operations: float, moved: float) -> float:
        return max(operations / self.flops, moved / self.bytes)

    def row(self, part: str, what: str, found: tuple[float, list[float], float], floor: float, **more: Any) -> None:
        seconds, spread, peak = found
        ratio = seconds / floor
        self.rows.append(
            {"part": part, "what": what, "seconds": seconds, "spread": spread, "floor_s": floor, "ratio": ratio,
             "peak_gib": peak, **more}
        )  # fmt: skip
        said = "  ".join(f"{name} {value:,.0f}" for name, value in more.items() if isinstance(value, float))
        print(f"{what:58} {seconds * 1e3:9.1f} {floor * 1e3:9.1f} {ratio:6.1f} {peak:7.2f}  {said}", flush=True)


def header(title: str) -> None:
    print(f"\n{title:58} {'ms':>9} {'floor':>9} {'ratio':>6} {'GiB':>7}", flush=True)


# --- head


def heads(p: Plan, ruler: Ruler) -> None:
    header("head: H x V, tokens")
    for width, vocabulary in p.heads:
        for tokens in p.tokens:
            _head(p, ruler, width, vocabulary, tokens)


def _head(p: Plan, ruler: Ruler, width: int, vocabulary: int, tokens: int) -> None:
    rows = tokens // p.answer
    hidden = torch.randn(tokens, width, device=p.device).to(torch.bfloat16).requires_grad_()
    weight = (torch.randn(vocabulary, width, device=p.device) / width**0.5).requires_grad_()
    weight.grad = torch.zeros_like(weight)
    targets = torch.randint(vocabulary, (tokens,), device=p.device)
    advantages = torch.randn(rows, device=p.device)
    mask = torch.ones(rows, p.answer, dtype=torch.bool, device=p.device)
    excluded = torch.arange(vocabulary - min(271, vocabulary // 8), vocabulary, device=p.device)

    def loss(logp: torch.Tensor, some: slice = slice(None)) -> torch.Tensor:
        r = logp.view(-1, p.answer)
        a = advantages[some].unsqueeze(1).expand_as(r)
        return geo_mean(r, r.detach(), a, mask[some], clip_low=0.4, clip_high=0.4).values.sum() / rows

    def trained(blocks: Blocks) -> Callable[[], object]:
        head = Head(weight, blocks=blocks, excluded=excluded)

        def call() -> object:
            there, weight.grad, hidden.grad = [weight.grad], None, None
            value, entropy = linear_loss(
                head,
                hidden,
                targets,
                [p.answer] * rows,
                lambda some, logp, _: loss(logp, some),
                entropy="value",
                weight_grad=there.pop(),
            )
            value.backward()
            return entropy

        return call

    def naive() -> object:
        hidden.grad = None
        logp = torch.log_softmax((hidden @ weight.to(torch.bfloat16).T).float(), -1)
        with torch.no_grad():
            entropy = -(logp.exp() * logp).sum(-1)
        loss(logp.gather(1, targets.unsqueeze(1)).squeeze(1)).backward()
        return entropy

    size, name = width * vocabulary, f"{width} x {vocabulary:,}, {tokens:,}"
    every = 3 * 4 * size + 4 * tokens * width
    bound = ruler.floor(6.0 * tokens * size, every)
    kernels = "Triton" if ruler.cuda else "the device's"
    ruler.row("head", f"{name}: loss, {kernels} blocks", ruler.seconds(trained(blocks_for(p.device))), bound)
    if tokens == max(p.tokens):
        with sizes(1):
            ruler.row("head", f"{name}: the same, a CPU's sizes", ruler.seconds(trained(blocks_for(p.device))), bound)
        with sizes(16):
            ruler.row("head", f"{name}: the same, 4 times larger", ruler.seconds(trained(blocks_for(p.device))), bound)
    ruler.row("head", f"{name}: loss, torch's blocks", ruler.seconds(trained(TorchBlocks())), bound)
    if tokens == min(p.tokens):
        ruler.row("head", f"{name}: loss, all logits", ruler.seconds(naive), bound)
    head = Head(weight, blocks=blocks_for(p.device), excluded=excluded)
    scored = ruler.seconds(lambda: token_values(head, hidden, targets, with_entropy=True))
    ruler.row("head", f"{name}: log-probs and entropies", scored, ruler.floor(2.0 * tokens * size, 4 * size))


@contextmanager
def sizes(times: int) -> Iterator[None]:
    """Tiles and blocks of another size on a GPU."""
    before, linear_logprob.ON_GPU = linear_logprob.ON_GPU, times
    try:
        yield
    finally:
        linear_logprob.ON_GPU = before


# --- sampler


def weights_of(shape: dict[str, Any]) -> tuple[int, int]:
    """Of the layers and of the head."""
    h, inner = shape["hidden_size"], shape["intermediate_size"]
    keys = h // shape["num_attention_heads"] * shape["num_key_value_heads"]
    return shape["num_hidden_layers"] * (2 * h * h + 2 * h * keys + 3 * h * inner), shape["vocab_size"] * h


def decoding_floor(ruler: Ruler, shape: dict[str, Any], prompts: int, rows: int, prompt: int, length: int) -> float:
    """A prefill of each prompt, then a step for each further token: weights and cache are read once a step."""
    layers, head = weights_of(shape)
    keys = shape["hidden_size"] // shape["num_attention_heads"] * shape["num_key_value_heads"]
    cache = 2 * 2 * keys * shape["num_hidden_layers"]
    total = ruler.floor(2.0 * prompts * prompt * layers, 2 * layers)
    for token in range(1, length):
        total += ruler.floor(2.0 * rows * (layers + head), 2 * (layers + head) + rows * (prompt + token) * cache)
    return total


def random_model(shape: dict[str, Any], where: torch.device) -> PreTrainedModel:
    torch.manual_seed(0)
    with where:
        return AutoModelForCausalLM.from_config(Qwen2Config(**shape, bos_token_id=None, eos_token_id=None)).eval()


def samplers(p: Plan, ruler: Ruler) -> None:
    header("sampler: model, answers side by side")
    for name, shape in p.models.items():
        model = random_model(shape, p.device)
        for rows in p.rows:
            _sampler(p, ruler, model, name, shape, rows)
        if name == next(iter(p.models)):
            _sampler(p, ruler, model, f"{name}, the library's decoding", shape, p.rows[0], library=True)
            if ruler.cuda:
                torch.backends.cuda.enable_cudnn_sdp(True)
                label = f"{name}, first rollout with cuDNN's attention"
                try:
                    _sampler(p, ruler, model, label, shape, p.rows[0], warm=0, repeats=1)
                except RuntimeError as error:
                    print(f"{label}: {error}", flush=True)
                use_any_length(p.device)
        del model


def _sampler(
    p: Plan, ruler: Ruler, model: PreTrainedModel, name: str, shape: dict[str, Any], rows: int, *,
    library: bool = False, warm: int = 1, repeats: int = REPEATS,
) -> None:  # fmt: skip
    prompts = 8 if rows >= 8 else 1
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(shape["vocab_size"], (prompts, p.prompt), generator=g).tolist()
    sampler = TorchSampler(
        device=Device(p.device, torch.bfloat16), seed=0, stop_ids=frozenset(), max_num_seqs=rows
    )  # fmt: skip
    sampler.load(LiveWeights(model, version=0))
    sampler._fast = sampler._fast and not library
    params = SamplingParams(n=rows // prompts, temperature=1.0, top_p=1.0, top_k=-1, max_tokens=p.length)
    requests = [SampleRequest(tuple(one), i) for i, one in enumerate(ids)]
    found = ruler.seconds(lambda: sampler.generate(requests, params), warm=warm, repeats=repeats)
    floor = decoding_floor(ruler, shape, prompts, rows, p.prompt, p.length)
    tokens = {"tokens_per_s": rows * p.length / found[0], "ours": sampler._fast}
    ruler.row("sampler", f"{name}, {rows}", found, floor, **tokens)


# --- step


def step(p: Plan, ruler: Ruler) -> None:
    from rich.console import Console

    import gmpo

    header("step: seconds of its parts")
    answers, updates, n = p.problems * 8, 4 if p.problems >= 4 else 1, 8
    words = [f"w{i}" for i in range(p.known - 4)]
    tokenizer = word_tokenizer(words)
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    rows = [
        {
            "data_source": "any",
            "prompt": [
                {"role": "user", "content": " ".join(words[(i + j) % len(words)] for j in range(p.step_prompt))}
            ],
            "reward_model": {"style": "rule", "ground_truth": "none"},
        }
        for i in range(p.problems)
    ]
    with tempfile.TemporaryDirectory() as out:
        folder = Path(out, "model")
        model = random_model(p.step, p.device)
        model.config.eos_token_id, model.config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.save_pretrained(folder)
        del model
        tokenizer.save_pretrained(folder)
        reward = folder / "reward.py"
        reward.write_text(REWARD)
        if ruler.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        run = gmpo.train(
            {
                "recipe": "gmpo",
                "actor_rollout_ref.model.path": str(folder),
                "actor_rollout_ref.model.enable_gradient_checkpointing": False,
                "custom_reward_function.path": str(reward),
                "data.train_batch_size": p.problems,
                "data.max_prompt_length": p.step_prompt + 4,
                "data.max_response_length": p.step_length,
                f"{rollout}.n": n,
                f"{rollout}.ignore_eos": True,
                f"{actor}.fsdp_config.dtype": "bf16",
                f"{actor}.ppo_mini_batch_size": p.problems // updates,
                f"{actor}.use_dynamic_bsz": True,
                f"{actor}.ppo_max_token_len_per_gpu": max(16_384, p.step_prompt + 4 + p.step_length),
                f"{actor}.optim.lr": 1e-6,
                "trainer.total_training_steps": REPEATS + 1,
                "trainer.total_epochs": None,
                "trainer.device": p.device.type,
                "trainer.logger": [],
                "trainer.default_local_dir": str(Path(out, "run")),
            },
            rows=rows,
            console=Console(quiet=True),
        )
    steps = [m for m in run.history if "timing_s/step" in m][1:]
    layers, head = weights_of(p.step)
    # Each prompt once: what a learner must compute, whether or not it does.
    read = p.problems * (p.step_prompt + 3) + answers * p.step_length
    forward = 2.0 * (read * layers + answers * p.step_length * head)
    adam = updates * (layers + head) * 4 * 7
    floors = {
        "gen": decoding_floor(ruler, p.step, p.problems, answers, p.step_prompt + 3, p.step_length),
        "old_log_prob": ruler.floor(forward, 4 * (layers + head)),
        "update_actor": ruler.floor(3 * forward, 3 * 4 * (layers + head) * updates) + adam / ruler.bytes,
    }
    peak = max(m.get("perf/max_memory_allocated_gb", 0.0) for m in steps)
    for name, floor in {**floors, "step": sum(floors.values())}.items():
        times = [m[f"timing_s/{name}"] for m in steps]
        found = statistics.median(times), [min(times), max(times)], peak
        speed = {"tokens_per_s": answers * p.step_length / found[0]}
        ruler.row("step", f"{answers} answers of {p.step_length}: {name}", found, floor, **speed)


PARTS = {"head": heads, "sampler": samplers, "step": step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="tiny shapes on any device")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    if not a.quick and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; --quick runs tiny shapes on the CPU")
    p, start = plan(a.quick), time.perf_counter()
    use_any_length(p.device)
    torch.set_float32_matmul_precision("highest")
    ruler = Ruler(p)
    name = torch.cuda.get_device_name(p.device) if ruler.cuda else "cpu"
    about = {"device": name, "torch": torch.__version__, "quick": a.quick, "bf16_tflops": ruler.flops / 1e12,
             "copy_gb_per_s": ruler.bytes / 1e9}  # fmt: skip
    print(f"{name}, torch {torch.__version__}: bfloat16 products {about['bf16_tflops']:.0f} TFLOP/s, "
          f"copies {about['copy_gb_per_s']:,.0f} GB/s read and written")  # fmt: skip
    for part in a.only:
        began = time.perf_counter()
        PARTS[part](p, ruler)
        print(f"({part}: {time.perf_counter() - began:.0f} s)", flush=True)
        if a.json:  # after each part, so that one that fails costs the others nothing
            a.json.write_text(json.dumps({**about, "rows": ruler.rows}, indent=1))
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
