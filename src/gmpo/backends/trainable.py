"""A model with its AdamW: gradients, clipping, skipped updates, and both on disk. Actor and critic are two of these."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gmpo.backends.devices import MEMORY
from gmpo.backends.storage import (
    ALONE,
    Share,
    held_moments,
    held_weights,
    load_model,
    load_optimizer,
    save_huggingface,
    save_model,
    save_optimizer,
)
from gmpo.errors import BackendError, DivergedError

PROBED_WEIGHTS = 2**20
"""Weights, about, on which it is seen whether an update moved them."""


def training_mode(model: PreTrainedModel) -> None:
    """The passes of an update: the model as it is sampled from, in whose layers activations may be recomputed.

    Training mode switches on what draws random numbers (dropout, noise in a router), with which a log-prob before an
    update and one after it could not be compared; the library's recomputation asks for it too, of the layers alone.
    """
    model.eval()
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.training = True


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW, one parameter group, and the bound on the gradient's norm."""

    learning_rate: Callable[[int], float]
    """Training step (0-based) -> learning rate."""
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    max_norm: float
    max_nonfinite: int
    """So many updates in a row whose gradient is not finite stop the run."""


@dataclass(frozen=True, slots=True)
class MicroBatching:
    """Division of a mini-batch into passes: by `rows` or by `tokens`, exactly one of them given."""

    rows: int | None = None
    tokens: int | None = None
    settings: Sequence[str] = MEMORY
    """The settings that a message about lack of memory names."""


NORM_PART = 65_536
"""Squares that are summed in the gradient's own precision: `gradient_norm`."""


@dataclass(frozen=True, slots=True)
class OptimizerStep:
    """What a step of the optimizer reports."""

    norm: float
    """Norm of the gradient before clipping."""
    rate: float
    """Learning rate."""
    skipped: bool
    """The norm was not finite and the weights were left alone."""
    moved: float | None = None
    """Share of the weights below float32 that changed, of those that the gradients asked to; None where none were."""


