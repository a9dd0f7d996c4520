"""Signals within one process; `test_resume` sends them to real runs."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from gmpo.training.interrupt import Stop, StoppedAtOnce


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
