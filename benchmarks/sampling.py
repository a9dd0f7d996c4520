"""Tokens per second of the embedded sampler, of `generate` of transformers and of vLLM, on the same models and prompts.

    python benchmarks/sampling.py [--threads 1 2] [--cases stories small large] [--quickstart FOLDER]
        [--vllm [FOLDER]] [--json FILE]

stories: 32 stories x 8 answers of at most 48 tokens with their stop token, the warmed-up model of 0.3 M
         parameters, from the folder of `gmpo quickstart` (which is run first if there is none: some minutes).
small:   8 prompts of 6 tokens x 8 answers of exactly 64 tokens, a Qwen2 of 0.86 M parameters, 512 tokens.
large:   the same, a Qwen2 of 43 M parameters, 151,936 tokens.

The others have random weights. Float32, temperature 1, no truncation. The sampler and vLLM return log-probs, `generate`
does not.
Medians of 5 after a warm-up, engines in turns (vLLM in a process of its own, `--vllm` builds its environment).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import peers

REPEATS, ANSWERS = 5, 8
CASES: dict[str, dict[str, Any]] = {
    "stories": {"max_tokens": 48, "stop": True},
    "small": {
        "max_tokens": 64,
        "stop": False,
        "shape": {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4},
        "tied": False,
    },
    "large": {
        "max_tokens": 64,
        "stop": False,
        "shape": {"vocab_size": 151_936, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6},
        "tied": True,
    },
}


def prepare(case: str, folder: Path, quickstart: Path | None) -> list[list[int]]:
    """Writes the model; returns the prompts."""
    import torch

    from gmpo.backends.models import ModelSource, load_tokenizer
    from gmpo.data.files import read_rows

    if case == "stories":
        made = quickstart or folder / "quickstart"
        if not (made / "summary.json").is_file():
            subprocess.run([sys.executable, "-m", "gmpo", "quickstart", "--out", str(made)], check=True)
        shutil.copytree(made / "warm-up" / "huggingface", folder, dirs_exist_ok=True)
        tokenizer = load_tokenizer(ModelSource(str(folder)))
        rows = [row for _, row in islice(read_rows(made / "data" / "train.parquet"), 32)]
        return [
            tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False) for row in rows
        ]
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch.manual_seed(0)
    config = Qwen2Config(
        **CASES[case]["shape"],
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=CASES[case]["tied"],
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, 512, (8, 6), generator=generator).tolist()


def here(case: str, folder: Path, prompts: list[list[int]], threads: int) -> dict[str, list[float]]:
    """gmpo and transformers in this process, in turns."""
    import torch
    from transformers import AutoModelForCausalLM

    from gmpo.backends.devices import Device
    from gmpo.backends.torch_sampler import TorchSampler
    from gmpo.backends.weights import LiveWeights
    from gmpo.ports import SampleRequest, SamplingParams
    from gmpo.records.batch import pad_left

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    limit, stops = CASES[case]["max_tokens"], CASES[case]["stop"]
    end = model.generation_config.eos_token_id if stops else -1
    sampler = TorchSampler(
        device=Device(torch.device("cpu"), torch.float32), seed=0, stop_ids=frozenset({end}), max_num_seqs=256
    )
    sampler.load(LiveWeights(model, 0))
    requests = [SampleRequest(tuple(prompt), key) for key, prompt in enumerate(prompts)]
    ids, mask = pad_left(prompts, 0)

    def ours() -> int:
        answers = sampler.generate(requests, SamplingParams(ANSWERS, 1.0, 1.0, -1, limit))
        return sum(len(c.token_ids) for group in answers for c in group)

    def library() -> int:
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=mask.long(),
                do_sample=True,
                top_k=0,
                num_return_sequences=ANSWERS,
                max_new_tokens=limit,
                eos_token_id=end if stops else None,
                pad_token_id=0,
            )[:, ids.shape[1] :]
        if not stops:
            return int(out.numel())
        past = (out == end).long().cumsum(1) - (out == end).long()
        return int((past == 0).sum())

    found: dict[str, list[float]] = {"gmpo": [], "transformers": []}
    for turn in range(REPEATS + 1):
        for name, run in (("gmpo", ours), ("transformers", library)):
            speed = _speed(run)
            if turn:
                found[name].append(speed)
    return found


def with_vllm(case: str, folder: Path, prompts: list[list[int]], threads: int) -> list[float]:
    """In vLLM's environment."""
    import torch
    from vllm import LLM, SamplingParams

    torch.set_num_threads(threads)
    engine = LLM(
        str(folder),
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=256,
        logprobs_mode="processed_logprobs",
        seed=0,
    )
    stops = CASES[case]["stop"]
    params = SamplingParams(
        n=ANSWERS,
        temperature=1.0,
        max_tokens=CASES[case]["max_tokens"],
        ignore_eos=not stops,
        logprobs=0,
        detokenize=False,
        stop_token_ids=[json.loads((folder / "config.json").read_text())["eos_token_id"]] if stops else None,
    )

    def run() -> int:
        outs = engine.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        return sum(len(answer.token_ids) for out in outs for answer in out.outputs)

    for _ in range(2):
        _speed(run)
    return [_speed(run) for _ in range(REPEATS)]


def _speed(run: Callable[[], int]) -> float:
    start = time.perf_counter()
    tokens = run()
    return tokens / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--quickstart", type=Path, help="output folder of `gmpo quickstart`, for the stories")
    parser.add_argument("--vllm", nargs="?", const=True, help="also vLLM, in the environment in this folder")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inside", nargs=3, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.inside:
        case, folder, threads = a.inside[0], Path(a.inside[1]), int(a.inside[2])
        prompts = json.loads((folder / "prompts.json").read_text())
        speeds = with_vllm(case, folder, prompts, threads) if a.vllm else here(case, folder, prompts, threads)
        print(json.dumps(speeds))
        return
    rows = []
    for threads in a.threads:
        print(f"\ntokens per second, float32, {threads} thread(s)")
        print(f"{'':10} {'gmpo':>9} {'transformers':>13} {'vLLM':>9}   gmpo over each")
        for case in a.cases:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                (folder / "prompts.json").write_text(json.dumps(prepare(case, folder, a.quickstart)))
                found = _inside([sys.executable], case, folder, threads)
                if a.vllm:
                    python = peers.vllm(None if a.vllm is True else Path(a.vllm))
                    found["vllm"] = _inside([str(python)], case, folder, threads, "--vllm")
            medians = {engine: statistics.median(speeds) for engine, speeds in found.items()}
            rows.append({"case": case, "threads": threads, "tokens_per_s": found, "median": medians})
            ratios = ", ".join(f"{medians['gmpo'] / m:.2f}" for engine, m in medians.items() if engine != "gmpo")
            other = f"{medians['vllm']:9,.0f}" if "vllm" in medians else f"{'-':>9}"
            print(f"{case:10} {medians['gmpo']:9,.0f} {medians['transformers']:13,.0f} {other}   {ratios}", flush=True)
    if a.json:
        peers.record(a.json, rows)


def _inside(python: list[str], case: str, folder: Path, threads: int, *more: str) -> Any:
    quiet = {
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    command = [*python, __file__, "--inside", case, str(folder), str(threads), *more]
    done = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
