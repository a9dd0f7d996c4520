"""Micro-batches of packed rows: the answers to one prompt together, so that they share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(slots=True)
class _Bin:
    members: list[int]
    load: int


def prefix_micro_batches(
    groups: Int[Tensor, " B"],
    prompt_lengths: Int[Tensor, " B"],
    response_lengths: Int[Tensor, " B"],
    *,
    rows: int | None = None,
    tokens: int | None = None,
) -> list[Int[Tensor, " R"]]:
    """Indices of micro-batches, the rows of a group in as few of them as the limit allows.

    Groups, or their pieces where one alone passes the limit, are put into the first micro-batch with room, largest
    first. Rows need not be of similar length: nothing is padded.

    Args:
        groups: rows with the same number have the same prompt (`Batch.group`).
        prompt_lengths, response_lengths: tokens of each row.
        rows: at most so many rows each (`ppo_micro_batch_size_per_gpu`), or
        tokens: at most so many tokens each, a prompt counted once for all its answers (`ppo_max_token_len_per_gpu`); a
            single longer row still makes a micro-batch of its own. Exactly one of the two is given.
    """
    assert (rows is None) != (tokens is None)
    limit = tokens if rows is None else rows
    assert limit is not None
    prompts, answers = prompt_lengths.tolist(), response_lengths.tolist()
    if rows is not None:
        prompts, answers = [0] * len(prompts), [1] * len(answers)
    pieces: list[_Bin] = []
    for members in _members(groups):
        pieces += _pieces(members, prompts[members[0]], answers, limit)
    bins: list[_Bin] = []
    for piece in sorted(pieces, key=lambda piece: -piece.load):
        home = next((b for b in bins if b.load + piece.load <= limit), None)
        if home is None:
            bins.append(piece)
        else:
            home.members += piece.members
            home.load += piece.load
    return [torch.tensor(sorted(b.members), dtype=torch.long) for b in bins]


def _members(groups: Tensor) -> list[list[int]]:
    found: dict[int, list[int]] = {}
    for row, group in enumerate(groups.tolist()):
        found.setdefault(group, []).append(row)
    return list(found.values())


def _pieces(members: Sequence[int], prompt: int, answers: Sequence[int], limit: int) -> list[_Bin]:
    """The rows of one group in pieces within the limit, each with the prompt; the longest answers together."""
    pieces: list[_Bin] = []
    for row in sorted(members, key=lambda row: -answers[row]):
        if not pieces or pieces[-1].load + answers[row] > limit:
            pieces.append(_Bin([], prompt))
        pieces[-1].members.append(row)
        pieces[-1].load += answers[row]
    return pieces
