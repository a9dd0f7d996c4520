"""Attention over packed rows that share their prompts: exact, bounded in padding, refused where it is not defined."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gmpo.backends.prefix_attention import LAYOUT, shared_prefix_attention
from gmpo.backends.prefix_layout import PADDING_SHARE, PADDING_TOKENS, PrefixLayout, prefix_layout
from gmpo.errors import BackendError
from gmpo.records.batch import pad_left, pad_right

Rows = tuple[Tensor, Tensor, Tensor, Tensor]
"""Prompt ids and mask, response ids and mask, as in `Batch`."""


def rows_of(groups: list[tuple[int, list[int]]]) -> Rows:
    """Rows of random tokens from each group's prompt length and its answers' lengths."""
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(1, 40, (prompt,), generator=generator).tolist() for prompt, _ in groups]
    repeated = [p for p, (_, answers) in zip(prompts, groups, strict=True) for _ in answers]
    responses = [torch.randint(1, 40, (n,), generator=generator).tolist() for _, answers in groups for n in answers]
    return *pad_left(repeated, 0), *pad_right(responses, 0)


@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.lists(st.integers(0, 30), min_size=1, max_size=8)), min_size=1, max_size=5
    ),
    st.sampled_from([(4, 4), (4, 2), (3, 1)]),
)
def test_attention_over_a_layout_is_exact_in_float64(
    groups: list[tuple[int, list[int]]], heads: tuple[int, int]
) -> None:
    """Against causal attention written out, row by row, with the prompt's queries, keys and values repeated."""
    rows = rows_of(groups)
    layout = prefix_layout(*rows)
    if not len(layout.ids):
        return
    generator = torch.Generator().manual_seed(2)
    q, k, v = (
        # Scores of up to about 30, so that shares of the joined softmax differ by many orders of magnitude.
        (2.0 * torch.randn(len(layout.ids), n, 8, generator=generator, dtype=torch.float64)).requires_grad_()
        for n in (heads[0], heads[1], heads[1])
    )
    out, _ = shared_prefix_attention(
        torch.nn.Identity(), *(x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)), None, 0.35, **{LAYOUT: layout}
    )
    packed = out[0][layout.predictors]
    plain = torch.cat([_causal(q, k, v, places, 0.35)[p - 1 :] for places, p in _walks(rows, layout)])
    assert (packed - plain).abs().max() < 1e-12
    weights = torch.randn(packed.shape, generator=generator, dtype=torch.float64)
    for got, wanted in zip(
        torch.autograd.grad(packed, (q, k, v), weights), torch.autograd.grad(plain, (q, k, v), weights), strict=True
    ):
        assert (got - wanted).abs().max() < 1e-11


def _walks(rows: Rows, layout: PrefixLayout) -> list[tuple[Tensor, int]]:
    """For each row with tokens: the places of its prompt and of its answer but for the last token; prompt length."""
    found = []
    predictors = layout.predictors.split(rows[3].sum(1).tolist())
    for places, prompt in zip(predictors, rows[1].sum(1).tolist(), strict=True):
        if len(places):
            first = int(places[0])
            found.append((torch.cat([torch.arange(first - prompt + 1, first), places]), prompt))
    return found


def _causal(q: Tensor, k: Tensor, v: Tensor, places: Tensor, scale: float) -> Tensor:
    """Causal attention `[L, H, D]` of the queries at `places` over the keys there, by its definition."""
    share = q.shape[1] // k.shape[1]
    keys, values = (x[places].repeat_interleave(share, dim=1) for x in (k, v))
    scores = scale * torch.einsum("qhd,khd->hqk", q[places], keys)
    later = torch.ones(len(places), len(places), dtype=torch.bool).triu(1)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -torch.inf).softmax(-1), values)


def test_a_layout_on_paper() -> None:
    """Prompts [7, 8] (twice) and [9], of which the second answer is the longest, the third has nothing in the loss."""
    prompt_ids, prompt_mask = pad_left([[7, 8], [7, 8], [9], [7, 8]], 0)
    response_ids, _ = pad_right([[11, 12, 13], [21, 22, 23, 24], [31], [41, 42]], 0)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    layout = prefix_layout(prompt_ids, prompt_mask, response_ids, mask)
    #                           prompt | longest     | 1st | 4th
    assert layout.ids.tolist() == [7, 8, 21, 22, 23, 11, 41]
    assert layout.positions.tolist() == [0, 1, 2, 3, 4, 2, 2]
    assert layout.predictors.tolist() == [1, 5, 1, 4, 1, 6]
    causal, crossing = layout.blocks
    # Short runs attend in one call; padding repeats a run's first place.
    assert causal.queries.places.tolist() == [[0, 1, 2, 3, 4], [5, 5, 5, 5, 5], [6, 6, 6, 6, 6]]
    assert causal.queries.used.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert causal.keys is causal.queries
    assert (causal.causal, crossing.causal) == (True, False)
    assert crossing.queries.places.tolist() == [[5, 6]]
    assert crossing.keys.places.tolist() == [[0, 1]]


@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.lists(st.integers(0, 200), min_size=1, max_size=8)), min_size=1, max_size=6
    )
)
def test_padding_inside_attention_is_bounded_and_every_place_is_queried(groups: list[tuple[int, list[int]]]) -> None:
    layout = prefix_layout(*rows_of(groups))
    causal = [block for block in layout.blocks if block.causal]
    queried = torch.cat([block.queries.used for block in causal] or [torch.zeros(0, dtype=torch.long)])
    assert queried.sort().values.tolist() == list(range(len(layout.ids)))
    for block in layout.blocks:
        assert block.keys is block.queries or block.keys.slots is None
        runs, longest = block.queries.places.shape
        assert runs * longest <= (1 + PADDING_SHARE) * len(block.queries.used) + PADDING_TOKENS * runs


@pytest.mark.parametrize("argument", [{"sliding_window": 8}, {"softcap": 30.0}, {"dropout": 0.1}])
def test_another_kind_of_attention_is_refused_in_the_call(argument: dict[str, float]) -> None:
    layout = prefix_layout(*rows_of([(3, [2])]))
    x = torch.zeros(1, 1, len(layout.ids), 8)
    with pytest.raises(BackendError, match=next(iter(argument))):
        shared_prefix_attention(torch.nn.Identity(), x, x, x, None, **{LAYOUT: layout}, **argument)
