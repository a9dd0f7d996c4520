"""An estimate of the memory that a run needs on each device, item by item with its formula.

The accounting is that of sharded data parallelism (ZeRO stage 3, arXiv 1910.02054; FSDP): weights, gradients and
AdamW's moments are spread over a shard group, activations are those of one micro-batch. It leaves out buffers of
libraries and fragmentation: a tenth on top is usual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gmpo.check.model_shapes import ModelShape
from gmpo.config.schema import Config

GB = 1e9
CARD_GB = 80.0
"""The card that a warning speaks of."""
DTYPE_BYTES = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2}
ADAM_BYTES = 8
"""Two moments in float32."""
LOGITS_GB = 0.25
"""Most that the head holds of the logits at a time, whatever the answers and the vocabulary: measured, see
docs/scaling.md."""


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the estimate. Example: `Item("weights", 3.8, "7.6e9 x 4 B / 8 devices")`."""

    name: str
    gigabytes: float
    """1e9 bytes on each device."""
    formula: str
    phase: str = "update"
    """`update` or `sampling`: they take turns."""


@dataclass(frozen=True, slots=True)
class Devices:
    """How a run is spread."""

    world: int
    """Devices in all."""
    shards: int
    """Devices over which one copy of the weights is spread."""
    sequence: int
    """Devices that share a sequence."""

    @staticmethod
    def of(config: Config) -> Devices:
        """From `trainer` and the actor's section. A device count that is not given is taken as 1."""
        actor = config.actor_rollout_ref.actor
        world, size = config.devices, actor.fsdp_config.fsdp_size
        return Devices(world, size if 0 < size < world else world, max(1, actor.ulysses_sequence_parallel_size))


def estimate(config: Config, shape: ModelShape) -> list[Item]:
    """Every item of the policy, and of reference, critic and sampler where there are such."""
    devices = Devices.of(config)
    tree = config.actor_rollout_ref
    precision = tree.actor.fsdp_config
    on_gpus = config.trainer.device != "cpu" and (config.trainer.device == "cuda" or devices.world > 1)
    computed = precision.dtype or ("bf16" if on_gpus else "fp32")
    compute = DTYPE_BYTES[computed]
    rank = tree.model.lora_rank
    trained = shape.adapter_parameters(rank) if rank else None
    items = _trained("", shape, devices, DTYPE_BYTES[precision.model_dtype], compute, trained)
    if precision.param_offload:
        items = [_offloaded(item, "param_offload") if item.name == "weights" else item for item in items]
    if precision.optimizer_offload:
        items = [_offloaded(item, "optimizer_offload") if item.name == "optimizer" else item for item in items]
    items += _activations(config, shape, devices, compute)
    if config.uses_reference and not (rank and tree.ref.model.path == tree.model.path):
        item = Item("reference", shape.parameters * 4 / devices.shards / GB, _each(shape.parameters, 4, devices))
        items.append(_offloaded(item, "param_offload") if tree.ref.fsdp_config.param_offload else item)
    if config.critic.enable:
        items += _trained("critic ", shape, devices, 4, compute)
    return items + _sampler(config, shape, compute)


def totals(items: Sequence[Item]) -> dict[str, float]:
    """Gigabytes while updating, and while sampling: what is not the update's own stays in both."""
    resident = sum(i.gigabytes for i in items if i.phase == "update" and i.name in _RESIDENT)
    return {
        "update": sum(i.gigabytes for i in items if i.phase == "update"),
        "sampling": resident + sum(i.gigabytes for i in items if i.phase == "sampling"),
    }


_RESIDENT = {"weights", "optimizer", "reference", "critic weights", "critic optimizer"}


def amount(gigabytes: float) -> str:
    """For people, in a unit in which it is not 0: `3.8 GB`, `124 MB`, `1.3 MB`, `565 kB`."""
    for unit, size in (("GB", 1.0), ("MB", 1e3)):
        if gigabytes * size >= 0.95:
            number = gigabytes * size
            return f"{number:,.1f} {unit}" if unit == "GB" or number < 9.95 else f"{number:,.0f} {unit}"
    return f"{gigabytes * 1e6:,.0f} kB" if gigabytes else "0 GB"


