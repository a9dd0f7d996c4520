"""The growing cache holds what the library's own cache holds, through growth and loss of rows."""

from __future__ import annotations

import torch
from transformers import Qwen3Config
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from gmpo.backends.kv_cache import GROWTH, GrowingLayer, growing_cache


def test_it_equals_the_librarys_layer_step_by_step() -> None:
    g = torch.Generator().manual_seed(0)
    ours, theirs = GrowingLayer(), DynamicLayer()
    rows = 3
    # a prompt, tokens beyond the first buffer, long pieces and tokens again
    sizes = [7, *[1] * (GROWTH + 3), 2 * GROWTH, 1, 1, 4 * GROWTH, 1]
    # step -> rows that stay after it; the n answers to a prompt are one row, n times
    kept = {0: [2, 0, 2, 1], 20: [3, 1, 0], GROWTH + 2: [2, 0], GROWTH + 5: [1]}
    for step, positions in enumerate(sizes):
        states = torch.randn(2, rows, 2, positions, 3, generator=g)
        for got, expected in zip(ours.update(*states), theirs.update(*states), strict=True):
            assert torch.equal(got, expected), step
        if step in kept:
            for layer in (ours, theirs):
                layer.batch_select_indices(torch.tensor(kept[step]))
            rows = len(kept[step])
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
        assert ours.get_seq_length() == theirs.get_seq_length()


def test_a_buffer_is_copied_only_when_it_is_full() -> None:
    layer = GrowingLayer()
    layer.update(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2))
    buffer = layer.key_buffer.data_ptr()
    one = torch.ones(1, 1, 1, 2)
    for _ in range(GROWTH):
        layer.update(one, one)
    assert layer.key_buffer.data_ptr() == buffer
    layer.update(one, one)
    assert layer.key_buffer.data_ptr() != buffer
    assert layer.get_seq_length() == 4 + GROWTH + 1


def test_only_full_attention_layers_are_exchanged() -> None:
    config = Qwen3Config(
        num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, use_sliding_window=True, max_window_layers=2
    )
    assert [type(layer) for layer in growing_cache(config).layers] == [
        GrowingLayer,
        GrowingLayer,
        DynamicSlidingWindowLayer,
    ]
