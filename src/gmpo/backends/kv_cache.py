"""A key-value cache that writes in place and can drop rows, for any `transformers` model."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

GROWTH = 64
"""Positions by which a full buffer grows at least; it doubles beyond that."""


class GrowingLayer(DynamicLayer):
    """Keys and values `[rows, heads, positions, head_dim]` inside buffers with spare positions.

    The library's own dynamic layer copies the whole cache for every token; this one copies when a buffer is full.
    """

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.key_buffer = _empty_like(key_states, GROWTH)
        self.value_buffer = _empty_like(value_states, GROWTH)
        self.length = 0
        self._show()
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        if end > self.key_buffer.shape[2]:
            positions = max(end + GROWTH, 2 * self.key_buffer.shape[2])
            self.key_buffer = _moved(self.key_buffer, self.length, positions)
            self.value_buffer = _moved(self.value_buffer, self.length, positions)
        self.key_buffer[:, :, self.length : end] = key_states
        self.value_buffer[:, :, self.length : end] = value_states
        self.length = end
        self._show()
        return self.key_buffer[:, :, :end], self.value_buffer[:, :, :end]

    def batch_select_indices(self, indices: Tensor) -> None:
        self.key_buffer = self.key_buffer.index_select(0, indices)
        self.value_buffer = self.value_buffer.index_select(0, indices)
        self._show()

    def _show(self) -> None:
        self.keys = self.key_buffer[:, :, : self.length]
        self.values = self.value_buffer[:, :, : self.length]


def _empty_like(states: Tensor, spare: int) -> Tensor:
    rows, heads, positions, width = states.shape
    return torch.empty((rows, heads, positions + spare, width), dtype=states.dtype, device=states.device)


def _moved(buffer: Tensor, length: int, positions: int) -> Tensor:
    rows, heads, _, width = buffer.shape
    larger = torch.empty((rows, heads, positions, width), dtype=buffer.dtype, device=buffer.device)
    larger[:, :, :length] = buffer[:, :, :length]
    return larger


def growing_cache(config: PretrainedConfig) -> DynamicCache:
    """The model's own dynamic cache with its full-attention layers exchanged for `GrowingLayer`; layers of another kind
    (sliding window, linear attention) stay the library's."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def select_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Keep these rows of a cache, in this order.

    A layer with a state of its own (linear attention, convolution) has tensors whose first dimension are the rows, and
    in the library no method that picks some.
    """
    for layer in cache.layers:
        states = {name: state for name, state in vars(layer).items() if name in ("conv_states", "recurrent_states")}
        if hasattr(layer, "batch_select_indices"):
            layer.batch_select_indices(rows)
        for name, state in states.items():
            if vars(layer)[name] is state:
                vars(layer)[name] = _selected(state, rows)


def _selected(state: Any, rows: Tensor) -> Any:
    if isinstance(state, Tensor):
        return state.index_select(0, rows)
    if isinstance(state, dict):
        return {name: _selected(part, rows) for name, part in state.items()}
    return [_selected(part, rows) for part in state] if isinstance(state, list) else state


def cache_argument(model: PreTrainedModel) -> str:
    """The keyword of the model's cache: transformers renames `past_key_values`, and warns of the old name."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"
