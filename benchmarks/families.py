"""Every causal family of the installed transformers, tiny and with random weights: right, or refused by name.

    python benchmarks/families.py [--markdown] [FAMILY ...]

A line each. Where `gmpo train` would start, sampler, learner and the learner's gradient are compared with one plain
unpadded
pass a row, in float32; where it would not, the line says why.
"""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from gmpo.backends.devices import Device
from gmpo.backends.family import unlike
from gmpo.backends.forward import PolicyModule
from gmpo.backends.models import leave_out_chance
from gmpo.backends.torch_sampler import TorchSampler
from gmpo.backends.trainable import training_mode
from gmpo.backends.weights import LiveWeights
from gmpo.ports import SampleRequest, SamplingParams
from gmpo.records.batch import Batch, pad_left, pad_right

FAMILIES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
CPU = Device(torch.device("cpu"), torch.float32)
MOST_PARAMETERS = 20_000_000

WIDTHS = 32
"""Of hidden states."""
SIZES: dict[str, int] = {
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "word_embed_proj_dim", "lru_width"), WIDTHS
    ),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_inner", "decoder_ffn_dim"), 48),
    **dict.fromkeys(
        ("encoder_ffn_dim", "mamba_d_ssm", "vocab_size", "vocab_size_per_layer_input", "sliding_window"), 64
    ),
    **dict.fromkeys(("attention_window_size", "index_topk"), 64),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "multi_query_group_num", "num_global_key_value_heads"), 2),
    **dict.fromkeys(
        ("head_dim", "global_head_dim", "kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "v_head_dim"), 8
    ),
    **dict.fromkeys(("qk_nope_head_dim", "linear_key_head_dim", "linear_value_head_dim", "mamba_d_head"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "mamba_head_dim", "mamba_chunk_size", "chunk_size"), 8),
    **dict.fromkeys(("rotary_dim", "hidden_size_per_layer_input", "index_head_dim"), 8),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "laurel_rank"), 4),
    **dict.fromkeys(("mamba_d_state", "mamba_d_conv", "ssm_state_size", "state_size", "mamba_dt_rank"), 4),
    "time_step_rank": 4,
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "linear_num_key_heads"), 2),
    **dict.fromkeys(("linear_num_value_heads", "index_n_heads"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "encoder_layers", "n_shared_experts"), 1),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "num_shared_experts"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 16),
    **dict.fromkeys(("expert_ffn_size", "moe_ffn_hidden_size"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"), 128),
    "num_kv_shared_layers": 0,
    "unpadded_vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")
KINDS = ("layer_types", "mlp_layer_types", "layers_block_type", "block_types")
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "layer_types": None},
    "falcon_h1": {"layer_types": None},
    "falcon_mamba": {"layer_types": None, "intermediate_size": 64},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"layer_types": None, "attn_layer_period": 2, "attn_layer_offset": 1},
    "mamba": {"layer_types": None, "intermediate_size": 64},
    "mamba2": {"layer_types": None, "num_heads": 8, "expand": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "zaya": {"num_experts_per_tok": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "dots3_note": {"num_key_value_heads": 4},
    "dots3_note_text": {"num_key_value_heads": 4},
}
"""What a family's configuration wants beside the sizes; None leaves a field out."""


def tiny_config(family: str) -> PretrainedConfig:
    """The family's default configuration with small numbers and each of its kinds of layers once."""
    default = CONFIG_MAPPING[family]().get_text_config()
    fields = default.to_dict()
    small = {name: SIZES[name] for name, value in fields.items() if name in SIZES and type(value) is int}
    if "kv_lora_rank" in small:  # its heads' width follows from their two parts
        small.pop("head_dim", None)
        small["num_key_value_heads"] = SIZES["num_attention_heads"]
    elif fields.get("head_dim", 0) is None:
        small["head_dim"] = SIZES["head_dim"]
    kinds = list(dict.fromkeys(getattr(default, "layer_types", None) or ()))
    layers = max(2, len(kinds))
    small |= {name: layers for name in LAYERS if name in small or type(fields.get(name)) is int}
    for name in KINDS:
        if isinstance(fields.get(name), list):
            small[name] = (list(dict.fromkeys(fields[name])) * layers)[:layers]
    small |= OWN.get(family, {})
    config: PretrainedConfig = type(default)(**{name: value for name, value in small.items() if value is not None})
    leave_out_chance(config)
    return config


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A model in which every parameter is random, biases and norms too: zeros would hide what they belong to."""
    config = tiny_config(family)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size:,} parameters with the sizes known here")
    generator = torch.Generator().manual_seed(seed)
    model: PreTrainedModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # vectors keep what the library begins them with, which some families draw
        try:
            model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        except ValueError:
            model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2:
                parameter.copy_(noise / max(1, parameter.shape[-1]) ** 0.5)
            else:
                parameter.add_(0.1 * noise)
    return model.eval()


@dataclass(frozen=True)
class Apart:
    """Largest differences from one plain pass a row."""

    sampler: float
    """Of a log-prob, in nats."""
    learner: float
    gradient: float
    """Of a component, over the largest component."""

    @property
    def right(self) -> bool:
        return max(self.sampler, self.learner) <= 2e-5 and self.gradient <= 1e-4


def apart(model: PreTrainedModel) -> Apart:
    """Sampler, learner and gradient against plain passes: two prompts with two answers each of up to six tokens."""
    size = min(60, int(model.get_input_embeddings().weight.shape[0]))  # type: ignore[index,union-attr]
    prompts = [[3 + (7 * i + 5 * j) % (size - 3) for j in range(length)] for i, length in enumerate((7, 3))]
    sampler = TorchSampler(device=CPU, seed=1, stop_ids=frozenset({size // 2}), max_num_seqs=8)
    sampler.load(LiveWeights(model, 0))
    params = SamplingParams(n=2, temperature=1.0, top_p=1.0, top_k=-1, max_tokens=6)
    found = sampler.generate([SampleRequest(tuple(p), i) for i, p in enumerate(prompts)], params)
    rows = [
        (p, c.token_ids.tolist(), torch.tensor(c.logprobs)) for p, cs in zip(prompts, found, strict=True) for c in cs
    ]

    model.zero_grad(set_to_none=True)
    plain = []
    for prompt, answer, _ in rows:
        ids = torch.tensor([[*prompt, *answer]])
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        plain.append(torch.log_softmax(logits, -1).gather(-1, ids[0, len(prompt) :, None])[:, 0])
    weights = [torch.linspace(-1.0, 1.0, len(p)) + 0.1 * i for i, p in enumerate(plain)]
    torch.stack([(w * p).sum() for w, p in zip(weights, plain, strict=True)]).sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    sampled = max(float((p - s).abs().max()) for p, (_, _, s) in zip(plain, rows, strict=True))

    prompt_ids, prompt_mask = pad_left([p for p, _, _ in rows], 0)
    response_ids, response_mask = pad_right([a for _, a, _ in rows], 0)
    count = torch.arange(len(rows))
    batch = Batch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        response_ids=response_ids,
        response_mask=response_mask,
        sampled_mask=response_mask,
        group=count // 2,
        index=count % 2,
        rewards=torch.zeros(len(rows)),
        rollout_logp=torch.zeros(response_ids.shape),
    )
    module = PolicyModule(model, CPU, temperature=1.0)
    logp, _ = module(batch)
    learned = max(float((logp[i, : len(p)] - p).abs().max()) for i, p in enumerate(plain))
    model.zero_grad(set_to_none=True)
    training_mode(model)
    weight = torch.zeros(response_ids.shape)
    for i, w in enumerate(weights):
        weight[i, : len(w)] = w
    total, _ = module(batch, lambda part, lp, _: (weight[part, : lp.shape[1]] * lp).sum())
    total.backward()
    largest = max(float(g.abs().max()) for g in expected.values())
    gradient = 0.0
    for name, parameter in model.named_parameters():
        if name in expected or parameter.grad is not None:
            one = expected.get(name, torch.zeros_like(parameter))
            other = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradient = max(gradient, float((one - other).abs().max()) / largest)
    model.eval()
    return Apart(sampled, learned, gradient)


class _LateError(Exception):
    pass


@contextmanager
def _limit(seconds: int) -> Any:
    def late(*_: object) -> None:
        raise _LateError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def verdict(family: str) -> tuple[str, str]:
    """`right`, `wrong`, `refused` or `not made`, and the figures or the reason."""
    try:
        model = tiny_model(family)
    except Exception as error:
        return "not made", f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
    if (reason := unlike(model, CPU)) is not None:
        return "refused", reason
    try:
        found = apart(model)
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
    figures = f"sampler {found.sampler:.1e}, learner {found.learner:.1e}, gradient {found.gradient:.1e}"
    return ("right" if found.right else "wrong"), figures


def main(words: Sequence[str]) -> None:
    """Print the table."""
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity(transformers.utils.logging.CRITICAL)
    torch.set_num_threads(1)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    for family in words or FAMILIES:
        try:
            with _limit(60):
                kind, what = verdict(family)
        except _LateError as error:
            kind, what = "not made", str(error)
        print(f"{family:26} {kind:9} {what}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
