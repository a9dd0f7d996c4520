"""Where the tokens of a micro-batch stand when each distinct prompt is written once, and who attends to whom.

All tokens stand on one axis without padding, one tree after the other:

    [prompt a | longest answer | other answers ..][prompt b | longest answer | ..]

A prompt and its longest answer are one ordinary causal sequence, the trunk. Every other answer attends to the prompt
and, causally, to itself. Positions go on after the prompt in every answer. What no wanted token depends on has no
place: an answer's last wanted token predicts nothing, so neither it nor what follows is there. Unwanted tokens before
it are.

Shapes: S places of the axis, N wanted tokens, B rows and T response positions of the micro-batch.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

PADDING_SHARE, PADDING_TOKENS = 0.125, 8
"""Runs attend in one call where the longest is at most this share and so many tokens longer than the shortest."""


@dataclass(frozen=True, slots=True)
class Runs:
    """R stretches of neighbouring places, padded to the longest, L places."""

    places: Int[Tensor, "R L"]
    """Padding repeats the stretch's first place."""
    slots: Int[Tensor, " n"] | None
    """Which of the R * L entries are no padding; None where all are."""
    used: Int[Tensor, " n"]
    """The places of those entries: each once."""

    def shifted(self, by: int) -> Runs:
        """The same stretches so many places further on."""
        return Runs(self.places + by, self.slots, self.used + by)

    def to(self, device: torch.device) -> Runs:
        slots = None if self.slots is None else self.slots.to(device)
        return Runs(self.places.to(device), slots, self.used.to(device))


@dataclass(frozen=True, slots=True)
class Block:
    """One call of attention: run r of the queries attends to run r of the keys.

    Causal blocks are runs that attend to themselves; in the others every query sees every key, and no key is padding.
    Padding behind the runs then needs no mask: no real query ever sees a padded key.
    """

    queries: Runs
    keys: Runs
    causal: bool

    @property
    def length(self) -> int:
        """Tokens of its shorter side, at most: how large the tiles are that attention is computed in."""
        return min(self.queries.places.shape[1], self.keys.places.shape[1])

    def to(self, device: torch.device) -> Block:
        return Block(self.queries.to(device), self.keys.to(device), self.causal)


@dataclass(frozen=True, slots=True)
class PrefixLayout:
    """The packed form of a micro-batch."""

    ids: Int[Tensor, " S"]
    positions: Int[Tensor, " S"]
    predictors: Int[Tensor, " N"]
    """The place whose hidden state predicts each wanted token, in the order of the mask's `nonzero()`."""
    blocks: tuple[Block, ...]
    """Every place is a query of exactly one causal block and of at most one other."""

    @classmethod
    def joined(cls, layouts: Sequence[PrefixLayout]) -> PrefixLayout:
        """Layouts behind one another; the wanted tokens of each follow those of the one before."""
        predictors, blocks, end = [], [], 0
        for one in layouts:
            predictors.append(one.predictors + end)
            blocks += [Block(b.queries.shifted(end), b.keys.shifted(end), b.causal) for b in one.blocks]
            end += len(one.ids)
        return cls(
            ids=torch.cat([one.ids for one in layouts]),
            positions=torch.cat([one.positions for one in layouts]),
            predictors=torch.cat(predictors),
            blocks=tuple(sorted(blocks, key=lambda block: not block.causal)),
        )

    def to(self, device: torch.device) -> PrefixLayout:
        return PrefixLayout(
            self.ids.to(device),
            self.positions.to(device),
            self.predictors.to(device),
            tuple(block.to(device) for block in self.blocks),
        )


@dataclass(frozen=True, slots=True)
class _Run:
    start: int
    length: int


