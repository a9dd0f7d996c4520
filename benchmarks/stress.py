"""The objectives under stress on the quickstart's model: many updates a rollout, a learning rate that does not fall.

    python benchmarks/stress.py --warm-ups runs/seeds --out runs/stress --seeds 1 2 3 4 [--json FILE]

Each seed starts from its own warm-up (`benchmarks/quickstart_seeds.py --out runs/seeds` makes them), and all objectives
of a seed see the same problems and random streams, so they can be compared in pairs. A run whose figures are there is
not repeated; several processes with different seeds may share the folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import peers
from rich.console import Console
from rich.table import Table

from gmpo.api import train
from gmpo.quickstart import ANSWERS, PROBLEMS, training_settings

ACTOR = "actor_rollout_ref.actor"
STEPS, EVALUATE_EVERY, RATE = 40, 10, 3e-4

OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    "GRPO, ratio 0.8-1.2": {f"{ACTOR}.policy_loss.loss_mode": "vanilla", f"{ACTOR}.clip_ratio": 0.2},
    "GRPO, log clip 0.4": {
        f"{ACTOR}.policy_loss.loss_mode": "power_mean",
        f"{ACTOR}.policy_loss.power": 1.0,
        f"{ACTOR}.clip_ratio": 0.4,
    },
    "GMPO, log clip 0.4": {f"{ACTOR}.policy_loss.loss_mode": "geo_mean", f"{ACTOR}.clip_ratio": 0.4},
    "GMPO, no clip": {
        f"{ACTOR}.policy_loss.loss_mode": "geo_mean",
        f"{ACTOR}.policy_loss.clip_level": "none",
    },
    "GSPO, 3e-4/4e-4": {
        f"{ACTOR}.policy_loss.loss_mode": "gspo",
        f"{ACTOR}.clip_ratio_low": 3e-4,
        f"{ACTOR}.clip_ratio_high": 4e-4,
    },
}
FIGURES = ("final", "late", "worst drop", "log-ratio min", "log-ratio max", "clip share", "entropy", "grad norm max")


def settings(objective: str, updates: int, warm_up: Path, out: Path, seed: int) -> dict[str, Any]:
    """Of one run: the quickstart's, with a constant higher learning rate and more updates per rollout."""
    base = training_settings(warm_up, seed)
    del base["recipe"]
    mini = PROBLEMS // updates
    per_response = {f"{ACTOR}.loss_agg_mode": "seq-mean-token-mean"} if objective.startswith("GRPO, ratio") else {}
    return base | {
        "algorithm.adv_estimator": "grpo",
        f"{ACTOR}.ppo_mini_batch_size": mini,
        f"{ACTOR}.ppo_micro_batch_size_per_gpu": mini * ANSWERS,
        f"{ACTOR}.optim.lr": RATE,
        f"{ACTOR}.optim.lr_scheduler_type": "constant",
        "trainer.total_training_steps": STEPS,
        "trainer.test_freq": EVALUATE_EVERY,
        "trainer.default_local_dir": str(out),
        "trainer.resume_mode": "disable",
        "trainer.logger": [],
        **per_response,
        **OBJECTIVES[objective],
    }


def figures(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of a finished run. `late` is the mean of the validations of its second half; `worst drop` the largest fall of
    pass@1 below its running best."""
    steps = [m for m in history if "actor/log_ratio/min" in m]
    passes = [m["val/pass@1"] for m in history if "val/pass@1" in m]
    best = [max(passes[: i + 1]) for i in range(len(passes))]
    return {
        "final": passes[-1],
        "late": mean(passes[len(passes) // 2 :]),
        "worst drop": max(b - p for b, p in zip(best, passes, strict=True)),
        "log-ratio min": min(m["actor/log_ratio/min"] for m in steps),
        "log-ratio max": max(m["actor/log_ratio/max"] for m in steps),
        "clip share": mean(m["actor/pg_clipfrac"] + m["actor/pg_clipfrac_lower"] for m in steps),
        "entropy": steps[-1]["actor/entropy"],
        "grad norm max": max(m["actor/grad_norm_max"] for m in steps),
    }


def measured(objective: str, updates: int, seed: int, warm_ups: Path, out: Path) -> dict[str, float]:
    """Figures of one run, from its file or by running it."""
    name = objective.replace(" ", "_").replace("/", "-").replace(",", "")
    folder = out / f"{name}-{updates}-seed{seed}"
    file = folder / "figures.json"
    if not file.is_file():
        run = train(settings(objective, updates, warm_ups / f"seed{seed}", folder, seed), console=Console(quiet=True))
        file.write_text(json.dumps(figures(run.history), indent=1) + "\n")
        print(f"{objective}, {updates} updates, seed {seed}: {figures(run.history)['final']:.3f}", flush=True)
    found: dict[str, float] = json.loads(file.read_text())
    return found


def table(rows: Mapping[tuple[str, int], Sequence[Mapping[str, float]]]) -> Table:
    """Mean and standard deviation over seeds."""
    shown = Table("objective", "updates", "n", *FIGURES)
    for (objective, updates), runs in rows.items():
        cells = [[run[name] for run in runs] for name in FIGURES]
        shown.add_row(
            objective,
            str(updates),
            str(len(runs)),
            *(f"{mean(c):.3g}±{stdev(c) if len(c) > 1 else 0:.2g}" for c in cells),
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warm-ups", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--updates", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    rows = {
        (objective, updates): [measured(objective, updates, seed, a.warm_ups, a.out) for seed in a.seeds]
        for updates in a.updates
        for objective in OBJECTIVES
    }
    Console(width=160).print(table(rows))
    if a.json:
        peers.record(a.json, [{"objective": o, "updates": u, "runs": r} for (o, u), r in rows.items()])


if __name__ == "__main__":
    main()
