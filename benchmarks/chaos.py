"""Kill runs of a tiny model by SIGKILL, at random moments and at named points, let each go on, and compare what it
leaves with the run that nobody disturbed: weights by hash, metrics (all but times and memory), answers, pass rates.

    python benchmarks/chaos.py --random 200 --each 5 --json benchmarks/results/chaos.json
    python benchmarks/chaos.py --random 0 --each 0 --fail 2

With `--fail`, a call fails instead with `No space left on device`, once or from then on: the run ends with an error of
gmpo's own, or goes on; either way the next start finds its last good state and ends like the undisturbed run.

A named point is a call on the run's files (open for writing, rename, mkdir, remove, sync, a write of tensors), the
start of a phase, or a reply of a grader. They are not listed by hand: an undisturbed run is watched, and every call
that it makes is one, numbers in names left out. Kills come before the call; those named `written` after it.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import gmpo
from gmpo.backends import storage
from gmpo.backends.tiny_model import make_model, word_tokenizer
from gmpo.data.files import write_parquet
from gmpo.data.stories import story_rows, vocabulary
from gmpo.errors import GmpoError
from gmpo.rewards.grader import Grader
from gmpo.tracking.tracker import StepRecord
from gmpo.training import final_model, state

A, R = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
REWARD = '''"""The share of digits among the words of an answer."""


def compute_score(data_source, solution_str, ground_truth, extra_info):
    words = solution_str.split()
    return sum(word.isdigit() for word in words) / max(1, len(words))
'''
STEPS = 6
Hit = Callable[[str], None]


def settings(folder: Path, run: str) -> dict[str, Any]:
    """Two epochs of three steps, with all that a run remembers: moments, schedule, adaptive KL, groups that wait, pass
    rates, validations, the best of them."""
    return {
        "recipe": "gmpo",
        "actor_rollout_ref.model.path": str(folder / "model"),
        "actor_rollout_ref.model.enable_gradient_checkpointing": False,
        "custom_reward_function.path": str(folder / "reward.py"),
        "data.train_files": str(folder / "train.parquet"),
        "data.val_files": str(folder / "val.parquet"),
        "data.train_batch_size": 4,
        "data.gen_batch_size": 6,
        "data.max_prompt_length": 48,
        "data.max_response_length": 8,
        "algorithm.filter_groups.enable": True,
        "algorithm.filter_groups.max_staleness": 2,
        "algorithm.use_kl_in_reward": True,
        "algorithm.kl_ctrl.type": "adaptive",
        "algorithm.kl_ctrl.kl_coef": 0.05,
        "algorithm.kl_ctrl.target_kl": 0.001,
        "algorithm.kl_ctrl.horizon": 100,
        f"{R}.n": 4,
        f"{A}.shuffle": True,
        f"{A}.ppo_mini_batch_size": 2,
        f"{A}.optim.lr": 1e-2,
        f"{A}.optim.lr_scheduler_type": "cosine",
        "reward_model.grader_workers": 1,
        "trainer.total_training_steps": STEPS,
        "trainer.save_freq": 2,
        "trainer.test_freq": 3,
        "trainer.max_actor_ckpt_to_keep": 2,
        "trainer.device": "cpu",
        "trainer.matmul_precision": "highest",
        "trainer.default_local_dir": str(folder / run),
        "trainer.logger": [],
        "trainer.sample_groups": -1,
    }


def prepare(folder: Path) -> None:
    """The model, the data and the reward below `folder`."""
    sizes = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16, "intermediate": 64}
    make_model(folder / "model", word_tokenizer(vocabulary()), seed=0, **sizes)
    write_parquet(story_rows(12, seed=0, split="train"), folder / "train.parquet")
    write_parquet(story_rows(4, seed=0, split="test"), folder / "val.parquet")
    (folder / "reward.py").write_text(REWARD)


def left(run: Path) -> dict[str, Any]:
    """What a run leaves that must not depend on how often it was killed."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timeless = [
        [m["step"], {k: v for k, v in m["data"].items() if not k.startswith(("timing_s/", "perf/"))}] for m in metrics
    ]
    files = [*(run / "samples").glob("*.jsonl"), *(run / "validation").glob("*.jsonl"), run / "pass_rates.jsonl"]
    return {
        "weights": hashlib.sha256((run / "huggingface" / "model.safetensors").read_bytes()).hexdigest(),
        "metrics": timeless,
        "checkpoints": sorted(p.name for p in run.glob("global_step_*")),
        "status": json.loads((run / "run.json").read_text())["status"],
        **{str(file.relative_to(run)): file.read_text() for file in sorted(files)},
    }


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    code: int
    """Exit status, or minus the signal."""
    seconds: float
    said: str


