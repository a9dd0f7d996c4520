"""`algorithm.*`: from rewards to advantages, and what is done about sampler and learner being two policies."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gmpo.config.fields import Name, Section, one_of, setting
from gmpo.config.presets import PRESETS
from gmpo.objectives import ESTIMATORS, REJECTIONS


class KlControl(Section):
    """Coefficient of the KL penalty in the reward."""

    type: Literal["fixed", "adaptive"] = setting(
        "fixed", "fixed keeps kl_coef; adaptive steers it so that the measured KL approaches target_kl."
    )
    kl_coef: float = setting(0.001, "Coefficient of the penalty; the starting value when adaptive.", ge=0)
    horizon: int = setting(10000, "Answers over which the adaptive controller reacts.", ge=1)
    target_kl: float = setting(0.1, "Mean KL per token in nats that the adaptive controller aims at.", gt=0)


class RolloutCorrection(Section):
    """Corrections for the difference between the sampler's policy mu and the learner's at the start of the step."""

    preset: Annotated[str, one_of(PRESETS)] | None = setting(
        None, "One of verl's named settings; it fills in those keys of this section that are not given.", own=True
    )
    rollout_is: Literal["token", "sequence"] | None = setting(
        None, "Weigh gradients by pi_old / mu: of each token, or of the whole answer. null does not."
    )
    rollout_is_threshold: float = setting(
        2.0, "Weights above it are cut to it. verl's form 'lower_upper' is read as icepop=[lower, upper].", gt=0
    )
    rollout_is_batch_normalize: bool = setting(
        False, "Divide the weights by their mean over the step's tokens, or answers."
    )
    rollout_rs: tuple[Annotated[str, one_of(REJECTIONS)], ...] = setting(
        (),
        "Reject tokens, or answers, on which the two policies differ too much: one option, or several with commas, all "
        "of which must accept. k1, k2, k3 name the estimate of the divergence; sum, mean, max go over the answer.",
    )
    rollout_rs_threshold: str | None = setting(
        None,
        "Bound of each option of rollout_rs, with commas, or one for all. k1 takes a band of mu / pi_old such as "
        "0.999_1.001, or u for 1/u to u; k2 and k3 an upper bound.",
    )
    bypass_mode: bool = setting(
        False, "Take the sampler's log-probs as the old ones, so that one clipped ratio covers mismatch and update."
    )
    loss_type: Literal["ppo_clip", "reinforce"] = setting(
        "ppo_clip",
        "Loss in bypass mode. ppo_clip: the one of policy_loss.loss_mode. reinforce: loss_mode=gpg, with the weights "
        "of rollout_is.",
    )
    icepop: tuple[float, float] | None = setting(
        None,
        "In place of rollout_is: weights pi_old / mu per token inside [low, high], and 0 outside (arXiv 2510.18855).",
        own=True,
    )
    geometric_weights: bool = setting(
        False,
        "Give all tokens of an answer the geometric mean of its weights, as verl does for geo_mean.",
        own=True,
    )

    @property
    def compares(self) -> bool:
        """Whether weights or rejection compare the two policies, so that the learner's log-probs are needed."""
        return self.rollout_is is not None or self.icepop is not None or bool(self.rollout_rs)


class FilterGroups(Section):
    """DAPO's dynamic sampling: groups whose answers are all alike are dropped, and sampling goes on."""

    enable: bool = setting(False, "Sample until data.train_batch_size groups have answers that differ in metric.")
    metric: Name | None = setting(
        None,
        "What must differ: acc (right or wrong), score (the scorer's), seq_reward (after shaping), or any number that "
        "a reward function returns. null takes seq_reward, from which advantages are made, and acc where "
        "reward_model.reward_manager=dapo makes rewards differ by length alone.",
    )
    max_num_gen_batches: int = setting(
        0,
        "Rounds of sampling within a step, after which the run stops and shows the pass rates. 0 sets no limit; a "
        "whole pass over the data without one useful group stops the run in any case.",
        ge=0,
    )
    max_staleness: int = setting(
        0,
        "Training steps that a surplus group may wait for its turn. 0 discards it, as verl does.",
        own=True,
        ge=0,
    )

    @property
    def keeps_groups(self) -> bool:
        """Whether a step may hold groups that earlier weights sampled."""
        return self.enable and self.max_staleness > 0


class Algorithm(Section):
    """From rewards to advantages."""

    adv_estimator: Annotated[str, one_of(ESTIMATORS)] = setting(
        "grpo",
        "Advantage estimator. verl's default is gae, PPO with a critic. Relative to the answers to the same problem: "
        "grpo, rloo, opo (weighs lengths), optimal_token_baseline (a baseline for each place of an answer), gpg, "
        "grpo_passk (the best answer alone), reinforce_plus_plus_baseline, gdpo (several rewards, each normalised by "
        "itself), grpo_batch_std (Lite-PPO), geo_mean (log rewards; not the loss of that name). Without a group: gae, "
        "reinforce_plus_plus, remax (relative to a greedy answer).",
    )
    norm_adv_by_std_in_grpo: bool = setting(
        True, "Divide the group-relative reward by the group's standard deviation. False is Dr. GRPO's advantage."
    )
    gamma: float = setting(1.0, "Discount per token.", ge=0, le=1)
    lam: float = setting(1.0, "Lambda of generalised advantage estimation.", ge=0, le=1)
    geo_mean_eps: float = setting(
        1e-8,
        "Smallest reward whose log adv_estimator=geo_mean takes; it decides what 0 means.",
        own=True,
        gt=0,
    )
    geo_mean_offset: float = setting(0.0, "Added to every reward before that log.", own=True)
    gdpo_reward_keys: tuple[Name, ...] = setting(
        (),
        "The rewards of adv_estimator=gdpo: numbers that the reward function returns beside its score, score, acc, or "
        "names of reward_model.extra_rewards.",
    )
    gdpo_reward_weights: tuple[float, ...] | None = setting(
        None, "Weight of each of them, in their order. null weighs all alike."
    )
    use_kl_in_reward: bool = setting(
        False, "Subtract kl_ctrl.kl_coef times the KL to the reference model from each token's reward."
    )
    kl_penalty: Literal["kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3"] = setting(
        "kl", "Estimator of the KL in the reward: kl = k1, mse = k2, low_var_kl = k3, or abs."
    )
    allow_truncated_sampling: bool = setting(
        False,
        "Train although rollout.top_p or top_k cut the sampled distribution, which biases every ratio.",
        own=True,
    )
    drop_zero_variance: bool = setting(
        False,
        "Leave groups whose answers all have the same reward out of the loss and its denominator. Nothing is sampled "
        "in their place.",
        own=True,
    )
    filter_groups: FilterGroups = Field(default_factory=FilterGroups)
    kl_ctrl: KlControl = Field(default_factory=KlControl)
    rollout_correction: RolloutCorrection = Field(default_factory=RolloutCorrection)
