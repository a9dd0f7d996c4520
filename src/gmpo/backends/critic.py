"""The critic of PPO: the policy's backbone with a scalar head, fitted to the returns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForTokenClassification, PreTrainedModel

from gmpo.algo.advantages import lambda_returns
from gmpo.algo.masks import Counts, aggregate
from gmpo.algo.values import explained_variance, value_loss
from gmpo.backends.devices import Device, out_of_memory_hint
from gmpo.backends.forward import split
from gmpo.backends.models import ModelSource, load_config, quiet, require_weights, resolve
from gmpo.backends.packed import response_hidden, scatter_tokens, share_prefixes
from gmpo.backends.trainable import MicroBatching, Stepped, Trainable
from gmpo.errors import BackendError
from gmpo.records.batch import Batch


def load_value_model(source: ModelSource, device: torch.device) -> PreTrainedModel:
    """The backbone of a model folder with one output per token; the head starts at zero, so every value is 0.

    Raises:
        BackendError: the folder cannot be loaded, its architecture has no token-classification form, or weights of the
            backbone are missing.
    """
    path = resolve(source.path)
    require_weights(Path(path))
    config = load_config(source)
    config.num_labels = 1
    config.classifier_dropout = 0.0
    try:
        # The library reports the head as newly made on every load; which weights were missing is checked below.
        with quiet():
            loaded: Any = AutoModelForTokenClassification.from_pretrained(
                path,
                config=config,
                dtype=torch.float32,
                trust_remote_code=source.trust_remote_code,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise BackendError(f"cannot make a critic from {source.path!r}: {error}") from error
    model: PreTrainedModel
    model, info = loaded
    head = [name for name in info["missing_keys"] if "score" in name or "classifier" in name]
    missing = sorted(set(info["missing_keys"]) - set(head))
    if missing:
        raise BackendError(f"critic {source.path!r}: {len(missing)} parameters are missing, for example {missing[0]!r}")
    with torch.no_grad():
        for parameter in value_head(model).parameters():
            parameter.zero_()
    model.to(device)  # type: ignore[arg-type]  # its decorator hides the method's own annotation
    return model


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
        self.device = device
        self.settings = settings
        self.update_split = update_split
        self.score_split = score_split
        self.separate = share_prefixes(trainable.model, device)
        """Why every answer computes its own prompt; None if the answers of a group share it."""

    def values(self, batch: Batch) -> Tensor:
        """`[B, T]` on the CPU: the estimate before each sampled token, 0 elsewhere."""
        self.trainable.model.eval()
        filled = torch.zeros(batch.response_ids.shape)
        for rows in split(batch, self.score_split, share=self.separate is None):
            part = batch.select(rows)
            with torch.no_grad(), out_of_memory_hint("computing values"):
                values = self._forward(part)
            filled[rows, : values.shape[1]] = values.cpu()
        return filled

    def _forward(self, part: Batch) -> Tensor:
        """`[B, T]`, 0 where nothing was sampled. The value before a token is read where the token is predicted."""
        hidden = response_hidden(self.trainable.model, part, self.device, mask=part.sampled_mask)
        with self.device.autocast():
            values = value_head(self.trainable.model)(hidden).squeeze(1)
        return scatter_tokens(values.float(), part.sampled_mask)

    def fit(self, batch: Batch, *, step: int) -> dict[str, float]:
        """`critic.ppo_epochs` passes over a credited batch; returns verl's `critic/*` metrics."""
        s = self.settings
        values, mask = batch.values, batch.sampled_mask
        assert values is not None
        assert batch.token_rewards is not None
        returns = lambda_returns(batch.token_rewards, mask, values, gamma=s.gamma, lam=s.lam)
        batch = batch.replace(returns=returns)
        steps = []
        seed = None if s.shuffle_seed is None else s.shuffle_seed + step
        for rows in batch.mini_batches(s.mini_batch_problems, epochs=s.epochs, shuffle_seed=seed):
            steps.append(self._update(batch.select(rows), step))
        metrics = {f"critic/{name}": sum(m[name] for m in steps) / len(steps) for name in steps[0]}
        explained = explained_variance(values, returns, mask)
        if not math.isnan(explained):
            metrics["critic/vf_explained_var"] = explained
        return metrics | {
            **_summary("critic/values", values[mask]),
            **_summary("critic/returns", returns[mask]),
        }

    def _update(self, mini: Batch, step: int) -> Mapping[str, float]:
        counts = mini.counts()
        self.trainable.begin()
        terms: dict[str, float] = {"vf_loss": 0.0, "vf_clipfrac": 0.0, "vpred_mean": 0.0}
        for rows in split(mini, self.update_split, share=self.separate is None):
            with out_of_memory_hint("updating the critic"):
                for name, share in self._accumulate(mini.select(rows), counts).items():
                    terms[name] += share
        stepped: Stepped = self.trainable.step(step)
        return {**terms, "grad_norm": stepped.norm, "lr": stepped.rate}

    def _accumulate(self, part: Batch, counts: Counts) -> dict[str, float]:
        """Backward pass of one micro-batch; returns its shares of the mini-batch means."""
        s, where = self.settings, self.device.torch
        assert part.values is not None
        assert part.returns is not None
        mask = part.loss_mask.to(where)
        values = self._forward(part)
        losses, held = value_loss(values, part.values.to(where), part.returns.to(where), clip=s.clip)
        loss = aggregate(losses, mask, s.aggregation, counts, s.loss_scale)
        loss.backward()

        def token_mean(x: Tensor) -> float:
            return float(aggregate(x.detach().float(), mask, "token-mean", counts, s.loss_scale))

        return {"vf_loss": float(loss.detach()), "vf_clipfrac": token_mean(held), "vpred_mean": token_mean(values)}


def _summary(name: str, values: Tensor) -> dict[str, float]:
    if values.numel() == 0:
        return {}
    return {
        f"{name}/mean": float(values.mean()),
        f"{name}/max": float(values.max()),
        f"{name}/min": float(values.min()),
    }
