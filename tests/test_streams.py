"""Random numbers are functions of their key."""

from __future__ import annotations

import numpy as np

from gmpo.streams import permutation, uniform


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
