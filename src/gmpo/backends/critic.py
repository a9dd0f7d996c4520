"""The critic of PPO: the policy's backbone with a scalar head, fitted to the returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, PretrainedConfig, PreTrainedModel

from gmpo.algo.masks import aggregate
from gmpo.algo.objective import added
from gmpo.algo.returns import lambda_returns
from gmpo.algo.values import explained_variance, value_loss
from gmpo.backends import passes
from gmpo.backends.devices import Device
from gmpo.backends.mini_batch import MiniBatch, every_row
from gmpo.backends.model_files import library, require_finite, require_weights, without_place
from gmpo.backends.models import ModelSource, load_config, quiet, resolve
from gmpo.backends.packed import response_hidden, scatter_tokens, share_prefixes
from gmpo.backends.passes import BatchModule
from gmpo.backends.trainable import MicroBatching, OptimizerStep, Trainable
from gmpo.errors import BackendError
from gmpo.records.batch import Batch


def load_value_model(source: ModelSource, device: torch.device) -> PreTrainedModel:
    """As `load_value_model_with_notes`, without the notes."""
    return load_value_model_with_notes(source, device)[0]


def load_value_model_with_notes(source: ModelSource, device: torch.device) -> tuple[PreTrainedModel, list[str]]:
    """The backbone of a model folder with one output per token; the head starts at zero, so every value is 0. And what
    its files hold beyond that, in sentences: a language model's head, which no critic has, is not worth one.

    Raises:
        BackendError: the folder cannot be loaded, its architecture has no token-classification form, or weights of the
            backbone are missing.
    """
    path = resolve(source.path)
    require_weights(Path(path))
    config = load_config(source)
    config.num_labels = 1
    config.classifier_dropout = 0.0
    # The library reports the head as newly made on every load; which weights were missing is checked below.
    with library(f"make a critic from {source.named}"), quiet():
        loaded: Any = AutoModelForTokenClassification.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            trust_remote_code=source.trust_remote_code,
            output_loading_info=True,
        )
    model: PreTrainedModel
    model, info = loaded
    where = source.named
    beyond = set(info["unexpected_keys"])
    beyond -= _language_model_names(config, source.trust_remote_code) if beyond else frozenset()
    notes = without_place(model, model.base_model, beyond, where, shortened=source.changes_layers)
    head = [name for name in info["missing_keys"] if "score" in name or "classifier" in name]
    missing = sorted(set(info["missing_keys"]) - set(head))
    if missing:
        raise BackendError(f"{where}: {len(missing)} parameters are missing, for example {missing[0]!r}")
    require_finite(model.base_model, where)
    with torch.no_grad():
        for parameter in value_head(model).parameters():
            parameter.zero_()
    own = {id(parameter) for parameter in value_head(model).parameters()}
    if read := [name for name, parameter in model.named_parameters() if id(parameter) in own and name not in head]:
        notes.append(f"the value head in the model's files ({', '.join(read)}) is not used: every value begins at 0")
    model.to(device)  # type: ignore[arg-type]  # its decorator hides the method's own annotation
    return model, notes


def _language_model_names(config: PretrainedConfig, trust_remote_code: bool) -> frozenset[str]:
    """The weights of the language model that a backbone may have been saved in; none where it has no such form."""
    try:
        with quiet(), torch.device("meta"):
            # A copy, for some families make a decoder of the configuration.
            whole = AutoModelForCausalLM.from_config(deepcopy(config), trust_remote_code=trust_remote_code)
    except (ValueError, RuntimeError, ImportError, NotImplementedError):
        return frozenset()
    if whole.base_model is whole:
        return frozenset()
    inside = {f"{whole.base_model_prefix}.{name}" for name in whole.base_model.state_dict()}
    return frozenset(whole.state_dict()) - inside


def value_head(model: PreTrainedModel) -> torch.nn.Module:
    """The layer from hidden states to values."""
    found = next((layer for name in ("score", "classifier") if (layer := getattr(model, name, None)) is not None), None)
    if not isinstance(found, torch.nn.Linear):
        raise BackendError(f"{type(model).__name__} has no linear layer score or classifier, so it cannot be a critic")
    return found


@dataclass(frozen=True, slots=True)
class CriticSettings:
    """How the critic is fitted."""

    gamma: float
    lam: float
    clip: float
    """`cliprange_value`: how far a value may move from the one at the start of the step."""
    aggregation: str
    """`loss_agg_mode` of the value loss."""
    loss_scale: float
    mini_batch_problems: int
    epochs: int
    shuffle_seed: int | None


class ValueModule(BatchModule):
    """The value before each sampled token, read where the token is predicted."""

    def __init__(self, model: PreTrainedModel, device: Device) -> None:
        super().__init__(model, device, share_prefixes(model, device))

    def forward(self, batch: Batch) -> tuple[Tensor]:
        """`[B, T]`, 0 where nothing was sampled."""
        hidden = response_hidden(self.model, batch, self.device, mask=batch.sampled_mask, group=self.group)
        with self.device.autocast():
            values = value_head(self.model)(hidden).squeeze(1)
        return (scatter_tokens(values.float(), batch.sampled_mask),)


UpdatePart = Callable[[MiniBatch], tuple[Sequence[Mapping[str, Tensor]], OptimizerStep]]
"""A mini-batch -> the shares of its means that each of its parts leaves behind, and the optimizer's step."""


