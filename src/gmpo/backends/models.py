"""Loading Hugging Face models and tokenizers, with the checks that the library leaves to the user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gmpo.backends.devices import Device
from gmpo.backends.hub import require_hub
from gmpo.backends.model_files import (
    library,
    require_descriptions,
    require_finite,
    require_weights,
    said_by,
    without_place,
)
from gmpo.errors import BackendError

# Its progress bars would tear ours apart.
transformers.utils.logging.disable_progress_bar()


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from and how it is read."""

    path: str
    """A local folder or a hub name such as `Qwen/Qwen2.5-Math-7B`."""
    trust_remote_code: bool = False
    override_config: Mapping[str, Any] | None = None
    """Fields of the model's configuration to replace; `attn_implementation` is taken out and passed on."""
    key: str = field(default="actor_rollout_ref.model.path", compare=False)
    """The setting that names it, for messages."""
    override_key: str = field(default="actor_rollout_ref.model.override_config", compare=False)
    """The setting of `override_config`, for messages."""

    @property
    def named(self) -> str:
        """The model in messages."""
        return f"model {self.path!r} ({self.key})"

    @property
    def changes_layers(self) -> bool:
        """The number of layers is one of those fields."""
        return any(name in (self.override_config or {}) for name in ("num_hidden_layers", "n_layer", "num_layers"))


def resolve(path: str) -> str:
    """The local folder, or the hub name unchanged.

    Raises:
        BackendError: it looks like a folder but is none, the folder holds no model, or the hub cannot be reached.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BackendError(
                f"model folder {folder} has no config.json. A Hugging Face model folder holds config.json, "
                "*.safetensors and tokenizer files."
            )
        require_descriptions(folder)
        return str(folder)
    if folder.is_file():
        raise BackendError(f"model path {path!r} is a file: name the folder that holds config.json and the weights.")
    if path.startswith(("/", ".", "~")) or path.count("/") != 1:
        raise BackendError(f"model path {path!r} is neither a folder on this machine nor a hub name like 'org/model'.")
    require_hub(path)
    return path


def load_config(source: ModelSource) -> PretrainedConfig:
    """The model's configuration with overrides applied, and dropout and noise switched off.

    A policy with dropout has no well-defined log-probs: old and current ones would differ before any update.
    """
    path = resolve(source.path)
    with library(f"make sense of config.json of {source.named}"):
        config: PretrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=source.trust_remote_code)
    refuse_router_loss(source)
    if (quantized := getattr(config, "quantization_config", None)) is not None:
        how = quantized.get("quant_method") if isinstance(quantized, Mapping) else type(quantized).__name__
        raise BackendError(
            f"model {source.path!r} is quantised (quantization_config in config.json: {how}). Only whole weights are "
            "trained: take the model that it was made from, or write it out in float32 or bfloat16 first."
        )
    for key, value in (source.override_config or {}).items():
        if key == "attn_implementation":
            continue
        if not hasattr(config, key):
            raise BackendError(f"{source.override_key}.{key}: {type(config).__name__} has no field of this name.")
        setattr(config, key, value)
    leave_out_chance(config)
    for part in (config, config.get_text_config()):
        if getattr(part, "output_router_logits", False):
            part.output_router_logits = False  # Its loss would be computed in every pass, and used in none.
    return config


def leave_out_chance(config: PretrainedConfig) -> None:
    """Set to zero what a model draws random numbers for while it trains: dropout and the noise of routers."""
    for part in (config, config.get_text_config()):
        for key, value in list(vars(part).items()):
            # GPT-2 calls them resid_pdrop, attn_pdrop; mixtures of experts router_jitter_noise.
            if ("drop" in key or "jitter" in key) and isinstance(value, float) and value > 0:
                setattr(part, key, 0.0)


@dataclass(frozen=True, slots=True)
class Loading:
    """Where models are loaded to and looked at, before whatever is done with them."""

    device: Device
    reads: bool = True
    """Whether this process reads weights and checks them; else another one does and hands them out."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the library's warnings for a load whose outcome is checked here."""
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def load_model(source: ModelSource, device: torch.device, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """As `load_model_with_notes`, without the notes."""
    return load_model_with_notes(source, device, dtype)[0]


def load_model_with_notes(
    source: ModelSource, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, list[str]]:
    """The causal language model on `device`, its weights in `dtype`; and what its files hold beyond it, in sentences.

    Raises:
        BackendError: no weights, weights missing for some parameters (the library would fill them with random numbers),
            weights that the model has no place for, or an architecture that cannot be loaded.
    """
    path = resolve(source.path)
    require_weights(Path(path))
    asked = (source.override_config or {}).get("attn_implementation")
    with library(f"load {source.named}"), quiet():
        model, info = _pretrained(source, path, dtype, asked or "sdpa")
    where = source.named
    if mismatched := sorted(info["mismatched_keys"]):
        name, held, wanted = mismatched[0]
        raise BackendError(
            f"{where}: config.json describes another model than the weights are of: {name!r} is {list(held)} in the "
            f"weight files and {list(wanted)} by config.json ({len(mismatched)} weights differ). Put the config.json "
            "back that belongs to them."
        )
    notes = without_place(model, model.base_model, info["unexpected_keys"], where, shortened=source.changes_layers)
    missing = sorted(info["missing_keys"])
    if missing:
        raise BackendError(
            f"{where}: {len(missing)} parameters are not in its weight files, for example "
            f"{missing[0]!r}. They would be random; the folder is incomplete or belongs to another architecture."
        )
    require_finite(model, where)
    model.to(device)  # type: ignore[arg-type]  # its decorator hides the method's own annotation
    return model, notes


def _pretrained(source: ModelSource, path: str, dtype: torch.dtype, attention: str) -> tuple[PreTrainedModel, Any]:
    """The library's load. A family without torch's fused attention, which nobody asked for, takes the plain one."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            config=load_config(source),
            dtype=dtype,
            trust_remote_code=source.trust_remote_code,
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused by name afterwards
        )
    except ValueError as error:
        asked = "attn_implementation" in (source.override_config or {})
        if attention != "sdpa" or asked or "scaled_dot_product_attention" not in str(error):
            raise
        return _pretrained(source, path, dtype, "eager")
    model, info = loaded
    return model, info


def load_tokenizer(source: ModelSource, *, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Args:
        chat_template: replaces the tokenizer's own.

    Raises:
        BackendError: there is none.
    """
    path = resolve(source.path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=source.trust_remote_code)
    except Exception as error:  # the library's parts each raise kinds of their own
        if (Path(path) / "config.json").is_file():
            load_config(source)  # where that is the cause, it says so itself
        raise _no_tokenizer(source, said_by(error)) from error
    if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):
        # For known architectures the library makes an empty tokenizer where there is none.
        raise _no_tokenizer(source, "there are no tokenizer files")
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


