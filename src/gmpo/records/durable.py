"""Files that a crash can neither halve nor lose: synced, sealed by their hashes, and exchanged so that at every moment
the old one or the new one is there.

A folder that appears under its name is whole, on the disk, and has a list of its files with hashes (`files.json`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from gmpo.errors import CheckpointError

UNFINISHED = ".unfinished_"
"""What the names of files and folders begin with that are being written, or are on their way out."""
OLD = f"{UNFINISHED}old_"
SEAL = "files.json"
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".metadata", ".distcp"})
"""Endings of files that run code when they are read, or that may."""
_BLOCK = 2**22
_checked: dict[Path, tuple[tuple[str, int, int, int], ...]] = {}
"""Folder -> its files when their hashes were compared last."""


def sync(place: Path) -> None:
    """Have the disk hold a file, or the names in a folder."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some file systems sync no folders; they write names at once, or nobody can make them.
        if not place.is_dir():
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Have the disk hold a folder with all that is in it."""
    for place in (*folder.rglob("*"), folder):
        sync(place)


def write_atomically(file: Path, content: str | bytes) -> None:
    """Write beside the file, make sure that it is on the disk, and rename."""
    beside = file.with_name(f"{UNFINISHED}{file.name}")
    data = content if isinstance(content, bytes) else content.encode("utf-8", errors="backslashreplace")
    with beside.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    rename(beside, file)


def rename(source: Path, target: Path) -> None:
    """Rename, and have the disk know it."""
    os.replace(source, target)
    sync(target.parent)


def exchange(new: Path, target: Path) -> None:
    """Rename the folder `new` to `target`. An older `target` is put aside first and removed last; a crash between is
    undone by `settle`."""
    old = target.with_name(f"{OLD}{target.name}")
    _settle(old)
    if target.exists():
        rename(target, old)
    rename(new, target)
    shutil.rmtree(old, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove a folder: it is gone from its name before the first of its files is."""
    going = folder.with_name(f"{OLD}{folder.name}.removed")
    rename(folder, going)
    shutil.rmtree(going)


def settle(root: Path) -> None:
    """Of exchanges that a crash broke off: put back what has no successor, and remove what has one."""
    for old in root.glob(f"{OLD}*"):
        _settle(old)


def _settle(old: Path) -> None:
    target = old.with_name(old.name.removeprefix(OLD))
    if target.exists() or target.name.endswith(".removed"):
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        rename(old, target)


def seal(folder: Path) -> None:
    """Have the disk hold every file of a folder, read them back from there, and list them with their hashes.

    Raises:
        CheckpointError: the disk holds something else than was written.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / SEAL]
    written = _in_parallel(_hash, files)
    for file in files:
        _to_disk(file)
    for file, before, after in zip(files, written, _in_parallel(_hash, files), strict=True):
        if before != after:
            raise CheckpointError(f"{file}: the disk returns other bytes than were written: it is failing")
    listed = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": digest}
        for file, digest in zip(files, written, strict=True)
    }
    write_atomically(folder / SEAL, json.dumps({"format": 1, "files": listed}, indent=1))
    for place in (path for path in folder.rglob("*") if path.is_dir()):
        sync(place)
    sync(folder)


def is_sealed(folder: Path) -> bool:
    """Whether the files of a folder have a list."""
    return (folder / SEAL).is_file()


def require_sealed(folder: Path) -> None:
    """Compare the files of a folder with their list. Others are left alone, unless reading them might run code.

    Raises:
        CheckpointError: a file is missing, longer or shorter, holds something else, or is a pickle; it is named.
    """
    refuse_pickles(folder)
    if _checked.get(folder) == (stamps := _stamps(folder)):
        return
    try:
        listed = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
        expected = {folder / name: (int(of["bytes"]), str(of["sha256"])) for name, of in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"cannot read {folder / SEAL}: {error!r}") from error
    for file, (size, _) in expected.items():
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            raise CheckpointError(f"{file} is missing" if found is None else f"{file} has {found} bytes, not {size}")
    try:
        digests = _in_parallel(_hash, list(expected))
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from error
    for (file, (_, digest)), found_digest in zip(expected.items(), digests, strict=True):
        if digest != found_digest:
            raise CheckpointError(f"{file} does not hold what was written (its SHA-256 differs)")
    _checked[folder] = stamps


def refuse_pickles(folder: Path) -> None:
    """Raises CheckpointError where a file of a kind that no checkpoint has might run code when it is read."""
    for path in folder.rglob("*"):
        if path.suffix in PICKLES or path.name in PICKLES:
            raise CheckpointError(f"{path} is no file of a checkpoint, and reading it might run code: remove it")


def _stamps(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    found = ((str(path), path.stat()) for path in sorted(folder.rglob("*")) if path.is_file())
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def _hash(file: Path) -> str:
    with file.open("rb", buffering=0) as opened:
        digest = hashlib.sha256()
        while block := opened.read(_BLOCK):
            digest.update(block)
        return digest.hexdigest()


def _to_disk(file: Path) -> None:
    """Sync it, and have the next reader ask the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        with suppress(AttributeError, OSError):  # not on every system
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _in_parallel(work: Callable[[Path], str], files: list[Path]) -> list[str]:
    """Hashing leaves the interpreter's lock alone, so that several files go at the speed of the disk."""
    with ThreadPoolExecutor(max_workers=4, thread_name_prefix="hash") as pool:
        return list(pool.map(work, files))
