"""Decoding of the common families with the arithmetic alone: products, norms and attention, no modules and no hooks.

For a small model most of a decoding step is what the library does around its products. This reads the weights once for
each rollout and runs a step in a dozen calls a layer. Prompts go through the library's model.

All rows end in the same column of the cache. A row that enters late stands right-aligned before that column, so rows of
any age share one buffer, and a row's first column and position are all that is its own.

Shapes: R rows, Q query heads, K key-value heads, D their width, L columns of the cache.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from gmpo.backends.adapters import bias_of, weight_of
from gmpo.backends.devices import Device
from gmpo.backends.family import ROUNDED
from gmpo.backends.kv_cache import cache_argument
from gmpo.backends.packed import FAMILIES, only_full_attention
from gmpo.backends.products import attention_product
from gmpo.backends.structure import altered
from gmpo.records.batch import pad_left

ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
"""Rotations that do not depend on the length of the sequence."""
GROWTH = 64
"""Columns by which a full cache grows at least."""
PROBE_TOLERANCE = 1e-3
"""Nats by which a step may differ from the model's own in float32."""


@dataclass(frozen=True, slots=True)
class _Layer:
    before_attention: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    head_norm: Tensor | None
    """Weights `[Q + K, D]` of the norms of queries and keys; None without such norms."""
    out: Tensor
    out_bias: Tensor | None
    before_mlp: Tensor
    gate_up: Tensor | None
    """None for a mixture of experts, which is left to the library's module."""
    down: Tensor | None
    experts: Any


