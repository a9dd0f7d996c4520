"""Metrics of a step from hand-made records, each with its number on paper."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from gmpo.data.problems import Problem
from gmpo.metrics.mismatch import mismatch, rejection_stats, weight_stats
from gmpo.metrics.updates import batch_metrics, rollout_metrics, staleness_metrics, update_metrics
from gmpo.ports import Update
from gmpo.records.batch import Batch
from gmpo.records.rollout import Completion, Graded, Group
from gmpo.rewards.verdict import Grade, Verdict

PROBLEM = Problem("p", ({"role": "user", "content": "?"},), "s", "1")


def batch_of(lengths: list[int], advantages: list[float]) -> Batch:
    """One problem; old log-probs -1, so that an update's logp of -1 + d has log-ratio d."""
    width = max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    rows = len(lengths)
    return Batch(
        prompt_ids=torch.ones(rows, 1, dtype=torch.long),
        prompt_mask=torch.ones(rows, 1, dtype=torch.bool),
        response_ids=torch.ones(mask.shape, dtype=torch.long),
        response_mask=mask,
        sampled_mask=mask,
        group=torch.zeros(rows, dtype=torch.long),
        index=torch.arange(rows),
        rewards=torch.tensor(advantages),
        rollout_logp=torch.zeros(mask.shape),
        learner_logp=-torch.ones(mask.shape),
        advantage=torch.tensor(advantages).unsqueeze(1) * mask,
    )


def update_of(
    rows: list[int],
    log_ratios: list[list[float]],
    *,
    cut: list[list[bool]] | None = None,
    lower: list[list[bool]] | None = None,
    skipped: bool = False,
    **scalars: float,
) -> Update:
    d = torch.tensor(log_ratios)
    nothing = torch.zeros(d.shape, dtype=torch.bool)
    return Update(
        rows=torch.tensor(rows, dtype=torch.long),
        logp=d - 1.0,
        clipped=nothing if cut is None else torch.tensor(cut),
        clipped_lower=nothing if lower is None else torch.tensor(lower),
        sequence_ratio=torch.ones(len(rows)),
        capped=torch.zeros(len(rows), dtype=torch.bool),
        scalars={"grad_norm": 1.0, **scalars},
        skipped=skipped,
    )


# --- updates


def test_log_ratio_quantiles_are_over_the_tokens_of_all_updates_and_not_over_padding() -> None:
    # 0, 1, ..., 10 in two updates; 99 stands in the padding
    first = batch_of([5, 1], [1.0, -1.0])
    second = batch_of([5], [1.0])
    updates = [
        update_of([0, 1], [[0.0, 1.0, 2.0, 3.0, 4.0], [5.0, 99.0, 99.0, 99.0, 99.0]]),
        update_of([0], [[6.0, 7.0, 8.0, 9.0, 10.0]]),
    ]
    got = update_metrics([first, second], updates)
    assert got["actor/log_ratio/q50"] == pytest.approx(5.0)
    assert got["actor/log_ratio/q1"] == pytest.approx(0.1)
    assert got["actor/log_ratio/q99"] == pytest.approx(9.9)
    assert got["actor/log_ratio/q0.1"] == pytest.approx(0.01)
    assert got["actor/log_ratio/q99.9"] == pytest.approx(9.99)
    assert (got["actor/log_ratio/min"], got["actor/log_ratio/max"]) == (0.0, 10.0)
    assert got["actor/ppo_kl"] == pytest.approx(-5.0)


def test_the_variance_within_is_the_mean_over_responses_of_their_own_variance() -> None:
    # (-1, 1) has variance 1, (3, 3) has 0, however far their means are apart
    got = update_metrics([batch_of([2, 2], [1.0, 1.0])], [update_of([0, 1], [[-1.0, 1.0], [3.0, 3.0]])])
    assert got["actor/log_ratio/var_within"] == pytest.approx(0.5)


def test_the_effective_sample_size_is_the_share_of_tokens_that_carry_the_weight() -> None:
    # weights 1, 1, 2: (1 + 1 + 2)^2 / (3 (1 + 1 + 4)) = 16/18
    got = update_metrics([batch_of([3], [1.0])], [update_of([0], [[0.0, 0.0, math.log(2.0)]])])
    assert got["actor/ess"] == pytest.approx(16 / 18, rel=1e-6)
    even = update_metrics([batch_of([3], [1.0])], [update_of([0], [[0.0, 0.0, 0.0]])])
    assert even["actor/ess"] == 1.0


