"""Right answers that vanish, and those that are only rare."""

from __future__ import annotations

import random

import pytest

from gmpo.metrics.collapse import CHANCE, collapse, fallen


def step(solved: int, of: int, **more: float) -> dict[str, float]:
    return {
        "rollout/problems": float(of),
        "rollout/all_wrong_groups": 1.0 - solved / of,
        "critic/score/mean": solved / of,
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


def test_few_problems_a_step_are_judged_by_their_validations_too() -> None:
    """3 of 8 problems a step and 12 of 64 in a validation, then none: (1/2)^3 (1/2)^12 = 3.1e-5 after a step and a
    validation, (1/3)^3 (1/3)^12 = 7.0e-8 after two."""
    good, bad = step(3, 8) | validation(12, 64), step(0, 8) | validation(0, 64)
    assert collapse([good, bad]) is None
    assert collapse([good, bad, bad]) is not None
    assert collapse([good, bad, bad, step(1, 8)]) is None


@pytest.mark.parametrize("share", ["response_length__clip_ratio", "reward__unparsed_share"])
def test_answers_that_are_all_cut_or_unreadable_are_a_sign_of_their_own(share: str) -> None:
    """None of the answers to 8 problems before, all of them since: (1/5)^8 = 2.6e-6 after 4 steps, (1/6)^8 = 6.0e-7
    after 5. Without that, 3 solved problems are too few to tell."""
    good, bad = step(3, 8, **{share: 0.0}), step(0, 8, **{share: 1.0})
    assert collapse([good, *[bad] * 4]) is None
    assert collapse([good, *[bad] * 5]) is not None
    assert collapse([good, *[step(0, 8, **{share: 0.9})] * 50]) is None
    assert collapse([step(0, 8, **{share: 0.0}), *[bad] * 50]) is None, "nothing was right before"


def test_a_validation_that_falls_beyond_its_error_is_told_from_one_that_wavers() -> None:
    """Standard errors of 0.02: a fall of 0.1 is 3.5 of the difference's, one of 0.2 is 7.1."""
    high, lower, low = (validation(round(rate * 512), 512, width=0.0784) for rate in (0.5, 0.4, 0.3))
    assert fallen([high, lower]) is None
    assert fallen([high, low]) == (high, low)
    assert fallen([low, high]) is None
    assert fallen([low, high, lower, low]) == (high, low)


def validation(solved: int, of: int, width: float = 0.1) -> dict[str, float]:
    rate = solved / of
    ends = {"val/pass@1_low": rate - width / 2, "val/pass@1_high": rate + width / 2}
    return {"val/pass@1": rate, "val/problems": float(of), **ends}


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
