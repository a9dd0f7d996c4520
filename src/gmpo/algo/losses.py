"""The policy losses by name, their contract, and how their values become one number.

Contract. A loss takes `logp, old_logp, advantage, mask`, all `[B, T]`, and the keyword arguments that its entry names,
and returns a `Surrogate`: values to be minimised per token `[B, T]` or per response `[B]`, and the tokens on which a
bound cut the gradient. It neither averages nor logs: `gmpo.algo.masks` owns the denominator. To add a loss, write the
function and its traits in `gmpo.objectives`; nothing else in the package compares names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from gmpo.algo.masks import Counts, aggregate, sequence_aggregate
from gmpo.algo.sequence_losses import geo_mean, gspo, power_mean
from gmpo.algo.surrogate import Surrogate
from gmpo.algo.token_losses import (
    cispo,
    clip_cov,
    dppo_kl,
    dppo_tv,
    dro,
    gpg,
    gspo_token,
    kl_cov,
    negative_log_likelihood,
    sapo,
    select_clip_cov,
    select_kl_cov,
    vanilla,
)
from gmpo.objectives import LOSSES, LossTraits


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """An entry of `POLICY_LOSSES`."""

    fn: Callable[..., Surrogate]
    traits: LossTraits
    select: Callable[..., Tensor] | None = None
    """The function that `traits.select` names."""


_FUNCTIONS = (
    vanilla,
    geo_mean,
    power_mean,
    gspo,
    gspo_token,
    cispo,
    sapo,
    gpg,
    dppo_tv,
    dppo_kl,
    dro,
    clip_cov,
    kl_cov,
)
_SELECTIONS = {fn.__name__: fn for fn in (select_clip_cov, select_kl_cov)}
POLICY_LOSSES: Mapping[str, PolicyLoss] = {
    fn.__name__: PolicyLoss(fn, traits := LOSSES[fn.__name__], _SELECTIONS.get(traits.select or ""))
    for fn in _FUNCTIONS
}
"""`loss_mode` -> loss; names and traits are those of `gmpo.objectives`."""

SUPERVISED = PolicyLoss(negative_log_likelihood, LossTraits())
"""Learning from given answers, for the warm-up; not a `loss_mode`."""


def reduce_surrogate(
    surrogate: Surrogate,
    mask: Bool[Tensor, "B T"],
    *,
    traits: LossTraits,
    mode: str,
    counts: Counts,
    loss_scale: float,
) -> Float[Tensor, ""]:
    """A micro-batch's share of the mini-batch loss: what is passed to backward.

    Args:
        mode: `loss_agg_mode`, for per-token losses whose definition does not name one.
        counts: of the whole mini-batch.
        loss_scale: see `gmpo.algo.masks.aggregate`.
    """
    if traits.per_sequence:
        return sequence_aggregate(surrogate.values, mask, counts)
    return aggregate(surrogate.values, mask, traits.aggregation or mode, counts, loss_scale)