def _no_tokenizer(source: ModelSource, reason: str) -> BackendError:
    other = "actor_rollout_ref.model.tokenizer_path"  # which the other program has not
    or_other = f", or set {other}" if source.key.startswith("actor_rollout_ref.") else f" in {source.key}"
    return BackendError(
        f"cannot load a tokenizer from {source.path!r}: {reason}\nPut the tokenizer files beside the model{or_other}."
    )


def load_generation(source: ModelSource) -> GenerationConfig:
    """The generation configuration that the model has once it is loaded: its file's, or what its own one says."""
    path = resolve(source.path)
    with library(f"make sense of generation_config.json of {source.named}"):
        try:
            return GenerationConfig.from_pretrained(path, trust_remote_code=source.trust_remote_code)
        except OSError:  # there is no such file
            return GenerationConfig.from_model_config(load_config(source))


def stop_token_ids(generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends an answer: the tokenizer's end token and all of the generation configuration's.

    Chat models often have several; stopping at one of them only makes answers run on to the limit.

    Raises:
        BackendError: there is no end token at all.
    """
    ids: set[int] = set()
    for value in (tokenizer.eos_token_id, getattr(generation, "eos_token_id", None)):
        found = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
        if odd := [one for one in found if not isinstance(one, int)]:
            raise BackendError(
                f"eos_token_id = {odd[0]!r} is no token id: correct generation_config.json or config.json of the model."
            )
        ids.update(found)
    if not ids:
        raise BackendError(
            "neither the tokenizer nor the generation configuration names an end token (eos_token), so no answer could "
            "ever end. Set eos_token in tokenizer_config.json."
        )
    return frozenset(ids)


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise BackendError if the tokenizer can produce an id that the model has no embedding for."""
    embeddings = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index,union-attr]
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= embeddings:
        raise BackendError(
            f"the tokenizer has ids up to {largest}, the model embeds only {embeddings}: they do not belong together."
        )


