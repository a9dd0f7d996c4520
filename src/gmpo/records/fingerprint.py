"""Fingerprints of files and of a model folder, so that a run is recognised by what it used and not by where it lay."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

LENGTH = 16
"""Hexadecimal digits of a fingerprint: 64 bits."""
BLOCK = 1 << 16
BLOCKS = 256
"""So many blocks of a weight file are read at even distances: 16 MiB, which takes a fraction of a second."""
WHOLE = BLOCK * BLOCKS
"""Files up to this size are read whole."""
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def of_json(value: Any) -> str:
    """Fingerprint of a value as JSON; what JSON has no form for goes by its `repr`, or by its type where that holds a
    place in memory."""
    return _digest([json.dumps(value, sort_keys=True, default=_named).encode()])


def _named(value: Any) -> str:
    text = repr(value)
    return type(value).__qualname__ if " at 0x" in text else text


def of_file(file: Path) -> str:
    """Fingerprint of a whole file, or of the word `missing`."""
    try:
        return _digest([file.read_bytes()])
    except OSError:
        return "missing"


def of_model(folder: Path) -> str:
    """Fingerprint of a Hugging Face folder: config.json and the weight files, by their bytes and not by their place.

    A weight file of up to 16 MiB is read whole. Of a larger one are read its size, its first block (in safetensors: the
    names, shapes and places of the tensors), and 256 blocks of 64 KiB at even distances, the last one at its end. Two
    models that were trained differently differ nearly everywhere, so that they are told apart; a change of a few bytes
    between the blocks is not seen.
    """
    weights = sorted({file for pattern in WEIGHTS for file in folder.glob(pattern) if file.is_file()})
    parts = [of_file(folder / "config.json"), *(f"{file.name} {_of_weights(file)}" for file in weights)]
    return of_json(parts)


def _of_weights(file: Path) -> str:
    size = file.stat().st_size
    with file.open("rb") as content:
        return f"{size} {_digest(_blocks(content, size))}"


def _blocks(content: BinaryIO, size: int) -> Iterator[bytes]:
    if size <= WHOLE:
        yield content.read()
        return
    for number in range(BLOCKS):
        content.seek((size - BLOCK) * number // (BLOCKS - 1))
        yield content.read(BLOCK)


def _digest(parts: Iterator[bytes] | list[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:LENGTH]
