"""Graded groups become tensors, and tensors become mini- and micro-batches, without losing or inventing a token."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gmpo.algo.masks import Counts
from gmpo.data.problems import Problem
from gmpo.errors import DataError
from gmpo.records.batch import Batch, collate, micro_batches, pad_left, pad_right
from gmpo.records.rollout import Completion, Graded, Group
from gmpo.rewards.verdict import Grade, Verdict

PAD = 99


def answer(token_ids: tuple[int, ...], reward: float) -> Graded:
    logprobs = tuple(-0.5 * t for t in token_ids)
    grade = Grade(Verdict.CORRECT if reward > 0 else Verdict.WRONG, reward)
    return Graded(Completion(token_ids, logprobs, "stop", (0, 0)), "", grade, reward)


def group(prompt_ids: tuple[int, ...], *answers: Graded) -> Group:
    return Group(Problem("p", ({"role": "user", "content": "?"},), "s", "1"), prompt_ids, answers)


TWO = [
    group((1, 2, 3), answer((4,), 1.0), answer((5, 6, 7, 8), 0.0)),
    group((9,), answer((), 0.0), answer((10, 11), 0.25)),
]


def simple(prompt_lengths: list[int], response_lengths: list[int], groups: list[int]) -> Batch:
    """A batch whose token ids count up, so that every token can be told apart."""
    prompt_ids, prompt_mask = pad_left([range(100 * i, 100 * i + n) for i, n in enumerate(prompt_lengths)], PAD)
    response_ids, mask = pad_right([range(100 * i + 50, 100 * i + 50 + n) for i, n in enumerate(response_lengths)], PAD)
    return Batch(
        prompt_ids,
        prompt_mask,
        response_ids,
        mask,
        sampled_mask=mask,
        group=torch.tensor(groups),
        index=torch.arange(len(groups)),
        rewards=torch.arange(len(groups)).float(),
        rollout_logp=torch.zeros(mask.shape),
    )


def tokens(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[m].tolist() for row, m in zip(ids, mask, strict=True)]


# --- collate


def test_collate_pads_prompts_in_front_and_responses_behind() -> None:
    batch = collate(TWO, pad_id=PAD)
    assert batch.prompt_ids.tolist() == [[1, 2, 3], [1, 2, 3], [PAD, PAD, 9], [PAD, PAD, 9]]
    assert batch.response_ids.tolist() == [[4, PAD, PAD, PAD], [5, 6, 7, 8], [PAD] * 4, [10, 11, PAD, PAD]]
    assert batch.prompt_mask.tolist() == [[True] * 3, [True] * 3, [False, False, True], [False, False, True]]
    assert batch.response_mask.sum(1).tolist() == [1, 4, 0, 2]


def test_collate_keeps_every_token_with_its_log_prob_reward_and_group() -> None:
    batch = collate(TWO, pad_id=PAD)
    answers = [g for each in TWO for g in each.graded]
    assert tokens(batch.response_ids, batch.response_mask) == [list(a.completion.token_ids) for a in answers]
    assert tokens(batch.rollout_logp, batch.response_mask) == [list(a.completion.logprobs) for a in answers]
    assert tokens(batch.prompt_ids, batch.prompt_mask) == [[1, 2, 3], [1, 2, 3], [9], [9]]
    assert not batch.rollout_logp[~batch.response_mask].any()
    assert batch.rewards.tolist() == [1.0, 0.0, 0.0, 0.25]
    assert batch.group.tolist() == [0, 0, 1, 1]
    assert batch.index.tolist() == [0, 1, 2, 3]
    assert batch.counts() == Counts(tokens=7, sequences=3)
    assert batch.lengths.tolist() == [4, 7, 1, 3]
    assert (batch.rows, batch.groups) == (4, 2)


def test_weight_versions_travel_with_their_rows_however_short_the_answers_are() -> None:
    def sampled(token_ids: tuple[int, ...], versions: tuple[int, int]) -> Graded:
        completion = Completion(token_ids, [-1.0] * len(token_ids), "stop", versions)
        return Graded(completion, "", Grade(Verdict.WRONG, 0.0), 0.0)

    batch = collate([group((1,), sampled((4,), (3, 3)), sampled((), (2, 2)), sampled((5, 6, 7), (1, 2)))], pad_id=PAD)
    assert batch.weight_versions is not None
    assert batch.weight_versions.tolist() == [[3, 3], [2, 2], [1, 2]]
    for rows in ([1], [0, 1], [2, 0]):
        part = batch.select(torch.tensor(rows)).weight_versions
        assert part is not None
        assert part.tolist() == batch.weight_versions[rows].tolist()


def test_a_token_with_the_padding_id_is_a_token_like_any_other() -> None:
    batch = collate([group((PAD, 1), answer((PAD, PAD), 1.0))], pad_id=PAD)
    assert batch.prompt_mask.all()
    assert batch.response_mask.all()


def test_answers_without_any_token_make_a_batch_of_width_zero() -> None:
    batch = collate([group((1,), answer((), 0.0))], pad_id=PAD)
    assert batch.response_ids.shape == (1, 0)
    assert batch.counts() == Counts(tokens=0, sequences=0)


def test_collate_marks_what_was_sampled_and_takes_no_log_prob_from_anything_else() -> None:
    """Of the second answer's four tokens a tool said the middle two, which have no log-prob."""
    logprobs = [-0.5, math.nan, math.nan, -0.25]
    spoken = Completion([5, 6, 7, 8], logprobs, "stop", (0, 0), [True, False, False, True])  # type: ignore[arg-type]
    with_tool = Graded(spoken, "", Grade(Verdict.CORRECT, 1.0), 1.0)
    batch = collate([group((1, 2), answer((4,), 0.0), with_tool)], pad_id=PAD)
    assert tokens(batch.response_ids, batch.response_mask) == [[4], [5, 6, 7, 8]]
    assert batch.sampled_mask.tolist() == [[True, False, False, False], [True, False, False, True]]
    assert batch.loss_mask.tolist() == batch.sampled_mask.tolist()
    assert batch.rollout_logp.tolist() == [[-2.0, 0.0, 0.0, 0.0], [-0.5, 0.0, 0.0, -0.25]]
    assert batch.counts() == Counts(tokens=3, sequences=2), "a tool's tokens are in no denominator"
    assert batch.lengths.tolist() == [3, 6], "but the model reads them"
    part = batch.select(torch.tensor([1]))
    assert part.sampled_mask.tolist() == [[True, False, False, True]]
    assert part.response_ids.shape == (1, 4)


