"""The section of the model that `gmpo train` trains."""

from __future__ import annotations

from typing import Any

from gmpo.config.fields import Place, Text, setting
from gmpo.config.schema_training import Adapters


class Model(Adapters):
    """The model that is trained."""

    path: Place | None = setting(
        None,
        "Local Hugging Face model folder, or a name on the hub. Must be given to train.",
        role="execution",
        exact=True,
    )
    tokenizer_path: Place | None = setting(
        None, "Folder or hub name of the tokenizer. null takes model.path.", role="execution", exact=True
    )
    trust_remote_code: bool = setting(
        False, "Run Python code that comes with the model. Off unless you trust it.", role="execution", exact=True
    )
    override_config: dict[str, Any] = setting(
        {}, "Changes to the model's own config.json, for example {max_position_embeddings: 32768}."
    )
    enable_gradient_checkpointing: bool = setting(
        True, "Recompute activations in the backward pass: less memory, about a third more compute.", role="execution"
    )
    use_remove_padding: bool = setting(
        True,
        "Pack sequences without padding.",
        inert="packed wherever the model and device allow; same results",
        role="execution",
    )
    custom_chat_template: Text | None = setting(
        None, "Jinja chat template to use in place of the tokenizer's. null keeps the tokenizer's."
    )

    @property
    def source(self) -> str:
        """The path for those who load the model; that one is given was asked before."""
        return self.path or ""
