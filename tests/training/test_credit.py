"""Credit assignment: where a reward stands, what the KL penalty takes away, how its coefficient moves."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from gmpo.algo.advantages import ADVANTAGES
from gmpo.objectives import Rejection
from gmpo.records.batch import Batch
from gmpo.training.credit import Correction, Credit, LossMask, RewardKL


def batch_of(lengths: list[int], rewards: list[float], kl: float = 0.0) -> Batch:
    """One problem; the policy is everywhere `kl` nats above the reference."""
    width = max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    shape = (len(lengths), width)
    return Batch(
        prompt_ids=torch.ones(len(lengths), 1, dtype=torch.long),
        prompt_mask=torch.ones(len(lengths), 1, dtype=torch.bool),
        response_ids=torch.ones(shape, dtype=torch.long),
        response_mask=mask,
        sampled_mask=mask,
        group=torch.zeros(len(lengths), dtype=torch.long),
        index=torch.arange(len(lengths)),
        rewards=torch.tensor(rewards),
        rollout_logp=torch.zeros(shape),
        learner_logp=torch.full(shape, -1.0) * mask,
        ref_logp=torch.full(shape, -1.0 - kl) * mask,
    )


def credit(reward_kl: RewardKL | None = None) -> Credit:
    return Credit(ADVANTAGES["grpo"], {"normalise_by_std": False}, reward_kl)


def test_a_reward_stands_on_the_last_token() -> None:
    batch = credit()(batch_of([3, 1, 2], [1.0, 0.5, 0.0])).batch
    assert batch.token_rewards is not None
    assert batch.token_rewards.tolist() == [[0, 0, 1], [0.5, 0, 0], [0, 0, 0]]


def test_every_token_of_a_response_has_its_advantage_and_no_other_position_has_any() -> None:
    batch = credit()(batch_of([3, 1], [1.0, 0.0])).batch
    assert batch.advantage is not None
    assert batch.advantage.tolist() == [[0.5, 0.5, 0.5], [-0.5, 0, 0]]


def test_an_empty_response_has_neither_reward_nor_advantage() -> None:
    batch = credit()(batch_of([2, 0], [1.0, 7.0])).batch
    assert batch.token_rewards is not None
    assert batch.token_rewards.tolist() == [[0, 1], [0, 0]]


def test_without_a_kl_penalty_nothing_is_reported() -> None:
    credited = credit()(batch_of([2, 1], [1.0, 0.0], kl=0.3))
    assert {k: v for k, v in credited.metrics.items() if k.startswith("actor/")} == {}


def test_the_kl_penalty_is_taken_from_each_token() -> None:
    # beta 0.5 times 0.2 nats on every token
    fixed = credit(RewardKL("k1", 0.5, None, 1.0))
    credited = fixed(batch_of([3, 1], [1.0, 0.0], kl=0.2))
    assert credited.batch.token_rewards is not None
    rewards = credited.batch.token_rewards
    assert rewards[0].tolist() == pytest.approx([-0.1, -0.1, 0.9])
    assert rewards[1].tolist() == pytest.approx([-0.1, 0.0, 0.0])
    # rewards 0.7 and -0.1: the penalty reaches the advantages
    assert credited.batch.advantage is not None
    assert credited.batch.advantage[:, 0].tolist() == pytest.approx([0.4, -0.4])
    assert {k: v for k, v in credited.metrics.items() if k.startswith("actor/")} == {
        "actor/reward_kl_penalty": pytest.approx(0.2),
        "actor/reward_kl_penalty_coeff": 0.5,
    }
    assert fixed.kl_coef == 0.5


def test_the_adaptive_controller_counts_responses() -> None:
    # 10 % above the target of 0.2, two responses of a horizon of 100: 0.5 * (1 + 0.1 * 0.02)
    adaptive = credit(RewardKL("k1", 0.5, 0.2, 100.0))
    adaptive(batch_of([3, 1], [1.0, 0.0], kl=0.22))
    assert adaptive.kl_coef == pytest.approx(0.5 * 1.002)
    resumed = credit(RewardKL("k1", 0.5, 0.2, 100.0))
    resumed.restore(adaptive.state())
    assert resumed.kl_coef == adaptive.kl_coef


# --- what the loss sees


LENGTHS = [3, 2, 4]


def seen(
    batch: Batch, *, correction: Correction | None = None, loss_mask: LossMask | None = None
) -> tuple[Batch, dict[str, float]]:
    grpo = Credit(ADVANTAGES["grpo"], {"normalise_by_std": False}, None, correction=correction, loss_mask=loss_mask)
    credited = grpo(batch)
    return credited.batch, dict(credited.metrics)


def off_policy(log_ratios: list[list[float]]) -> Batch:
    """Answers of 3, 2 and 4 tokens; learner less sampler as given."""
    batch = batch_of(LENGTHS, [1.0, 0.0, 0.0])
    d = torch.zeros(batch.response_mask.shape)
    for row, values in enumerate(log_ratios):
        d[row, : len(values)] = torch.tensor(values)
    assert batch.learner_logp is not None
    return batch.replace(rollout_logp=(batch.learner_logp - d) * batch.response_mask)


RATIOS = [[0.1, 0.2, 0.3], [1.0, -1.0], [0.0, 0.5, 0.0, 2.0]]


def rounded(x: torch.Tensor | None) -> list[list[float]]:
    assert x is not None
    return [[round(v, 4) for v in row] for row in x.tolist()]


def test_cut_answers_leave_the_loss_and_not_the_baseline() -> None:
    batch = batch_of(LENGTHS, [1.0, 0.5, 0.0]).replace(finished=torch.tensor([True, False, True]))
    got, _ = seen(batch, loss_mask=LossMask(truncated=True))
    assert got.loss_mask.sum(1).tolist() == [3, 0, 4]
    assert got.advantage is not None
    assert got.advantage[:, 0].tolist() == [0.5, 0.0, -0.5], "the cut answer's reward is in the mean"
    assert (got.counts().tokens, got.counts().sequences) == (7, 2)


def test_the_quantile_of_the_entropy_is_over_response_tokens_and_keeps_its_bound() -> None:
    entropy = torch.tensor([[0.1, 0.2, 0.3, 9.0], [0.4, 0.5, 9.0, 9.0], [0.6, 0.7, 0.8, 0.9]])
    got, _ = seen(batch_of(LENGTHS, [1.0, 0.0, 0.0]).replace(entropy=entropy), loss_mask=LossMask(entropy_quantile=0.5))
    # nine tokens: the median 0.5 and the four above it
    assert got.loss_mask.tolist() == [[False] * 4, [False, True, False, False], [True] * 4]


def test_token_weights_are_the_bounded_ratios_of_learner_to_sampler() -> None:
    got, metrics = seen(off_policy(RATIOS), correction=Correction(level="token", threshold=2.0))
    e = math.exp
    assert rounded(got.weights) == [
        [round(e(0.1), 4), round(e(0.2), 4), round(e(0.3), 4), 0.0],
        [2.0, round(e(-1.0), 4), 0.0, 0.0],
        [1.0, round(e(0.5), 4), 1.0, 2.0],
    ]
    assert metrics["rollout_corr/rollout_is_max"] == pytest.approx(e(2.0)), "before it is cut"
    assert metrics["rollout_corr/kl"] == pytest.approx(-3.1 / 9, abs=1e-6)


def test_a_sequence_weight_is_the_bounded_product_of_its_tokens() -> None:
    got, _ = seen(off_policy(RATIOS), correction=Correction(level="sequence", threshold=2.0))
    first = round(math.exp(0.6), 4)
    assert rounded(got.weights) == [[first] * 3 + [0.0], [1.0, 1.0, 0.0, 0.0], [2.0] * 4]


def test_a_sequence_weight_is_of_the_whole_answer_and_its_mean_over_those_in_the_loss() -> None:
    batch = off_policy(RATIOS).replace(
        finished=torch.tensor([True, True, False]),
        entropy=torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0], [1.0] * 4]),
    )
    rule = Correction(level="sequence", threshold=9.0, batch_normalise=True)
    got, _ = seen(batch, correction=rule, loss_mask=LossMask(truncated=True, entropy_quantile=0.7))
    # one token of each of the first two answers stays; their weights are e^0.6 and e^0, and the third answer has left
    assert got.loss_mask.sum(1).tolist() == [1, 1, 0]
    mean = (math.exp(0.6) + 1.0) / 2
    assert rounded(got.weights)[0] == [0.0, 0.0, round(math.exp(0.6) / mean, 4), 0.0]
    assert rounded(got.weights)[1] == [0.0, round(1.0 / mean, 4), 0.0, 0.0]


def test_batch_normalised_weights_have_the_mean_one() -> None:
    plain, _ = seen(off_policy(RATIOS), correction=Correction(level="token"))
    got, _ = seen(off_policy(RATIOS), correction=Correction(level="token", batch_normalise=True))
    assert plain.weights is not None
    assert got.weights is not None
    mean = plain.weights[plain.response_mask].mean()
    assert torch.allclose(got.weights, plain.weights / mean)
    assert float(mean) != pytest.approx(1.0, abs=0.1)


def test_the_geometric_weight_of_an_answer_is_its_tokens_geometric_mean() -> None:
    got, _ = seen(off_policy(RATIOS), correction=Correction(level="token", threshold=1e9, geometric=True))
    assert rounded(got.weights)[0] == [round(math.exp(0.2), 4)] * 3 + [0.0]
    assert rounded(got.weights)[1][:2] == [1.0, 1.0]


def test_icepop_stills_tokens_outside_its_band() -> None:
    got, _ = seen(off_policy(RATIOS), correction=Correction(icepop=(0.5, 5.0)))
    assert rounded(got.weights)[1] == [round(math.e, 4), 0.0, 0.0, 0.0]
    assert rounded(got.weights)[2] == [1.0, round(math.exp(0.5), 4), 1.0, 0.0]


def test_rejected_answers_and_tokens_leave_the_loss_its_denominators_and_the_weights() -> None:
    rules = (Rejection("token_k1", 0.25, 2.5), Rejection("seq_mean_k1", 0.6, 1.5))
    got, metrics = seen(off_policy(RATIOS), correction=Correction(level="token", threshold=9.0, rejections=rules))
    # sampler to learner: e^-2 and e^1 on two tokens; e^-0.625 = 0.535 is the mean of its answer, all of which goes
    assert got.loss_mask.tolist() == [[True, True, True, False], [True, False, False, False], [False] * 4]
    assert (got.counts().tokens, got.counts().sequences) == (4, 2)
    assert metrics["rollout_corr/rollout_rs_token_k1_masked_fraction"] == pytest.approx(2 / 9)
    assert metrics["rollout_corr/rollout_rs_token_k1_seq_masked_fraction"] == pytest.approx(2 / 3), "lost one at least"
    assert metrics["rollout_corr/rollout_rs_seq_masked_fraction"] == pytest.approx(2 / 3)
    assert metrics["rollout_corr/rollout_is_max"] == pytest.approx(math.exp(2.0), rel=1e-5), "of the rejected ones too"
    assert metrics["rollout_corr/applied_weight_mean"] == pytest.approx(float(got.weights[got.loss_mask].mean()))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_what_is_rejected_counts_in_the_mean_that_normalises_the_weights(level: str) -> None:
    """verl normalises before it rejects: a rule takes tokens out, and changes no weight of the others."""
    rule = Correction(level=level, threshold=2.0, batch_normalise=True)
    plain, before = seen(off_policy(RATIOS), correction=rule)
    rules = (Rejection("token_k1", 0.25, 2.5), Rejection("seq_mean_k1", 0.6, 1.5))
    got, after = seen(off_policy(RATIOS), correction=replace(rule, rejections=rules))
    assert got.loss_mask.sum(1).tolist() == [3, 1, 0]
    assert plain.weights is not None
    assert got.weights is not None
    assert torch.equal(got.weights, plain.weights * got.loss_mask)
    names = [name for name in before if "rollout_is_" in name]
    assert names
    assert {name: after[name] for name in names} == {name: before[name] for name in names}


def test_a_bands_own_bounds_are_those_of_the_shares_beyond_it() -> None:
    """Weights e^-1 = 0.37 and e^2 = 7.4 of nine lie outside [0.5, 5], and one of them below 1 / 5 = 0.2 never."""
    _, metrics = seen(off_policy(RATIOS), correction=Correction(icepop=(0.5, 5.0)))
    assert metrics["rollout_corr/rollout_is_ratio_fraction_low"] == pytest.approx(1 / 9)
    assert metrics["rollout_corr/rollout_is_ratio_fraction_high"] == pytest.approx(1 / 9)


def test_rejection_adds_to_what_had_left_the_loss_before() -> None:
    batch = off_policy(RATIOS).replace(finished=torch.tensor([False, True, True]))
    rules = (Rejection("seq_mean_k1", 0.6, 1.5),)
    got, metrics = seen(batch, correction=Correction(rejections=rules), loss_mask=LossMask(truncated=True))
    assert got.loss_mask.sum(1).tolist() == [0, 2, 0]
    # of the two answers that were still there
    assert metrics["rollout_corr/rollout_rs_seq_masked_fraction"] == pytest.approx(1 / 2)


def test_bypass_takes_the_samplers_log_probs_for_old_ones() -> None:
    batch = off_policy(RATIOS)
    got, metrics = seen(batch.replace(learner_logp=None), correction=Correction(bypass=True))
    assert got.old_logp is not None
    assert torch.equal(got.old_logp, batch.rollout_logp)
    assert "rollout_corr/kl" not in metrics, "there was nothing to compare with"


def test_an_estimator_with_a_critic_is_given_the_values() -> None:
    batch = batch_of([2, 1], [1.0, 0.0]).replace(values=torch.tensor([[0.25, 0.75], [0.5, 0.0]]))
    credited = Credit(ADVANTAGES["gae"], {"gamma": 1.0, "lam": 0.0}, None)(batch)
    raw = torch.tensor([0.75 - 0.25, 1.0 - 0.75, 0.0 - 0.5])  # differences to the next value, before whitening
    expected = (raw - raw.mean()) / raw.std()
    assert credited.batch.advantage is not None
    assert credited.batch.advantage[batch.response_mask].tolist() == pytest.approx(expected.tolist(), rel=1e-4)
