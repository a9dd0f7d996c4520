"""Attention over a `PrefixLayout`: blocks without masks, joined through their log-sum-exps.

The answers of a group attend to one copy of the prompt's keys and values, and nothing quadratic in the micro-batch is
ever held. A query of two blocks has its softmax over both: the parts are weighted with their shares of the common
denominator, which each part's log-sum-exp gives. The backward pass of the fused kernel takes the log-sum-exp and the
output as arguments; given those of the joined softmax, it returns the exact gradient of each part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gmpo.backends.prefix_layout import Block, PrefixLayout, Runs
from gmpo.backends.products import attention_product
from gmpo.backends.sequence_parallel import Slices, key_copies
from gmpo.errors import BackendError

NAME = "gmpo_shared_prefix"
"""The attention implementation's name in `transformers`."""
PLAIN = "sdpa"
"""What it does in a call without a layout."""
LAYOUT = "prefix_layout"
"""Keyword of the model's call that carries the layout to every layer."""
REFUSED = ("sliding_window", "softcap", "s_aux", "position_bias", "cache")
"""Arguments of other kinds of attention, which the blocks would ignore."""

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _BlockAttention(torch.autograd.Function):
    """Queries `[S, Hq, D]`, keys and values `[S, Hkv, D]` -> outputs `[S, Hq, D]`."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: tuple[Block, ...], scale: float | None
    ) -> Tensor:
        # Every place is a query of one causal block, which comes first; others are joined to what is there.
        joined: Tensor | None = None
        lse: Tensor | None = None
        for block in blocks:
            with attention_product(block.length):
                out, part = _attend(
                    _take(query, block.queries),
                    _take(key, block.keys),
                    _take(value, block.keys),
                    0.0,
                    block.causal,
                    scale=scale,
                )
            if joined is None or lse is None:
                # The kernel's log-sum-exp is float32 or better; the parts are joined in that.
                joined = torch.zeros(query.shape, dtype=part.dtype, device=query.device)
                lse = torch.full(query.shape[:2], -torch.inf, dtype=part.dtype, device=query.device)
            _join(joined, lse, block.queries, _flat(out, block.queries), _flat(part, block.queries))
        assert joined is not None
        assert lse is not None
        result = joined.to(query.dtype)
        ctx.save_for_backward(query, key, value, result, lse)
        ctx.blocks, ctx.scale = blocks, scale
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, lse = ctx.saved_tensors
        grads = [torch.zeros_like(x) for x in (query, key, value)]
        for block in ctx.blocks:
            # Softmax's gradient of a block depends on the other blocks through two numbers of each query: the joint
            # log-sum-exp and sum(out * grad), which the kernel takes from the joint output. So both are passed, and
            # not the block's own.
            with attention_product(block.length):
                parts = _attend_backward(
                    _take(grad, block.queries),
                    _take(query, block.queries),
                    _take(key, block.keys),
                    _take(value, block.keys),
                    _take(out, block.queries),
                    # The probabilities of a padded query become exp(score - inf) = 0, and with them all that it adds.
                    _take_lse(lse, block.queries),
                    0.0,
                    block.causal,
                    scale=ctx.scale,
                )
            for total, part, runs in zip(grads, parts, (block.queries, block.keys, block.keys), strict=True):
                # Each place occurs once in a block's runs, so indexed addition loses nothing.
                total[runs.used] += _flat(part, runs)
        return grads[0], grads[1], grads[2], None, None


def _take(x: Tensor, runs: Runs) -> Tensor:
    """`[S, H, ..]` -> `[R, H, L, ..]`."""
    return x.index_select(0, runs.places.flatten()).view(*runs.places.shape, *x.shape[1:]).transpose(1, 2)


def _flat(x: Tensor, runs: Runs) -> Tensor:
    """`[R, H, L, ..]` -> `[n, H, ..]`, the entries that are no padding."""
    flat = x.transpose(1, 2).flatten(0, 1)
    return flat if runs.slots is None else flat.index_select(0, runs.slots)


def _take_lse(lse: Tensor, runs: Runs) -> Tensor:
    """`[S, H]` -> `[R, H, L]`, infinity at padded entries."""
    if runs.slots is None:
        return _take(lse, runs)
    taken = torch.full((runs.places.numel(), lse.shape[1]), torch.inf, dtype=lse.dtype, device=lse.device)
    taken[runs.slots] = lse[runs.used]
    return taken.view(*runs.places.shape, lse.shape[1]).transpose(1, 2)


def _join(out: Tensor, lse: Tensor, runs: Runs, part: Tensor, part_lse: Tensor) -> None:
    """Join one block's outputs `[n, H, D]` and log-sum-exps `[n, H]` to the totals, in place."""
    # Each part is normalised by its own sum; its share of the joint one is exp(lse - joint lse). A place without a part
    # so far has lse = -inf and share 0.
    before = lse[runs.used]
    after = torch.logaddexp(before, part_lse)
    kept, added = (before - after).exp().unsqueeze(-1), (part_lse - after).exp().unsqueeze(-1)
    out[runs.used] = out[runs.used] * kept + part * added
    lse[runs.used] = after


def shared_prefix_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """An attention function of `transformers`: `[1, H, S, D]` over the layout in `kwargs`, plain attention without one.

    Where the layout is divided between ranks (`Slices`) it has a slice of the places, `[1, H, C, D]`.

    Returns:
        outputs `[1, S, H, D]`, and None in the place of attention weights.

    Raises:
        BackendError: the layer asks for a kind of attention that the blocks do not have.
    """
    layout: PrefixLayout | Slices | None = kwargs.pop(LAYOUT, None)
    if layout is None:
        with attention_product(min(query.shape[2], key.shape[2])):
            return ALL_ATTENTION_FUNCTIONS[PLAIN](  # type: ignore[no-any-return]
                module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
            )
    refused = [name for name in REFUSED if kwargs.get(name) is not None]
    if refused or dropout:
        raise BackendError(
            f"{type(module).__name__}: shared prefixes are not defined for attention with "
            f"{', '.join(refused) or f'dropout {dropout}'}; the model must not have them enabled."
        )
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        # As the library's own attention, which autocast runs in the lower precision; it does not know our function.
        query, key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value))
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    if isinstance(layout, PrefixLayout):
        return _BlockAttention.apply(query, key, value, layout.blocks, scaling).unsqueeze(0), None
    copies = key_copies(key.shape[1], layout.group.size)
    key, value = (x.repeat_interleave(copies, dim=1) if copies > 1 else x for x in (key, value))
    query, key, value = (layout.heads(x) for x in (query, key, value))
    out = _BlockAttention.apply(query, key, value, layout.layout.blocks, scaling)
    return layout.places(out).unsqueeze(0), None


AttentionInterface.register(NAME, shared_prefix_attention)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS[PLAIN])
