"""The tables of estimators and losses say the truth about their functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gmpo.algo import losses as loss_module
from gmpo.algo.advantages import ADVANTAGES
from gmpo.algo.corrections import REJECTION
from gmpo.algo.losses import POLICY_LOSSES
from gmpo.algo.masks import AGGREGATIONS
from gmpo.objectives import ESTIMATORS, LOSSES, REJECTIONS

MiniBatch = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
TENSORS = {"values", "greedy_reward", "components", "score_norm", "weights", "selected"}
"""Keyword arguments that are made of the batch, not read from the configuration."""


def keywords(fn: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return {n: p for n, p in inspect.signature(fn).parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def test_the_tables_have_the_names_of_the_objectives_in_their_order() -> None:
    assert list(ADVANTAGES) == list(ESTIMATORS)
    assert list(POLICY_LOSSES) == list(LOSSES)
    assert list(REJECTION) == list(REJECTIONS)
    for name, estimator in ADVANTAGES.items():
        assert estimator.traits is ESTIMATORS[name]
        assert estimator.fn.__name__ == name
    for name, loss in POLICY_LOSSES.items():
        assert loss.traits is LOSSES[name]
        assert loss.fn.__name__ == name


def both() -> list[Any]:
    rows: list[tuple[str, Callable[..., Any], tuple[str, ...]]] = []
    rows += [(f"estimator {name}", entry.fn, entry.traits.numbers) for name, entry in ADVANTAGES.items()]
    rows += [(f"loss {name}", entry.fn, entry.traits.numbers) for name, entry in POLICY_LOSSES.items()]
    rows += [
        (f"selection {name}", entry.select, entry.traits.select_numbers)
        for name, entry in POLICY_LOSSES.items()
        if entry.select is not None
    ]
    return [pytest.param(fn, numbers, id=label) for label, fn, numbers in rows]


@pytest.mark.parametrize(("fn", "numbers"), both())
def test_the_numbers_are_the_keywords_of_the_function(fn: Callable[..., Any], numbers: tuple[str, ...]) -> None:
    taken = keywords(fn)
    required = {name for name, p in taken.items() if p.default is inspect.Parameter.empty}
    assert set(numbers) <= set(taken), "a number that the function does not take"
    assert required - TENSORS <= set(numbers), "a keyword that nothing fills"
    assert len(set(numbers)) == len(numbers)
    assert not TENSORS & set(numbers)


def test_an_estimator_needs_what_it_takes_of_the_batch_and_takes_what_it_needs() -> None:
    for name, entry in ADVANTAGES.items():
        assert entry.traits.needs_critic == ("values" in keywords(entry.fn)), name
        assert entry.traits.needs_greedy == ("greedy_reward" in keywords(entry.fn)), name
        assert entry.traits.needs_components == ("components" in keywords(entry.fn)), name
        assert entry.traits.needs_score_norms == ("score_norm" in keywords(entry.fn)), name
        assert entry.traits.needs_score_norms == ("weights" in keywords(entry.fn)), name


def test_a_loss_names_a_selection_exactly_where_it_takes_one() -> None:
    for name, entry in POLICY_LOSSES.items():
        assert (entry.traits.select is not None) == ("selected" in keywords(entry.fn)), name
        assert (entry.select is not None) == (entry.traits.select is not None), name
        if entry.select is not None:
            assert entry.select is getattr(loss_module, entry.traits.select or ""), name


def test_an_aggregation_of_its_own_belongs_to_a_loss_per_token_and_exists() -> None:
    for name, traits in LOSSES.items():
        assert traits.aggregation is None or (traits.aggregation in AGGREGATIONS and not traits.per_sequence), name


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_a_loss_is_per_sequence_exactly_where_it_gives_one_value_per_response(
    losses: Any, mini_batch: MiniBatch, name: str
) -> None:
    shape = losses.surrogate(name, *mini_batch(0)).values.shape
    assert shape == ((6,) if LOSSES[name].per_sequence else (6, 5))


@pytest.mark.parametrize(
    "name", [n for n, traits in LOSSES.items() if "clip_high" in traits.numbers and not traits.divergence]
)
def test_bounds_are_log_ratios_exactly_where_the_table_says_so(losses: Any, responses: MiniBatch, name: str) -> None:
    # a log-ratio of 0.19 is below a bound of 0.2, and its ratio of 1.209 above 1 + 0.2
    tensors = responses([[0.19, 0.19]], [1.0])
    bounds = [{"clip_low": 0.2, "clip_high": high} for high in (0.2, 9.0)]
    bounded, free = (losses.update(name, *tensors, choose=False, **b).loss for b in bounds)
    assert (bounded == free) == LOSSES[name].log_clip


NUMBERS = {
    "normalise_by_std": True,
    "floor": 1e-8,
    "offset": 0.0,
    "gamma": 0.9,
    "lam": 0.95,
    "component_weights": (1.0, 0.5),
}


def estimate(name: str, group: list[int], rewards: list[float], penalty: float = 0.0) -> Tensor:
    """Advantages of three-token answers whose reward stands at the last token, with a penalty on each token."""
    traits = ESTIMATORS[name]
    numbers: dict[str, Any] = {key: NUMBERS[key] for key in traits.numbers}
    rows = len(rewards)
    if traits.needs_critic:
        numbers["values"] = torch.linspace(0.0, 1.0, 3 * rows, dtype=torch.float64).reshape(rows, 3)
    if traits.needs_greedy:
        numbers["greedy_reward"] = torch.full((rows,), 0.25, dtype=torch.float64)
    if traits.needs_score_norms:
        numbers["score_norm"] = torch.linspace(0.1, 1.0, 3 * rows, dtype=torch.float64).reshape(rows, 3)
    if traits.needs_components:
        numbers["components"] = torch.tensor([rewards, rewards[::-1]], dtype=torch.float64).T
    token_rewards = torch.full((rows, 3), -penalty, dtype=torch.float64)
    token_rewards[:, -1] += torch.tensor(rewards, dtype=torch.float64)
    return ADVANTAGES[name].fn(token_rewards, torch.ones(rows, 3, dtype=torch.bool), torch.tensor(group), **numbers)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages_vary_over_a_response_exactly_where_the_table_says_so(name: str) -> None:
    got = estimate(name, [0, 0, 1, 1], [1.0, 0.5, 0.25, 1.0])
    assert bool((got != got[:, :1]).any()) == ESTIMATORS[name].per_token


@pytest.mark.parametrize("name", [name for name, traits in ESTIMATORS.items() if not traits.per_token])
def test_a_penalty_on_each_token_makes_them_vary_exactly_where_rewards_to_come_are_summed(name: str) -> None:
    got = estimate(name, [0, 0, 1, 1], [1.0, 0.5, 0.25, 1.0], penalty=0.05)
    assert bool((got != got[:, :1]).any()) == ESTIMATORS[name].rewards_to_come


@pytest.mark.parametrize("name", ADVANTAGES)
def test_an_estimator_needs_groups_exactly_where_the_answers_to_the_same_problem_matter(name: str) -> None:
    rewards = [1.0, 0.5, 0.25, 1.0]
    together, apart = estimate(name, [0, 0, 1, 1], rewards), estimate(name, [0, 1, 0, 1], rewards)
    assert (not torch.equal(together, apart)) == ESTIMATORS[name].needs_groups
