"""The objective by itself: losses and records of parts, whoever computes them, add up to those of the whole."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gmpo.algo.losses import POLICY_LOSSES
from gmpo.algo.masks import Counts, count
from gmpo.algo.objective import LossInputs, LossRecord, Objective, joined

CLIP = {"clip_low": 0.2, "clip_high": 0.2, "clip_dual": 1e9}
VANILLA = Objective(POLICY_LOSSES["vanilla"], CLIP, "token-mean", loss_scale=4.0, temperature=1.0)
CHOOSING = replace(VANILLA, policy_loss=POLICY_LOSSES["kl_cov"], loss_numbers={"kl_cov_share": 0.3, "kl_coef": 1.0})


def inputs_of(mask: Tensor, seed: int = 0) -> tuple[LossInputs, Tensor, Tensor]:
    """Inputs, log-probs and entropies of random answers."""
    g = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(mask.shape, generator=g, dtype=torch.float64) * mask

    logp = draw() - 2.0
    inputs = LossInputs(torch.arange(len(mask)), draw(), mask, old_logp=logp + 0.2 * draw(), ref_logp=logp + draw())
    return inputs, logp, draw().abs()


RAGGED = torch.arange(5) < torch.tensor([3, 5, 1, 0, 4, 2]).unsqueeze(1)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
def test_parts_add_up_to_the_whole_with_the_counts_of_the_whole(mode: str) -> None:
    objective = replace(VANILLA, aggregation=mode, kl_coef=0.3, entropy_coef=0.1)
    inputs, logp, entropy = inputs_of(RAGGED)
    counts = count(RAGGED)
    loss, record = objective.loss(inputs, logp, entropy, counts, 0)
    parts = [slice(0, 1), slice(1, 4), slice(4, 6)]
    found = [objective.loss(inputs.part(rows), logp[rows], entropy[rows], counts, 0) for rows in parts]
    assert float(sum(value for value, _ in found)) == pytest.approx(float(loss), rel=1e-12)
    together = joined([record for _, record in found], 5)
    assert together.rows.tolist() == list(range(6))
    for name in ("logp", "clipped", "clipped_lower", "sequence_ratio", "capped"):
        assert torch.equal(getattr(together, name), getattr(record, name)), name
    assert record.clipped.any(), "the example must reach a bound"
    for name, value in record.scalars.items():
        assert float(together.scalars[name]) == pytest.approx(float(value), rel=1e-12), name


def test_the_loss_is_surrogate_plus_kl_minus_entropy() -> None:
    """One token: ratio 1, advantage 2, log(ref) - log(pi) = ln 2, entropy 0.7; low_var_kl is 2 - 1 - ln 2."""
    one = torch.ones(1, 1, dtype=torch.float64)
    logp = -1.0 * one
    inputs = LossInputs(torch.tensor([0]), 2 * one, one.bool(), ref_logp=logp + math.log(2.0))
    objective = replace(VANILLA, kl_coef=0.5, entropy_coef=0.25)
    loss, record = objective.loss(inputs, logp, 0.7 * one, Counts(1, 1), 0)
    kl = 1.0 - math.log(2.0)
    assert float(loss) == pytest.approx(-2.0 + 0.5 * kl - 0.25 * 0.7)
    assert {name: float(x) for name, x in record.scalars.items()} == pytest.approx({"pg_loss": -2.0, "kl_loss": kl})


def test_a_weight_multiplies_the_gradient_and_not_the_value() -> None:
    inputs, logp, _ = inputs_of(RAGGED)
    inputs = replace(inputs, old_logp=None)
    found = []
    for weights in (None, 3.0 * RAGGED.double()):
        leaf = logp.clone().requires_grad_()
        loss, _ = VANILLA.loss(replace(inputs, weights=weights), leaf, None, count(RAGGED), 0)
        found.append((loss.item(), torch.autograd.grad(loss, leaf)[0]))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-12)
    assert torch.allclose(found[1][1], 3.0 * found[0][1])


def test_rows_without_advantage_have_signal_only_where_another_term_reaches_them() -> None:
    advantage = torch.tensor([1.0, 0.0, -1.0, 1.0, 0.0, 2.0]).unsqueeze(1).expand(6, 5)
    assert VANILLA.with_signal(advantage, RAGGED).tolist() == [0, 2, 5]  # row 3 has no token
    for other in (replace(VANILLA, kl_coef=0.1), replace(VANILLA, entropy_coef=0.1), CHOOSING):
        assert other.with_signal(advantage, RAGGED).tolist() == [0, 1, 2, 4, 5]


def test_a_choice_depends_on_the_answers_place_in_the_step_and_not_on_the_row() -> None:
    """A selection with random numbers, `clip_cov`: the mini-batch's rows in another order choose the same tokens."""
    chosen_by = replace(
        VANILLA,
        policy_loss=POLICY_LOSSES["clip_cov"],
        loss_numbers={**CLIP, "clip_cov_share": 0.3, "cov_low": -9.0, "cov_high": 9.0},
    )
    inputs, logp, _ = inputs_of(RAGGED)
    order, index = torch.tensor([4, 0, 5, 2, 1, 3]), torch.arange(6) + 10
    assert inputs.old_logp is not None

    def choice(rows: Tensor, step: int = 3) -> Tensor:
        assert inputs.old_logp is not None
        return chosen_by.choose(
            logp[rows], inputs.old_logp[rows], inputs.advantage[rows], inputs.mask[rows], index[rows], step
        )

    chosen = choice(torch.arange(6))
    assert 0 < chosen.sum() < RAGGED.sum()
    assert torch.equal(choice(order), chosen[order])
    assert not torch.equal(choice(torch.arange(6), step=4), chosen)


def test_no_records_join_to_an_empty_one_of_the_width() -> None:
    empty = joined([], 7)
    assert empty.logp.shape == empty.clipped.shape == (0, 7)
    assert empty.rows.shape == empty.capped.shape == (0,)
    assert empty.scalars == {}


def test_narrower_records_are_padded_and_scalars_added() -> None:
    def record(rows: list[int], width: int, value: float) -> LossRecord:
        n = len(rows)
        return LossRecord(
            torch.tensor(rows),
            torch.full((n, width), value),
            torch.ones(n, width, dtype=torch.bool),
            torch.zeros(n, width, dtype=torch.bool),
            torch.ones(n),
            torch.zeros(n, dtype=torch.bool),
            {"pg_loss": torch.tensor(value)},
        )

    both = joined([record([3, 1], 2, 0.5), record([0], 3, 0.25).having(entropy=torch.tensor(2.0))], 3)
    assert both.rows.tolist() == [3, 1, 0]
    assert both.logp.tolist() == [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.25, 0.25, 0.25]]
    assert both.clipped.sum(1).tolist() == [2, 2, 3]
    assert {name: float(x) for name, x in both.scalars.items()} == {"pg_loss": 0.75, "entropy": 2.0}
