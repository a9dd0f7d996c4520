"""What the tests of the losses share: numbers for each of them, a choice of tokens, and an update in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from gmpo.algo.losses import POLICY_LOSSES, PolicyLoss, Surrogate, reduce_surrogate
from gmpo.algo.masks import Counts, count

NUMBERS: dict[str, dict[str, Any]] = {
    "vanilla": {"clip_low": 0.2, "clip_high": 0.3, "clip_dual": 3.0},
    "geo_mean": {"clip_low": 0.3, "clip_high": 0.5, "clip_level": "token", "length_norm": True, "upper": None},
    "power_mean": {"clip_low": 0.3, "clip_high": 0.5, "clip_level": "token", "upper": None, "power": -1.0},
    "gspo": {"clip_low": 0.2, "clip_high": 0.3},
    "gspo_token": {"clip_low": 0.2, "clip_high": 0.3},
    "cispo": {"clip_low": 0.2, "clip_high": 0.3},
    "sapo": {"tau_positive": 1.0, "tau_negative": 1.05},
    "gpg": {},
    "dppo_tv": {"clip_low": 0.02, "clip_high": 0.03, "clip_dual": 3.0, "symmetric": False},
    "dppo_kl": {"clip_low": 0.002, "clip_high": 0.003, "clip_dual": 3.0, "symmetric": False},
    "dro": {"beta": 0.5},
    "clip_cov": {"clip_low": 0.2, "clip_high": 0.3},
    "kl_cov": {"kl_coef": 0.1},
}
SELECTION: dict[str, dict[str, Any]] = {
    "clip_cov": {"clip_low": 0.2, "clip_high": 0.3, "clip_cov_share": 0.3, "cov_low": -0.5, "cov_high": 5.0},
    "kl_cov": {"kl_cov_share": 0.3},
}


def chosen(name: str, logp: Tensor, old_logp: Tensor, advantage: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """What a loss takes as `selected`, with noise made of the token's own log-prob; nothing where it takes none."""
    select = POLICY_LOSSES[name].select
    if select is None:
        return {}
    noise = torch.frac(12345.678 * logp.detach()).abs()
    return {"selected": select(logp.detach(), old_logp, advantage, mask, noise, **SELECTION[name])}


@dataclass
class Outcome:
    """A loss, its gradient by logp, and the record that it was made of."""

    loss: float
    gradient: Tensor
    surrogate: Surrogate


@dataclass(frozen=True)
class Losses:
    """Losses by name, each with numbers of its own."""

    numbers: dict[str, dict[str, Any]] = field(default_factory=lambda: NUMBERS)

    def surrogate(self, name: str, logp: Tensor, *rest: Tensor, choose: bool = True, **more: Any) -> Surrogate:
        """`rest` is old_logp, advantage, mask. A loss that takes `selected` gets its choice, or no token at all."""
        selected = {} if "selected" in more else chosen(name, logp, *rest)
        if not choose:
            selected = {key: torch.zeros_like(value) for key, value in selected.items()}
        return POLICY_LOSSES[name].fn(logp, *rest, **{**self.numbers[name], **selected, **more})

    selected = staticmethod(chosen)

    @staticmethod
    def reduced(
        entry: PolicyLoss,
        surrogate: Surrogate,
        mask: Tensor,
        mode: str = "seq-mean-token-mean",
        counts: Counts | None = None,
        loss_scale: float = 8.0,
    ) -> Tensor:
        return reduce_surrogate(
            surrogate, mask, traits=entry.traits, mode=mode, counts=counts or count(mask), loss_scale=loss_scale
        )

    def update(self, name: str, logp: Tensor, *rest: Tensor, mode: str = "seq-mean-token-mean", **more: Any) -> Outcome:
        """Loss and gradient of a mini-batch as a whole."""
        leaf = logp.detach().clone().requires_grad_()
        surrogate = self.surrogate(name, leaf, *rest, **more)
        loss = self.reduced(POLICY_LOSSES[name], surrogate, rest[-1], mode)
        loss.backward()
        assert leaf.grad is not None
        return Outcome(loss.item(), leaf.grad, surrogate)


@pytest.fixture(scope="session")
def losses() -> Losses:
    return Losses()


@pytest.fixture(scope="session")
def responses() -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Responses given by their log-ratios and advantages -> logp, old_logp (all -1), advantage, mask."""

    def build(
        log_ratios: Sequence[Sequence[float]], advantages: Sequence[float], dtype: torch.dtype = torch.float64
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        width = max(len(row) for row in log_ratios)
        padded = [[*row, *[0.0] * (width - len(row))] for row in log_ratios]
        mask = torch.tensor([[t < len(row) for t in range(width)] for row in log_ratios])
        old = torch.full(mask.shape, -1.0, dtype=dtype)
        return old + torch.tensor(padded, dtype=dtype), old, torch.tensor(advantages, dtype=dtype)[:, None] * mask, mask

    return build


@pytest.fixture(scope="session")
def mini_batch() -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
    """`(seed, spread)` -> logp, old_logp, advantage, mask: six responses of 0 to 5 tokens, advantages of both signs."""

    def draw(seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        g = torch.Generator().manual_seed(seed)
        mask = torch.arange(5) < torch.tensor([5, 0, 1, 3, 4, 2]).unsqueeze(1)
        old = -torch.rand(6, 5, generator=g, dtype=torch.float64) - 0.5
        logp = old + spread * torch.randn(6, 5, generator=g, dtype=torch.float64)
        advantage = torch.tensor([[1.0], [1.0], [-1.0], [-0.5], [0.7], [2.0]], dtype=torch.float64).expand(6, 5)
        return logp, old, advantage, mask

    return draw
