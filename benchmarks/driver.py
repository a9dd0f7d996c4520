"""What the driver of several ranks costs a step: dealing, packing, the way to the ranks and back, joining.

    python benchmarks/driver.py [--problems 512] [--answers 16] [--length 8192] [--prompt 2048] [--ranks 2]
        [--json FILE]

The default is the DAPO recipe's batch: 512 problems x 16 answers of at most 8,192 tokens, in 16 mini-batches. Lengths
are drawn (log-normal, median 2,000, cut at the limit). The ranks are real Ray actors behind the real handles, but hold
no model: they return log-probs of 0 and the loss's own records. So what is left is the driver's, the way, and the loss.
Needs the extra `ray`.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import peers
import torch

from gmpo.algo.losses import POLICY_LOSSES
from gmpo.algo.objective import Objective
from gmpo.backends.mini_batch import MiniBatch
from gmpo.backends.ranks.group import prepare_ray
from gmpo.backends.ranks.learner import RankedLearner
from gmpo.backends.ranks.rank import Member, RankParts
from gmpo.backends.trainable import OptimizerStep
from gmpo.records.batch import Batch

OBJECTIVE = Objective(
    POLICY_LOSSES["geo_mean"], {"clip_low": 0.4, "clip_high": 0.4}, "token-mean", loss_scale=8192.0, temperature=1.0
)
MINI_PROBLEMS = 32


class Echo:
    """A learner without a model."""

    def score(self, batch: Batch, *, old: bool) -> Batch:
        zeros = torch.zeros(batch.response_ids.shape)
        return batch.replace(learner_logp=zeros, entropy=zeros)

    def update_part(self, mini: MiniBatch) -> tuple[list[Any], OptimizerStep]:
        records = []
        if len(mini.rows):
            logp = torch.zeros(mini.batch.response_ids.shape)
            records = [OBJECTIVE.loss(mini.inputs(torch.device("cpu")), logp, None, mini.counts, mini.step)[1]]
        return records, OptimizerStep(1.0, 1e-6, skipped=False)


def make(member: Member) -> RankParts:
    learner: Any = Echo()
    return RankParts(learner, None, None)


def batch_of(problems: int, answers: int, prompt: int, length: int) -> Batch:
    g = torch.Generator().manual_seed(0)
    rows = problems * answers
    own = (2000 * torch.exp(torch.randn(rows, generator=g))).long().clamp(16, length)
    mask = torch.arange(length) < own.unsqueeze(1)
    prompts = torch.randint(prompt // 8, prompt + 1, (problems,), generator=g).repeat_interleave(answers)
    prompt_mask = torch.arange(prompt) >= (prompt - prompts).unsqueeze(1)
    group = torch.arange(problems).repeat_interleave(answers)
    rewards = torch.randint(0, 2, (rows,), generator=g).float()
    return Batch(
        torch.ones(rows, prompt, dtype=torch.long) * prompt_mask,
        prompt_mask,
        torch.ones(rows, length, dtype=torch.long) * mask,
        mask,
        mask,
        group=group,
        index=torch.arange(rows),
        rewards=rewards,
        rollout_logp=torch.zeros(rows, length),
        advantage=(rewards - 0.5).unsqueeze(1) * mask,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"problems": 512, "answers": 16, "length": 8192, "prompt": 2048, "ranks": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    prepare_ray()
    from gmpo.backends.ranks.ray_ranks import RayPlan, RayRanks

    batch = batch_of(a.problems, a.answers, a.prompt, a.length)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ranks = RayRanks.start(RayPlan(a.ranks, "cpu", 1, 600.0), make)
    try:
        ranks.call("build", lambda _: (), phase="starting")
        learner = RankedLearner(ranks, OBJECTIVE, None)
        figures: dict[str, Any] = {"answers": batch.rows, "tokens": int(batch.response_mask.sum()), "ranks": a.ranks}
        for turn in range(2):  # the first one makes the object store's pages
            start = time.perf_counter()
            scored = learner.score(batch, old=True)
            middle = time.perf_counter()
            for rows in scored.mini_batches(MINI_PROBLEMS, epochs=1, shuffle_seed=None):
                learner.update(scored.select(rows), step=0)
            end = time.perf_counter()
            figures[f"turn {turn + 1}"] = {"score_s": middle - start, "updates_s": end - middle}
            print(f"turn {turn + 1}: log-probs {middle - start:.1f} s, updates {end - middle:.1f} s", flush=True)
    finally:
        ranks.close()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures |= {"batch_mib": round(before), "peak_mib": round(after)}
    print(
        f"{figures['answers']:,} answers, {figures['tokens']:,} tokens, {a.ranks} ranks; driver {before:,.0f} MiB with "
    )
    print(f"the batch, {after:,.0f} MiB at its peak")
    if a.json:
        peers.record(a.json, figures)


if __name__ == "__main__":
    main()
