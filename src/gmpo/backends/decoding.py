"""Decoding with a key-value cache, a token of many rows at a time: what a decoder does, and the one for every model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gmpo.backends.kv_cache import cache_argument, growing_cache, select_rows
from gmpo.records.batch import pad_left


class Decoder(Protocol):
    """Rows that grow by a token at a time. A row is a prompt and what was sampled after it."""

    enters_running: bool
    """Rows may enter while others run; otherwise only when there are none."""

    def enter(self, prompts: Sequence[Sequence[int]], copies: int) -> Tensor:
        """Append `copies` rows for each prompt, which is computed once; returns their logits `[new rows, V]`.

        A prompt that enters while others run must not be longer than the longest that entered before it.
        """

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to every row; returns logits `[rows, V]`, which the caller may overwrite and the next step
        does."""

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these, in this order."""


class LibraryDecoder:
    """Every step is a forward pass of the model's own code."""

    enters_running = False

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.argument = cache_argument(model)

    def enter(self, prompts: Sequence[Sequence[int]], copies: int) -> Tensor:
        ids, mask = (x.to(self.device) for x in pad_left(prompts, 0))
        position = (mask.long().cumsum(1) - 1).clamp(min=0)
        self.cache = growing_cache(self.model.config)
        out = self.model(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=position,
            use_cache=True,
            **{self.argument: self.cache},
            logits_to_keep=1,
        )
        rows = torch.arange(len(prompts), device=self.device).repeat_interleave(copies)
        select_rows(self.cache, rows)
        self.position = position[rows, -1:]
        self.attention = mask.long()[rows]
        logits: Tensor = out.logits[rows, -1].float()
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        self.position = self.position + 1
        self.attention = torch.cat([self.attention, self.attention.new_ones(len(tokens), 1)], dim=1)
        logits: Tensor = self.model(
            input_ids=tokens.unsqueeze(1),
            attention_mask=self.attention,
            position_ids=self.position,
            use_cache=True,
            **{self.argument: self.cache},
        ).logits[:, -1]
        return logits.float()

    def keep(self, rows: Tensor) -> None:
        select_rows(self.cache, rows)
        self.position, self.attention = self.position[rows], self.attention[rows]
