"""Random numbers are functions of their key."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmpo.streams import TRAINING, VALIDATION, permutation, stream_key, turn_key, uniform


def test_a_longer_stream_begins_like_a_shorter_one() -> None:
    assert uniform(100, 1, 2, 3)[:10].tolist() == uniform(10, 1, 2, 3).tolist()


def test_neighbouring_keys_name_unrelated_streams() -> None:
    keys = [(0,), (1,), (0, 0), (0, 1), (1, 0), (1 << 96,)]
    streams = np.stack([uniform(2000, *key) for key in keys])
    correlation = np.corrcoef(streams) - np.eye(len(keys))
    assert np.abs(correlation).max() < 0.1  # 4.5 standard errors of 1 / sqrt(2000)


def test_the_numbers_are_uniform_in_the_half_open_interval() -> None:
    x = uniform(100_000, 7)
    assert x.min() >= 0.0
    assert x.max() < 1.0
    counts = np.histogram(x, bins=20, range=(0, 1))[0]
    chi_square = ((counts - 5000) ** 2 / 5000).sum()
    assert chi_square < 43.8  # 19 degrees of freedom, p = 0.001


def test_the_streams_are_fixed_for_good() -> None:
    assert uniform(3, 1, 2).tolist() == [0.7692523870057049, 0.8810538373124378, 0.19212226839576618]
    assert permutation(8, 1, 2).tolist() == [2, 5, 6, 3, 7, 4, 0, 1]


def test_a_permutation_holds_every_number_once() -> None:
    assert sorted(permutation(1000, 5).tolist()) == list(range(1000))


POSITION, TURN, ANSWER = (st.integers(0, 2**bits - 1) for bits in (36, 8, 16))
PLACE = st.tuples(st.sampled_from([TRAINING, VALIDATION]), POSITION, TURN, ANSWER)


@given(PLACE, PLACE)
def test_keys_fit_63_bits_and_differ_where_anything_differs(
    one: tuple[int, int, int, int], other: tuple[int, int, int, int]
) -> None:
    keys = [turn_key(stream_key(n, p), t, a) for n, p, t, a in (one, other)]
    assert all(0 <= key < 2**63 for key in keys)
    assert (keys[0] == keys[1]) == (one == other)


def test_keys_on_paper_and_numbers_that_do_not_fit() -> None:
    assert stream_key(TRAINING, 5) == 5 * 2**24
    assert stream_key(VALIDATION, 5) == 2**60 + 5 * 2**24
    assert turn_key(stream_key(TRAINING, 5), 2, 3) == 5 * 2**24 + 2 * 2**16 + 3
    assert turn_key(stream_key(TRAINING, 5), 0, 0) == stream_key(TRAINING, 5)
    with pytest.raises(ValueError, match="not the key of a problem"):
        turn_key(turn_key(stream_key(TRAINING, 5), 0, 1), 1, 0)
    with pytest.raises(ValueError, match="does not fit the 36 bits"):
        stream_key(TRAINING, 2**36)
    with pytest.raises(ValueError, match="256 does not fit the 8 bits"):
        turn_key(0, 256, 0)
    with pytest.raises(ValueError, match="-1 does not fit the 16 bits"):
        turn_key(0, 0, -1)