def _trained(
    prefix: str, shape: ModelShape, devices: Devices, weight_bytes: int, compute: int, adapters: int | None = None
) -> list[Item]:
    """Args: adapters: parameters of adapters on all linear layers, which alone are trained; None trains everything."""

    def item(name: str, size: int, number: int) -> Item:
        return Item(f"{prefix}{name}", number * size / devices.shards / GB, _each(number, size, devices))

    whole = shape.parameters
    trained = whole if adapters is None else adapters
    items = [
        item("weights", weight_bytes, whole + (adapters or 0)),
        item("gradients", 4, trained),
        item("optimizer", ADAM_BYTES, trained),
    ]
    if devices.shards > 1:
        formula = f"2 layers x {shape.layer:,} parameters x {compute} B, gathered while they are computed"
        items.append(Item(f"{prefix}gathered layers", 2 * shape.layer * compute / GB, formula))
    return items


def _each(number: int, size: int, devices: Devices) -> str:
    return f"{number:,} parameters x {size} B" + (f" / {devices.shards} shards" if devices.shards > 1 else "")


def _offloaded(item: Item, key: str) -> Item:
    return Item(item.name, 0.0, f"in the host's memory between phases: {key}", item.phase)


def micro_batch_tokens(config: Config, devices: Devices) -> tuple[int, int, str]:
    """Tokens of a micro-batch on one device, those of them that are answers, and how that follows."""
    actor, data = config.actor_rollout_ref.actor, config.data
    longest = data.max_prompt_length + data.max_response_length
    if actor.use_dynamic_bsz or actor.ppo_micro_batch_size_per_gpu is None:
        tokens = actor.ppo_max_token_len_per_gpu
        why = f"ppo_max_token_len_per_gpu {tokens:,}"
    else:
        rows = actor.ppo_micro_batch_size_per_gpu
        tokens = -(-rows * longest // devices.sequence)
        why = f"{rows} rows x {longest:,}" + (f" / {devices.sequence}" if devices.sequence > 1 else "")
    return tokens, -(-tokens * data.max_response_length // longest), why


def _activations(config: Config, shape: ModelShape, devices: Devices, compute: int) -> list[Item]:
    tokens, answers, why = micro_batch_tokens(config, devices)
    kept, h = shape.kept_per_token, shape.hidden
    if config.actor_rollout_ref.model.enable_gradient_checkpointing:
        size = tokens * compute * (shape.layers * h + kept)
        formula = f"{tokens:,} tokens x {compute} B x ({shape.layers} layers x {h:,} + one layer's {kept:,})"
    else:
        size = tokens * compute * shape.layers * kept
        formula = f"{tokens:,} tokens x {compute} B x {shape.layers} layers x {kept:,}"
    whole = answers * shape.vocabulary * 4 / GB
    return [
        Item("activations", size / GB, f"{formula}; tokens: {why}"),
        Item("logits", min(LOGITS_GB, whole), f"a tile; all of {answers:,} x {shape.vocabulary:,}: {amount(whole)}"),
    ]


def _sampler(config: Config, shape: ModelShape, compute: int) -> list[Item]:
    rollout, data = config.actor_rollout_ref.rollout, config.data
    longest = data.max_prompt_length + data.max_response_length
    per_token = shape.kv_values_per_token * compute
    if rollout.name == "vllm":
        tp = max(1, rollout.tensor_model_parallel_size)
        weights = shape.parameters * 2 / tp
        pool = max(0.0, rollout.gpu_memory_utilization * CARD_GB * GB - weights)
        fits = int(pool * tp / (shape.kv_values_per_token * 2))
        held = f"{rollout.gpu_memory_utilization} x {CARD_GB:.0f} GB less the weights: {fits:,} tokens per engine"
        return [
            Item("sampler weights", weights / GB, f"{shape.parameters:,} x 2 B / {tp} devices", "sampling"),
            Item("key-value cache", pool / GB, f"gpu_memory_utilization {held}", "sampling"),
        ]
    rows = min(rollout.max_num_seqs, config.problems_per_round * rollout.n)
    formula = f"{rows:,} answers x {longest:,} tokens x {per_token:,} B, at the longest"
    return [Item("key-value cache", rows * longest * per_token / GB, formula, "sampling")]
