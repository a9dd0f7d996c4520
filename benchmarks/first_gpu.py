"""What a machine with one or eight GPUs runs first: does it train rightly? One report at the end, `OUT/report.md`.

    python benchmarks/first_gpu.py [--out runs/first-gpu] [--only smoke parity learn ranks tests bench]

smoke:   a product on each device, and two steps of GMPO with a tiny model on the first.
parity:  the first step in float32, beside the CPU's: reward, lengths, loss, gradient's norm and entropy to 1e-3.
learn:   20 steps in the device's own precision; the reward (the share of digits in an answer) must rise.
ranks:   the same on all devices under Ray, the first step beside one process's.
tests:   the tests that need a device (`make test-cuda`).
bench:   benchmarks/on_cuda.py (`make bench-cuda`).

Each part is a process of its own: one that fails or crashes is named, and the others run. The exit status is 1 if one
failed. `--device cpu` rehearses it all where there is no GPU: two ranks on the CPU, the benchmark in tiny shapes, and
the tests left out.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import gmpo
from gmpo.backends.tiny_model import make_model, word_tokenizer
from gmpo.data.stories import story_rows, vocabulary

ROOT = Path(__file__).resolve().parents[1]
A, R = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
COMPARED = ("critic/score/mean", "response_length/mean", "actor/pg_loss", "actor/grad_norm", "actor/entropy")
PACKAGES = ("gmpo", "torch", "transformers", "numpy", "triton", "ray", "peft")
REWARD = '''"""The share of digits among the words of an answer."""


def compute_score(data_source, solution_str, ground_truth, extra_info):
    words = solution_str.split()
    return sum(word.isdigit() for word in words) / max(1, len(words))
'''
SHOWN = 40
"""Last lines of a part's output in the report."""


class PartFailed(Exception):
    """A part found what should not be."""


def train(out: Path, name: str, changes: dict[str, Any]) -> list[dict[str, float]]:
    """The metrics of a run's steps with a tiny random model, the same for one seed."""
    folder = out / "model"
    if not folder.exists():
        sizes = {"hidden": 64, "layers": 2, "heads": 4, "intermediate": 128}
        make_model(folder, word_tokenizer(vocabulary()), seed=0, **sizes)
    (out / "reward.py").write_text(REWARD)
    run = gmpo.train(
        {
            "recipe": "gmpo",
            "actor_rollout_ref.model.path": str(folder),
            "custom_reward_function.path": str(out / "reward.py"),
            "data.train_batch_size": 8,
            "data.max_prompt_length": 64,
            "data.max_response_length": 12,
            f"{R}.n": 8,
            f"{A}.ppo_mini_batch_size": 4,
            f"{A}.optim.lr": 3e-3,
            "trainer.total_epochs": None,
            "trainer.logger": [],
            "trainer.default_local_dir": str(out / f"run-{name}-{time.time_ns()}"),
            **changes,
        },
        rows=story_rows(64, seed=0, split="train"),
        console=Console(quiet=True),
    )
    return [metrics for metrics in run.history if "critic/score/mean" in metrics]


def compare(here: dict[str, float], there: dict[str, float], names: tuple[str, str], within: float) -> None:
    """Prints both.

    Raises:
        PartFailed: one differs by more than `within`, relative, and by more than 1e-5.
    """
    wrong = []
    print(f"{'':24} {names[0]:>14} {names[1]:>14}")
    for name in COMPARED:
        one, other = here[name], there[name]
        print(f"{name:24} {one:14.6g} {other:14.6g}")
        if not abs(one - other) <= max(within * abs(one), 1e-5):
            wrong.append(name)
    if wrong:
        raise PartFailed(f"{names[0]} and {names[1]} differ by more than {within:g} in {', '.join(wrong)}")


def smoke(device: str, out: Path) -> None:
    places = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if device == "cuda" else ["cpu"]
    for place in places:
        ones = torch.ones(256, 256, device=place)
        if (found := float((ones @ ones).sum())) != 256.0**3:
            raise PartFailed(f"{place}: a product of ones sums to {found}, not to {256.0**3:.0f}")
        print(f"{place}: {torch.cuda.get_device_name(place) if device == 'cuda' else platform.processor() or 'CPU'}")
    steps = train(out, "smoke", {"trainer.device": device, "trainer.total_training_steps": 2})
    print(f"{len(steps)} steps, {steps[-1]['timing_s/step']:.2f} s the last")


def parity(device: str, out: Path) -> None:
    fp32 = {"trainer.total_training_steps": 1, f"{A}.fsdp_config.dtype": "fp32"}
    here, there = (train(out, f"parity-{d}", {**fp32, "trainer.device": d})[0] for d in ("cpu", device))
    compare(here, there, ("cpu", f"{device} here"), 1e-3)


def learn(device: str, out: Path) -> None:
    rises(train(out, "learn", {"trainer.device": device, "trainer.total_training_steps": 20}))


def rises(steps: Sequence[dict[str, float]]) -> None:
    scores = [metrics["critic/score/mean"] for metrics in steps]
    print("reward:", " ".join(f"{score:.2f}" for score in scores))
    first, last = sum(scores[:5]) / 5, sum(scores[-5:]) / 5
    if len(scores) != 20 or not last > first + 0.1:
        raise PartFailed(f"{len(scores)} steps took the reward from {first:.2f} to {last:.2f}; it must rise by 0.1")


