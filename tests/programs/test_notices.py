"""What a run says of itself while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from gmpo.config import load
from gmpo.tracking.notices import Notices

A = "actor_rollout_ref.actor"


def step(solved: int, **failed: float) -> dict[str, float]:
    found = {f"reward/{kind}": count for kind, count in failed.items()}
    return {"critic/score/mean": 0.5, "rollout/problems": 16.0, "rollout/all_wrong_groups": 1 - solved / 16, **found}


def said_of(steps: list[Mapping[str, float]]) -> list[tuple[int, str]]:
    """Lines with the step after which each came."""
    said: list[tuple[int, str]] = []
    notices = Notices(lambda line: said.append((number, line)), "run/samples/", "run/validation/")
    notices.start(0)
    for number, metrics in enumerate(steps, 1):
        notices.write(number, metrics)
    return said


def test_a_collapse_is_said_once_at_the_step_in_which_it_is_certain_with_the_checkpoint_before_it() -> None:
    """12 of 16 problems solved in each of two steps, then none: (32 / (32 + 16 k))^24 < 1e-6 from k = 2 on."""
    (only,) = said_of([step(12), step(12), *[step(0)] * 6])
    assert only[0] == 4
    assert "step 4: the policy seems to have fallen apart: no problem of the last 2 steps" in only[1]
    assert "go on from global_step_1 or an older checkpoint" in only[1], "step 3 was sampled by the weights of step 2"
    assert f"{A}.optim.lr" in only[1]


def test_answers_that_become_all_alike_are_said_once() -> None:
    """12 of 16 problems teach in each of two steps, then none: certain after two steps, as above."""
    teaching, alike = step(8) | {"rollout/zero_variance_groups": 0.25}, step(8) | {"rollout/zero_variance_groups": 1.0}
    (only,) = said_of([teaching, teaching, *[alike] * 5])
    assert only[0] == 4
    assert "nothing was learned in the last 2 steps" in only[1]
    solved = alike | {"rollout/all_wrong_groups": 0.0, "rollout/all_right_groups": 1.0}
    assert not said_of([teaching, teaching, *[solved] * 5]), "that is success"


def test_failing_gradings_are_said_at_the_first_and_when_they_are_ten_times_as_many() -> None:
    found = said_of([step(4), step(4, timeout=2.0), step(4, timeout=2.0), step(4, grader_error=16.0), step(4)])
    assert [number for number, _ in found] == [2, 4]
    assert "2 answers so far could not be graded (now 2 timeout); their reward is 0" in found[0][1]
    assert "20 answers so far" in found[1][1]
    assert "16 grader_error" in found[1][1]
    assert "run/samples/" in found[0][1]


def test_failing_gradings_of_a_validation_are_said_with_the_folder_of_its_answers() -> None:
    (only,) = said_of([{"val/pass@1": 0.5, "val/timeout": 3.0}, step(4)])
    assert only[0] == 1
    assert "3 answers so far could not be graded (now 3 timeout in the validation)" in only[1]
    assert "The reasons are in run/validation/" in only[1]


def test_a_validation_that_falls_is_said_once() -> None:
    high = {"val/pass@1": 0.5, "val/pass@1_low": 0.46, "val/pass@1_high": 0.54, "training/global_step": 1.0}
    low = {"val/pass@1": 0.3, "val/pass@1_low": 0.26, "val/pass@1_high": 0.34, "training/global_step": 2.0}
    (only,) = said_of([high, low, low])
    assert only[0] == 2
    assert "pass@1 fell from 0.500 (0.460-0.540) after step 1 to 0.300 (0.260-0.340)" in only[1]


def test_a_run_that_goes_on_is_judged_with_the_steps_before() -> None:
    """The steps of the earlier process solved 12 of 16 problems each; those beyond the checkpoint count no more."""
    before = [step(12) | {"training/global_step": float(n)} for n in (1, 2, 3)]
    said: list[str] = []
    notices = Notices(said.append, "s/", "v/", past=lambda: before)
    notices.start(2)
    notices.write(3, step(0))
    assert not said
    notices.write(4, step(0))
    assert "(0 of 32), 24 of 32 before" in said[0]


def test_a_run_whose_grader_fails_below_the_limit_says_so_on_the_console(bench: Any) -> None:
    out = StringIO()

    def reward(solution_str: str) -> float:
        if len(solution_str.split()) > 7:
            raise ValueError("too long for me")
        return float(len(solution_str.split()) % 2)

    bench.train(
        {"reward_model.max_failed_share": 1.0, "trainer.logger": ["console"]},
        reward=reward,
        console=Console(file=out, width=200),
    )
    assert "answers so far could not be graded (now" in out.getvalue()
    assert "grader_error); their reward is 0" in out.getvalue()


@pytest.mark.parametrize(
    ("override", "path", "words"),
    [
        (f"{A}.optim.lr=100", f"{A}.optim.lr", "the policy will fall apart"),
        (f"{A}.optim.lr=0.01", None, ""),
        ("data.max_response_length=1", "data.max_response_length", "hardly an answer fits"),
        (f"{A}.policy_loss.loss_mode=gspo", f"{A}.clip_ratio_high", "published bounds are 0.0003 and 0.0004"),
    ],
)
def test_settings_that_make_no_sense_are_warned_of(override: str, path: str | None, words: str) -> None:
    """The last one leaves GMPO's bound of 0.4 to a loss of another scale."""
    warned = {note.path: note.reason for note in load(["recipe=gmpo", override]).warnings}
    of_these = (f"{A}.optim.lr", "data.max_response_length", f"{A}.clip_ratio_high")
    mine = {path: reason for path, reason in warned.items() if path in of_these}
    assert list(mine) == ([] if path is None else [path])
    if path is not None:
        assert words in mine[path]
