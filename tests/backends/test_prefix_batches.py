"""Micro-batches of packed rows: groups stay together, budgets hold, hardly a token is computed twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gmpo.backends.prefix_batches import prefix_micro_batches

ANSWERS = st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=8), min_size=0, max_size=8)


def tensors(prompts: list[int], answers: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Group, prompt length and response length of each row."""
    sizes = torch.tensor([len(a) for a in answers], dtype=torch.long)
    group = torch.arange(len(answers)).repeat_interleave(sizes)
    lengths = torch.tensor(prompts[: len(answers)], dtype=torch.long)[group]
    return group, lengths, torch.tensor([n for a in answers for n in a], dtype=torch.long)


def distinct(rows: Tensor, group: Tensor, prompt: Tensor, response: Tensor) -> int:
    """Tokens of some rows: every answer, and one copy of each group's prompt."""
    shared = {int(g): int(n) for g, n in zip(group[rows], prompt[rows], strict=True)}
    return sum(shared.values()) + int(response[rows].sum())


def computed_over_real(parts: Sequence[Tensor], *rows: Tensor) -> float:
    """Tokens that the model computes for the micro-batches `parts`, over the tokens there are. A group that is divided
    among several has its prompt computed in each."""
    return sum(distinct(part, *rows) for part in parts) / distinct(torch.arange(len(rows[0])), *rows)


def test_a_group_stays_together_and_counts_its_prompt_once() -> None:
    """Group 0: 10 + 3 * 5 = 25 tokens; group 1: 10 + 2 * 7 = 24. A budget of 25 takes each whole."""
    rows = tensors([10, 10], [[5, 5, 5], [7, 7]])
    parts = prefix_micro_batches(*rows, tokens=25)
    assert [p.tolist() for p in parts] == [[0, 1, 2], [3, 4]]
    assert computed_over_real(parts, *rows) == 1.0


def test_a_group_larger_than_the_budget_repeats_its_prompt_as_seldom_as_possible() -> None:
    """4 answers of 10 to a prompt of 5 and a budget of 25: two and two, 50 tokens computed for the 45 there are."""
    rows = tensors([5], [[10, 10, 10, 10]])
    parts = prefix_micro_batches(*rows, tokens=25)
    assert [p.tolist() for p in parts] == [[0, 1], [2, 3]]
    assert computed_over_real(parts, *rows) == pytest.approx(50 / 45)


def test_a_row_longer_than_the_budget_stands_alone() -> None:
    parts = prefix_micro_batches(*tensors([5, 5], [[4, 90, 4], [3]]), tokens=20)
    assert [p.tolist() for p in parts] == [[1], [0, 2], [3]]


def test_small_groups_fill_up_a_micro_batch() -> None:
    """Groups of 9, 6, 5 and 4 tokens, budget 13: the largest and the smallest, the two between."""
    parts = prefix_micro_batches(*tensors([2, 2, 2, 2], [[7], [2, 2], [3], [2]]), tokens=13)
    assert sorted(sorted(p.tolist()) for p in parts) == [[0, 4], [1, 2, 3]]


@given(ANSWERS, st.lists(st.integers(1, 40), min_size=8, max_size=8), st.integers(1, 150))
def test_every_row_stands_in_one_micro_batch_within_the_budget(
    answers: list[list[int]], prompts: list[int], budget: int
) -> None:
    group, prompt, response = tensors(prompts, answers)
    parts = prefix_micro_batches(group, prompt, response, tokens=budget)
    assert sorted(row for part in parts for row in part.tolist()) == list(range(len(group)))
    for part in parts:
        assert distinct(part, group, prompt, response) <= budget or len(part) == 1
    for g, (p, lengths) in enumerate(zip(prompts, answers, strict=False)):
        if p + sum(lengths) <= budget:
            assert len([part for part in parts if (group[part] == g).any()]) == 1


@given(ANSWERS, st.integers(1, 12))
def test_a_limit_of_rows_keeps_groups_together_too(answers: list[list[int]], limit: int) -> None:
    group, prompt, response = tensors([3] * 8, answers)
    parts = prefix_micro_batches(group, prompt, response, rows=limit)
    assert sorted(row for part in parts for row in part.tolist()) == list(range(len(group)))
    assert all(len(part) <= limit for part in parts)
    for g, lengths in enumerate(answers):
        pieces = [part for part in parts if (group[part] == g).any()]
        assert len(pieces) == -(-len(lengths) // limit)


@pytest.mark.parametrize(
    "shape",
    [
        {"groups": 64, "answers": 8, "median": 300, "sigma": 0.8, "budget": 16_384},
        {"groups": 64, "answers": 16, "median": 1500, "sigma": 1.0, "budget": 32_768},
        {"groups": 256, "answers": 1, "median": 400, "sigma": 1.0, "budget": 8_192},
    ],
    ids=["group of 8", "long, group of 16", "one answer each"],
)
def test_at_most_a_twentieth_of_log_normal_tokens_is_computed_twice(shape: dict[str, Any]) -> None:
    numbers = np.random.default_rng(0)
    prompts = np.clip(numbers.lognormal(np.log(120), 0.5, shape["groups"]), 4, 1024).astype(int)
    total = shape["groups"] * shape["answers"]
    lengths = np.clip(numbers.lognormal(np.log(shape["median"]), shape["sigma"], total), 1, 8192).astype(int)
    rows = tensors(prompts.tolist(), lengths.reshape(shape["groups"], shape["answers"]).tolist())
    parts = prefix_micro_batches(*rows, tokens=shape["budget"])
    assert computed_over_real(parts, *rows) <= 1.05
    # No micro-batch is half empty for want of a better division.
    real = prompts.sum() + lengths.sum()
    assert len(parts) <= 1.1 * real / shape["budget"] + 1
