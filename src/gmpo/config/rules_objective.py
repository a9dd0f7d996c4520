"""Rules over the objective: which estimator goes with which loss, and what each of them leaves without effect.

What an estimator or a loss takes and needs comes from its traits in `gmpo.objectives`; no name is compared here.
"""

from __future__ import annotations

from collections.abc import Iterator

from gmpo.config.derive import ACTOR, ROLLOUT, Given
from gmpo.config.issues import Issue, error, inert, warning
from gmpo.config.objective_keys import ESTIMATOR_KEYS, LOSS_KEYS
from gmpo.config.schema import Config
from gmpo.objectives import ESTIMATORS, LOSSES, LossTraits

LOSS_MODE = f"{ACTOR}.policy_loss.loss_mode"
CLIP_KEYS = tuple(f"{ACTOR}.{name}" for name in ("clip_ratio", "clip_ratio_low", "clip_ratio_high"))
REWARD_KEYS = "algorithm.gdpo_reward_keys"
ALIKE_FROM_THE_START = "seq-mean-token-mean"
"""The aggregation of `vanilla` that has the gradient of a loss per response while every ratio is 1."""


FAR_FROM_PUBLISHED = 50
"""So many times a loss's published bound, a bound is taken for that of another loss."""


def estimator(config: Config, given: Given) -> Iterator[Issue]:
    """The estimator's numbers, and whether the loss can take its advantages."""
    algorithm, loss = config.algorithm, config.actor_rollout_ref.actor.policy_loss.loss_mode
    name, traits = algorithm.adv_estimator, ESTIMATORS[algorithm.adv_estimator]
    for number, path in ESTIMATOR_KEYS.items():
        if number not in traits.numbers:
            users = [other for other, entry in ESTIMATORS.items() if number in entry.numbers]
            yield from inert(f"only algorithm.adv_estimator={_either(users)} uses it", path)
    if "offset" in traits.numbers and algorithm.use_kl_in_reward and algorithm.geo_mean_offset <= 0:
        reason = "is not positive, and use_kl_in_reward can push a reward below 0, which has no log: the run would stop"
        yield warning("algorithm.geo_mean_offset", reason)
    if not LOSSES[loss].per_sequence:
        return
    token_losses = [other for other, entry in LOSSES.items() if not entry.per_sequence]
    takes_them = f"Losses that take such advantages: {', '.join(token_losses)}"
    if traits.per_token:
        reason = f"takes one advantage per answer, and those of algorithm.adv_estimator={name} vary over its tokens"
        yield error(LOSS_MODE, f"{reason}. {takes_them}", "algorithm.adv_estimator")
    elif traits.rewards_to_come and algorithm.use_kl_in_reward:
        reason = (
            f"takes one advantage per answer, and algorithm.use_kl_in_reward makes those of "
            f"algorithm.adv_estimator={name} vary over its tokens. {ACTOR}.use_kl_loss does not"
        )
        yield error(LOSS_MODE, f"{reason}. {takes_them}", "algorithm.adv_estimator", "algorithm.use_kl_in_reward")


def components(config: Config, given: Given) -> Iterator[Issue]:
    """Which rewards an estimator of several takes."""
    algorithm, (keys, weights) = config.algorithm, (REWARD_KEYS, ESTIMATOR_KEYS["component_weights"])
    name, traits = algorithm.adv_estimator, ESTIMATORS[algorithm.adv_estimator]
    if not traits.needs_components:
        users = [other for other, entry in ESTIMATORS.items() if entry.needs_components]
        yield from inert(f"only algorithm.adv_estimator={_either(users)} uses it", keys)
        return
    named = algorithm.gdpo_reward_keys
    if not named:
        reason = (
            f"must name the rewards that algorithm.adv_estimator={name} normalises one by one, for example "
            "[accuracy_reward,format_reward]: numbers that the reward function returns, or extra_rewards"
        )
        yield error(keys, reason, "algorithm.adv_estimator")
    if len(set(named)) < len(named):
        yield error(keys, f"names a reward twice: {', '.join(named)}. {weights} gives it more weight")
    if algorithm.gdpo_reward_weights is not None and len(algorithm.gdpo_reward_weights) != len(named):
        found = f"has {len(algorithm.gdpo_reward_weights)} numbers, and {keys} names {len(named)} rewards"
        yield error(weights, f"{found}; give one for each, or none", keys)
    if algorithm.use_kl_in_reward:
        reason = (
            f"has no place in the advantages of algorithm.adv_estimator={name}, which are made of the rewards that "
            f"{keys} names and not of their sum. {ACTOR}.use_kl_loss puts the KL term into the loss"
        )
        yield error("algorithm.use_kl_in_reward", reason, "algorithm.adv_estimator")


