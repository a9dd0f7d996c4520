"""The reward of an answer is the weighted sum of its parts; shaping never touches the score or the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmpo.errors import BackendError
from gmpo.rewards.combined import MAIN, Component, Reward, Rewards
from gmpo.rewards.grader import Grader, GradeRequest, GraderSpec
from gmpo.rewards.portable import FunctionFile
from gmpo.rewards.shaping import OverlongPenalty
from gmpo.rewards.verdict import Verdict

EXTRA = '''"""Two small rewards."""
import time


def brevity(data_source, solution_str, ground_truth, extra_info, words=10):
    return 1.0 - len(solution_str.split()) / words


def slow(data_source, solution_str, ground_truth, extra_info):
    if "slow" in solution_str:
        time.sleep(30)
    return 1.0
'''


@pytest.fixture
def extra(tmp_path: Path) -> Path:
    file = tmp_path / "extra.py"
    file.write_text(EXTRA)
    return file


def graded(rewards: Rewards, asked: Sequence[GradeRequest], lengths: Sequence[int]) -> list[Reward]:
    judging = rewards.begin()
    judging.add(asked, lengths)
    return judging.finish()


def requests(texts: Sequence[str]) -> list[GradeRequest]:
    return [GradeRequest("math_dapo", "?", text, "7", {}, group=i) for i, text in enumerate(texts)]


def grader(file: Path | None = None, name: str = "", timeout_s: float = 10.0) -> Grader:
    return Grader(GraderSpec(FunctionFile(str(file), name) if file else None, workers=1, timeout_s=timeout_s))


def test_the_penalty_is_nothing_at_the_start_of_the_buffer_half_in_its_middle_and_full_at_its_end() -> None:
    penalty = OverlongPenalty(max_length=8192, buffer=4096, factor=1.0)
    assert [penalty(n) for n in (0, 4095, 4096, 5120, 6144, 8192)] == [0, 0, 0, -0.25, -0.5, -1.0]
    assert OverlongPenalty(100, 20, 0.5)(90) == -0.25
    assert OverlongPenalty(100, 20, 0.5)(140) == -1.5  # beyond the end the line goes on, as in verl


@given(st.integers(1, 500), st.integers(0, 500), st.floats(0, 4), st.integers(0, 999))
def test_a_longer_answer_never_loses_less(buffer: int, free: int, factor: float, length: int) -> None:
    penalty = OverlongPenalty(buffer + free, buffer, factor)
    assert penalty(length + 1) <= penalty(length) <= 0
    assert penalty(free) == 0
    assert penalty(free + buffer) == -factor


def test_the_reward_is_the_weighted_sum_and_the_grade_is_that_of_the_main_reward(extra: Path) -> None:
    rewards = Rewards(
        Component(MAIN, 2.0, grader()),
        [Component("brevity", 0.5, grader(extra, "brevity"))],
        penalty=OverlongPenalty(10, 4, 1.0),
        max_failed_share=0.0,
    )
    with rewards:
        right, wrong = graded(rewards, requests(["I say\nAnswer: 7", "Answer: 8"]), [8, 3])
    assert (right.grade.verdict, right.grade.score, right.grade.extra["acc"]) == (Verdict.CORRECT, 1.0, 1)
    assert right.parts == {"main": 1.0, "brevity": 0.6, "overlong_penalty": -0.5}
    assert right.total == pytest.approx(2.0 * 1.0 + 0.5 * 0.6 - 0.5)
    assert (wrong.grade.verdict, wrong.grade.score) == (Verdict.WRONG, -1.0)
    assert wrong.total == pytest.approx(2.0 * -1.0 + 0.5 * 0.8)


def test_where_the_score_is_the_reward_there_are_no_parts() -> None:
    with Rewards(Component(MAIN, 1.0, grader()), max_failed_share=0.0) as rewards:
        (reward,) = graded(rewards, requests(["Answer: 7"]), [3])
    assert (reward.total, reward.parts) == (1.0, {})


def test_a_further_reward_that_fails_too_often_stops_the_run_as_the_main_one_does(extra: Path) -> None:
    slow = Component("slow", 1.0, grader(extra, "slow", timeout_s=0.2))
    stopped = pytest.raises(BackendError, match=r"1 of 2 answers \(50%, limit 30%\) could not be graded")
    with Rewards(Component(MAIN, 1.0, grader()), [slow], max_failed_share=0.3) as rewards, stopped:
        graded(rewards, requests(["Answer: 7", "slow Answer: 7"]), [3, 4])
