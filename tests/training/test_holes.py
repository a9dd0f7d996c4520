"""What a tool says in an answer changes no credit, weight, mask or metric of the policy's own tokens; and a batch that
has been through a pickle is the batch it was."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gmpo.algo.advantages import ADVANTAGES
from gmpo.config.corrections import Rejection
from gmpo.metrics.updates import batch_metrics, update_metrics
from gmpo.ports import Update
from gmpo.records.batch import Batch, pad_left, pad_right
from gmpo.training.credit import Correction, Credit, CreditedBatch, LossMask, RewardKL
from gmpo.training.scoring import Scoring

NUMBERS: dict[str, dict[str, Any]] = {
    "grpo": {"normalise_by_std": True},
    "gae": {"gamma": 0.9, "lam": 0.8},
    "reinforce_plus_plus": {"gamma": 0.9},
    "grpo_passk": {"normalise_by_std": False},
    "gdpo": {"normalise_by_std": True, "component_weights": (1.0, 0.5)},
    "geo_mean": {"normalise_by_std": False, "floor": 1e-2, "offset": 9.0},
}
CORRECTIONS = [
    Correction(),
    Correction(level="token", threshold=1.5, batch_normalise=True),
    Correction(level="sequence", threshold=1.5, batch_normalise=True),
    Correction(level="token", threshold=1.5, geometric=True),
    Correction(icepop=(0.8, 1.3)),
    Correction(rejections=(Rejection("token_k1", 0.7, 1.4), Rejection("seq_mean_k1", 0.8, 1.2)), level="token"),
    Correction(rejections=(Rejection("seq_max_k2", 0.0, 0.15),), bypass=True),
]
LOSS_MASKS = [LossMask(), LossMask(zero_variance=True, truncated=True), LossMask(entropy_quantile=0.6)]
PER_TOKEN = (
    "rollout_logp", "learner_logp", "ref_logp", "entropy", "score_norm", "values", "token_rewards", "advantage",
    "weights", "loss_mask",
)  # fmt: skip


def with_holes(rows: list[list[bool]], seed: int) -> Batch:
    """Groups of two answers; everything per token is random, and not a number in the holes where that may be."""
    g = torch.Generator().manual_seed(seed)
    response_ids, real = pad_right([[1] * len(row) for row in rows], 0)
    prompt_ids, prompt_mask = pad_left([[1]] * len(rows), 0)
    sampled = torch.zeros_like(real)
    for row, cells in enumerate(rows):
        sampled[row, : len(cells)] = torch.tensor(cells, dtype=torch.bool)

    def draw() -> Tensor:
        return torch.randn(real.shape, generator=g, dtype=torch.float64) * 0.3 * sampled

    return Batch(
        prompt_ids,
        prompt_mask,
        response_ids,
        response_mask=real,
        sampled_mask=sampled,
        group=torch.arange(len(rows)) // 2,
        index=torch.arange(len(rows)),
        rewards=torch.randint(0, 3, (len(rows),), generator=g).double(),
        finished=torch.rand(len(rows), generator=g) < 0.7,
        greedy_reward=torch.rand(len(rows), generator=g, dtype=torch.float64),
        rollout_logp=draw(),
        learner_logp=draw(),
        ref_logp=draw(),
        entropy=draw().abs(),
        values=draw(),
        score_norm=draw().abs(),
    )


@dataclasses.dataclass
class Agreeing:
    """A learner with these log-probs `[B, T]` of the step's batch, or with the sampler's."""

    logp: Tensor | None = None

    def score(self, batch: Batch, *, old: bool) -> Batch:
        logp = batch.rollout_logp if self.logp is None else self.logp[batch.index, : batch.response_ids.shape[1]]
        return batch.replace(learner_logp=logp.clone()) if old else batch


def closed(x: Tensor, mask: Tensor) -> Tensor:
    """What stands at the tokens of the mask, one behind the other, then padding."""
    front = pad_right([[1] * int(n) for n in mask.sum(1)], 0)[1]
    return torch.zeros(front.shape, dtype=x.dtype).masked_scatter(front, x[mask])


def without_holes(batch: Batch) -> Batch:
    """The batch as it would be if the tool had said nothing."""
    sampled = batch.sampled_mask
    front = closed(sampled, sampled)
    per_token = {name: closed(x, sampled) for name in PER_TOKEN if (x := getattr(batch, name)) is not None}
    ids = closed(batch.response_ids, sampled)
    return batch.replace(response_ids=ids, response_mask=front, sampled_mask=front, **per_token)


def credited(batch: Batch, name: str, correction: Correction, loss_mask: LossMask) -> tuple[CreditedBatch, float]:
    """The batch, and the KL coefficient of the next step."""
    reward_kl = RewardKL("k3", 0.2, target=0.05, horizon=100.0)
    numbers = NUMBERS.get(name, {})
    credit = Credit(ADVANTAGES[name], numbers, reward_kl, correction=correction, loss_mask=loss_mask)
    return credit(batch), credit.kl_coef


def step_metrics(credited: tuple[CreditedBatch, float], logp: Tensor) -> dict[str, float]:
    """All that a step reports of a batch whose only update saw these log-probs."""
    result, coefficient = credited
    batch = result.batch
    odd = torch.zeros_like(batch.sampled_mask)
    update = Update(
        rows=torch.arange(batch.rows),
        logp=logp,
        clipped=(logp > 0.2) & batch.sampled_mask,
        clipped_lower=odd,
        sequence_ratio=torch.ones(batch.rows),
        capped=odd.any(1),
        scalars={"grad_norm": 1.0},
        skipped=False,
    )
    seen = update_metrics([batch], [update]) if batch.sampled_mask.any() else {}
    return {**result.metrics, **batch_metrics(batch), **seen, "coefficient": coefficient}


rows = st.lists(st.lists(st.booleans(), max_size=7), min_size=1, max_size=6)


@given(
    rows, st.integers(0, 999), st.sampled_from([*ADVANTAGES]), st.sampled_from(CORRECTIONS), st.sampled_from(LOSS_MASKS)
)
def test_closing_the_holes_changes_no_credit_weight_mask_or_metric(
    cells: list[list[bool]], seed: int, estimator: str, correction: Correction, loss_mask: LossMask
) -> None:
    batch = with_holes(cells, seed)
    if estimator == "max_rl":
        batch = batch.replace(rewards=batch.rewards.abs())  # it refuses negative ones
    if estimator == "gdpo":
        batch = batch.replace(components=torch.stack([batch.rewards, batch.rewards.sin()], dim=1))
    logp = 0.3 * torch.randn(batch.sampled_mask.shape, generator=torch.Generator().manual_seed(seed)).double()
    got = credited(batch, estimator, correction, loss_mask)
    wanted = credited(without_holes(batch), estimator, correction, loss_mask)
    for name in PER_TOKEN:
        x, expected = getattr(got[0].batch, name), getattr(wanted[0].batch, name)
        assert (x is None) == (expected is None), name
        if x is not None:
            torch.testing.assert_close(closed(x, batch.sampled_mask), expected, rtol=1e-9, atol=1e-9, msg=name)
            assert not x[~batch.sampled_mask].any(), name
    assert got[0].batch.counts() == wanted[0].batch.counts()
    metrics = step_metrics(got, logp)
    assert metrics == pytest.approx(
        step_metrics(wanted, closed(logp, batch.sampled_mask)), rel=1e-9, abs=1e-9, nan_ok=True
    )


def test_closing_the_holes_changes_nothing_in_what_sampler_and_learner_are_apart() -> None:
    """Compared by the probe of reused log-probs, and by a step's only update where no old log-probs were computed."""
    batch = with_holes([[True, False, True, True], [False, True], [True, True, False], [True]], 5)
    logp = batch.rollout_logp + 0.1 * torch.randn(batch.rollout_logp.shape, generator=torch.Generator().manual_seed(0))
    found = []
    for b, new in ((batch, logp), (without_holes(batch), closed(logp, batch.sampled_mask))):
        b = b.replace(learner_logp=None)
        probed = Scoring(Agreeing(new), old=True, tolerance=1.0)(b, step=0)  # type: ignore[arg-type]
        bare = Credit(ADVANTAGES["grpo"], NUMBERS["grpo"], None)(b)
        found.append(({**probed.metrics}, step_metrics((bare, 0.0), new)))
    for got, expected in zip(*found, strict=True):
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert got["training/rollout_probs_diff_max"] > 0.01


