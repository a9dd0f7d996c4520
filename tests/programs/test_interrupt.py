"""Signals within one process; `test_resume` sends them to real runs."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from gmpo.training.interrupt import EXPIRIES, Expiry, StepAbandonedError, Stop, StoppedAtOnce


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_the_second_interrupts(number: signal.Signals) -> None:
    said: list[str] = []
    with Stop(said.append) as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert said == ["Stopping after this step. Ctrl-C again stops at once."]
        assert stop.code == 128 + number
        with pytest.raises(StoppedAtOnce) as second:
            os.kill(os.getpid(), number)
        assert isinstance(second.value, KeyboardInterrupt)
        assert second.value.code == 128 + number
        assert len(said) == 1


def test_a_schedulers_signal_asks_as_often_as_it_comes_and_leaves_ctrl_c_its_two_presses() -> None:
    said: list[str] = []
    with Stop(said.append) as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert (stop.requested, stop.code) == (True, 75)
        os.kill(os.getpid(), signal.SIGTERM)  # the time is up: the step and its checkpoint may still be done
        assert (stop.requested, stop.code) == (True, 143)
        with pytest.raises(StoppedAtOnce):
            os.kill(os.getpid(), signal.SIGTERM)
    assert said == [
        "SIGUSR1: Stopping after this step, with a checkpoint and exit status 75: the same command goes on."
    ]


def test_a_run_ends_while_there_is_time_for_another_stretch_like_its_longest() -> None:
    """A job that ends at 700 s, of which 20 shall be left; the first step with loading 310 s, then 10, 40, 200, .."""
    now = 0.0
    said: list[str] = []
    stop = Stop(said.append, Expiry(700.0, "SLURM_JOB_END_TIME", 20.0), lambda: now)
    ended = []
    for seconds in (310, 10, 40, 200, 60, 10):
        now += seconds
        ended.append(stop.step_ended())
    # 310: 370 left, 310 needed. 320: 360, 10. 360: 320, 40. 560: 120 left, 200 needed.
    assert ended == [False, False, False, True, True, True]
    assert stop.code == 75
    assert len(said) == 1
    assert said[0].endswith(
        "and a step takes up to 200 s. Stopping after this step, with a checkpoint and exit status "
        "75: the same command goes on."
    )


def test_a_start_that_took_longer_than_what_is_left_ends_after_one_step() -> None:
    now = 0.0
    stop = Stop(expiry=Expiry(500.0, "SLURM_JOB_END_TIME", 0.0), clock=lambda: now)
    now = 300.0
    assert stop.step_ended()


@pytest.mark.parametrize(
    ("environment", "moment"),
    [
        ({}, None),
        ({"SLURM_JOB_END_TIME": "soon"}, None),
        ({"SLURM_JOB_END_TIME": "0"}, None),
        (
            {"SLURM_JOB_END_TIME": "1795787694", EXPIRIES[1]: "1"},
            1795787694,
        ),
        ({EXPIRIES[1]: "1795787694.5"}, 1795787694.5),
    ],
)
def test_schedulers_tell_the_end_in_the_environment(environment: dict[str, str], moment: float | None) -> None:
    found = Expiry.of(environment, 60.0)
    assert (None if found is None else found.moment) == moment


def test_a_step_is_given_up_while_it_samples_and_finished_while_it_updates() -> None:
    said: list[str] = []
    with Stop(said.append, within=0.05) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StepAbandonedError), stop.abandonable():
            time.sleep(60)
        assert "0.05 s have passed (trainer.stop_within_s): this step is given up" in said[-1]
        with pytest.raises(StepAbandonedError), stop.abandonable():
            pytest.fail("it begins although the time is over")
    with Stop(within=0.05) as stop:
        with stop.abandonable():
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)  # an update goes on: nothing is raised
        assert stop.step_ended()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_afterwards_signals_mean_what_they_meant_before() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def fail() -> None:
        with Stop():
            assert signal.getsignal(signal.SIGINT) not in before
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_in_another_thread_there_is_nothing_to_catch_and_nothing_fails() -> None:
    outcome: list[bool] = []

    def work() -> None:
        with Stop() as stop:
            outcome.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outcome == [False]