def test_the_effective_sample_size_survives_a_token_a_thousand_nats_away() -> None:
    got = update_metrics([batch_of([4], [1.0])], [update_of([0], [[0.0, 0.0, 0.0, 1000.0]])])
    assert got["actor/ess"] == pytest.approx(0.25, rel=1e-6)


def test_clip_shares_are_told_apart_by_the_sign_of_the_advantage_and_by_the_bound() -> None:
    # A > 0: one of four tokens is cut; A < 0: one of two, by the lower bound; A = 0: no part in either share
    batch = batch_of([4, 2, 2], [1.0, -1.0, 0.0])
    cut = [[True, False, False, False], [False] * 4, [False] * 4]
    lower = [[False] * 4, [True, False, False, False], [False] * 4]
    got = update_metrics([batch], [update_of([0, 1, 2], [[0.0] * 4] * 3, cut=cut, lower=lower)])
    assert got["actor/clip_share/positive"] == 1 / 4
    assert got["actor/clip_share/negative"] == 1 / 2
    assert got["actor/pg_clipfrac"] == 1 / 8
    assert got["actor/pg_clipfrac_lower"] == 1 / 8


def test_rows_without_signal_take_no_part_in_token_metrics() -> None:
    # only row 2 was computed; its log-ratios meet its own old log-probs and mask
    batch = batch_of([3, 3, 2], [0.0, 0.0, 1.0])
    assert batch.old_logp is not None
    batch = batch.replace(learner_logp=batch.old_logp * torch.tensor([[5.0], [5.0], [1.0]]))
    got = update_metrics([batch], [update_of([2], [[0.25, 0.25, 7.0]])])
    assert got["actor/log_ratio/min"] == got["actor/log_ratio/max"] == 0.25


def test_an_update_that_computed_nothing_is_counted_and_has_no_token_metrics() -> None:
    nothing = Update(
        rows=torch.zeros(0, dtype=torch.long),
        logp=torch.zeros(0, 2),
        clipped=torch.zeros(0, 2, dtype=torch.bool),
        clipped_lower=torch.zeros(0, 2, dtype=torch.bool),
        sequence_ratio=torch.zeros(0),
        capped=torch.zeros(0, dtype=torch.bool),
        scalars={"grad_norm": 0.0, "lr": 1e-6},
        skipped=False,
    )
    got = update_metrics([batch_of([2], [0.0])], [nothing])
    assert got["actor/updates"] == 1.0
    assert got["actor/grad_norm"] == 0.0
    assert not any(name.startswith("actor/log_ratio") for name in got)
    beside = update_metrics([batch_of([2], [0.0]), batch_of([1], [1.0])], [nothing, update_of([0], [[0.5]])])
    assert beside["actor/log_ratio/q50"] == 0.5


def test_scalars_are_means_over_updates_and_a_skipped_one_spoils_none() -> None:
    batch = batch_of([1], [1.0])
    updates = [
        update_of([0], [[0.0]], grad_norm=1.0, pg_loss=-0.5),
        update_of([0], [[0.0]], grad_norm=3.0, pg_loss=-0.1),
        update_of([0], [[0.0]], grad_norm=math.inf, pg_loss=math.nan, skipped=True),
    ]
    got = update_metrics([batch] * 3, updates)
    assert got["actor/grad_norm"] == 2.0
    assert got["actor/grad_norm_max"] == 3.0
    assert got["actor/pg_loss"] == pytest.approx(-0.3)
    assert got["actor/skipped_updates"] == 1.0
    assert got["actor/updates"] == 3.0


def test_a_scalar_over_tokens_or_answers_weighs_its_mini_batch_by_what_it_counts() -> None:
    # 0.1 over 900 tokens and 0.5 over 100: the mean over all tokens is 0.14, that of the two means 0.3
    batch = batch_of([1], [1.0])
    many, few = (update_of([0], [[0.0]], kl_loss=kl, pg_loss=kl) for kl in (0.1, 0.5))
    updates = [replace(many, counted={"kl_loss": 900}), replace(few, counted={"kl_loss": 100})]
    got = update_metrics([batch] * 2, updates)
    assert got["actor/kl_loss"] == pytest.approx(0.14)
    assert got["actor/pg_loss"] == pytest.approx(0.3), "what is minimised counts once for each update"


