"""The sentences at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from gmpo.metrics.conclusion import conclusion


def validated(rate: float, low: float, high: float) -> dict[str, float]:
    return {"val/pass@1": rate, "val/pass@1_low": low, "val/pass@1_high": high}


def step(**changes: float) -> dict[str, float]:
    usual = {
        "critic/score/mean": 0.5,
        "rollout/zero_variance_groups": 0.5,
        "rollout/all_wrong_groups": 0.25,
        "rollout/all_right_groups": 0.25,
        "reward/correct_share": 0.5,
        "reward/unparsed_share": 0.0,
        "response_length/clip_ratio": 0.0,
        "actor/lr": 1e-6,
    }
    return usual | {name.replace("__", "/"): value for name, value in changes.items()}


@pytest.mark.parametrize(
    ("last", "verdict"),
    [
        (validated(0.5, 0.41, 0.59), "better"),
        (validated(0.35, 0.26, 0.44), "no difference that can be told"),
        (validated(0.1, 0.05, 0.19), "worse"),
    ],
)
def test_the_verdict_is_that_of_the_intervals(last: Mapping[str, float], verdict: str) -> None:
    (line,) = conclusion([validated(0.3, 0.2, 0.4), validated(0.35, 0.26, 0.45), last])
    assert line.startswith("pass@1 0.300 (0.200-0.400) -> ")
    assert f": {verdict}" in line


def test_a_rise_that_is_lost_again_is_said_beside_the_verdict() -> None:
    """0.9 with a standard error of 0.15 / 3.92 = 0.038, then 0.5 with 0.046: a fall of 0.4 / 0.060 = 6.7 deviations."""
    high, low = validated(0.9, 0.8, 0.95) | {"training/global_step": 20.0}, validated(0.5, 0.41, 0.59)
    first, second = conclusion([validated(0.3, 0.2, 0.4), high, low])
    assert first.endswith("better: the 95 % intervals do not overlap")
    assert "highest after step 20, 0.900 (0.800-0.950), and fell since" in second


def test_a_run_that_cannot_learn_says_why() -> None:
    hopeless = step(rollout__zero_variance_groups=1.0, rollout__all_wrong_groups=1.0, rollout__all_right_groups=0.0)
    said = " ".join(conclusion([hopeless | {"reward/unparsed_share": 0.9, "response_length/clip_ratio": 0.8}] * 2))
    assert "without a right answer: 100%, with right ones only: 0%" in said
    assert "all its rewards are equal: 100%" in said
    assert "90% of the answers have none that the scorer can read" in said
    assert "80% were cut at data.max_response_length" in said
    assert "too hard" in " ".join(conclusion([hopeless]))
    solved = step(rollout__zero_variance_groups=1.0, rollout__all_wrong_groups=0.0, rollout__all_right_groups=1.0)
    assert "solved already" in " ".join(conclusion([solved]))
    assert "learning rate was 0" in " ".join(conclusion([step(actor__lr=0.0)]))


def test_one_step_that_teaches_is_enough_and_a_collapse_is_named() -> None:
    hopeless = step(rollout__zero_variance_groups=1.0, rollout__all_wrong_groups=1.0)
    assert len(conclusion([hopeless, step()])) == 1
    right = step(rollout__problems=16.0)
    wrong = step(rollout__problems=16.0, rollout__all_wrong_groups=1.0, rollout__all_right_groups=0.0)
    assert "fell apart" in " ".join(conclusion([right, right, wrong, wrong, wrong]))
    assert len(conclusion([right] * 8)) == 1


def test_problems_too_hard_and_problems_solved_are_both_named_where_none_is_between() -> None:
    apart = step(rollout__zero_variance_groups=1.0, rollout__all_wrong_groups=0.875, rollout__all_right_groups=0.125)
    said = " ".join(conclusion([apart, apart]))
    assert "88% of the problems had wrong answers only and 12% right ones only" in said
    assert "rollout.n" in said
    assert "does not tell them apart" in " ".join(
        conclusion(
            [step(rollout__zero_variance_groups=1.0, rollout__all_wrong_groups=0.0, rollout__all_right_groups=0.0)]
        )
    )


def test_shares_of_shaped_rewards_are_facts_of_their_own_and_no_parts_of_each_other() -> None:
    """All answers wrong and their rewards different, by a penalty of length: 0 % alike beside 100 % wrong."""
    (line,) = conclusion([step(rollout__zero_variance_groups=0.0, rollout__all_wrong_groups=1.0)])
    assert "without a right answer: 100%" in line
    assert "all its rewards are equal: 0%" in line


def test_a_run_that_compares_no_answers_is_not_said_to_learn_nothing_from_groups_of_one() -> None:
    """With one answer to each problem every group is alike, and PPO learns from it all the same."""
    one = step(rollout__zero_variance_groups=1.0, reward__correct_share=0.25) | score(0.0, 1.0)
    better = one | {"reward/correct_share": 0.75}
    assert conclusion([one, better], compares=False) == [
        "right answers: 50% of all, 25% in the first step, 75% in the last"
    ]
    wrong = {"reward/correct_share": 0.0, "rollout/all_wrong_groups": 1.0, "rollout/all_right_groups": 0.0}
    same = one | score(0.0, 0.0) | wrong
    assert "every answer had the reward 0. No answer was right." in " ".join(conclusion([same], compares=False))


def score(low: float, high: float) -> dict[str, float]:
    return {"critic/score/min": low, "critic/score/max": high}
