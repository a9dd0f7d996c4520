"""Every random number of a run is a function of named integers (seed, step, position ..), so there is no state to save.

numpy keeps the raw streams of its bit generators for good, but not what `Generator`'s methods make of them; a run may
be resumed under another numpy, so these functions use raw draws alone.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt


def uniform(size: int, *key: int) -> npt.NDArray[np.float64]:
    """`size` multiples of 2^-53 in [0, 1) from the stream that `key` (integers from 0 to 2^128 - 1) names."""
    return (_raw(size, key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@lru_cache(maxsize=8)
def permutation(size: int, *key: int) -> npt.NDArray[np.intp]:
    """A permutation of range(size) from the stream that `key` names: the order of its raw draws. Read-only."""
    order = np.argsort(_raw(size, key), kind="stable")
    order.setflags(write=False)
    return order


def turn_key(key: int, turn: int, answer: int) -> int:
    """The key of one answer's `turn`-th turn where the n answers to a problem are not sampled together.

    Args:
        key: of the problem.
    """
    return (answer << 112) | (turn << 100) | key


def _raw(size: int, key: tuple[int, ...]) -> npt.NDArray[np.uint64]:
    # SeedSequence strings numbers of any size together, so (1, 0) and (1,) would name one stream: every number gets
    # the same width, 128 bits, and their count comes first.
    words = [(number >> shift) & 0xFFFFFFFF for number in (len(key), *key) for shift in (0, 32, 64, 96)]
    return np.random.Philox(np.random.SeedSequence(words)).random_raw(size)
