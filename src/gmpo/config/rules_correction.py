"""Rules over `algorithm.rollout_correction`."""

from __future__ import annotations

from collections.abc import Iterator

from gmpo.config.corrections import parse_rejections
from gmpo.config.derive import ACTOR, CORRECTION, REINFORCE_LOSS, ROLLOUT, Given
from gmpo.config.issues import Issue, error, inert
from gmpo.config.schema import Config
from gmpo.objectives import LOSSES

LOSS_MODE = f"{ACTOR}.policy_loss.loss_mode"
BYPASS, LOSS_TYPE = f"{CORRECTION}.bypass_mode", f"{CORRECTION}.loss_type"
IS, ICEPOP, GEOMETRIC = f"{CORRECTION}.rollout_is", f"{CORRECTION}.icepop", f"{CORRECTION}.geometric_weights"


def weights(config: Config, given: Given) -> Iterator[Issue]:
    """Importance weights of either kind."""
    correction = config.algorithm.rollout_correction
    if correction.rollout_is is None:
        reason = f"{IS} is null" + (", and icepop has bounds of its own" if correction.icepop else "")
        yield from inert(reason, f"{CORRECTION}.rollout_is_threshold", f"{CORRECTION}.rollout_is_batch_normalize")
    if correction.icepop is not None:
        low, high = correction.icepop
        if not 0 <= low <= 1 <= high or low == high:
            yield error(ICEPOP, "must be a band [low, high] of weights that holds 1, where the two policies agree")
        if correction.rollout_is is not None:
            yield error(ICEPOP, f"takes the place of {IS} = {correction.rollout_is}; keep one of the two", IS)
    if correction.geometric_weights:
        yield from _geometric_weights(config)


def _geometric_weights(config: Config) -> Iterator[Issue]:
    correction, mode = config.algorithm.rollout_correction, config.actor_rollout_ref.actor.policy_loss.loss_mode
    means = [name for name, traits in LOSSES.items() if traits.log_clip]
    if mode not in means:
        reason = f"goes with {LOSS_MODE}={' or '.join(means)}, which take means over tokens; {mode} does not"
        yield error(GEOMETRIC, reason, LOSS_MODE)
    if correction.icepop is not None:
        yield error(GEOMETRIC, "has no meaning with icepop, which sets weights to 0; use rollout_is=token", ICEPOP)
    elif correction.rollout_is is None:
        yield from inert(f"{IS} is null, so there are no weights", GEOMETRIC)


def rejection(config: Config, given: Given) -> Iterator[Issue]:
    """`rollout_rs` with its thresholds."""
    correction, path = config.algorithm.rollout_correction, f"{CORRECTION}.rollout_rs_threshold"
    if not correction.rollout_rs:
        yield from inert(f"{CORRECTION}.rollout_rs is null", path)
    try:
        parse_rejections(correction.rollout_rs, correction.rollout_rs_threshold)
    except ValueError as wrong:
        yield error(path, str(wrong), f"{CORRECTION}.rollout_rs")


def bypass(config: Config, given: Given) -> Iterator[Issue]:
    """Bypass mode: the old log-probs are the sampler's."""
    correction, mode = config.algorithm.rollout_correction, config.actor_rollout_ref.actor.policy_loss.loss_mode
    reinforce = correction.loss_type == "reinforce"
    if correction.bypass_mode and reinforce and mode != REINFORCE_LOSS:
        yield error(LOSS_TYPE, f"means {LOSS_MODE}={REINFORCE_LOSS}, but {mode} is given; keep one", LOSS_MODE)
    elif correction.bypass_mode and not reinforce:
        reason = (
            f"in bypass mode the loss's ratio to the sampler is the weight already, so none is applied, in verl "
            f"neither; {LOSS_TYPE}=reinforce weighs"
        )
        yield from inert(reason, *_weights(config))
    elif reinforce and not correction.bypass_mode:
        reason = f"is a loss of bypass mode; give {BYPASS}=True, or {LOSS_MODE}={REINFORCE_LOSS} without it"
        yield error(LOSS_TYPE, reason, BYPASS)
    elif not correction.bypass_mode:
        yield from inert(f"{BYPASS} is off", LOSS_TYPE)


def _weights(config: Config) -> Iterator[str]:
    """The paths that ask for weights, and those of their numbers."""
    correction = config.algorithm.rollout_correction
    if correction.rollout_is is not None:
        yield from (IS, f"{CORRECTION}.rollout_is_threshold", f"{CORRECTION}.rollout_is_batch_normalize")
    if correction.icepop is not None:
        yield ICEPOP


def old_log_probs(config: Config, given: Given) -> Iterator[Issue]:
    """The pass that computes old log-probs, and the probe that may spare it."""
    tolerance = f"{ROLLOUT}.log_prob_tolerance"
    if config.needs_old_logp:
        if not config.can_reuse_logp:
            yield from inert("the learner's log-probs and entropies are needed whatever the sampler's are", tolerance)
        return
    if config.algorithm.rollout_correction.bypass_mode:
        reason = f"{BYPASS} takes the sampler's log-probs, so the learner computes none before the update"
    else:
        reason = "a step makes one update, from the weights that sampled, so no log-probs are computed before it"
    yield from inert(reason, tolerance)
    # A loss that chooses its tokens makes the same kind of pass.
    if LOSSES[config.actor_rollout_ref.actor.policy_loss.loss_mode].select is None:
        names = ("log_prob_micro_batch_size_per_gpu", "log_prob_use_dynamic_bsz", "log_prob_max_token_len_per_gpu")
        yield from inert(reason, *(f"{ROLLOUT}.{name}" for name in names))


RULES = (weights, rejection, bypass, old_log_probs)
"""In the order in which they are reported."""