def prefix_layout(
    prompt_ids: Int[Tensor, "B P"],
    prompt_mask: Bool[Tensor, "B P"],
    response_ids: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
) -> PrefixLayout:
    """The layout of CPU tensors as in `Batch`. Rows share a prompt where its tokens are the same.

    Args:
        mask: the tokens whose log-probs are wanted.

    Raises:
        ValueError: a row with wanted tokens has no prompt, so nothing predicts its first token.
    """
    kept = _inputs_needed(mask)
    ids: list[Tensor] = []
    positions: list[Tensor] = []
    prompt_end, answer_start = torch.zeros(len(mask), dtype=torch.long), torch.zeros(len(mask), dtype=torch.long)
    causal: list[_Run] = []
    crossing: list[tuple[_Run, _Run]] = []
    end = 0
    for rows in _same_prompt(prompt_ids, prompt_mask, mask.any(dim=1)):
        rows = sorted(rows, key=lambda row: -kept[row])
        prompt = prompt_ids[rows[0]][prompt_mask[rows[0]]]
        start, trunk = end, end + len(prompt)
        ids.append(prompt)
        positions.append(torch.arange(len(prompt)))
        end = trunk
        for row in rows:
            ids.append(response_ids[row, : kept[row]])
            positions.append(torch.arange(len(prompt), len(prompt) + kept[row]))
            prompt_end[row], answer_start[row] = trunk - 1, end
            if row == rows[0]:
                causal.append(_Run(start, len(prompt) + kept[row]))
            elif kept[row]:
                causal.append(_Run(end, kept[row]))
            end += kept[row]
        others = trunk + kept[rows[0]]
        if end > others:
            crossing.append((_Run(others, end - others), _Run(start, len(prompt))))
    rows_of, tokens_of = mask.nonzero(as_tuple=True)
    before = answer_start[rows_of] + tokens_of - 1
    return PrefixLayout(
        ids=torch.cat(ids) if ids else torch.zeros(0, dtype=torch.long),
        positions=torch.cat(positions) if positions else torch.zeros(0, dtype=torch.long),
        predictors=torch.where(tokens_of == 0, prompt_end[rows_of], before),
        blocks=(*_causal_blocks(causal), *_crossing_blocks(crossing)),
    )


def _inputs_needed(mask: Tensor) -> list[int]:
    """How many response tokens of each row some wanted log-prob depends on: those before its last wanted token."""
    position = torch.arange(mask.shape[1]).expand_as(mask)
    last = position.masked_fill(~mask, 0)
    return [int(n) for n in last.amax(dim=1)] if mask.shape[1] else [0] * len(mask)


def _same_prompt(prompt_ids: Tensor, prompt_mask: Tensor, wanted: Tensor) -> list[list[int]]:
    """The wanted rows by their prompts' tokens, in the order in which the prompts first occur."""
    trees: dict[Hashable, list[int]] = {}
    for row in wanted.nonzero().squeeze(1).tolist():
        prompt = prompt_ids[row][prompt_mask[row]]
        if not len(prompt):
            raise ValueError(f"row {row} has no prompt token, so nothing predicts the first token of its response")
        trees.setdefault(prompt.numpy().tobytes(), []).append(row)
    return list(trees.values())


def _causal_blocks(runs: Sequence[_Run]) -> list[Block]:
    blocks = []
    for members in _alike([run.length for run in runs]):
        padded = _padded([runs[i] for i in members])
        blocks.append(Block(padded, padded, causal=True))
    return blocks


def _crossing_blocks(pairs: Sequence[tuple[_Run, _Run]]) -> list[Block]:
    """Keys of one block have the same length exactly: padded keys would need a mask."""
    by_keys: dict[int, list[tuple[_Run, _Run]]] = {}
    for pair in pairs:
        by_keys.setdefault(pair[1].length, []).append(pair)
    blocks = []
    for same in by_keys.values():
        for members in _alike([queries.length for queries, _ in same]):
            queries = _padded([same[i][0] for i in members])
            keys = _padded([same[i][1] for i in members])
            blocks.append(Block(queries, keys, causal=False))
    return blocks


def _alike(lengths: Sequence[int]) -> list[list[int]]:
    """Indices in parts of similar length, longest first: see `PADDING_SHARE`."""
    parts: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not parts or lengths[parts[-1][0]] > (1 + PADDING_SHARE) * lengths[i] + PADDING_TOKENS:
            parts.append([])
        parts[-1].append(i)
    return parts


def _padded(runs: Sequence[_Run]) -> Runs:
    starts = torch.tensor([run.start for run in runs]).unsqueeze(1)
    lengths = torch.tensor([run.length for run in runs]).unsqueeze(1)
    offset = torch.arange(int(lengths.max())).unsqueeze(0)
    real = offset < lengths
    places = starts + offset * real
    slots = None if bool(real.all()) else real.flatten().nonzero().squeeze(1)
    return Runs(places, slots, places[real])
