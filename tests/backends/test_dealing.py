"""Rows on their way to ranks and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gmpo.algo.masks import Counts
from gmpo.backends.mini_batch import every_row, stand_in
from gmpo.backends.ranks.dealing import deal, deal_rows
from gmpo.backends.ranks.wire import packed, unpacked
from gmpo.backends.trainable import OptimizerStep


def test_the_dearest_go_first_each_to_the_rank_that_has_least() -> None:
    assert deal([5, 4, 3, 3], 2) == [[0, 3], [1, 2]]
    assert deal([], 2) == [[], []]
    assert deal([7], 3) == [[0], [], []]


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 6))
def test_everything_is_dealt_once_and_no_rank_has_a_dearest_more_than_its_share(costs: list[int], ranks: int) -> None:
    """Greedy dealing is within one item of the mean."""
    found = deal(costs, ranks)
    assert sorted(i for own in found for i in own) == list(range(len(costs)))
    loads = [sum(costs[i] for i in own) for own in found]
    assert max(loads) <= sum(costs) / ranks + max(costs, default=0)


def test_the_answers_to_a_problem_stay_together_unless_they_are_more_than_a_share() -> None:
    """Problems of 4, 4 and 8 tokens on 2 ranks: a share is 8 and none is divided. On 4 ranks a share is 4, and the
    problem of 8 is divided in two."""
    group, lengths = torch.tensor([0, 0, 1, 1, 2, 2, 2, 2]), torch.tensor([2, 2, 2, 2, 2, 2, 2, 2])
    assert [rows.tolist() for rows in deal_rows(group, lengths, 2)] == [[4, 5, 6, 7], [0, 1, 2, 3]]
    on_four = [rows.tolist() for rows in deal_rows(group, lengths, 4)]
    assert sorted(len(rows) for rows in on_four) == [2, 2, 2, 2]
    assert [0, 1] in on_four
    assert [2, 3] in on_four


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 30)), max_size=30), st.integers(1, 5))
def test_every_row_is_on_one_rank(rows: list[tuple[int, int]], ranks: int) -> None:
    rows = sorted(rows)
    group = torch.tensor([g for g, _ in rows], dtype=torch.long)
    lengths = torch.tensor([n for _, n in rows], dtype=torch.long)
    found = deal_rows(group, lengths, ranks)
    assert len(found) == ranks
    assert torch.cat(found).sort().values.tolist() == list(range(len(rows)))


def test_records_come_back_as_they_were_and_can_be_written_to() -> None:
    """Tensors become contiguous arrays on the way: of a slice its own values alone."""
    mini = every_row(stand_in(), step=3)
    sent = packed([mini, OptimizerStep(1.5, 1e-6, skipped=False)])
    back, stepped = unpacked(sent)
    assert back.counts == Counts(1, 1)
    assert back.step == 3
    assert stepped == OptimizerStep(1.5, 1e-6, skipped=False)
    torch.testing.assert_close(back.batch.rollout_logp, mini.batch.rollout_logp)
    back.batch.rollout_logp[0, 0] = 5.0
    assert float(mini.batch.rollout_logp[0, 0]) == 0.0
    (column,) = packed((torch.arange(1000).reshape(10, 100)[:, 3],))
    assert column.values.flags["C_CONTIGUOUS"]
    assert column.values.nbytes == 80
    np.testing.assert_array_equal(column.values, np.arange(10) * 100 + 3)


def test_nothing_but_tensors_is_changed_on_the_way() -> None:
    value = {"a": (1, "x", None), "b": [np.float32(2.0)]}
    assert packed(value) == value
    with pytest.raises(TypeError):
        packed(object)(1)  # a class is no record
