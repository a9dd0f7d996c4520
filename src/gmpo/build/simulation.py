"""A step of the learner at a scale that is not here: the real configuration of a model on fake tensors, sharded by the
code that trains, in a process group that only pretends.

Nothing is computed and no memory is held, so 30 billion parameters on 64 ranks take seconds. What is measured: bytes of
this rank's shards, the collectives of a micro-batch with their bytes, and what the backward pass keeps of the tokens.
The head stands for itself with one product of its last token: its own tiles are bounded (0.25 GB).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich import box
from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from gmpo.backends.devices import DTYPES, Device
from gmpo.backends.models import ModelSource, checkpoint_activations, load_config
from gmpo.backends.passes import BatchModule
from gmpo.backends.ranks.sharding import make_mesh, shard
from gmpo.check.memory import Devices, amount, estimate, micro_batch_tokens
from gmpo.check.model_shapes import ModelShape, shape_by_name
from gmpo.check.report import find_shape
from gmpo.config import Config
from gmpo.errors import BackendError, ConfigError

KINDS = {
    "allgather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "allreduce": "all-reduce",
    "alltoall": "all-to-all",
}
"""Part of an operation's name -> what it is called. Bytes are of what a rank has after an all-gather or all-reduce, and
of what it brings to the others."""
ADAM_MOMENTS = 2
ATTENTION = "gmpo_causal"
"""An attention of `transformers` without a mask, which would be counted, and which no kernel for training holds."""


def _causal(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: Any = None, **kwargs: Any
) -> tuple[Tensor, None]:
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _causal)


class Collectives(TorchDispatchMode):
    """Counts the collectives of a process group and their bytes, of real tensors or of fake ones."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.sizes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name.startswith("c10d."):
            kind = next((said for part, said in KINDS.items() if part in name), None)
            if kind is not None:
                output, given = args[0], args[1] if len(args) > 1 else None
                self.counts[kind] += 1
                self.sizes[kind] += _bytes(given if kind in ("reduce-scatter", "all-to-all") else output)
        return func(*args, **(kwargs or {}))


def _bytes(tensors: Any) -> int:
    if isinstance(tensors, Tensor):
        return tensors.numel() * tensors.element_size()
    return sum(map(_bytes, tensors)) if isinstance(tensors, list | tuple) else 0


class OnePass(BatchModule):
    """A model behind the module that is sharded: a pass over packed tokens, with a sum in the place of the loss."""

    def __init__(self, model: PreTrainedModel, device: Device) -> None:
        super().__init__(model, device, None)

    def forward(self, tokens: int) -> Tensor:
        """A causal sequence -> a scalar."""
        with self.device.autocast():
            hidden = _pass(self.model, tokens)
            head: Any = self.model.get_output_embeddings()
            return F.linear(hidden[:, -1:], head.weight).float().sum()


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a rank holds and sends. Bytes."""

    world: int
    shards: int
    """Ranks that share one copy of the parameters."""
    parameters: int
    tokens: int
    """Of a micro-batch on a rank."""
    weights: int
    gradients: int
    moments: int
    kept: int
    """What the backward pass needs of the tokens, with the activations recomputed or not as the settings say."""
    kept_whole: int
    """The same without recomputation."""
    counts: Mapping[str, int]
    """Collectives of a micro-batch, by kind."""
    sizes: Mapping[str, int]
    seconds: float = field(compare=False)
    """That the simulation took."""


@contextmanager
def pretended(world: int) -> Iterator[None]:
    """A process group of `world` ranks in which this is the first, and nothing is sent."""
    if dist.is_initialized():
        raise BackendError("a process group is there already; a simulation needs a process of its own.")
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def simulate(
    config: PretrainedConfig, *, world: int, shards: int, tokens: int, device: Device, recompute: bool
) -> Simulation:
    """Simulate a micro-batch of an update.

    Args:
        shards: ranks that share one copy (`fsdp_size`), -1 for all.
        tokens: of a micro-batch on a rank.
        device: its `compute` is the dtype of products; weights, gradients and moments are float32.

    Raises:
        BackendError: the model's layers cannot be sharded.
    """
    start = time.perf_counter()
    kept_whole = kept_bytes(config, tokens, device, recompute=False)
    kept = kept_bytes(config, tokens, device, recompute=True) if recompute else kept_whole
    with pretended(world):
        mesh = make_mesh(device.torch, world, shards)  # it looks at values, which fake tensors have none of
        with FakeTensorMode(allow_non_fake_inputs=True):
            module = OnePass(causal_model(config, torch.float32), device)
            number = sum(p.numel() for p in module.parameters())
            shard(module, mesh, device)
            with Collectives() as seen:
                module(min(tokens, 256)).backward()
            held = [(own(p), own(p.grad)) for p in module.parameters() if p.grad is not None]
    weights, gradients = sum(w for w, _ in held), sum(g for _, g in held)
    return Simulation(
        world=world,
        shards=world if shards in (-1, world) else shards,
        parameters=number,
        tokens=tokens,
        weights=weights,
        gradients=gradients,
        moments=ADAM_MOMENTS * weights,
        kept=kept,
        kept_whole=kept_whole,
        counts=dict(seen.counts),
        sizes=dict(seen.sizes),
        seconds=time.perf_counter() - start,
    )


def own(tensor: Tensor) -> int:
    """Bytes of what this rank holds of a tensor."""
    return _bytes(tensor.to_local() if isinstance(tensor, DTensor) else tensor)


def kept_bytes(config: PretrainedConfig, tokens: int, device: Device, *, recompute: bool) -> int:
    """What the backward pass of a micro-batch of `tokens` needs beside the weights: with recomputation the inputs of
    the layers, and all that one layer keeps."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = causal_model(config, device.compute)
        everything = _saved(model, tokens)
        if not recompute:
            return everything
        checkpoint_activations(model)
        for module in model.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.training = True
        outer = _saved(model, tokens)
    layers = int(config.get_text_config().num_hidden_layers)
    return outer + (everything - outer) // layers