def test_a_reward_stands_on_the_last_token_that_the_policy_sampled() -> None:
    """A tool has the last word in the first answer, speaks in the middle of the second and is all of the third."""
    batch = with_holes([[True, True, False], [True, False, True], [False, False]], 0)
    batch = batch.replace(rewards=torch.tensor([3.0, 5.0, 7.0]))
    got = Credit(ADVANTAGES["grpo"], {"normalise_by_std": False}, None)(batch).batch
    assert got.token_rewards is not None
    assert got.token_rewards.tolist() == [[0, 3, 0], [0, 0, 5], [0, 0, 0]]
    assert got.advantage is not None
    assert got.advantage.tolist() == [[-1, -1, 0], [1, 0, 1], [0, 0, 0]]


# --- what a batch says survives its travels


JOURNEYS: dict[str, Callable[[Batch], Batch]] = {
    "pickle": lambda batch: pickle.loads(pickle.dumps(batch)),
    "a pickle of each field": lambda batch: Batch(
        **{f.name: pickle.loads(pickle.dumps(getattr(batch, f.name))) for f in dataclasses.fields(batch)}
    ),
    "deep copy": copy.deepcopy,
    "rows": lambda batch: batch.take(torch.arange(batch.rows)),
    "selected rows": lambda batch: batch.select(torch.arange(batch.rows)),
}