def test_sequence_ratios_and_capped_responses() -> None:
    batch = batch_of([1, 1], [1.0, 1.0])
    update = replace(
        update_of([0, 1], [[0.0], [0.0]]),
        sequence_ratio=torch.tensor([0.5, 2.0]),
        capped=torch.tensor([False, True]),
    )
    got = update_metrics([batch], [update])
    names = ("actor/seq_ratio/min", "actor/seq_ratio/mean", "actor/seq_ratio/max")
    assert tuple(got[name] for name in names) == (0.5, 1.25, 2.0)
    assert got["actor/capped_sequences"] == 1.0


def test_a_single_update_on_the_samplers_weights_shows_the_mismatch() -> None:
    batch = batch_of([2], [1.0]).replace(learner_logp=None)
    # the sampler found 0 everywhere, the learner -1 and -0.5
    got = update_metrics([batch], [update_of([0], [[0.0, 0.5]])])
    assert got["rollout_corr/kl"] == pytest.approx(0.75)
    assert got["training/rollout_logprobs_diff_max"] == pytest.approx(1.0)
    assert got["actor/log_ratio/max"] == got["actor/log_ratio/min"] == 0.0
    two = update_metrics([batch, batch], [update_of([0], [[0.0, 0.5]])] * 2)
    assert "rollout_corr/kl" not in two, "the second update no longer has the sampler's weights"


# --- the distance between sampler and learner


def mismatch_of(learner: list[float], sampler: list[float]) -> dict[str, float]:
    """Of one response with these log-probs."""
    old, rollout = torch.tensor([learner]), torch.tensor([sampler])
    return mismatch(old, rollout, torch.ones(old.shape, dtype=torch.bool))


def test_mismatch_on_paper() -> None:
    got = mismatch_of([math.log(0.5), math.log(0.25)], [math.log(0.25), math.log(0.25)])
    assert got["training/rollout_probs_diff_mean"] == pytest.approx(0.125)
    assert got["training/rollout_probs_diff_max"] == pytest.approx(0.25)
    assert got["training/rollout_probs_diff_std"] == pytest.approx(0.125)
    assert got["training/rollout_logprobs_diff_max"] == pytest.approx(math.log(2))
    assert got["rollout_corr/kl"] == pytest.approx(-math.log(2) / 2)
    assert got["rollout_corr/training_ppl"] == pytest.approx(math.sqrt(8))
    assert got["rollout_corr/rollout_ppl"] == pytest.approx(4.0)
    assert got["rollout_corr/ppl_ratio"] == pytest.approx(1 / math.sqrt(2))
    # weights 2 and 1: mean square 2.5; their product 2 squared is 4
    assert got["rollout_corr/chi2_token"] == pytest.approx(1.5)
    assert got["rollout_corr/chi2_seq"] == pytest.approx(3.0)
    assert got["rollout_corr/k3_kl"] == pytest.approx((2 - 1 - math.log(2)) / 2)
    # the sampler's probabilities are constant: no correlation is defined
    assert "training/rollout_actor_probs_pearson_corr" not in got


def test_equal_policies_have_no_mismatch() -> None:
    got = mismatch_of([-0.1, -2.0, -0.7], [-0.1, -2.0, -0.7])
    assert got.pop("training/rollout_actor_probs_pearson_corr") == pytest.approx(1.0)
    perplexity = math.exp(2.8 / 3)
    assert got.pop("rollout_corr/training_ppl") == got.pop("rollout_corr/rollout_ppl") == pytest.approx(perplexity)
    assert got.pop("rollout_corr/training_log_ppl") == got.pop("rollout_corr/rollout_log_ppl") == pytest.approx(2.8 / 3)
    assert got.pop("rollout_corr/ppl_ratio") == 1.0
    assert set(got.values()) == {0.0}
    assert mismatch_of([], []) == {}


def test_weights_on_paper() -> None:
    weights, mask = torch.tensor([[2.0, 1.0], [0.5, 9.0]]), torch.tensor([[True, True], [True, False]])
    got = weight_stats(weights.log(), mask, 1 / 1.5, 1.5, level="token")
    assert got["rollout_corr/rollout_is_mean"] == pytest.approx(3.5 / 3)
    assert got["rollout_corr/rollout_is_eff_sample_size"] == pytest.approx(
        (1.5 + 1 + 2 / 3) ** 2 / (3 * (1.5**2 + 1 + 4 / 9))
    ), "of weights held within 2/3 and 3/2"
    assert got["rollout_corr/rollout_is_ratio_fraction_high"] == pytest.approx(1 / 3)
    assert got["rollout_corr/rollout_is_ratio_fraction_low"] == pytest.approx(1 / 3)
    assert got["rollout_corr/rollout_is_seq_mean"] == pytest.approx(1.0)  # 1.5 and 0.5
    assert got["rollout_corr/rollout_is_seq_max_deviation"] == pytest.approx(0.5)


