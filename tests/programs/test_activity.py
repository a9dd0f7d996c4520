"""What a run says of itself during a long phase."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gmpo.records.activity import Activity
from gmpo.tracking import console
from gmpo.tracking.console import ConsoleSink


def test_a_silence_is_broken_by_a_line_with_phase_answers_and_tokens(
    bench: Any, tmp_path: Path, lines: Callable[[Path], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reward waits until the line of its own phase has been printed, of the step and of the validation."""
    monkeypatch.setattr(console, "SILENCE_S", 0.05)
    printed = tmp_path / "printed.txt"
    with printed.open("w", buffering=1) as file:
        line = f"grading: 16 of 16 answers sampled, 0 graded, .* tokens|validation|{printed}"

        def reward(solution_str: str) -> float:
            import re
            import time
            from pathlib import Path

            wanted, _, name = line.split("|")
            while not re.search(wanted, Path(name).read_text()):
                time.sleep(0.01)
            return 1.0

        run = bench.train(
            {"trainer.total_training_steps": 1, "trainer.sample_groups": -1, "trainer.logger": ["console"]},
            reward=reward,
            console=Console(file=file, width=200),
        )
    tokens = sum(sample["tokens"] for sample in lines(run.folder / "samples" / "1.jsonl"))
    wanted = r"after step 0/1 - grading: 16 of 16 answers sampled, 0 graded, (\d+) tokens\n"
    said = re.findall(wanted, printed.read_text())
    assert said
    assert {int(count) for count in said} == {tokens}


def test_a_terminal_shows_it_in_the_bar_and_a_file_only_after_a_silence() -> None:
    for terminal in (True, False):
        out, activity = StringIO(), Activity()
        shown = Console(file=out, force_terminal=terminal, width=200)
        sink = ConsoleSink(shown, label="train", total_steps=3, steps_per_epoch=3, activity=activity)
        sink.start(0)
        activity.begin("validation", lambda: 1)
        activity.ask(8)
        activity.answered(2)
        activity.drew(99)
        sink.progress.refresh()
        assert ("validation: 2 of 8 answers sampled, 1 graded, 99 tokens" in out.getvalue()) == terminal
        sink.close()


def test_a_run_that_does_nothing_says_nothing() -> None:
    out = StringIO()
    sink = ConsoleSink(Console(file=out), label="t", total_steps=1, steps_per_epoch=1, activity=Activity())
    sink.say_activity()
    assert out.getvalue() == ""


def test_what_a_reward_prints_goes_to_a_file_that_the_console_names_once(bench: Any) -> None:
    def reward(solution_str: str) -> float:
        import os
        import sys

        print("printed by the reward")
        print("complained by the reward", file=sys.stderr)
        os.system("echo echoed by a program")
        return 1.0

    console = Console(file=StringIO(), width=1000)
    run = bench.train({"trainer.total_training_steps": 1}, reward=reward, console=console)
    said, file = console.file.getvalue(), run.folder / "graders.log"
    assert said.count(f"what reward functions print: {file}\n") == 1
    for words in ("printed by the reward", "complained by the reward", "echoed by a program"):
        assert words not in said
        assert file.read_text().count(words) == 16
