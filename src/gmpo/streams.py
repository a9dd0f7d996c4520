"""Every random number of a run is a function of named integers (seed, position ..), so there is no state to save.

numpy keeps the raw streams of its bit generators for good, but not what `Generator`'s methods make of them; a run may
be resumed under another numpy, so these functions use raw draws alone.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

TRAINING, VALIDATION = 0, 1
"""Namespaces of the streams that answers are drawn from."""
_POSITION_BITS, _TURN_BITS, _ANSWER_BITS = 36, 8, 16


def uniform(size: int, *key: int) -> npt.NDArray[np.float64]:
    """`size` multiples of 2^-53 in [0, 1) from the stream that `key` (integers from 0 to 2^128 - 1) names."""
    return (_raw(size, key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@lru_cache(maxsize=8)
def permutation(size: int, *key: int) -> npt.NDArray[np.intp]:
    """A permutation of range(size) from the stream that `key` names: the order of its raw draws. Read-only."""
    order = np.argsort(_raw(size, key), kind="stable")
    order.setflags(write=False)
    return order


def stream_key(namespace: int, position: int) -> int:
    """The key of the answers to one problem: 63 bits, of which the last 24 are 0 and left to `turn_key`.

    Args:
        namespace: `TRAINING` or `VALIDATION`.
        position: of the problem, below 2^36: in training its position in the stream of problems, counted over all
            epochs, so that neither the step nor the time at which it is sampled plays a part; in validation its place
            in the set, so that every validation draws the same numbers and differs only by the policy.
    """
    return _bits((namespace, 3), (position, _POSITION_BITS)) << (_TURN_BITS + _ANSWER_BITS)


def turn_key(key: int, turn: int, answer: int) -> int:
    """The key of one answer's `turn`-th turn where the n answers to a problem are not sampled together.

    The number of the answer stands in the last bits: keys of one turn are neighbours, as the seeds are that an engine
    gives to the n answers to one request, and different keys never share such a seed.

    Args:
        key: of the problem, as `stream_key` returned it; turn: below 2^8; answer: below 2^16.
    """
    if key % (1 << (_TURN_BITS + _ANSWER_BITS)):
        raise ValueError(f"{key} is not the key of a problem: turn and answer stand in it already")
    return key | _bits((turn, _TURN_BITS), (answer, _ANSWER_BITS))


def _bits(*parts: tuple[int, int]) -> int:
    """Numbers and their widths -> one number. Raises ValueError where one does not fit."""
    joined = 0
    for number, width in parts:
        if not 0 <= number < 1 << width:
            raise ValueError(f"{number} does not fit the {width} bits that a stream's key has for it")
        joined = joined << width | number
    return joined


def _raw(size: int, key: tuple[int, ...]) -> npt.NDArray[np.uint64]:
    # SeedSequence strings numbers of any size together, so (1, 0) and (1,) would name one stream: every number gets
    # the same width, 128 bits, and their count comes first.
    words = [(number >> shift) & 0xFFFFFFFF for number in (len(key), *key) for shift in (0, 32, 64, 96)]
    return np.random.Philox(np.random.SeedSequence(words)).random_raw(size)