@given(st.lists(st.lists(st.integers(0, 5), max_size=6), max_size=6))
def test_padding_and_masking_give_the_sequences_back(sequences: list[list[int]]) -> None:
    for pad in (pad_left, pad_right):
        ids, mask = pad(sequences, PAD)
        assert tokens(ids, mask) == sequences
        assert (ids[~mask] == PAD).all()


# --- select


def test_collate_takes_several_rewards_by_name_whatever_the_lengths_are() -> None:
    def judged(ids: tuple[int, ...], form: float, reason: str | None = None) -> Graded:
        extra = {"acc": 0} if reason else {"form": form, "acc": 1}
        grade = Grade(Verdict.GRADER_ERROR if reason else Verdict.CORRECT, 0.5, extra=extra, reason=reason)
        return Graded(Completion(ids, [0.0] * len(ids), "stop", (0, 0)), "", grade, 7.0, {"length": -form})

    names = ("form", "acc", "score", "length", "seq_reward")
    groups = [group((1,), judged((4,), 0.25), judged((5, 6, 7), 2.0)), group((2,), judged((8, 9), 0.0, "out of time"))]
    batch = collate(groups, pad_id=PAD, components=names)
    rewards = [[0.25, 1, 0.5, -0.25, 7], [2, 1, 0.5, -2, 7], [0, 0, 0, 0, 0]]
    assert batch.components is not None
    assert batch.components.tolist() == rewards, "nothing is known of an answer without a judgement"
    short = batch.select(torch.tensor([2, 0]))
    assert short.response_ids.shape[1] == 2, "narrower than there are rewards"
    assert short.components is not None
    assert short.components.tolist() == [rewards[2], rewards[0]]
    assert collate(groups, pad_id=PAD).components is None
    with pytest.raises(DataError, match=r"names format, .* There are acc, score, seq_reward, length, form"):
        collate(groups, pad_id=PAD, components=("format",))


