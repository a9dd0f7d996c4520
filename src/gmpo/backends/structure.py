"""What a model is made of beside its weights' values: classes, hooks and replaced methods of its modules."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from transformers import PreTrainedModel

from gmpo.backends.adapters import plain_adapter

LIBRARY = "transformers."


def structure(model: PreTrainedModel) -> Hashable:
    """What the choice of a decoder depends on beside the weights' values: while it stays equal, so does the answer.

    Classes of the modules, hooks and replaced methods, names, shapes and dtypes of the parameters. It costs a tenth of
    a millisecond a layer, so every rollout can ask.
    """
    modules = tuple((name, type(module), additions(module)) for name, module in model.named_modules())
    parameters = tuple((name, tuple(p.shape), p.dtype) for name, p in model.named_parameters())
    return id(model), modules, parameters


def altered(model: PreTrainedModel) -> str | None:
    """The name of a module that computes something else than its class in torch or transformers; None without any.

    A step reads weights past the modules. No comparison finds an adapter that begins at zero, for it adds nothing yet.
    """
    for name, module in model.named_modules():
        known = type(module).__module__.startswith(("torch.nn.", LIBRARY)) or plain_adapter(module)
        if additions(module) or not known:
            return name or type(model).__name__
    return None


def additions(module: torch.nn.Module) -> tuple[str, ...]:
    """What was attached to the module and may change its output. The library's own hooks do not: they recompute or
    record."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    origins = [str(getattr(hook, "__module__", None)) for hook in hooks]
    replaced = ("forward",) if "forward" in vars(module) else ()
    return (*(origin for origin in origins if not origin.startswith(LIBRARY)), *replaced)