def test_rejection_counts_tokens_and_responses_that_left() -> None:
    before = torch.tensor([[True, True], [True, False], [True, True]])
    after = torch.tensor([[True, True], [False, False], [True, False]])
    got = rejection_stats("seq_mean_k1", before, after)
    assert got["rollout_corr/rollout_rs_seq_mean_k1_masked_fraction"] == pytest.approx(2 / 5)
    assert got["rollout_corr/rollout_rs_seq_mean_k1_seq_masked_fraction"] == pytest.approx(2 / 3), "lost one at least"


# --- batches and rollouts


def test_batch_metrics_see_the_mask_only() -> None:
    batch = batch_of([2, 1], [1.0, -1.0])
    entropy = torch.tensor([[0.2, 0.4], [0.6, 99.0]])
    rewards = torch.tensor([[0.0, 1.0], [0.25, 99.0]])
    got = batch_metrics(batch.replace(entropy=entropy, token_rewards=rewards))
    assert got["actor/entropy"] == pytest.approx(0.4)
    assert (got["critic/rewards/min"], got["critic/rewards/max"]) == (0.25, 1.0)
    assert got["critic/rewards/mean"] == pytest.approx(0.625)
    assert got["critic/advantages/mean"] == pytest.approx(1 / 3)  # over tokens: 1, 1, -1


def test_the_share_of_groups_without_variance() -> None:
    batch = batch_of([1] * 6, [0.1, 0.1, 0.1, 0.0, 0.0, 1.0]).replace(group=torch.tensor([0, 0, 0, 1, 1, 1]))
    assert batch_metrics(batch)["rollout/zero_variance_groups"] == 0.5


def graded(length: int, verdict: Verdict, score: float, *, cut: bool = False) -> Graded:
    completion = Completion((5,) * length, (-1.0,) * length, "length" if cut else "stop", (0, 0))
    return Graded(completion, "", Grade(verdict, score), score)


def test_rollout_metrics_on_paper() -> None:
    groups = [
        Group(PROBLEM, (1, 2, 3), (graded(4, Verdict.CORRECT, 1.0), graded(8, Verdict.WRONG, 0.0, cut=True))),
        Group(PROBLEM, (1,), (graded(8, Verdict.CORRECT, 1.0), graded(2, Verdict.TIMEOUT, 0.0))),
    ]
    got = rollout_metrics(groups, max_prompt_length=3)
    assert (got["response_length/min"], got["response_length/mean"], got["response_length/max"]) == (2.0, 5.5, 8.0)
    # an answer that ends by itself at the limit is not cut
    assert got["response_length/clip_ratio"] == 0.25
    assert (got["prompt_length/mean"], got["prompt_length/clip_ratio"]) == (2.0, 0.5)
    assert got["critic/score/mean"] == 0.5
    assert {v: got[f"reward/{v}"] for v in Verdict} == {
        Verdict.CORRECT: 2.0,
        Verdict.WRONG: 1.0,
        Verdict.UNPARSED: 0.0,
        Verdict.TIMEOUT: 1.0,
        Verdict.GRADER_ERROR: 0.0,
    }
    assert got["reward/correct_share"] == 0.5


def test_staleness_counts_weight_versions_from_the_newest_and_from_the_oldest_token() -> None:
    """Three answers, learned from by the weights of step 7: sampled by those of step 7, of step 5, and of 4 to 6."""
    versions = torch.tensor([[7, 7], [5, 5], [4, 6]])
    metrics = staleness_metrics(batch_of([1, 1, 1], [1.0, 0.0, 0.0]).replace(weight_versions=versions), step=7)
    off = "training/off_policy/trajectory"
    assert metrics == {
        f"{off}_staleness/mean": 1.0,  # 0, 2, 1
        f"{off}_staleness/max": 2.0,
        f"{off}_staleness/min": 0.0,
        f"{off}_staleness_worst/mean": pytest.approx(5 / 3),  # 0, 2, 3
        f"{off}_staleness_worst/max": 3.0,
        f"{off}_staleness_worst/min": 0.0,
        f"{off}_spans/mean": pytest.approx(5 / 3),  # 1, 1, 3
        f"{off}_spans/max": 3.0,
        f"{off}_spans/min": 1.0,
    }