def _saved(model: PreTrainedModel, tokens: int) -> int:
    """Bytes of the storages that autograd keeps of a pass, parameters and buffers apart."""
    weights = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    seen: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            seen[storage._cdata] = int(storage.nbytes())
            alive.append(tensor)  # a freed storage's number may be given again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _pass(model, tokens)
    return sum(seen.values())


def causal_model(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model with the attention that is simulated."""
    made: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION)
    model: PreTrainedModel = made.eval()
    return model


def _pass(model: PreTrainedModel, tokens: int) -> Tensor:
    # With a ready mask of four dimensions the library makes none, for which it would look at values.
    nothing = torch.empty(1, 1, 0, 0)
    ids, positions = torch.zeros(1, tokens, dtype=torch.long), torch.arange(tokens).unsqueeze(0)
    hidden: Tensor = model.base_model(
        input_ids=ids, position_ids=positions, attention_mask=nothing, use_cache=False
    ).last_hidden_state
    return hidden


def configuration(model: str) -> PretrainedConfig:
    """The library's configuration of a model: of its folder on this disk, else of a built-in shape.

    Raises:
        ConfigError: neither is known.
    """
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return load_config(ModelSource(str(folder)))
    known = shape_by_name(model)
    if known is None:
        raise ConfigError(f"model {model!r} is not on this disk and not among the built-in shapes: nothing to simulate")
    return configuration_of(*known)


def configuration_of(name: str, shape: ModelShape) -> PretrainedConfig:
    """The library's configuration with this shape, of the class that a built-in name belongs to."""
    common: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate or 1,
        "tie_word_embeddings": shape.tied,
    }
    if shape.experts:
        active, width = shape.active_experts, shape.expert_width
        experts: dict[str, Any] = {
            "num_experts": shape.experts,
            "num_experts_per_tok": active,
            "moe_intermediate_size": width,
        }
        return Qwen3MoeConfig(**common, **experts)
    if name.startswith("qwen3"):
        return Qwen3Config(**common)
    return LlamaConfig(**common) if name.startswith(("llama", "deepseek-llm")) else Qwen2Config(**common)


def simulation_report(config: Config) -> RenderableType:
    """The simulation of these settings beside the estimate of `gmpo check`.

    Raises:
        ConfigError: nothing is known of the model, or it trains adapters, which are not simulated; BackendError: its
            layers cannot be sharded.
    """
    tree = config.actor_rollout_ref
    if tree.model.lora_rank:
        raise ConfigError("--simulate is of a training of all weights; leave actor_rollout_ref.model.lora_rank out")
    devices, found = Devices.of(config), find_shape(tree.model.source)
    tokens = micro_batch_tokens(config, devices)[0]
    computed = tree.actor.fsdp_config.dtype or ("fp32" if config.trainer.device == "cpu" else "bf16")
    run = simulate(
        configuration(tree.model.source),
        world=devices.world,
        shards=devices.shards,
        tokens=tokens,
        device=Device(torch.device("cpu"), DTYPES[computed]),
        recompute=tree.model.enable_gradient_checkpointing,
    )
    estimated = {} if found is None else {item.name: item.gigabytes for item in estimate(config, found[1])}
    table = Table(box=box.SIMPLE, show_edge=False)
    for name, side in (("on each rank", "left"), ("simulated", "right"), ("estimate", "right"), ("ratio", "right")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    sizes = {"weights": run.weights, "gradients": run.gradients, "optimizer": run.moments, "activations": run.kept}
    for name, size in sizes.items():
        other = estimated.get(name)
        ratio = f"{size / 1e9 / other:.2f}" if other else ""
        table.add_row(name, amount(size / 1e9), "" if other is None else amount(other), ratio)
    if run.kept != run.kept_whole:
        table.add_row("activations, not recomputed", amount(run.kept_whole / 1e9), "", "")
    for kind, count in run.counts.items():
        table.add_row(f"{count} x {kind}, a micro-batch", amount(run.sizes[kind] / 1e9), "", "")
    title = f"simulated: {run.parameters:,} parameters on {run.world} ranks, {run.shards} to a copy"
    about = f"{tokens:,} tokens in a micro-batch, products in {computed}; {run.seconds:.0f} s"
    if devices.sequence > 1:
        about += "; without the exchange of heads between ranks that share a sequence"
    return Group(Rule(title, align="left"), Text(f"  {about}", style="dim"), table)
