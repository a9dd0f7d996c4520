"""Commands that verl's other engines are for: one refusal in place of a list of their keys."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gmpo.errors import ConfigError

_ENGINES = {
    "megatron": "Megatron",
    "mindspeed": "MindSpeed",
    "mindspeed_megatron": "MindSpeed",
    "veomni": "VeOmni",
    "torchtitan": "TorchTitan",
    "automodel": "AutoModel",
    "turbo": "turbo",
}
"""verl's name of an engine, among its strategies and groups -> its name in messages."""
_CHOICE = re.compile(
    r"\+{0,2}(?P<key>(?:\w+@\w[\w.]*|model_engine|(?:actor_rollout_ref\.(?:actor|ref)|critic)(?:\.\w+)*\.strategy|"
    r"(?:actor_rollout_ref\.(?:actor|ref)|critic)\.strategy|--config-name|-cn))=(?P<value>.*)",
    re.DOTALL,
)


def refuse_other_engines(overrides: Sequence[str]) -> None:
    """Stop at an argument that chooses an engine which is not here.

    Raises:
        ConfigError: it names the engine, the argument and what to do.
    """
    for word in overrides:
        found = _CHOICE.fullmatch(word.strip())
        if found is None:
            continue
        value = found["value"].strip("\"' ").lower()
        # A configuration is named after its engine: ppo_megatron_trainer.
        parts = value.removesuffix(".yaml").split("_") if found["key"] in ("--config-name", "-cn") else [value]
        engine = next((_ENGINES[part] for part in parts if part in _ENGINES), None)
        if engine is not None:
            raise ConfigError(
                f"{word}: this command is for verl's {engine} engine, which gmpo has not; its keys would mean nothing "
                "here. Weights are sharded by FSDP2: take verl's script of the same name for FSDP (run_.._fsdp.sh), or "
                "remove this argument and the engine's keys."
            )
