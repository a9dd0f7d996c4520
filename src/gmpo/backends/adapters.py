"""Low-rank adapters (LoRA, arXiv 2106.09685) by peft, put into a model of transformers: y = W x + (alpha / r) B A x, of
which A and B are trained.

The model stays the class that it is; its linear layers become peft's. Everything that asks what is trained asks
`requires_grad`; what asks for the weights of a layer takes `weight_of`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from gmpo.errors import BackendError

NAME = "default"
"""Of the one adapter, as peft calls it."""
ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
"""Of tensors in peft's files."""
INSTALL = "pip install 'gmpo[peft]'"


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """What is put into a model."""

    rank: int
    alpha: int
    targets: str | tuple[str, ...]
    """`all-linear` (every linear layer but the head), the ends of modules' names, or a regular expression."""
    excluded: tuple[str, ...]
    seed: int
    """Of A's numbers; B begins at zero."""
    key: str
    """The section of settings, for messages."""


def add_adapters(model: PreTrainedModel, settings: AdapterSettings, base: str) -> None:
    """Freeze the model, and give its layers adapters that add nothing yet.

    Args:
        base: path or name of the model, which is written beside the adapter.

    Raises:
        BackendError: peft is missing, or the names fit no layer, or one that cannot have an adapter here.
    """
    peft = _peft()
    targets: Any = settings.targets if isinstance(settings.targets, str) else list(settings.targets)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=targets,
        exclude_modules=list(settings.excluded) or None,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        try:
            put_adapters(model, config)
        except (ValueError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BackendError(f"{settings.key}.target_modules={settings.targets!r}: {reason}") from error
    adapted = dict(adapted_layers(model))
    other = [name for name, module in model.named_modules() if _tuned(module) and name not in adapted]
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if bad := [*other, *(name for name, module in adapted.items() if any(module is end for end in ends))]:
        raise BackendError(
            f"{settings.key}.target_modules={settings.targets!r}: {bad[0]} is no linear layer inside the model; "
            "embedding and head have no adapters here."
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name))


def put_adapters(model: PreTrainedModel, config: Any) -> None:
    """Give a model the adapters of a configuration of peft's, with numbers that peft draws."""
    _peft().inject_adapter_in_model(config, model)
    model._adapter_config = config  # type: ignore[assignment]  # found again by `adapter_config`


def read_adapter_config(folder: Path) -> Any:
    """Peft's configuration in the folder of an adapter.

    Raises:
        BackendError: it cannot be read, or it is of another kind than the plain one.
    """
    try:
        config = _peft().LoraConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BackendError(f"cannot read {folder / ADAPTER_CONFIG}: {error}") from error
    if config.use_dora or config.bias != "none" or config.modules_to_save or config.lora_bias:
        raise BackendError(
            f"{folder}: an adapter with biases, whole modules or DoRA is not of the kind that is read here"
        )
    return config


def merge_adapters(model: PreTrainedModel) -> None:
    """Make plain layers of the model's, each with its adapter added to its weight."""
    with torch.no_grad():
        for name, layer in list(adapted_layers(model)):
            whole = weight_of(layer)
            layer.base_layer.weight.copy_(whole)
            model.set_submodule(name, layer.base_layer)
    model._adapter_config = None  # type: ignore[assignment]


def adapter_config(model: PreTrainedModel) -> Any | None:
    """Peft's configuration of the model's adapters; None without any."""
    return getattr(model, "_adapter_config", None)


def is_adapter(parameter: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return f".lora_A.{NAME}." in parameter or f".lora_B.{NAME}." in parameter


def adapted_layers(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """The linear layers with an adapter, by name."""
    if adapter_config(model) is None:
        return
    linear = import_module("peft.tuners.lora").Linear
    yield from ((name, module) for name, module in model.named_modules() if type(module) is linear)


def _tuned(module: torch.nn.Module) -> bool:
    return type(module).__module__.startswith("peft.tuners.") and hasattr(module, "base_layer")


def plain_adapter(module: torch.nn.Module) -> bool:
    """Whether `weight_of` tells what this layer computes: a linear one with one adapter of the plain kind, or a part of
    such a layer."""
    kind = type(module)
    if not kind.__module__.startswith("peft.tuners.lora") and kind.__module__ != "peft.utils.other":
        return False
    if not hasattr(module, "base_layer"):
        return True
    return (
        kind is import_module("peft.tuners.lora").Linear
        and list(module.lora_A) == [NAME]  # type: ignore[arg-type]
        and not module.use_dora[NAME]  # type: ignore[index]
        and not module.merged
        and type(module.base_layer) is torch.nn.Linear
    )


def weight_of(module: Any) -> Tensor:
    """The matrix that a linear layer multiplies with, its adapter included."""
    if not hasattr(module, "base_layer"):
        weight: Tensor = module.weight
        return weight
    base: Tensor = module.base_layer.weight
    if module.disable_adapters:
        return base
    a, b = module.lora_A[NAME].weight, module.lora_B[NAME].weight
    whole: Tensor = base + (module.scaling[NAME] * (b @ a)).to(base.dtype)
    return whole


def bias_of(module: Any) -> Tensor | None:
    """The bias of a linear layer, which adapters leave alone."""
    bias: Tensor | None = getattr(module, "base_layer", module).bias
    return bias


@contextmanager
def without_adapters(model: PreTrainedModel) -> Iterator[None]:
    """The model that it was before it had adapters: the reference of a policy with such."""
    layers = [module for module in model.modules() if _tuned(module)]
    # By the attribute: peft's own switch would change which parameters are trained.
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True  # type: ignore[assignment]
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer._disable_adapters = value


def save_adapter(model: PreTrainedModel, weights: Mapping[str, Tensor] | None, folder: Path) -> None:
    """A folder of peft's: what `PeftModel.from_pretrained(base, folder)` reads.

    Args:
        weights: at least the adapters' tensors under the names of the model's state; None writes the configuration.
    """
    config = adapter_config(model)
    assert config is not None
    config.save_pretrained(folder)
    if weights is None:
        return
    tensors = {_in_file(name): tensor for name, tensor in weights.items() if is_adapter(name)}
    save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})


def names_in_file(names: Sequence[str]) -> dict[str, str]:
    """Adapters' parameters -> their names in `ADAPTER_FILE`."""
    return {name: _in_file(name) for name in names if is_adapter(name)}


def _in_file(name: str) -> str:
    return PREFIX + name.replace(f".{NAME}.", ".")


def require_peft(key: str) -> None:
    """Raises BackendError: peft is asked for by a setting and is not installed."""
    try:
        import_module("peft")
    except ImportError as error:
        raise BackendError(f"{key}: adapters are peft's, which cannot be imported ({error}): {INSTALL}") from error


def _peft() -> Any:
    require_peft("lora_rank")
    return import_module("peft")