def test_select_takes_rows_in_the_given_order_and_cuts_padding_that_none_of_them_needs() -> None:
    batch = collate(TWO, pad_id=PAD)
    extra = torch.arange(16.0).reshape(4, 4)
    part = batch.replace(learner_logp=extra, advantage=-extra).select(torch.tensor([3, 2]))
    assert part.prompt_ids.tolist() == [[9], [9]]
    assert part.response_ids.tolist() == [[10, 11], [PAD, PAD]]
    assert part.response_mask.tolist() == [[True, True], [False, False]]
    assert part.learner_logp is not None
    assert part.advantage is not None
    assert part.learner_logp.tolist() == [[12.0, 13.0], [8.0, 9.0]]
    assert part.advantage.tolist() == [[-12.0, -13.0], [-8.0, -9.0]]
    assert part.index.tolist() == [3, 2]
    assert part.group.tolist() == [1, 1]
    assert part.rewards.tolist() == [0.25, 0.0]
    assert part.ref_logp is None


@given(st.data())
def test_select_never_loses_a_token(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4)), min_size=1, max_size=6))
    batch = simple([p for p, _ in lengths], [r for _, r in lengths], [0] * len(lengths))
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=8))
    part = batch.select(torch.tensor(rows, dtype=torch.long))
    prompts, responses = (
        tokens(batch.prompt_ids, batch.prompt_mask),
        tokens(batch.response_ids, batch.response_mask),
    )
    assert tokens(part.prompt_ids, part.prompt_mask) == [prompts[r] for r in rows]
    assert tokens(part.response_ids, part.response_mask) == [responses[r] for r in rows]
    # no column is padding throughout
    assert part.prompt_mask.any(0).all()
    assert part.response_mask.any(0).all()


# --- mini-batches

sizes = st.lists(st.integers(1, 4), min_size=1, max_size=7)


@given(sizes, st.integers(1, 8), st.integers(1, 3), st.sampled_from([None, 0, 1, 77]))
def test_every_epoch_covers_every_group_once_and_whole(
    group_sizes: list[int], problems: int, epochs: int, seed: int | None
) -> None:
    groups = [g for g, size in enumerate(group_sizes) for _ in range(size)]
    batch = simple([1] * len(groups), [1] * len(groups), groups)
    minis = [rows.tolist() for rows in batch.mini_batches(problems, epochs=epochs, shuffle_seed=seed)]
    per_epoch = -(-len(group_sizes) // problems)
    assert len(minis) == epochs * per_epoch
    for epoch in range(epochs):
        part = minis[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(row for rows in part for row in rows) == list(range(len(groups)))
        held = [{groups[row] for row in rows} for rows in part]
        assert all(not a & b for i, a in enumerate(held) for b in held[:i])
        assert [len(h) for h in held[:-1]] == [problems] * (per_epoch - 1)


def test_without_shuffling_the_groups_keep_their_order() -> None:
    batch = simple([1] * 6, [1] * 6, [0, 0, 1, 1, 2, 2])
    minis = [rows.tolist() for rows in batch.mini_batches(2, epochs=2, shuffle_seed=None)]
    assert minis == [[0, 1, 2, 3], [4, 5], [0, 1, 2, 3], [4, 5]]


def test_shuffling_is_reproducible_and_differs_between_epochs_and_seeds() -> None:
    groups = list(range(16))
    batch = simple([1] * 16, [1] * 16, groups)

    def order(seed: int) -> list[list[int]]:
        return [rows.tolist() for rows in batch.mini_batches(4, epochs=2, shuffle_seed=seed)]

    assert order(3) == order(3)
    assert order(3) != order(4)
    assert order(3)[:4] != order(3)[4:]
    assert order(3)[:4] != [groups[i : i + 4] for i in range(0, 16, 4)]


def test_which_groups_meet_never_depends_on_lengths() -> None:
    groups = [g for g in range(8) for _ in range(2)]
    short = simple([1] * 16, [1] * 16, groups)
    ragged = simple([1 + i % 5 for i in range(16)], [i % 7 for i in range(16)], groups)
    for seed in (None, 5):
        a, b = ([r.tolist() for r in x.mini_batches(3, epochs=2, shuffle_seed=seed)] for x in (short, ragged))
        assert a == b


# --- micro-batches

lengths_of_rows = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), max_size=20)