def child(folder: Path, run: str, changes: Mapping[str, Any], *, watch: Hit | None, kill_at: float | None) -> Ended:
    """Run `gmpo.train` in a fork of this process, which has loaded the libraries already.

    Args:
        watch: is told of every named point, in the child. kill_at: seconds after which the child is killed.
    """
    log = folder / f"{run}.log"
    log.touch()
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = 1
        try:
            final_model.PATIENCE_S = 0.0  # nobody makes room here
            if watch is not None:
                observe(folder / run, watch)
            gmpo.train({**settings(folder, run), **changes}, console=Console(width=200))
            code = 0
        except BaseException as error:
            if not isinstance(error, GmpoError):
                traceback.print_exc()
            print(f"{type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(code)
    while kill_at is not None and time.monotonic() - start < kill_at:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return Ended(os.waitstatus_to_exitcode(status), time.monotonic() - start, log.read_text())
        time.sleep(0.002)
    if kill_at is not None:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return Ended(os.waitstatus_to_exitcode(status), time.monotonic() - start, log.read_text())


def observe(run: Path, hit: Hit) -> None:
    """Have `hit` told of every named point of this process from now on."""
    root, where = str(run), {"open": 0, "os.rename": 0, "os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "os.truncate": 0}

    def audit(event: str, arguments: Any) -> None:
        if event in where and (path := str(arguments[where[event]])).startswith(root):
            if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                return
            hit(f"{event} {_numberless(path, root)}")

    sys.addaudithook(audit)
    fsync, time_, accept = os.fsync, StepRecord.time, Grader._accept

    def synced(descriptor: int) -> None:
        hit(f"sync {_numberless(os.readlink(f'/proc/self/fd/{descriptor}'), root)}")
        fsync(descriptor)

    def phase(self: StepRecord, name: str) -> Any:
        hit(f"phase {name}")
        return time_(self, name)

    def reply(self: Grader, *arguments: Any) -> None:
        hit("reply of a grader")
        accept(self, *arguments)

    os.fsync, StepRecord.time, Grader._accept = synced, phase, reply  # type: ignore[method-assign,assignment]
    for module in (storage, state):
        write = module.save_file

        def saved(tensors: Any, file: Any, *more: Any, write: Any = write) -> None:
            hit(f"write {_numberless(str(file), root)}")
            write(tensors, file, *more)
            hit(f"written {_numberless(str(file), root)}")

        module.save_file = saved  # type: ignore[attr-defined]


def _numberless(path: str, root: str) -> str:
    return re.sub(r"\d+", "N", path.removeprefix(root).lstrip("/"))


class Killer:
    """Kills this process at the `number`-th hit of a point, counted from 0."""

    def __init__(self, point: str, number: int) -> None:
        self.point, self.number, self.seen = point, number, 0

    def __call__(self, point: str) -> None:
        if point == self.point:
            if self.seen == self.number:
                os.kill(os.getpid(), signal.SIGKILL)
            self.seen += 1


class Failer:
    """Has calls on files fail from the `number`-th hit of a point on, or that one alone."""

    def __init__(self, point: str, number: int, *, lasting: bool) -> None:
        self.point, self.number, self.lasting, self.seen = point, number, lasting, 0

    def __call__(self, point: str) -> None:
        if self.lasting and self.seen > self.number and not point.startswith(("phase", "reply", "written")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if point == self.point:
            self.seen += 1
            if self.seen == self.number + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def points(folder: Path, changes: Mapping[str, Any]) -> Counter[str]:
    """The named points of an undisturbed run, and how often each is hit."""
    counts = folder / "points.txt"
    counts.unlink(missing_ok=True)
    descriptor = os.open(counts, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    ended = child(
        folder, "watched", changes, watch=lambda point: void(os.write(descriptor, f"{point}\n".encode())), kill_at=None
    )
    os.close(descriptor)
    if ended.code:
        raise SystemExit(f"the watched run failed:\n{ended.said}")
    return Counter(counts.read_text().splitlines())


def void(_: object) -> None:
    """Nothing."""


def finish(
    folder: Path, run: str, changes: Mapping[str, Any], expected: Mapping[str, Any], apart_from: Sequence[str] = ()
) -> str | None:
    """Let a killed run go on to its end; what is wrong with what it leaves, None where nothing is."""
    ended = child(folder, run, changes, watch=None, kill_at=None)
    if ended.code:
        return f"did not go on: {ended.said[-600:]}"
    found = left(folder / run)
    keys = {**found, **expected}.keys() - set(apart_from)
    wrong = [key for key in sorted(keys) if found.get(key) != expected.get(key)]
    return f"differs in {', '.join(wrong)}" if wrong else None


@dataclass
class Outcome:
    """What became of the kills of a kind."""

    kills: int = 0
    missed: int = 0
    """Runs that had ended before they were to be killed."""
    wrong: tuple[str, ...] = ()


def chaos(
    folder: Path,
    *,
    at_random: int,
    each: int,
    seed: int,
    fail: int = 0,
    only: str = "",
    say: Callable[[str], object] = print,
) -> dict[str, Outcome]:
    """The experiment. Checkpoints are written behind the training in every second run.

    Args:
        at_random: runs that are killed at random moments, up to twice each. each: kills at each named point.
        fail: failures at each named point that is a call on a file.
        only: a regular expression of points; others are left out.
    """
    prepare(folder)
    outcomes: dict[str, Outcome] = {}
    variants: Sequence[Mapping[str, Any]] = (
        {f"{A}.checkpoint.async_save": False},
        {f"{A}.checkpoint.async_save": True},
    )
    whole = child(folder, "whole", variants[0], watch=None, kill_at=None)
    if whole.code:
        raise SystemExit(f"the undisturbed run failed:\n{whole.said}")
    expected = left(folder / "whole")
    rng = random.Random(seed)

    def settle(kind: str, run: str, changes: Mapping[str, Any], killed: bool, apart_from: Sequence[str] = ()) -> None:
        outcome = outcomes.setdefault(kind, Outcome())
        outcome.kills, outcome.missed = outcome.kills + killed, outcome.missed + (not killed)
        if (wrong := finish(folder, run, changes, expected, apart_from)) is not None:
            outcome.wrong += (f"{run}: {wrong}",)
            say(f"{kind}: {run}: {wrong}")

    for number in range(at_random):
        run, changes = f"random-{number}", variants[number % 2]
        killed = False
        for _ in range(1 + number % 2):
            ended = child(folder, run, changes, watch=None, kill_at=rng.uniform(0.0, whole.seconds))
            killed |= ended.code == -signal.SIGKILL
        settle("random moment", run, changes, killed)
    number = 0
    for changes in variants if each else ():
        hits = points(folder, changes)
        shutil.rmtree(folder / "watched")
        for point, count in sorted(hits.items()):
            if not re.search(only, point):
                continue
            share = -(-each // 2) if changes is variants[0] else each // 2
            for hit in sorted(rng.sample(range(count), min(share, count))):
                number += 1
                run = f"point-{number}"
                ended = child(folder, run, changes, watch=Killer(point, hit), kill_at=None)
                settle(point, run, changes, ended.code == -signal.SIGKILL)
                if not outcomes[point].wrong:
                    shutil.rmtree(folder / run)
    hits = points(folder, variants[0]) if fail else Counter()
    for point, count in sorted(hits.items()):
        if point.startswith(("phase", "reply", "written")) or not re.search(only, point):
            continue
        for hit in sorted(rng.sample(range(count), min(fail, count))):
            number += 1
            run, lasting = f"fail-{number}", number % 2 == 0
            watch = Failer(point, hit, lasting=lasting)
            ended = child(folder, run, variants[0], watch=watch, kill_at=None)
            kind = f"{'no space from' if lasting else 'one failure of'} {point}"
            last = (ended.said.strip().splitlines() or [""])[-1]
            # An old checkpoint that cannot be removed stays, which is said.
            settle(kind, run, variants[0], True, apart_from=("checkpoints",))
            if ended.code and not re.search(r"^(Config|Data|Backend|Checkpoint|Unwritten)Error: ", ended.said, re.M):
                outcomes[kind].wrong += (f"{run}: it ended with {last}",)
                say(f"{kind}: {run}: {last}")
            if not outcomes[kind].wrong:
                shutil.rmtree(folder / run)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, default=200, help="runs killed at random moments")
    parser.add_argument("--each", type=int, default=5, help="kills at each named point")
    parser.add_argument("--fail", type=int, default=0, help="failures at each named point that is a call on a file")
    parser.add_argument("--only", default="", help="regular expression of the named points")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        found = chaos(
            Path(folder),
            at_random=arguments.random,
            each=arguments.each,
            seed=arguments.seed,
            fail=arguments.fail,
            only=arguments.only,
        )
    for point, outcome in found.items():
        print(f"{outcome.kills:>4} kills, {outcome.missed} missed, {len(outcome.wrong)} wrong: {point}")
    kills, wrong = sum(o.kills for o in found.values()), sum(len(o.wrong) for o in found.values())
    print(f"{kills} kills at {len(found)} points, {wrong} wrong, {time.monotonic() - start:.0f} s")
    if arguments.json:
        table = {point: {"kills": o.kills, "missed": o.missed, "wrong": o.wrong} for point, o in found.items()}
        arguments.json.write_text(json.dumps({"seed": arguments.seed, "points": table}, indent=1) + "\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