def ranks(device: str, out: Path) -> None:
    world = torch.cuda.device_count() if device == "cuda" else 2
    fp32 = {"trainer.device": device, f"{A}.fsdp_config.dtype": "fp32"}
    many = {**fp32, "trainer.n_gpus_per_node": world}
    one, all_of_them = (train(out, f"ranks-{i}", {**c, "trainer.total_training_steps": 1})[0]
                        for i, c in enumerate((fp32, many)))  # fmt: skip
    compare(one, all_of_them, ("one process", f"{world} ranks"), 1e-3)
    own = {"trainer.device": device, "trainer.n_gpus_per_node": world, "trainer.total_training_steps": 20}
    rises(train(out, "ranks", own))


OWN: dict[str, Callable[[str, Path], None]] = {"smoke": smoke, "parity": parity, "learn": learn, "ranks": ranks}


@dataclass(frozen=True)
class Part:
    """A process that tells something about the machine."""

    name: str
    command: Sequence[str]
    limit_s: float
    left_out: str = ""
    """Why it is not run; empty if it is."""


def parts(device: str, out: Path) -> list[Part]:
    cuda, here = device == "cuda", [sys.executable, str(Path(__file__).resolve()), "--device", device]
    single = cuda and torch.cuda.device_count() == 1
    without = {
        "ranks": "one device" if single else "" if find_spec("ray") else "Ray is not installed: pip install '.[ray]'"
    }
    own = [Part(n, [*here, "--out", str(out), "--part", n], 900, without.get(n, "")) for n in OWN]
    tests = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "tests/cuda", "tests/programs/test_cuda.py"]
    bench = [sys.executable, "benchmarks/on_cuda.py", "--json", str(out / "cuda.json"), *([] if cuda else ["--quick"])]
    return [
        *own,
        Part("tests", tests, 1800, "" if cuda else "they need a CUDA device"),
        Part("bench", bench, 1800),
    ]


@dataclass(frozen=True)
class Outcome:
    """How a part ended."""

    part: Part
    result: str
    """passed, FAILED or left out."""
    seconds: float
    output: str


def run(part: Part) -> Outcome:
    if part.left_out:
        return Outcome(part, "left out", 0.0, part.left_out)
    began = time.monotonic()
    try:
        # The kernels are compiled on a device; only the test suite interprets them.
        environment = {**os.environ, "TRITON_INTERPRET": "0"}
        done = subprocess.run(
            part.command, cwd=ROOT, env=environment, timeout=part.limit_s, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        ended, output = ("" if done.returncode == 0 else f"exit status {done.returncode}"), done.stdout
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        output = said.decode(errors="replace") if isinstance(said, bytes) else said
        ended = f"not done after {part.limit_s:.0f} s"
    except OSError as error:
        ended, output = str(error), ""
    result = "FAILED" if ended else "passed"
    return Outcome(part, result, time.monotonic() - began, f"{output.rstrip()}\n{ended}".strip())


def environment(device: str) -> list[str]:
    found = [f"- {platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores, device {device}"]
    for name in PACKAGES:
        try:
            found.append(f"- {name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"- {name}: not installed")
    if device == "cuda":
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            found.append(f"- cuda:{i} {p.name}, {p.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    return found


def report(outcomes: Sequence[Outcome], about: Sequence[str]) -> str:
    failed = [o.part.name for o in outcomes if o.result == "FAILED"]
    left = [o.part.name for o in outcomes if o.result == "left out"]
    verdict = f"Failed: {', '.join(failed)}." if failed else "What was run passed."
    lines = ["# First run on this machine", "", verdict + (f" Left out: {', '.join(left)}." if left else ""), ""]
    lines += [*about, "", "| Part | Result | Seconds |", "|---|---|---|"]
    lines += [f"| {o.part.name} | {o.result} | {o.seconds:.0f} |" for o in outcomes]
    for o in outcomes:
        shown = o.output.splitlines()[-SHOWN:]
        lines += ["", f"## {o.part.name}: {o.result}", "", "```text", *shown, "```"]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, default=Path("runs/first-gpu"))
    parser.add_argument("--only", nargs="+", choices=[*OWN, "tests", "bench"])
    parser.add_argument("--part", choices=list(OWN), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; --device cpu rehearses everything on the CPU")
    out = a.out.resolve()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: {error}")
    if a.part:
        try:
            OWN[a.part](a.device, out)
        except (PartFailed, gmpo.GmpoError) as error:
            print(error)
            return 1
        return 0
    outcomes = []
    for part in parts(a.device, out):
        if a.only is None or part.name in a.only:
            print(f"{part.name} ...", end=" ", flush=True)
            outcomes.append(run(part))
            print(f"{outcomes[-1].result} ({outcomes[-1].seconds:.0f} s)", flush=True)
            # After each, so that an end in between leaves what was found.
            (out / "report.md").write_text(report(outcomes, environment(a.device)), encoding="utf-8")
    print(f"report: {out / 'report.md'}")
    return int(any(o.result == "FAILED" for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
