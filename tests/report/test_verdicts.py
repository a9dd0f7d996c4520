"""Histories with a known end have the findings of that end, and no others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from gmpo.report.ratio import ratio_sentences
from gmpo.report.verdicts import Finding, findings
from gmpo.report.wording import LANGUAGES, WORDS, sentences

GOOD = {
    "critic/score/mean": 0.5,
    "reward/correct_share": 0.5,
    "rollout/problems": 32.0,
    "rollout/all_wrong_groups": 0.1,
    "rollout/all_right_groups": 0.1,
    "rollout/zero_variance_groups": 0.2,
    "response_length/clip_ratio": 0.0,
    "response_length/mean": 30.0,
    "reward/unparsed_share": 0.0,
    "actor/lr": 1e-4,
    "actor/ess": 1.0,
    "actor/grad_norm": 0.4,
}


def steps(count: int, **changes: float) -> list[dict[str, float]]:
    more = {key.replace("__", "/"): value for key, value in changes.items()}
    # A little unrest, so that a standard error is not 0.
    return [
        {**GOOD, **more, "critic/score/mean": more.get("critic/score/mean", 0.5) + 0.01 * (k % 2)} for k in range(count)
    ]


def check(rate: float, problems: float = 512.0) -> dict[str, float]:
    return {"val/pass@1": rate, "val/pass@1_low": rate - 0.04, "val/pass@1_high": rate + 0.04, "val/problems": problems}


def numbered(history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    return [{**metrics, "training/global_step": number} for number, metrics in enumerate(history)]


def kinds(history: Sequence[Mapping[str, float]], **more: Any) -> list[str]:
    return [one.kind for one in findings(numbered(history), **{"status": "finished", **more})]


COLLAPSED = {
    "critic__score__mean": 0.0,
    "rollout__all_wrong_groups": 1.0,
    "rollout__zero_variance_groups": 1.0,
    "response_length__clip_ratio": 1.0,
}
CASES: Mapping[str, tuple[list[dict[str, float]], list[str]]] = {
    "better": ([check(0.2), *steps(20), check(0.8)], ["learning"]),
    "the same": ([check(0.5), *steps(20), check(0.52)], ["flat"]),
    "worse than the best": ([check(0.2), *steps(10), check(0.8), *steps(10), check(0.5)], ["fell", "learning"]),
    "collapsed": ([check(0.3), *steps(5), *steps(20, **COLLAPSED), check(0.0)], ["collapsed"]),
    "cut": ([check(0.1), *steps(20, response_length__clip_ratio=0.6), check(0.3)], ["cut", "learning"]),
    "unreadable": ([*steps(20, reward__unparsed_share=0.9)], ["unreadable", "reward_flat"]),
    "too easy": (
        [check(0.9), *steps(20, rollout__all_right_groups=0.9, rollout__zero_variance_groups=0.9), check(0.9)],
        ["flat", "too_easy"],
    ),
    "too hard": (
        [*steps(20, rollout__all_wrong_groups=0.95, rollout__zero_variance_groups=0.95, rollout__all_right_groups=0.0)],
        ["too_hard", "reward_flat"],
    ),
    "all alike": (
        [*steps(20, rollout__zero_variance_groups=1.0, rollout__all_wrong_groups=1.0, rollout__all_right_groups=0.0)],
        ["nothing"],
    ),
    "far": ([check(0.2), *steps(20, **{"actor__log_ratio__q0.1": -9.0}), check(0.8)], ["off_policy", "learning"]),
    "bound binds": ([check(0.2), *steps(20, actor__clip_share__negative=0.3), check(0.8)], ["off_policy", "learning"]),
    "no rate": ([*steps(20, actor__lr=0.0)], ["no_rate"]),
    "grader": ([check(0.2), *steps(20, reward__timeout_share=0.05), check(0.8)], ["grader", "learning"]),
    "hacked": ([check(0.3), *steps(10), *steps(10, critic__score__mean=0.9), check(0.3)], ["hacking"]),
    "hacked until nothing is right": (
        [check(0.3), *steps(20), *steps(20, **{**COLLAPSED, "critic__score__mean": 0.9}), check(0.0)],
        ["hacking"],
    ),
    "no validation, hacked": ([*steps(10), *steps(10, critic__score__mean=0.9)], ["hacking"]),
    "no validation": (
        [*steps(10), *steps(10, critic__score__mean=0.9, reward__correct_share=0.9)],
        ["reward_rose"],
    ),
    "nothing yet": ([], ["empty"]),
    "two steps": ([*steps(2)], ["unclear"]),
    "warm-up": ([{"train/loss": 2.0}, {"train/loss": 1.0}], ["supervised"]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_history_has_the_findings_of_its_end(name: str) -> None:
    history, expected = CASES[name]
    assert sorted(kinds(history)) == sorted(expected)


def test_what_is_bad_comes_before_what_is_good() -> None:
    levels = [one.level for one in findings(numbered(CASES["cut"][0]), status="finished")]
    assert levels == ["bad", "good"]


def test_a_run_that_broke_off_is_said_beside_what_it_learned() -> None:
    assert kinds(CASES["better"][0], status="failed", reason="killed") == ["crashed", "learning"]


def test_equal_rewards_are_no_finding_where_advantages_do_not_compare_answers() -> None:
    history, _ = CASES["too hard"]
    assert "too_hard" not in kinds(history, compares=False)


def test_collapse_names_the_step_in_which_it_began() -> None:
    found = findings(numbered(CASES["collapsed"][0]), status="finished", rate=6e-3)[0]
    assert (found.numbers["step"], found.numbers["solved"], found.numbers["before"]) == (6, 144, 160)
    assert "(now 0.006)" in sentences(found)["en"]["advice"]


def every_finding() -> dict[str, Finding]:
    found = {one.kind: one for history, _ in CASES.values() for one in findings(numbered(history), status="failed")}
    stalled = [*steps(10), *steps(200, rollout__zero_variance_groups=1.0, rollout__all_right_groups=0.9)]
    further = [*findings(numbered(stalled), status="finished"), *findings(numbered(steps(2)), status="finished")]
    return found | {one.kind: one for one in further}


def test_every_finding_has_words_in_both_languages_that_its_numbers_fill() -> None:
    found = every_finding()
    assert set(found) == set(WORDS)
    for one in found.values():
        for language in LANGUAGES:
            words = sentences(one)[language]
            assert words["title"]
            assert not any(sign in text for text in words.values() for sign in "{}")


def test_the_ratio_is_put_in_words_that_its_figures_carry() -> None:
    quiet = {
        "actor/updates": 4.0,
        "actor/log_ratio/q50": 0.0,
        "actor/log_ratio/q0.1": -0.1,
        "actor/log_ratio/q99.9": 0.08,
        "actor/log_ratio/var_within": 0.002,
        "actor/clip_share/positive": 0.0,
        "actor/clip_share/negative": 0.0,
    }
    same, far, none = (said["en"] for said in ratio_sentences(numbered([quiet]), "geo_mean", (0.4, 0.4)))
    assert "differ by at most about 0.10%" in same  # exp(0.002 / 2) - 1
    assert "bounds stand at -0.4 and 0.4, 4 times as far" in far
    assert none.startswith("No bound cut a token")
    loud = {**quiet, "actor/log_ratio/var_within": 0.2, "actor/clip_share/negative": 0.3}
    mean, _, cut = (said["en"] for said in ratio_sentences(numbered([quiet, loud]), "geo_mean", (0.4, 0.4)))
    assert "In 1 of 2 steps" in mean
    assert "up to 10.5%" in mean  # exp(0.1) - 1
    assert "30.00% of those with A < 0" in cut
    (once,) = ratio_sentences(numbered([{**quiet, "actor/updates": 1.0}]), "geo_mean", (0.4, 0.4))
    assert "One update per rollout" in once["en"]