@given(
    lengths_of_rows,
    st.one_of(st.integers(1, 6).map(lambda n: ("rows", n)), st.integers(1, 90).map(lambda n: ("tokens", n))),
)
def test_micro_batches_are_a_partition_within_the_budget(
    lengths: list[tuple[int, int]], budget: tuple[str, int]
) -> None:
    prompts = torch.tensor([p for p, _ in lengths], dtype=torch.long)
    responses = torch.tensor([r for _, r in lengths], dtype=torch.long)
    kind, limit = budget
    cuts = micro_batches(prompts, responses, **{kind: limit})
    assert sorted(i for cut in cuts for i in cut.tolist()) == list(range(len(lengths)))
    for cut in cuts:
        if kind == "rows":
            assert 1 <= len(cut) <= limit
        else:  # rows times width, padding included; a single row may be longer
            assert len(cut) == 1 or len(cut) * int(prompts[cut].max() + responses[cut].max()) <= limit


@given(lengths_of_rows, st.integers(1, 90))
def test_a_micro_batch_is_closed_only_when_the_next_row_does_not_fit(
    lengths: list[tuple[int, int]], limit: int
) -> None:
    prompts = torch.tensor([p for p, _ in lengths], dtype=torch.long)
    responses = torch.tensor([r for _, r in lengths], dtype=torch.long)
    for cut, following in pairwise(micro_batches(prompts, responses, tokens=limit)):
        joined = torch.cat([cut, following[:1]])
        assert len(joined) * int(prompts[joined].max() + responses[joined].max()) > limit


def test_a_token_budget_on_paper() -> None:
    # Sorted by response length, then prompt length: (2, 1) (3, 1) | (2, 5) (2, 5) | (2, 20)
    prompts, responses = torch.tensor([2, 2, 3, 2, 2]), torch.tensor([20, 5, 1, 1, 5])
    cuts = [cut.tolist() for cut in micro_batches(prompts, responses, tokens=14)]
    # two of width 7 make 14; three of width 3 + 5 would make 24; the row of 22 stands alone
    assert cuts == [[3, 2], [1, 4], [0]]


def test_rows_of_like_length_stand_together() -> None:
    responses = torch.tensor([9, 1, 8, 2, 7, 3])
    cuts = [cut.tolist() for cut in micro_batches(torch.ones(6, dtype=torch.long), responses, rows=2)]
    assert cuts == [[1, 3], [5, 4], [2, 0]]


def test_no_rows_make_no_micro_batch() -> None:
    nothing = torch.zeros(0, dtype=torch.long)
    assert micro_batches(nothing, nothing, rows=4) == []


@pytest.mark.parametrize("select", [[0], [1, 0]])
def test_a_mini_batch_keeps_the_row_numbers_of_its_step(select: list[int]) -> None:
    batch = simple([1, 1, 1], [1, 1, 1], [0, 1, 2])
    assert batch.select(torch.tensor([1, 2])).select(torch.tensor(select)).index.tolist() == [[1, 2][i] for i in select]
