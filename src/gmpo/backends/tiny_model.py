"""Small models from scratch, as ordinary Hugging Face folders: for the quickstart, for tests, for trying things out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3MoeConfig,
)

from gmpo.records.run_folder import as_others

transformers.utils.logging.disable_progress_bar()

PAD, END, USER, ASSISTANT = "<pad>", "<eos>", "<user>", "<assistant>"
SPECIAL = (PAD, END, USER, ASSISTANT)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<assistant> {{ message['content'] }} <eos> "
    "{% else %}<user> {{ message['content'] }} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token per word of `words`, split at blanks; other words are refused by an error, not mapped to a default."""
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*SPECIAL, *words]))}
    # The name of an entry that does not exist: the library then refuses unknown words.
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrapped(tokenizer)


def bpe_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level byte-pair encoding trained on `texts`, with at most `size` entries; it can read any text.

    A `size` of 260 is the bytes alone and the four special tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer)


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def make_model(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    hidden: int = 96,
    layers: int = 3,
    heads: int = 3,
    kv_heads: int = 1,
    head_dim: int = 32,
    intermediate: int = 288,
    max_positions: int = 512,
    experts: int = 0,
) -> int:
    """Write a Qwen3 model with random weights and `tokenizer` to `folder`; returns its number of parameters.

    The defaults make 0.33 million parameters with a small vocabulary: tied embeddings, float32, no dropout.

    Args:
        experts: makes a mixture of so many experts, of a quarter of the width and two of them active; 0 is dense.
    """
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": intermediate,
        "max_position_embeddings": max_positions,
        "tie_word_embeddings": True,
        "attention_dropout": 0.0,
        # The library's 0.02 is meant for models ten times as wide; this one learns arithmetic twice as well from 0.05.
        "initializer_range": 0.05,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config: PretrainedConfig = Qwen3Config(**shape)
    if experts:
        width = max(8, intermediate // 4)
        config = Qwen3MoeConfig(**shape, num_experts=experts, num_experts_per_tok=2, moe_intermediate_size=width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    as_others(Path(folder))
    return sum(p.numel() for p in model.parameters())
