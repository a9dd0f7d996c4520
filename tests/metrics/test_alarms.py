"""Alarms: what each of them is raised by, and that nothing else raises it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from gmpo.metrics.alarms import ALARMS, alarms

WELL: Mapping[str, float] = {
    "critic/score/mean": 0.5,
    "response_length/mean": 100.0,
    "response_length/clip_ratio": 0.9,
    "actor/entropy": 0.005,
    "rollout_corr/k3_kl": 0.1,
    "rollout/problems": 16.0,
    "rollout/all_wrong_groups": 0.25,
    "rollout/zero_variance_groups": 0.9,
}
"""At the bounds, where nothing is wrong yet."""


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("length", {"response_length/mean": 9.0}, "answers have 9 tokens and had 100 at first"),
        ("entropy", {"actor/entropy": 0.004}, "entropy is 0.004 nats"),
        ("truncated", {"response_length/clip_ratio": 0.91}, "91% of the answers are cut"),
        ("mismatch", {"rollout_corr/k3_kl": 0.11}, "0.11 nats a token apart"),
        ("no_variance", {"rollout/zero_variance_groups": 1.0}, "the step taught nothing; the problems are too easy"),
    ],
)
def test_each_alarm_has_one_cause_and_says_where_to_look(name: str, change: dict[str, float], words: str) -> None:
    assert alarms([WELL] * 6, compares=True) == {}
    found = alarms([*[WELL] * 5, {**WELL, **change}], compares=True)
    assert list(found) == [name]
    assert words in found[name]


def test_a_collapse_is_an_alarm_when_it_is_no_chance() -> None:
    """12 of 16 problems solved in each of two steps, then none: (32 / (32 + 16 k))^24 < 1e-6 from k = 2 on."""
    wrong = {**WELL, "rollout/all_wrong_groups": 1.0}
    assert "collapse" not in alarms([WELL, WELL, wrong], compares=True)
    assert "no problem of the last 2 steps" in alarms([WELL, WELL, wrong, wrong], compares=True)["collapse"]
    assert set(ALARMS) >= {"collapse"}


def test_answers_that_are_not_compared_need_no_variance() -> None:
    assert alarms([{**WELL, "rollout/zero_variance_groups": 1.0}], compares=False) == {}
