"""Right answers that vanish, and those that are only rare."""

from __future__ import annotations

import random

import pytest

from gmpo.metrics.collapse import CHANCE, collapse


def step(solved: int, of: int, **more: float) -> dict[str, float]:
    return {
        "rollout/problems": float(of),
        "rollout/all_wrong_groups": 1.0 - solved / of,
        **{name.replace("__", "/"): value for name, value in more.items()},
    }


def test_the_bound_is_that_of_drawing_without_replacement() -> None:
    """8 of 16 problems solved in one step, then none of 16 a step: (16 / 32)^8 = 0.0039, (1/3)^8 = 1.5e-4, (1/4)^8 =
    1.5e-5, (1/5)^8 = 2.6e-6, (1/6)^8 = 6.0e-7 after five steps."""
    for later in range(1, 5):
        assert (1 / (1 + later)) ** 8 > CHANCE
        assert collapse([step(8, 16), *[step(0, 16)] * later]) is None
    found = collapse([step(8, 16), *[step(0, 16)] * 5])
    assert found is not None
    assert (found.solved, found.before, found.after, found.steps) == (8, 16, 80, 5)
    assert str(found) == "no problem of the last 5 steps had a right answer (0 of 80), 8 of 16 before"


def test_one_right_answer_ends_it_and_a_run_that_never_had_one_has_none() -> None:
    assert collapse([step(8, 16), *[step(0, 16)] * 9, step(1, 16)]) is None
    assert collapse([step(0, 16)] * 50) is None
    assert collapse([]) is None
    assert collapse([step(16, 16)] * 50) is None


def test_what_else_changed_is_named() -> None:
    first = step(12, 16, actor__entropy=2.0, response_length__mean=40.0, actor__grad_norm=0.5)
    last = step(0, 16, actor__entropy=0.01, response_length__mean=39.0, actor__grad_norm=0.0)
    assert str(collapse([first, last, last, last])).endswith("12 of 16 before (entropy 2 -> 0.01; gradient 0)")


@pytest.mark.parametrize("rate", [0.005, 0.02, 0.1, 0.3])
def test_problems_that_are_seldom_solved_raise_no_false_alarm(rate: float) -> None:
    """200 runs of 200 steps of 16 problems, each solved with the same probability throughout, looked at after every
    step: a bound of 1e-6 for each of 40,000 looks leaves 0.04 alarms."""
    numbers = random.Random(7)
    alarms = 0
    for _ in range(200):
        steps = [step(sum(numbers.random() < rate for _ in range(16)), 16) for _ in range(200)]
        alarms += any(collapse(steps[:end]) is not None for end in range(1, 201, 7))
    assert alarms == 0
