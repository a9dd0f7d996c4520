"""Records that wait in memory: what a file holds in the end, and when waiting ends."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gmpo.errors import BackendError
from gmpo.tracking.held import HeldRecords


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_lines_stay_whole_and_in_order_across_a_full_disk(tmp_path: Path) -> None:
    """Room for 2 lines and a half: the third leaves no half of it; with room all come, each once."""
    said: list[str] = []
    held, file, other = HeldRecords(said.append), tmp_path / "a" / "lines", tmp_path / "whole"
    with room(25):
        for number in range(6):
            held.append(file, f"line {number:4}\n".encode())
        held.write(other, b"x" * 20)
        held.write(other, b"y" * 30)
        assert file.read_text() == "line    0\nline    1\n"
        assert other.read_bytes() == b""
        assert len(said) == 1
        assert f"cannot write {file}: " in said[0]
        held.close(failing=True)
        assert f"cannot write {file}, {other}: " in said[1]
        with pytest.raises(BackendError, match=r"lines, \S*whole: .* 70 bytes of records are lost"):
            held.close()
    held.append(file, b"line    6\n")
    assert file.read_text() == "".join(f"line {number:4}\n" for number in range(7))
    assert other.read_bytes() == b"y" * 30
    assert said[2:] == ["records are written again, those that waited in memory too"]
    held.close()


def test_waiting_has_a_bound_and_is_for_what_passes_alone(tmp_path: Path) -> None:
    held = HeldRecords(lambda line: None, most=100)
    with room(10):
        held.append(tmp_path / "a", b"x" * 100)
        with pytest.raises(OSError, match="too large"):
            held.append(tmp_path / "a", b"x")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        held.append(tmp_path / "file" / "below", b"x")
    assert (tmp_path / "a").read_bytes() == b"x" * 101
    held.close()
