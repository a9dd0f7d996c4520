"""Mutated settings, YAML files, data rows, data files, checkpoints and records of runs: each is taken or refused with
an error of gmpo's own, within seconds; and what is damaged is never taken for whole.

    python benchmarks/fuzz.py --cases 10000 --json benchmarks/results/fuzz.json
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from chaos import prepare, settings
from rich.console import Console

import gmpo
from gmpo.backends.storage import SavedTensors
from gmpo.config import Config, SftConfig, load, load_sft
from gmpo.config.tree import leaves
from gmpo.data.demonstrations import demonstrations_from_rows
from gmpo.data.problems import load_problems, problems_from_rows
from gmpo.data.stories import story_rows
from gmpo.errors import GmpoError
from gmpo.records.overview import summary
from gmpo.records.run_folder import json_lines, read_metrics, read_run
from gmpo.training.saved import contents_of, require_whole
from gmpo.training.state import read_state

SECONDS = 20
"""A case that takes longer hangs."""
ODD = (
    *("", " ", "null", "none", "true", "False", "[]", "{}", "[1,2", "{a: 1", "nan", "inf", "-inf", "1e400", "-1", "0"),
    *(
        "1",
        "3.5",
        "1_000",
        "0x10",
        "9" * 40,
        "~",
        "!!python/object/apply:os.system ['true']",
        "a: b: c",
        "${oc.env:HOME}",
    ),
    *(
        "*anchor",
        "&a [*a]",
        "é",
        "\U0001f600",
        "\udcff",
        "\x00",
        "../..",
        "/dev/null",
        "/proc/self/mem",
        "x" * 5000,
        "'",
    ),
    *(
        '"',
        "\n",
        "\t",
        "#",
        "a=b",
        "--config",
        "[[[[[[[[[[",
        "global_step_1",
        "gmpo",
        "2026-01-01",
        "01:02:03",
        ".5e",
        "+",
    ),
)
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**63,
        -(2**70),
        0.0,
        -0.0,
        math.nan,
        math.inf,
        "",
        " ",
        "x",
        "\x00",
        "\ud800",
        [],
        {},
    ),
    *(
        [None],
        [[]],
        {"a": 1},
        {"": None},
        ["a", 1],
        {"role": "user"},
        [{"role": "user", "content": None}],
        b"bytes",
        1e308,
    ),
)


class Hang(Exception):
    """A case took too long."""


class WrongSuccess(Exception):
    """Something damaged was taken for whole."""


@dataclass
class Outcome:
    """What became of the cases of a kind."""

    refused: int = 0
    taken: int = 0
    bad: list[str] = field(default_factory=list)
    slowest: float = 0.0


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one to four changes: flipped, inserted, deleted, doubled, cut, or with an odd piece in them."""
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        end = min(len(data), place + rng.choice((1, 1, 2, 8, 64)))
        match rng.randrange(6):
            case 0:
                flipped = bytes(byte ^ (1 << rng.randrange(8)) for byte in data[place:end])
                data = data[:place] + flipped + data[end:]
            case 1:
                data = data[:place] + rng.randbytes(end - place) + data[place:]
            case 2:
                data = data[:place] + data[end:]
            case 3:
                data = data[:end] + data[place:]
            case 4:
                data = data[:place] if rng.random() < 0.3 else data
            case _:
                data = data[:place] + rng.choice(ODD).encode("utf-8", "surrogateescape") + data[place:]
    return data


