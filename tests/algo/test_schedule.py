"""The learning rate of a step, checked on paper."""

from __future__ import annotations

import math
from functools import partial

import pytest

from gmpo.algo.schedule import SHAPES, learning_rate, linear

warm = partial(learning_rate, peak=1.0, warmup_steps=4, total_steps=14)


@pytest.mark.parametrize("shape", SHAPES)
def test_warm_up_starts_at_zero_and_rises_by_equal_steps_to_the_peak(shape: str) -> None:
    assert [warm(step, shape=shape) for step in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("shape", SHAPES)
def test_without_warm_up_the_first_step_runs_at_the_peak(shape: str) -> None:
    assert learning_rate(0, peak=3e-4, shape=shape, warmup_steps=0, total_steps=10) == 3e-4


def test_constant_stays() -> None:
    assert [warm(step, shape="constant") for step in (4, 9, 14, 99)] == [1.0] * 4


def test_linear_falls_by_equal_steps_to_the_floor() -> None:
    assert [warm(step, shape="linear") for step in (4, 9, 14)] == [1.0, 0.5, 0.0]
    assert [warm(step, shape="linear", min_ratio=0.2) for step in (4, 9, 14)] == pytest.approx([1.0, 0.6, 0.2])


def test_cosine_is_half_way_at_half_time() -> None:
    assert [warm(step, shape="cosine") for step in (4, 9, 14)] == pytest.approx([1.0, 0.5, 0.0], abs=1e-15)
    assert warm(9, shape="cosine", min_ratio=0.1) == pytest.approx(0.1 + 0.9 * 0.5)
    # a third of the way: (1 + cos 60 degrees) / 2
    assert learning_rate(2, peak=1.0, shape="cosine", warmup_steps=0, total_steps=6) == pytest.approx(0.75)


def test_one_whole_cosine_wave_returns_to_the_peak() -> None:
    assert warm(14, shape="cosine", cycles=1.0) == pytest.approx(1.0)
    assert warm(9, shape="cosine", cycles=1.0) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_beyond_the_end_the_rate_stays_at_the_floor(shape: str) -> None:
    assert warm(1000, shape=shape, min_ratio=0.3) == pytest.approx(0.3)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_run_that_is_all_warm_up_is_well_defined(shape: str) -> None:
    rates = [learning_rate(s, peak=1.0, shape=shape, warmup_steps=5, total_steps=5) for s in range(6)]
    assert rates[:5] == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert math.isfinite(rates[5])


def test_a_straight_line_starts_at_the_first_step_and_ends_at_the_last() -> None:
    assert [linear(step, start=2.0, end=-2.0, total_steps=5) for step in range(5)] == [2.0, 1.0, 0.0, -1.0, -2.0]
    assert linear(7, start=2.0, end=-2.0, total_steps=5) == -2.0
    assert linear(0, start=2.0, end=-2.0, total_steps=1) == 2.0
