"""A run whose grader fails too often is stopped with an explanation."""

from __future__ import annotations

import pytest

from gmpo.errors import BackendError
from gmpo.rewards.failures import check_failed_share, failed_share
from gmpo.rewards.verdict import Grade, Verdict

RIGHT = Grade(Verdict.CORRECT, 1.0)
UNPARSED = Grade(Verdict.UNPARSED, 0.0)
SLOW = Grade(Verdict.TIMEOUT, 0.0, reason="no result within 1 s")
REFUSED = Grade(Verdict.TIMEOUT, 0.0, reason="refused: more than 1500 operations", refused=True)
BROKEN = Grade(Verdict.GRADER_ERROR, 0.0, reason="KeyError: 'x'")


def test_only_timeouts_and_grader_errors_are_failures() -> None:
    assert failed_share([RIGHT, UNPARSED, SLOW, BROKEN]) == 0.5
    assert failed_share([]) == 0.0


def test_a_share_at_the_limit_passes_and_one_above_it_stops_the_run() -> None:
    check_failed_share([RIGHT, SLOW], 0.5)
    with pytest.raises(BackendError):
        check_failed_share([RIGHT, SLOW, SLOW], 0.5)


def test_the_error_gives_counts_reasons_an_example_and_the_remedy() -> None:
    grades = [RIGHT, BROKEN, SLOW, BROKEN]
    with pytest.raises(BackendError) as caught:
        check_failed_share(grades, 0.1, texts=["a", "the answer text", "c", "d"])
    message = str(caught.value)
    assert "3 of 4 answers (75%, limit 10%)" in message
    assert "grader_error 2, timeout 1" in message
    assert "2 x grader_error: KeyError: 'x'" in message
    assert "answer 1, which ends in 'the answer text'" in message
    assert "reward_model.grader_timeout_s or reward_model.grader_memory_mb" in message


def test_an_answer_that_was_refused_for_its_size_is_no_failure_of_the_grader() -> None:
    assert failed_share([REFUSED] * 40 + [RIGHT]) == 0.0
    check_failed_share([REFUSED] * 1_000, 0.0)
    assert failed_share([REFUSED, SLOW]) == 0.5