def beyond_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor | None:
    """Ids that the model gives a probability and the tokenizer has not, ascending; None without any.

    Vocabularies are padded to round sizes. Such an id stands for no text and would not come back from one.
    """
    head: Any = model.get_output_embeddings()
    size = int(head.weight.shape[0] if head is not None else model.config.get_text_config().vocab_size)
    known = torch.zeros(size, dtype=torch.bool)
    ids = torch.tensor([one for one in tokenizer.get_vocab().values() if one < size], dtype=torch.long)
    known[ids] = True
    missing = (~known).nonzero().squeeze(1)
    return missing if len(missing) else None


def check_positions(model: PreTrainedModel, tokens: int, what: str, source: ModelSource) -> None:
    """Raise BackendError if rows of so many tokens have positions the model was not made for, or rotations that depend
    on how long the row beside them is.

    Args:
        what: makes so many tokens, in words; source: where the model is from.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise BackendError(
            f"{what} make {tokens} tokens, but the model of {source.key} is made for {limit} positions. Lower the "
            "response length, filter or cut prompts, or raise the model's limit where its position encoding allows it "
            f"with {source.override_key}.max_position_embeddings={tokens}."
        )
    kind, border = length_of_rotations(model.config)
    if border is not None and tokens > border:
        raise BackendError(
            f"{what} make {tokens} tokens, but the rotations of the model of {source.key} ({kind}) are others for rows "
            f"beyond {border} tokens: what a token gets would change with the length of what follows it, and of the "
            f"rows beside it. Stay within {border} tokens, or give {source.override_key}.rope_parameters with a "
            "rope_type that does not depend on the length (linear, yarn, llama3)."
        )


def length_of_rotations(config: PretrainedConfig) -> tuple[str, int | None]:
    """A rotation whose factors depend on the length of the pass, and the length up to which they are constant."""
    text = config.get_text_config()
    given = getattr(text, "rope_parameters", None) or {}
    for rotation in (given, *(part for part in given.values() if isinstance(part, dict))):
        kind = rotation.get("rope_type")
        if kind in ("longrope", "dynamic"):
            limits = [getattr(text, f"{name}max_position_embeddings", None) for name in ("original_", "")]
            limits.insert(0, rotation.get("original_max_position_embeddings"))
            return kind, next((int(limit) for limit in limits if limit is not None), None)
    return "", None


def what_is_left_out(model: PreTrainedModel) -> list[str]:
    """Parts of what a model folder asks for that have no part in training here, a sentence each."""
    text = model.config.get_text_config()
    said = []
    coefficient = getattr(text, "router_aux_loss_coef", None) or getattr(text, "aux_loss_alpha", None)
    if coefficient:
        said.append(
            f"the routers' balancing loss (coefficient {coefficient:g} in config.json) is no part of the "
            "objective, as in "
            "verl: the policy gradient alone moves the routers"
        )
    if model.config._attn_implementation == "eager":
        said.append(f"{type(model).__name__} has no fused attention; the plain one (eager) is used")
    generation = model.generation_config
    neutral_of = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": 0}
    lists = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias", "forced_bos_token_id")
    for name, neutral in {**neutral_of, **dict.fromkeys(lists), "forced_eos_token_id": None}.items():
        value = getattr(generation, name, None)
        if value not in (None, neutral, []):
            said.append(
                f"generation_config.json's {name}={value} is not applied: answers are drawn from the policy itself"
            )
    return said


def refuse_router_loss(source: ModelSource) -> None:
    """Raise BackendError where the settings ask for a balancing loss, which is not there."""
    for name in ("output_router_logits", "router_aux_loss_coef", "aux_loss_alpha"):
        if (source.override_config or {}).get(name):
            raise BackendError(
                f"override_config.{name}: the routers' balancing loss is not available, so it would have no effect; "
                "remove the key."
            )


def pad_token_id(tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int]) -> int:
    """The padding id; padded positions are masked, so an end token serves where no padding token exists."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stop_ids)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Recompute each layer's activations in the backward pass instead of keeping them."""
    settings = {"use_reentrant": False}
    # The library renamed the method after 5.19.
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
