"""The file that graders print to: what is in it, how large it may be, and that printing never fails or waits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gmpo.rewards.grader import Grader, GradeRequest, GraderSpec
from gmpo.rewards.printed import LIMIT, PrintedLog
from gmpo.rewards.verdict import Verdict

DROPPED = re.compile(r"\n\[gmpo\] ([0-9,]+) bytes that graders printed were dropped\n")
BEGINS = "what graders print from here on is dropped"
LINES = 200
"""Room for the two lines about what is missing."""


def printed(log: PrintedLog, *texts: str) -> None:
    for text in texts:
        os.write(log.descriptor, text.encode())


def test_what_fits_is_kept_to_the_byte_and_nothing_else_stands_there(tmp_path: Path) -> None:
    with PrintedLog(tmp_path / "log", 100) as log:
        printed(log, "a" * 60, "b" * 40)
    assert (tmp_path / "log").read_text() == "a" * 60 + "b" * 40
    assert log.dropped == 0


def test_beyond_the_limit_the_file_says_where_and_how_much(tmp_path: Path) -> None:
    with PrintedLog(tmp_path / "log", 100) as log:
        printed(log, "a" * 60, "b" * 60, *["c" * 1000] * 500)
    text = (tmp_path / "log").read_text()
    assert text.startswith("a" * 60 + "b" * 40 + "\n[gmpo] the file holds 100 bytes: " + BEGINS)
    assert "c" not in text.split(BEGINS)[1].split("[gmpo]")[0]
    assert text.count(BEGINS) == 1
    assert DROPPED.search(text)[1] == "500,020"  # type: ignore[index]
    assert log.dropped == 500_020


def test_what_earlier_processes_left_counts_and_stays(tmp_path: Path) -> None:
    for text in ("a" * 60, "b" * 60, "c" * 60):
        with PrintedLog(tmp_path / "log", 100) as log:
            printed(log, text)
    text = (tmp_path / "log").read_text()
    assert text.startswith("a" * 60 + "b" * 40 + "\n")
    assert DROPPED.findall(text) == ["20", "60"]
    assert len(text) <= 100 + 2 * LINES


def test_a_file_that_nothing_was_printed_to_does_not_stay(tmp_path: Path) -> None:
    with PrintedLog(tmp_path / "log"):
        assert (tmp_path / "log").exists()
    assert not (tmp_path / "log").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
def test_on_a_full_disk_printing_goes_on_and_is_counted(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    with PrintedLog(tmp_path / "log") as log:
        printed(log, *["a" * 1000] * 200)
    assert log.dropped == 200_000


def test_a_process_that_outlives_its_worker_keeps_nobody_waiting(tmp_path: Path) -> None:
    log = PrintedLog(tmp_path / "log", 100)
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, stderr=log.descriptor
    )
    printed(log, "a")
    log.close()
    held = (tmp_path / "log").read_text()
    child.communicate(b"")
    assert held == (tmp_path / "log").read_text() == "a"


def noisy(data_source: str, solution_str: str, ground_truth: str, extra_info: object) -> float:
    print("x" * 50_000)
    os.system("echo " + "y" * 5_000)
    return 1.0


def test_graders_that_print_without_end_grade_on_and_the_file_stays_small(tmp_path: Path) -> None:
    """Megabytes through every worker, from Python and from programs that it starts."""
    requests = [GradeRequest("any", "", "text", "1", {}, i) for i in range(40)]
    with PrintedLog(tmp_path / "log", 100_000) as log, Grader(GraderSpec(function=noisy, workers=2)) as grader:
        grader.log = log
        grades = grader.grade(requests)
    assert [grade.verdict for grade in grades] == [Verdict.CORRECT] * 40
    size = (tmp_path / "log").stat().st_size
    assert 100_000 <= size <= 100_000 + LINES
    assert 100_000 + log.dropped == 40 * (50_001 + 5_001)
    assert LIMIT == 10 * 2**20