def loss(config: Config, given: Given) -> Iterator[Issue]:
    """The loss's numbers and what its average leaves to `loss_agg_mode`."""
    actor = config.actor_rollout_ref.actor
    mode, traits = actor.policy_loss.loss_mode, LOSSES[actor.policy_loss.loss_mode]
    for number, path in LOSS_KEYS.items():
        if number not in traits.all_numbers:
            users = [other for other, entry in LOSSES.items() if number in entry.all_numbers]
            yield from inert(f"{LOSS_MODE}={mode} does not use it, only {_either(users)}", path)
    if not {"clip_low", "clip_high"} & set(traits.all_numbers):
        yield from inert(f"{LOSS_MODE}={mode} clips no ratio", CLIP_KEYS[0])
    elif set(CLIP_KEYS[1:]) <= given:
        yield from inert("clip_ratio_low and clip_ratio_high are given, and they win", CLIP_KEYS[0])
    if "clip_level" in traits.numbers and actor.policy_loss.clip_level == "none":
        yield from inert(f"{ACTOR}.policy_loss.clip_level=none bounds nothing", *CLIP_KEYS)
    if actor.policy_loss.clip_cov_lb >= actor.policy_loss.clip_cov_ub and "cov_low" in traits.all_numbers:
        reason = f"must be below clip_cov_ub = {actor.policy_loss.clip_cov_ub:g}; no covariance lies between them"
        yield error(LOSS_KEYS["cov_low"], reason, LOSS_KEYS["cov_high"])
    yield from _aggregation(config, given, traits)
    if not actor.shuffle and traits.select is None:
        yield from inert(f"{ACTOR}.shuffle is off", f"{ACTOR}.data_loader_seed")


def _aggregation(config: Config, given: Given, traits: LossTraits) -> Iterator[Issue]:
    actor, critic = config.actor_rollout_ref.actor, config.critic
    mode, scale = f"{ACTOR}.loss_agg_mode", f"{ACTOR}.loss_scale_factor"
    own = traits.per_sequence or traits.aggregation is not None
    if own and not (actor.entropy_coeff or actor.has_kl_term):
        mean = f"is defined with {traits.aggregation}" if traits.aggregation else "averages over answers"
        reason = f"{actor.policy_loss.loss_mode} {mean}, and there is no KL or entropy term that it could govern"
        yield from inert(reason, scale)
        if not critic.enable or "critic.loss_agg_mode" in given:
            yield from inert(reason, mode)
    elif actor.loss_agg_mode != "seq-mean-token-sum-norm":
        yield from inert("only loss_agg_mode=seq-mean-token-sum-norm divides by it", scale)


def clip_bounds(config: Config, given: Given) -> Iterator[Issue]:
    """Bounds on the wrong scale for the loss."""
    actor = config.actor_rollout_ref.actor
    mode, traits = actor.policy_loss.loss_mode, LOSSES[actor.policy_loss.loss_mode]
    bounded = "clip_level" not in traits.numbers or actor.policy_loss.clip_level != "none"
    if traits.published_clip is not None and bounded and not given & set(CLIP_KEYS):
        low, high = traits.published_clip
        what = "clips log-ratios" if traits.log_clip else "clips the ratio of a whole answer"
        bounds = f"{low:g}" if low == high else f"{low:g} and {high:g}, {actor.clip_ratio / high:.0f} times less"
        yield warning(CLIP_KEYS[0], f"is verl's default; {mode} {what}, and its published bounds are {bounds}")
    elif traits.published_clip is not None and bounded and not traits.log_clip:
        high = traits.published_clip[1]
        if actor.clip_ratio_high > FAR_FROM_PUBLISHED * high:
            bounds = " and ".join(f"{bound:g}" for bound in traits.published_clip)
            reason = f"{mode} clips the ratio of a whole answer; its published bounds are {bounds}: it hardly binds"
            yield warning(CLIP_KEYS[2], reason)
    if "clip_low" in traits.numbers and not traits.log_clip and actor.clip_ratio_low >= 1:
        yield warning(CLIP_KEYS[1], "is 1 or more, so 1 - low never binds: ratios are positive")
    if "power" in traits.numbers and LOSS_KEYS["power"] not in given:
        yield warning(LOSS_KEYS["power"], "is not given; at 0 the power mean is geo_mean")


def one_update(config: Config, given: Given) -> Iterator[Issue]:
    """A loss per response is nothing of its own before the second update of a step."""
    actor = config.actor_rollout_ref.actor
    mode, traits = actor.policy_loss.loss_mode, LOSSES[actor.policy_loss.loss_mode]
    if not traits.per_sequence or config.updates_per_step > 1 or config.algorithm.rollout_correction.bypass_mode:
        return
    summed = "length_norm" in traits.numbers and not actor.policy_loss.length_norm
    alike = "seq-mean-token-sum" if summed else ALIKE_FROM_THE_START
    reason = (
        f"makes one update per rollout; then every ratio is 1, no bound binds, and {mode} has the same gradient as "
        f"vanilla with {alike}. For several, lower it or raise ppo_epochs"
    )
    yield warning(f"{ACTOR}.ppo_mini_batch_size", reason)


def truncated_sampling(config: Config, given: Given) -> Iterator[Issue]:
    """Sampling from a part of the distribution whose whole the learner scores."""
    rollout, allowed = config.actor_rollout_ref.rollout, "algorithm.allow_truncated_sampling"
    cuts = {f"{ROLLOUT}.top_p": (rollout.top_p < 1, 1), f"{ROLLOUT}.top_k": (rollout.top_k > 0, -1)}
    bias = "cuts the distribution that is sampled, while the learner's log-probs are over all tokens: ratios are biased"
    for path, (cut, off) in cuts.items():
        if cut and config.algorithm.allow_truncated_sampling:
            yield warning(path, bias)
        elif cut:
            yield error(path, f"{bias}. Set it to {off}, or accept the bias with {allowed}=True", allowed)
    if not any(cut for cut, _ in cuts.values()):
        yield from inert(f"{ROLLOUT}.top_p and top_k cut nothing", allowed)


def _either(names: list[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


RULES = (estimator, components, loss, clip_bounds, one_update, truncated_sampling)
"""In the order in which they are reported."""
