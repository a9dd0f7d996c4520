"""The driver's learner: it holds the batch, counts, deals rows to ranks and joins what they return."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gmpo.algo.objective import LossRecord, Objective
from gmpo.backends.critic import CriticSettings, fit
from gmpo.backends.learner import update_of
from gmpo.backends.mini_batch import MiniBatch, prepare
from gmpo.backends.ranks.dealing import deal_rows
from gmpo.backends.ranks.group import Ranks
from gmpo.backends.ranks.sampler import RankWeights
from gmpo.backends.ranks.wire import packed, unpacked
from gmpo.backends.trainable import OptimizerStep
from gmpo.ports import Update
from gmpo.records.batch import Batch


class RankedLearner:
    """A `Learner` on several ranks.

    Denominators and the loss's choices are made here, of the whole mini-batch; which problems share one never depends
    on the ranks.

    Args:
        critic: how the critic is fitted, where there is one.
    """

    def __init__(self, ranks: Ranks, objective: Objective, critic: CriticSettings | None) -> None:
        self.ranks = ranks
        self.objective = objective
        self.critic = critic
        self.step = 0
        """Training steps behind the weights."""
        self._held = itertools.count()

    def score(self, batch: Batch, *, old: bool) -> Batch:
        """See `gmpo.ports.Learner`."""
        return batch.replace(**self._filled(batch, "score", (old,), phase=self._scoring))

    @property
    def _scoring(self) -> str:
        return f"computing log-probs in step {self.step + 1}"

    def update_critic(self, batch: Batch, *, step: int) -> Mapping[str, float]:
        """See `gmpo.ports.Learner`."""
        if self.critic is None:
            return {}
        phase = f"updating the critic in step {step + 1}"
        return fit(self.critic, batch, lambda mini: self._update("update_critic", mini, phase), step=step)

    def update(self, batch: Batch, *, step: int) -> Update:
        """See `gmpo.ports.Learner`."""
        logp = None
        if self.objective.chooses:
            logp = self._filled(batch, "logp", (), phase=self._scoring, only="logp")["logp"]
        mini = prepare(self.objective, batch, step, logp)
        records, stepped = self._update("update", mini, f"updating the policy in step {step + 1}")
        return update_of(self.objective, mini, records, stepped)

    def _update(self, method: str, mini: MiniBatch, phase: str) -> tuple[list[Any], OptimizerStep]:
        """The records of all ranks, in the order of their rows' ranks, and the step, which is the same on all."""
        dealt = deal_rows(mini.batch.group, mini.batch.lengths, self.ranks.size)
        found = unpacked(self.ranks.call(method, lambda number: (packed(mini.part(dealt[number])),), phase=phase))
        records: list[LossRecord] = [record for own, _ in found for record in own]
        return records, found[0][1]

    def _filled(
        self, batch: Batch, method: str, more: tuple[Any, ...], *, phase: str, only: str | None = None
    ) -> dict[str, Tensor]:
        """`[B, T]` values by name, each rank's in its rows' places."""
        dealt = deal_rows(batch.group, batch.lengths, self.ranks.size)
        found = unpacked(
            self.ranks.call(method, lambda number: (packed(batch.select(dealt[number])), *more), phase=phase)
        )
        whole: dict[str, Tensor] = {}
        for rows, part in zip(dealt, found, strict=True):
            for name, values in {only: part}.items() if only is not None else part.items():
                total = whole.setdefault(name, torch.zeros(batch.response_ids.shape))
                total[rows, : values.shape[1]] = values
        return whole

    def weights(self, version: int) -> RankWeights:
        """Where the ranks' sampler finds them: in the ranks."""
        self.step = version
        return RankWeights(version)

    def snapshot(self, contents: Sequence[str], *, copy: bool) -> Callable[[Path], None]:
        """See `gmpo.ports.Learner`. All ranks gather; each holds and writes its share."""
        return self._writer("hold", tuple(contents), copy)

    def export(self, folder: Path) -> None:
        """See `gmpo.ports.Learner`."""
        self._writer("hold_model")(folder)

    def _writer(self, method: str, *arguments: Any) -> Callable[[Path], None]:
        number = next(self._held)
        self.ranks.call(method, lambda _: (number, *arguments), phase="gathering weights")
        return lambda folder: self.ranks.call_aside("write", number, folder, phase=f"writing {folder}")

    def load(self, folder: Path, contents: Sequence[str]) -> None:
        """See `gmpo.ports.Learner`."""
        self.ranks.call("load", lambda _: (folder, tuple(contents)), phase=f"reading {folder}")

    def close(self) -> None:
        """End the ranks."""
        self.ranks.close()