@pytest.mark.parametrize("journey", JOURNEYS.values(), ids=JOURNEYS)
def test_a_batch_that_has_travelled_gives_the_metrics_it_would_have_given(journey: Callable[[Batch], Batch]) -> None:
    batch = with_holes([[True, False, True], [True, True], [True], [True, True, True]], 1)
    for old in (Scoring(Agreeing(), old=True, tolerance=1e-4), Scoring(Agreeing(), old=True, tolerance=0.0)):  # type: ignore[arg-type]
        scored = old(batch.replace(learner_logp=None), step=0).batch
        results = [credited(b, "grpo", Correction(), LossMask()) for b in (scored, journey(scored))]
        logp = torch.zeros(batch.sampled_mask.shape, dtype=torch.float64)
        assert step_metrics(results[0], logp) == step_metrics(results[1], logp)
        compared = [name for name in results[1][0].metrics if name.startswith("rollout_corr/")]
        assert bool(compared) == (old.tolerance == 0.0), "reused log-probs were compared in the probe, and only there"


def test_the_old_policy_is_the_samplers_for_as_long_as_the_batch_says_so() -> None:
    batch = with_holes([[True, True]], 2)
    assert batch.old_logp is batch.learner_logp
    taken = batch.replace(old_is_rollout=True)
    assert taken.old_logp is taken.rollout_logp
    shifted = taken.replace(learner_logp=taken.rollout_logp - 1.0, rollout_logp=taken.rollout_logp + 1.0)
    assert shifted.old_logp is shifted.rollout_logp
    assert batch.replace(learner_logp=None).old_logp is None


@pytest.mark.parametrize("name", ["response_mask", "sampled_mask", "loss_mask"])
def test_a_mask_in_anothers_place_is_refused(name: str) -> None:
    """Five positions, of which the last is padding and the third a tool's."""
    batch = with_holes([[True, True, False, True], [True] * 5], 3)
    wrong = {
        "response_mask": batch.response_mask & ~torch.tensor([False, True, False, False, False]),
        "sampled_mask": torch.ones_like(batch.sampled_mask),
        "loss_mask": batch.response_mask,
    }
    with pytest.raises(ValueError, match=name):
        batch.replace(**{name: wrong[name]})


def test_what_was_not_sampled_has_no_part_in_a_quantile_of_the_entropy() -> None:
    batch = with_holes([[True, False, True]], 4).replace(entropy=torch.tensor([[0.1, math.nan, 0.9]]))
    got = Credit(ADVANTAGES["grpo"], {"normalise_by_std": False}, None, loss_mask=LossMask(entropy_quantile=0.5))
    assert got(batch).batch.loss_mask.tolist() == [[False, False, True]]