class FastDecoder:
    """A `Decoder` for the families of `gmpo.backends.packed.FAMILIES`; see `supports`. Reads the weights when made."""

    enters_running = True

    def __init__(self, model: PreTrainedModel, device: Device) -> None:
        self.model, self.device = model, device
        config: Any = model.config
        self.queries, self.keys = config.num_attention_heads, config.num_key_value_heads
        self.width = getattr(config, "head_dim", None) or config.hidden_size // self.queries
        self.eps = config.rms_norm_eps
        base: Any = model.base_model
        with torch.no_grad():
            self.layers = [self._layer(layer) for layer in base.layers]
            self.norm = base.norm.weight
            self.embedding = base.embed_tokens.weight
            head: Any = model.get_output_embeddings()
            self.head = self._ready(head.weight)
        self.rotary = base.rotary_emb
        self.cache: list[Tensor] = []  # of each layer: keys and values [2, R, K, L, D]
        self.first = torch.zeros(0, dtype=torch.long, device=device.torch)  # each row's first column
        self.position = self.first  # of each row's newest token
        self.end = 0
        self.logits = torch.empty(0, self.head.shape[0], device=device.torch)
        self.cosine = self.sine = torch.zeros(0, self.width, device=device.torch)

    @staticmethod
    def supports(model: PreTrainedModel, compute: torch.dtype = torch.float32) -> bool:
        """Whether this is how the model computes: by its configuration and parts, and by comparing some steps.

        Args:
            compute: dtype of the products; shorter weights than float32 must have it too.
        """
        config: Any = model.config
        if altered(model) is not None:
            return False
        if config.model_type not in FAMILIES or not only_full_attention(config):
            return False
        if not type(model).__module__.startswith("transformers.models.") or config.hidden_act != "silu":
            return False
        rotary: Any = getattr(model.base_model, "rotary_emb", None)
        head: Any = model.get_output_embeddings()
        if getattr(rotary, "rope_type", None) not in ROPE_TYPES or head is None or head.bias is not None:
            return False
        return not _unread(model) and _agrees(model, compute)

    def _ready(self, weight: Tensor) -> Tensor:
        return weight.detach().to(self.device.compute)

    def _layer(self, layer: Any) -> _Layer:
        a, mlp = layer.self_attn, layer.mlp
        projections = (a.q_proj, a.k_proj, a.v_proj)
        biases: list[Any] = [bias_of(p) for p in projections]
        norms = getattr(a, "q_norm", None), getattr(a, "k_norm", None)
        dense = hasattr(mlp, "gate_proj")
        return _Layer(
            before_attention=layer.input_layernorm.weight,
            qkv=self._ready(torch.cat([weight_of(p) for p in projections])),
            qkv_bias=None if biases[0] is None else self._ready(torch.cat(biases)),
            head_norm=None
            if norms[0] is None or norms[1] is None
            else torch.stack([norms[0].weight] * self.queries + [norms[1].weight] * self.keys),
            out=self._ready(weight_of(a.o_proj)),
            out_bias=None if (bias := bias_of(a.o_proj)) is None else self._ready(bias),
            before_mlp=layer.post_attention_layernorm.weight,
            gate_up=self._ready(torch.cat([weight_of(mlp.gate_proj), weight_of(mlp.up_proj)])) if dense else None,
            down=self._ready(weight_of(mlp.down_proj)) if dense else None,
            experts=None if dense else mlp,
        )

    def enter(self, prompts: Sequence[Sequence[int]], copies: int) -> Tensor:
        where = self.device.torch
        ids, mask = (x.to(where) for x in pad_left(prompts, 0))
        width = ids.shape[1]
        position = (mask.long().cumsum(1) - 1).clamp(min=0)
        prefilled = DynamicCache(config=self.model.config)
        out = self.model(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=position,
            use_cache=True,
            logits_to_keep=1,
            **{cache_argument(self.model): prefilled},
        )
        if not len(self.first):
            self.cache, self.end = [], width
        assert width <= self.end
        rows = torch.arange(len(prompts), device=where).repeat_interleave(copies)
        layers: list[Any] = list(prefilled.layers)
        for i, layer in enumerate(layers):
            # In the dtype in which attention takes them, which autocast would make of the whole cache in every step.
            states = [part.to(self.device.compute) for part in (layer.keys, layer.values)]
            new = torch.stack(states).index_select(1, rows)
            if i == len(self.cache):
                self.cache.append(new.new_empty(2, 0, self.keys, width + GROWTH, self.width))
            old = self.cache[i]
            grown = old.new_zeros(2, old.shape[1] + len(rows), *old.shape[2:])
            grown[:, : old.shape[1]] = old
            grown[:, old.shape[1] :, :, self.end - width : self.end] = new
            self.cache[i] = grown
        first = self.end - mask.sum(1)
        self.first = torch.cat([self.first, first[rows]])
        self.position = torch.cat([self.position, position[rows, -1]])
        logits: Tensor = out.logits[rows, -1].float()
        return logits

    def keep(self, rows: Tensor) -> None:
        self.cache = [layer.index_select(1, rows) for layer in self.cache]
        self.first, self.position = self.first[rows], self.position[rows]

    def step(self, tokens: Tensor) -> Tensor:
        self._make_room()
        self.position = self.position + 1
        cosine, sine = self._rotation()
        end = self.end = self.end + 1
        # Without a mask, torch's attention takes a faster kernel; none is needed where every row begins in column 0.
        mask = None
        if bool(self.first.any()):
            mask = (torch.arange(end, device=tokens.device) >= self.first.unsqueeze(1))[:, None, None]
        # The residual stream stays in the embedding's dtype, as in the library; products and norms round on their own.
        hidden = F.embedding(tokens, self.embedding)
        rows, heads = len(tokens), self.queries + self.keys
        for layer, cache in zip(self.layers, self.cache, strict=True):
            qkv = F.linear(self._normed(hidden, layer.before_attention), layer.qkv, layer.qkv_bias)
            qkv = qkv.view(rows, heads + self.keys, self.width)
            qk = qkv[:, :heads]
            if layer.head_norm is not None:
                qk = self._normed(qk, layer.head_norm)
            # Queries and keys are rotated in one go: that is why they stand side by side in `qkv`.
            qk = torch.addcmul(qk * cosine, qk.roll(self.width // 2, -1), sine).to(cache.dtype)
            cache[0, :, :, end - 1] = qk[:, self.queries :]
            cache[1, :, :, end - 1] = qkv[:, heads:]
            # The query heads that share a key stand where a sequence's positions would: nothing is repeated.
            query = qk[:, : self.queries].unflatten(1, (self.keys, -1))
            with attention_product(1):
                attended = F.scaled_dot_product_attention(
                    query, cache[0, :, :, :end], cache[1, :, :, :end], attn_mask=mask
                )
            hidden = hidden + F.linear(attended.reshape(rows, -1).to(layer.out.dtype), layer.out, layer.out_bias)
            normed = self._normed(hidden, layer.before_mlp)
            if layer.gate_up is None:
                hidden = hidden + self._experts(layer.experts, normed)
            else:
                gate, up = F.linear(normed, layer.gate_up).chunk(2, dim=1)
                hidden = hidden + F.linear(F.silu(gate) * up, layer.down)  # type: ignore[arg-type]
        return self._logits(self._normed(hidden, self.norm))

    def _logits(self, hidden: Tensor) -> Tensor:
        """In one buffer for all steps: for a large vocabulary, fresh memory would cost a third of the product."""
        if hidden.dtype != torch.float32:
            return F.linear(hidden, self.head).float()
        rows, vocabulary = len(hidden), self.head.shape[0]
        if self.logits.shape[0] < rows:
            self.logits = torch.empty(rows, vocabulary, device=hidden.device)
        return torch.mm(hidden, self.head.T, out=self.logits[:rows])

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """Root-mean-square norm in float32, then the products' dtype."""
        x = x.float()
        return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * weight).to(self.device.compute)

    def _experts(self, module: Any, normed: Tensor) -> Tensor:
        out = module(normed.unsqueeze(1))
        out = out[0] if isinstance(out, tuple) else out  # with the router's logits, in older versions
        found: Tensor = out.squeeze(1)
        return found

    def _rotation(self) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines `[R, 1, D]` of the rows' positions; `rotate_half(x) sin` is `roll(x) signed`."""
        longest = int(self.position.max())
        if longest >= len(self.cosine):
            positions = torch.arange(2 * longest + GROWTH, device=self.device.torch).unsqueeze(0)
            cosine, sine = self.rotary(torch.zeros(1, device=self.device.torch), positions)
            sign = torch.ones(self.width, device=self.device.torch)
            sign[: self.width // 2] = -1.0
            self.cosine, self.sine = cosine[0], sine[0] * sign
        return self.cosine[self.position].unsqueeze(1), self.sine[self.position].unsqueeze(1)

    def _make_room(self) -> None:
        """A free column behind the newest. Columns that no row has any more are given up first."""
        capacity = self.cache[0].shape[3]
        if self.end < capacity:
            return
        unused = int(self.first.min())
        kept = self.end - unused
        columns = capacity if unused > capacity // 2 else max(kept + GROWTH, 2 * kept)
        for i, old in enumerate(self.cache):
            new = old.new_zeros(*old.shape[:3], columns, self.width)
            new[:, :, :, :kept] = old[:, :, :, unused : self.end]
            self.cache[i] = new
        self.first, self.end = self.first - unused, kept


_READ = re.compile(
    r"layers\.\d+\.(input_layernorm\.weight|post_attention_layernorm\.weight|self_attn\.([qkvo]_proj\.(weight|bias)|"
    r"[qk]_norm\.weight)|mlp\.(gate|up|down)_proj\.weight)|norm\.weight|embed_tokens\.weight"
)


_ADAPTER = re.compile(r"\.lora_[AB]\.\w+\.weight")


def _unread(model: PreTrainedModel) -> list[str]:
    """Parameters that a step would leave out. While they are zero (a bias, an adapter) no comparison finds them."""
    base: Any = model.base_model
    experts = tuple(f"layers.{i}.mlp." for i, layer in enumerate(base.layers) if not hasattr(layer.mlp, "gate_proj"))
    # An adapter is read with the layer that it belongs to.
    parameters = (name.replace(".base_layer.", ".") for name, _ in base.named_parameters())
    names = (_ADAPTER.sub(".weight", name) for name in parameters if not name.startswith(experts or "\0"))
    unread = [name for name in names if _READ.fullmatch(name) is None]
    # Of the three that are joined, all have a bias or none.
    for i, layer in enumerate(base.layers):
        attention = layer.self_attn
        if len({bias_of(p) is None for p in (attention.q_proj, attention.k_proj, attention.v_proj)}) > 1:
            unread.append(f"layers.{i}.self_attn")
    return unread


def _agrees(model: PreTrainedModel, compute: torch.dtype) -> bool:
    """Three steps after a prompt and beside a shorter one, against one pass of the model over all tokens.

    In float32 where the weights are, whatever the products will be; weights of a shorter dtype round as they do in use,
    which leaves a mean to compare.
    """
    first = next(model.parameters())
    where, exact = first.device, first.dtype == torch.float32
    device = Device(where, torch.float32 if exact else compute)
    vocabulary = model.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr,index]
    ids = torch.arange(1, 8, device=where) % int(vocabulary)
    training = model.training
    model.eval()
    with torch.no_grad(), device.autocast():
        own = torch.log_softmax(model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0].float(), -1)
        decoder = FastDecoder(model, device)
        steps = [decoder.enter([ids[:4].tolist(), ids[:2].tolist()], 1)]
        steps += [decoder.step(ids[t].repeat(2)).clone() for t in (4, 5, 6)]
        got = torch.log_softmax(torch.stack([logits[0] for logits in steps]), -1)
    model.train(training)
    apart = (got - own[3:]).abs()
    if exact:
        return bool((apart <= PROBE_TOLERANCE).all())
    return first.dtype == compute and bool(apart.mean() <= ROUNDED)
