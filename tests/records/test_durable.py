"""Files that a crash can neither halve nor lose."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gmpo.errors import CheckpointError
from gmpo.records import durable
from gmpo.records.durable import exchange, remove, require_sealed, seal, settle, write_atomically


class Crash(Exception):
    """Nothing after it happens."""


def _folder(place: Path, content: str) -> Path:
    place.mkdir()
    (place / "a.json").write_text(content)
    (place / "below").mkdir()
    (place / "below" / "b.safetensors").write_text(content * 2)
    return place


def _crashing(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], int]:
    """The `at`-th call that changes names fails, and all that follow; returns how many there were."""
    calls = 0
    for module, name in ((os, "replace"), (durable.shutil, "rmtree"), (os, "fsync")):
        true = getattr(module, name)

        def call(*arguments: object, true: Callable[..., object] = true, **named: object) -> object:
            nonlocal calls
            calls += 1
            if calls > at:
                raise Crash
            return true(*arguments, **named)

        monkeypatch.setattr(module, name, call)
    return lambda: calls


@pytest.mark.parametrize("at", range(7))
def test_wherever_an_exchange_is_broken_off_the_old_or_the_new_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    target = _folder(tmp_path / "target", "old")
    new = _folder(tmp_path / ".unfinished_target", "new")
    with monkeypatch.context() as patched:
        made = _crashing(patched, at)
        try:
            exchange(new, target)
        except Crash:
            pass
        else:
            assert made() == 6  # what was there aside is removed; two renames, each synced; the removal
    settle(tmp_path)
    assert (target / "a.json").read_text() == ("old" if at < 4 else "new")
    assert (target / "below" / "b.safetensors").exists()
    assert not list(tmp_path.glob(".unfinished_old*"))


def test_what_is_removed_leaves_its_name_before_its_first_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _folder(tmp_path / "global_step_1", "x")
    with monkeypatch.context() as patched:
        _crashing(patched, 2)  # the rename and its sync; the removal does not happen
        with pytest.raises(Crash):
            remove(folder)
    assert not folder.exists()
    settle(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_sealed_folder_is_whole_until_a_byte_differs(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "x", "text")
    seal(folder)
    require_sealed(folder)
    (folder / "notes.txt").write_text("of the user: no part of it")
    require_sealed(folder)
    file = folder / "below" / "b.safetensors"
    file.write_text("texttexU")
    with pytest.raises(CheckpointError, match=r"b\.safetensors does not hold what was written"):
        require_sealed(folder)
    file.write_text("textte")
    with pytest.raises(CheckpointError, match=r"b\.safetensors has 6 bytes, not 8"):
        require_sealed(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"b\.safetensors is missing"):
        require_sealed(folder)
    (folder / "files.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read .*files\.json"):
        require_sealed(folder)


@pytest.mark.parametrize("name", ["optimizer.pt", ".metadata", "pytorch_model.bin", "below/x.pkl"])
def test_a_planted_pickle_is_refused(tmp_path: Path, name: str) -> None:
    folder = _folder(tmp_path / "x", "text")
    seal(folder)
    (folder / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match="reading it might run code: remove it"):
        require_sealed(folder)


def test_a_disk_that_returns_other_bytes_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _folder(tmp_path / "x", "text")
    to_disk = durable._to_disk

    def failing(file: Path) -> None:
        to_disk(file)
        if file.name == "a.json":
            file.write_text("tex!")

    monkeypatch.setattr(durable, "_to_disk", failing)
    with pytest.raises(CheckpointError, match=r"a\.json: the disk returns other bytes than were written"):
        seal(folder)


def test_a_failed_write_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.json"
    write_atomically(file, "whole")
    for at in (0, 1):  # at the sync, at the rename
        with monkeypatch.context() as patched:
            _crashing(patched, at)
            with pytest.raises(Crash):
                write_atomically(file, "other")
        assert file.read_text() == "whole"