class Movement:
    """Which weights of less precision than float32 an update changes, on about a million of them, evenly spaced.

    A weight is asked to move where its first moment is not 0; a step below half of its spacing leaves it where it was.
    """

    def __init__(self, trained: Sequence[torch.nn.Parameter]) -> None:
        self.weights = [p for p in trained if p.dtype.itemsize < torch.float32.itemsize]
        # Odd, so that it meets every column of a matrix whose width is a power of 2.
        self.stride = (sum(p.numel() for p in self.weights) // PROBED_WEIGHTS) | 1
        self.before: list[torch.Tensor] = []

    def begin(self) -> None:
        """Keep the weights as they are."""
        self.before = [self._probed(p).clone() for p in self.weights]

    def share(self, optimizer: torch.optim.Optimizer) -> float | None:
        """Of the weights asked to move since `begin`, those that did; None where none were asked."""
        asked = moved = 0
        for weight, old in zip(self.weights, self.before, strict=True):
            wanted = self._probed(optimizer.state[weight]["exp_avg"]) != 0
            asked += int(wanted.sum())
            moved += int((wanted & (self._probed(weight) != old)).sum())
        self.before = []
        return moved / asked if asked else None

    def _probed(self, values: torch.Tensor) -> torch.Tensor:
        here = values.to_local() if isinstance(values, DTensor) else values
        return here.detach().flatten()[:: self.stride]


def gradient_norm(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Their joint Euclidean norm, a scalar on their device.

    On one CPU torch sums a whole tensor's squares in float32, one after the other: of 39 million entries the norm comes
    out 0.3 % too small. So there the squares of `NORM_PART` entries are summed at a time, and these sums in float64.
    """
    if any(g.device.type != "cpu" or isinstance(g, DTensor) for g in gradients):
        return torch.nn.utils.get_total_norm(gradients)
    parts = (part for g in gradients for part in g.flatten().split(NORM_PART))
    exact = (part if part.dtype.itemsize >= torch.float32.itemsize else part.float() for part in parts)
    return torch.stack([torch.dot(part, part).double() for part in exact]).sum().sqrt()


class Trainable:
    """`model` and its optimizer. Parameters that require no gradient are left alone: they neither move nor decay.

    Args:
        lr_key, nonfinite_key: the settings that a message about non-finite gradients names. Without the second there
            are no checkpoints to go on from.

    Raises:
        BackendError: every parameter is frozen.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: OptimizerSettings,
        *,
        lr_key: str,
        nonfinite_key: str | None = "actor_rollout_ref.actor.max_nonfinite_updates",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.lr_key = lr_key
        self.nonfinite_key = nonfinite_key
        trained = [p for p in model.parameters() if p.requires_grad]
        if not trained:
            raise BackendError(f"{type(model).__name__}: every parameter is frozen, so there is nothing to train")
        self.optimizer = torch.optim.AdamW(
            trained,
            lr=settings.learning_rate(0),
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.movement = Movement(trained)
        self.nonfinite_in_a_row = 0

    def anew(self) -> Trainable:
        """The same with a new optimizer, for a model whose parameters were exchanged."""
        return Trainable(self.model, self.tokenizer, self.settings, lr_key=self.lr_key)

    def begin(self) -> None:
        """Training mode, gradients zero.

        Zeros rather than None: AdamW passes over parameters without a gradient, and a mini-batch without any signal
        still makes its (decayed) step. For the same reason a frozen parameter has None.
        """
        training_mode(self.model)
        for parameter in self.model.parameters():
            if not parameter.requires_grad:
                parameter.grad = None
            elif parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            else:
                parameter.grad.zero_()

    def step(self, step: int) -> OptimizerStep:
        """Clip the accumulated gradient and update; a gradient that is not finite is skipped and counted.

        Raises:
            DivergedError: too many in a row, or weights that are not finite after the update.
        """
        rate = self.settings.learning_rate(step)
        slopes = [p for p in self.model.parameters() if p.grad is not None]
        total = gradient_norm([p.grad for p in slopes if p.grad is not None])
        norm = float(total)
        if math.isfinite(norm):
            torch.nn.utils.clip_grads_with_norm_(slopes, self.settings.max_norm, total)
            self.nonfinite_in_a_row = 0
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.movement.begin()
            self.optimizer.step()
            self._require_finite(step, norm, rate)
            moved = self.movement.share(self.optimizer)
            return OptimizerStep(norm, rate, skipped=False, moved=moved if rate > 0 else None)
        self.nonfinite_in_a_row += 1
        if self.nonfinite_in_a_row >= self.settings.max_nonfinite:
            raise DivergedError(
                f"step {step + 1}, update: the gradient was not finite ({norm}) in {self.nonfinite_in_a_row} updates "
                f"in a row; the weights were left as they were. Lower {self.lr_key} (now {rate:g}), {self._again}"
                + (f" {self.nonfinite_key} sets how many are tolerated." if self.nonfinite_key else "")
            )
        return OptimizerStep(norm, rate, skipped=True)

    @property
    def _again(self) -> str:
        before = "go on from a checkpoint before that, or " if self.nonfinite_key else ""
        return f"and {before}begin again."

    def _require_finite(self, step: int, norm: float, rate: float) -> None:
        trained = [p.detach() for group in self.optimizer.param_groups for p in group["params"]]
        # A sum is not finite where a weight is not, and seldom otherwise; on a CPU it is 25 times as fast as a maximum.
        sums = torch.stack([s.full_tensor() if isinstance(s := p.sum(), DTensor) else s for p in trained])
        if not bool(sums.isfinite().all()) and not all(bool(p.isfinite().all()) for p in trained):
            raise DivergedError(
                f"step {step + 1}, update: the weights are not finite after an update with learning rate {rate:g} "
                f"(gradient norm {norm:g}). Lower {self.lr_key}, {self._again}"
            )

    def snapshot(self, contents: Sequence[str], *, copy: bool, share: Share = ALONE) -> Callable[[Path], None]:
        """What training has come to, as a function that writes it to a folder.

        `model` and `optimizer` become safetensors and JSON; `hf_model` a loadable folder `huggingface/`, which without
        it holds configuration and tokenizer only.

        Args:
            copy: keep a copy, so that training may go on before it is written.
            share: what this rank keeps and writes; the first one also what is written whole.
        """
        asked = {"model", "hf_model"} & set(contents)
        owners, whole = share.owners(self.model), share.first and "hf_model" in contents
        weights, moments = {}, {}
        if asked:
            weights = held_weights(self.model, copy=copy, keep=lambda name: whole or owners.get(name) == share.rank)
        if "optimizer" in contents:
            moments = held_moments(self.model, self.optimizer, copy=copy, keep=lambda name: owners[name] == share.rank)
        extra = {"nonfinite_in_a_row": self.nonfinite_in_a_row}

        def write(folder: Path) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            if "model" in contents:
                save_model(self.model, weights, folder, share)
            if "optimizer" in contents:
                save_optimizer(self.model, self.optimizer, moments, extra, folder, share)
            if not share.first:
                return
            exported = weights if "hf_model" in contents else None
            save_huggingface(self.model, self.tokenizer, folder / "huggingface", exported)

        return write

    def load(self, folder: Path, contents: Sequence[str]) -> None:
        """Read what was written: weights from `model`, else from `hf_model`.

        Raises:
            CheckpointError: a file is missing or does not fit the model.
        """
        load_model(self.model, folder, "model" if "model" in contents else "hf_model")
        if "optimizer" in contents:
            extra = load_optimizer(self.model, self.optimizer, folder)
            self.nonfinite_in_a_row = int(extra["nonfinite_in_a_row"])