def mutated_row(row: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
    """A row in which values, somewhere in its depth, are odd or missing."""
    found: dict[str, Any] = deepcopy(dict(row))
    for _ in range(rng.randint(1, 3)):
        at: Any = found
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(at[key], dict | list) and at[key] and rng.random() < 0.6:
                at = at[key]
                continue
            if rng.random() < 0.3:
                del at[key]
            else:
                at[key] = deepcopy(rng.choice(VALUES))
            break
    return found


class Bench:
    """A run that is there, and cases made of it."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        prepare(folder)
        gmpo.train(settings(folder, "run"), console=Console(quiet=True))
        self.run = folder / "run"
        self.rows = story_rows(12, seed=0, split="train")
        self.keys = [*leaves(Config)]
        self.sft_keys = [*leaves(SftConfig)]
        self.yaml = (self.run / "config.yaml").read_bytes()
        self.checkpoint = self.run / "global_step_6"

    def overrides(self) -> object:
        keys, loader = (self.keys, load) if self.rng.random() < 0.8 else (self.sft_keys, load_sft)
        words = [
            f"{mutated(key.encode(), self.rng).decode('utf-8', 'replace') if self.rng.random() < 0.1 else key}="
            f"{self.rng.choice(ODD)}"
            for key in self.rng.sample(keys, self.rng.randint(1, 4))
        ]
        return loader(words).to_yaml()

    def tree(self) -> object:
        keys = self.rng.sample(self.keys, self.rng.randint(1, 4))
        return load(tree={key: deepcopy(self.rng.choice(VALUES)) for key in keys}).to_yaml()

    def yaml_file(self) -> object:
        file = self.folder / "mutated.yaml"
        file.write_bytes(mutated(self.yaml, self.rng))
        return load(file=file).to_yaml()

    def data_rows(self) -> object:
        rows = [mutated_row(row, self.rng) for row in self.rng.sample(self.rows, 3)]
        if self.rng.random() < 0.3:
            return demonstrations_from_rows(rows, prompt_key="prompt", response_key="extra_info.answer")
        return problems_from_rows(rows, "rows")

    def data_file(self) -> object:
        if self.rng.random() < 0.5:
            file, data = self.folder / "mutated.parquet", (self.folder / "train.parquet").read_bytes()
        else:
            file = self.folder / "mutated.jsonl"
            data = "".join(json.dumps(row) + "\n" for row in self.rows).encode()
        file.write_bytes(mutated(data, self.rng))
        return load_problems([str(file)])

    def whole_checkpoint(self) -> object:
        """One file of a sealed checkpoint is other than it was."""
        file = self.rng.choice([p for p in sorted(self.checkpoint.rglob("*")) if p.is_file()])
        before = file.read_bytes()
        after = mutated(before, self.rng)
        file.write_bytes(after)
        try:
            require_whole(self.checkpoint)
        finally:
            file.write_bytes(before)
        same = after == before or (file.name == "files.json" and json.loads(after) == json.loads(before))
        if not same:
            raise WrongSuccess(f"{file.name} was changed and found whole")
        return None

    def old_checkpoint(self) -> object:
        """One file of a checkpoint without hashes, as earlier versions wrote them."""
        place = self.folder / "old" / "global_step_6"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.checkpoint, place)
        (place / "files.json").unlink()
        state = json.loads((place / "state.json").read_text())
        (place / "state.json").write_text(json.dumps({**state, "format": 2}))
        names = ("state.json", "state.safetensors", "actor/model.safetensors", "actor/optimizer.safetensors")
        file = place / self.rng.choice([name for name in names if (place / name).exists()])
        file.write_bytes(mutated(file.read_bytes(), self.rng))
        read_state(place)
        contents_of(place, ("model", "optimizer"))
        for name in names[2:]:
            saved = SavedTensors(place / name)
            for tensor in saved.names:
                saved.like(tensor, torch.empty(saved.shape(tensor)))
        return None

    def records(self) -> object:
        """run.json, metrics, samples or pass rates of a run."""
        place = self.folder / "records"
        if not place.exists():
            shutil.copytree(self.run, place)
        name = self.rng.choice(("run.json", "metrics.jsonl", "samples/1.jsonl", "pass_rates.jsonl"))
        file, before = place / name, (self.run / name).read_bytes()
        file.write_bytes(mutated(before, self.rng))
        try:
            summary(place)
            read_run(place)
            list(read_metrics(place))
            list(json_lines(file))
        finally:
            file.write_bytes(before)
        return None


KINDS: Mapping[str, tuple[Callable[[Bench], object], int]] = {
    "settings on the command line": (Bench.overrides, 35),
    "settings as a mapping": (Bench.tree, 15),
    "a YAML file": (Bench.yaml_file, 15),
    "data rows": (Bench.data_rows, 12),
    "a data file": (Bench.data_file, 8),
    "a checkpoint with hashes": (Bench.whole_checkpoint, 6),
    "a checkpoint without": (Bench.old_checkpoint, 3),
    "records of a run": (Bench.records, 6),
}
"""Kind -> a case of it, and how many of a hundred are of it."""


def fuzz(folder: Path, cases: int, seed: int, say: Callable[[str], object] = print) -> dict[str, Outcome]:
    """The experiment."""
    rng = random.Random(seed)
    bench = Bench(folder, rng)
    outcomes = {kind: Outcome() for kind in KINDS}

    def alarm(number: int, frame: object) -> None:
        raise Hang(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, alarm)
    for kind, (case, share) in KINDS.items():
        outcome = outcomes[kind]
        for _ in range(cases * share // 100):
            start = time.monotonic()
            signal.alarm(SECONDS)
            try:
                case(bench)
                outcome.taken += 1
            except GmpoError as error:
                outcome.refused += 1
                if not str(error).strip():
                    outcome.bad.append("an error without a word")
            except (Exception, RecursionError) as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                outcome.bad.append(f"{type(error).__name__}: {error!s:.200} ({Path(last.filename).name}:{last.lineno})")
                say(f"{kind}: {outcome.bad[-1]}")
            finally:
                signal.alarm(0)
            outcome.slowest = max(outcome.slowest, time.monotonic() - start)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        found = fuzz(Path(folder), arguments.cases, arguments.seed)
    for kind, o in found.items():
        print(f"{o.refused:>6} refused, {o.taken:>5} taken, {len(o.bad)} bad, slowest {o.slowest:.2f} s: {kind}")
        for message, count in Counter(o.bad).most_common(10):
            print(f"        {count} x {message}")
    if arguments.json:
        table = {k: {"refused": o.refused, "taken": o.taken, "bad": len(o.bad)} for k, o in found.items()}
        arguments.json.write_text(json.dumps({"seed": arguments.seed, "kinds": table}, indent=1) + "\n")
    sys.exit(any(o.bad for o in found.values()))


if __name__ == "__main__":
    main()