def fit(settings: CriticSettings, batch: Batch, update: UpdatePart, *, step: int) -> dict[str, float]:
    """`critic.ppo_epochs` passes over a credited batch, wherever `update` computes; returns verl's `critic/*`
    metrics."""
    s, values, mask = settings, batch.values, batch.sampled_mask
    assert values is not None
    assert batch.token_rewards is not None
    returns = lambda_returns(batch.token_rewards, mask, values, gamma=s.gamma, lam=s.lam)
    batch = batch.replace(returns=returns)
    steps = []
    seed = None if s.shuffle_seed is None else s.shuffle_seed + step
    for rows in batch.mini_batches(s.mini_batch_problems, epochs=s.epochs, shuffle_seed=seed):
        steps.append(critic_update_of(*update(every_row(batch.select(rows), step))))
    metrics = {f"critic/{name}": sum(m[name] for m in steps) / len(steps) for name in steps[0]}
    explained = explained_variance(values, returns, mask)
    if not math.isnan(explained):
        metrics["critic/vf_explained_var"] = explained
    return metrics | {
        **_summary("critic/values", values[mask]),
        **_summary("critic/returns", returns[mask]),
    }


def critic_update_of(shares: Sequence[Mapping[str, Tensor]], stepped: OptimizerStep) -> dict[str, float]:
    """The metrics of an update from the shares of its parts."""
    means = {name: float(value) for name, value in added(shares).items()}
    return {**means, "grad_norm": stepped.norm, "lr": stepped.rate}


class Critic:
    """Values of response positions and their fitting.

    Args:
        update_split: micro-batches with gradient; score_split: without.
    """

    def __init__(
        self,
        trainable: Trainable,
        *,
        device: Device,
        settings: CriticSettings,
        update_split: MicroBatching,
        score_split: MicroBatching,
    ) -> None:
        self.trainable = trainable
        self.module = ValueModule(trainable.model, device)
        self.settings = settings
        self.update_split = update_split
        self.score_split = score_split

    def values(self, batch: Batch) -> Tensor:
        """`[B, T]` on the CPU: the estimate before each sampled token, 0 elsewhere."""
        return passes.score(self.module, batch, self.score_split, "computing values")[0]

    def fit(self, batch: Batch, *, step: int) -> dict[str, float]:
        """`critic.ppo_epochs` passes over a credited batch; returns verl's `critic/*` metrics."""
        return fit(self.settings, batch, self.update_part, step=step)

    def update(self, batch: Batch, *, step: int) -> dict[str, float]:
        """One optimizer update on the mini-batch `batch`; returns its metrics."""
        return critic_update_of(*self.update_part(every_row(batch, step)))

    def update_part(self, mini: MiniBatch) -> tuple[list[dict[str, Tensor]], OptimizerStep]:
        """Gradients of some rows of a mini-batch, and one step of the optimizer with those of all ranks."""
        return passes.update(
            self.module, self.trainable, mini, self.update_split, "updating the critic", self.accumulate
        )

    def accumulate(self, part: MiniBatch) -> list[dict[str, Tensor]]:
        """Add the gradient of a micro-batch to the parameters'; returns its shares of the mini-batch's means."""
        s, where, batch = self.settings, self.module.device.torch, part.batch
        assert batch.values is not None
        assert batch.returns is not None
        mask = batch.loss_mask.to(where)
        (values,) = self.module(batch)
        losses, held = value_loss(values, batch.values.to(where), batch.returns.to(where), clip=s.clip)
        loss = aggregate(losses, mask, s.aggregation, part.counts, s.loss_scale)
        loss.backward()

        def token_mean(x: Tensor) -> Tensor:
            return aggregate(x.detach().float(), mask, "token-mean", part.counts, s.loss_scale)

        return [{"vf_loss": loss.detach(), "vf_clipfrac": token_mean(held), "vpred_mean": token_mean(values)}]


def _summary(name: str, values: Tensor) -> dict[str, float]:
    if values.numel() == 0:
        return {}
    return {
        f"{name}/mean": float(values.mean()),
        f"{name}/max": float(values.max()),
        f"{name}/min": float(values.min()),
    }
