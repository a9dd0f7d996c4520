"""Which rank computes which rows."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


def deal(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """Items of each rank, ascending, so that the largest sum of costs is small: the dearest first, each to the rank
    that has least. The outcome is a function of the arguments.

    Example: costs 5, 4, 3, 3 on two ranks give [0, 3] and [1, 2].
    """
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0, rank) for rank in range(ranks)]
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, rank = loads[0]
        dealt[rank].append(item)
        heapq.heapreplace(loads, (load + costs[item], rank))
    return [sorted(items) for items in dealt]


def deal_rows(group: Int[Tensor, " B"], lengths: Int[Tensor, " B"], ranks: int) -> list[Int[Tensor, " R"]]:
    """Rows of each rank, balanced by tokens.

    The answers to a problem stay together, because they share its prompt; but a problem with more tokens than a rank's
    share is divided, or ranks would wait for the one that has it.

    Args:
        group: problem of each row; lengths: tokens of each row.
    """
    share = max(1, -(-int(lengths.sum()) // ranks))
    pieces: list[list[int]] = []
    costs: list[int] = []
    for problem in torch.unique(group):
        rows = (group == problem).nonzero().squeeze(1).tolist()
        sizes = lengths[rows].tolist()
        cuts = deal(sizes, min(len(rows), -(-sum(sizes) // share))) if rows else []
        for cut in cuts:
            pieces.append([rows[i] for i in cut])
            costs.append(sum(sizes[i] for i in cut))
    found = deal(costs, ranks)
    return [torch.tensor(sorted(row for p in own for row in pieces[p]), dtype=torch.long) for own in found]
