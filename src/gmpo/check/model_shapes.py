"""Shapes of language models, for estimates of memory: well-known ones by name, any other from its `config.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the number of parameters and the size of activations and caches depend on."""

    layers: int
    hidden: int
    intermediate: int
    """Width of the dense feed-forward layers; of a mixture of experts unused."""
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    """The LM head is the embedding."""
    qkv_bias: bool = False
    qk_norm: bool = False
    experts: int = 0
    active_experts: int = 0
    expert_width: int = 0
    norms: int = 2
    """Normalisations per layer."""

    @property
    def attention(self) -> int:
        """Parameters of one layer's attention."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        bias = query + 2 * key if self.qkv_bias else 0
        norm = 2 * self.head_dim if self.qk_norm else 0
        return self.hidden * (2 * query + 2 * key) + bias + norm

    @property
    def feed_forward(self) -> int:
        """Parameters of one layer's feed-forward part, router and all experts included."""
        if self.experts:
            return self.hidden * self.experts + self.experts * 3 * self.hidden * self.expert_width
        return 3 * self.hidden * self.intermediate

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        return self.attention + self.feed_forward + self.norms * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters. Example: Qwen2.5-7B has 7,615,616,512."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + self.layers * self.layer + self.hidden

    def adapter_parameters(self, rank: int) -> int:
        """Of low-rank adapters on every linear layer but the head; experts have none."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        widths = 2 * (self.hidden + query) + 2 * (self.hidden + key)
        if not self.experts:
            widths += 3 * (self.hidden + self.intermediate)
        return rank * self.layers * widths

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that a token leaves in the key-value cache."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def kept_per_token(self) -> int:
        """Numbers that a layer's backward pass needs of a token: inputs of the norms and products, queries, keys and
        values, the attention's output, and the gated feed-forward part."""
        width = self.active_experts * self.expert_width if self.experts else self.intermediate
        return 4 * self.hidden + 2 * self.heads * self.head_dim + 2 * self.kv_heads * self.head_dim + 3 * width


SHAPES: Mapping[str, ModelShape] = {
    name: ModelShape(**fields)
    for name, fields in json.loads(Path(__file__).with_name("model_shapes.json").read_text("utf-8")).items()
}
"""Name -> shape. Variants (-Instruct, -Base, -Math, -Coder) have the shape of their family."""

_ALIASES = (
    (r"deepseek-r1-distill-qwen-1\.5b", "deepseek-r1-distill-qwen-1.5b"),
    (r"deepseek-r1-distill-(?:qwen|llama)-(\d+b)", None),
    (r"deepseek-llm-7b", "deepseek-llm-7b"),
    (r"gemma-2-2b", "gemma-2-2b"),
    (r"qwen3-(\d+b-a\d+b)", "qwen3-{}"),
    (r"qwen3-(\d+(?:\.\d+)?b)", "qwen3-{}"),
    (r"qwen2(?:\.5)?(?:-math|-coder)?-(\d+(?:\.\d+)?b)", "qwen2.5-{}"),
    (r"llama-3(?:\.\d)?-(\d+b)", "llama-3-{}"),
)


def shape_by_name(model: str) -> tuple[str, ModelShape] | None:
    """The built-in shape of a model path or hub name, by its last part; None for an unknown one."""
    name = re.split(r"[/\\]", model.rstrip("/\\"))[-1].lower().replace("_", "-").replace("meta-", "")
    for pattern, target in _ALIASES:
        match = re.match(pattern, name)
        if match is None:
            continue
        if target is None:
            family = "qwen2.5" if "qwen" in name else "llama-3"
            target = f"{family}-{{}}"
        known = target.format(*match.groups())
        return (known, SHAPES[known]) if known in SHAPES else None
    return None


def shape_of_folder(folder: Path) -> ModelShape | None:
    """The shape that a Hugging Face folder's `config.json` describes; None where it is missing or says too little."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        experts = int(config.get("num_experts") or config.get("num_local_experts") or 0)
        family = str(config.get("model_type", ""))
        return ModelShape(
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            intermediate=int(config["intermediate_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=bool(config.get("attention_bias", family.startswith("qwen2"))),
            qk_norm=family.startswith("qwen3"),
            experts=experts,
            active_experts=int(config.get("num_experts_per_tok") or 0),
            expert_width=int(config.get("moe_intermediate_size") or (config["intermediate_size"] if experts else 0)),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
