"""Rules over sizes: batches, mini-batches, micro-batches, token budgets."""

from __future__ import annotations

from collections.abc import Iterator

from gmpo.config.derive import ACTOR, GROUP_ESTIMATORS, REF, ROLLOUT, Given
from gmpo.config.issues import Issue, error, inert, warning
from gmpo.config.schema import Config


def uses_reference(config: Config) -> bool:
    """Whether a term needs the reference model."""
    return config.actor_rollout_ref.actor.use_kl_loss or config.algorithm.use_kl_in_reward


def batch_sizes(config: Config, given: Given) -> Iterator[Issue]:
    data, mini = config.data, config.actor_rollout_ref.actor.ppo_mini_batch_size
    path = f"{ACTOR}.ppo_mini_batch_size"
    if mini > data.train_batch_size:
        reason = f"is larger than data.train_batch_size = {data.train_batch_size}; a step has only so many problems"
        yield error(path, reason, "data.train_batch_size")
    elif data.train_batch_size % mini:
        rest = data.train_batch_size % mini
        yield warning(path, f"does not divide data.train_batch_size; the last update of a step has {rest} problems")
    if 0 <= data.train_max_samples < data.train_batch_size:
        reason = f"leaves fewer problems than one step needs (data.train_batch_size = {data.train_batch_size})"
        yield error("data.train_max_samples", reason, "data.train_batch_size")
    if data.val_max_samples == 0:
        yield error("data.val_max_samples", "must be -1 (all) or at least 1; data.val_files=null turns validation off")


def group_size(config: Config, given: Given) -> Iterator[Issue]:
    estimator = config.algorithm.adv_estimator
    if config.actor_rollout_ref.rollout.n == 1 and estimator in GROUP_ESTIMATORS:
        reason = f"gives {estimator} nothing to compare: every advantage would be meaningless; use at least 2"
        yield error(f"{ROLLOUT}.n", reason, "algorithm.adv_estimator")


def micro_batches(config: Config, given: Given) -> Iterator[Issue]:
    actor, size_path = config.actor_rollout_ref.actor, f"{ACTOR}.ppo_micro_batch_size_per_gpu"
    if actor.ppo_micro_batch_size is not None and actor.ppo_micro_batch_size_per_gpu is not None:
        # The global form was replaced by the other when it was given alone.
        yield error(f"{ACTOR}.ppo_micro_batch_size", f"is deprecated and {size_path} is given as well; remove it")
    size, answers = actor.ppo_micro_batch_size_per_gpu, config.actor_rollout_ref.rollout.n
    involved = (f"{ACTOR}.ppo_mini_batch_size", f"{ROLLOUT}.n", f"{ACTOR}.ppo_micro_batch_size")
    if actor.use_dynamic_bsz:
        yield from inert(f"{ACTOR}.use_dynamic_bsz forms micro-batches by tokens", size_path, involved[-1])
        return
    yield from inert(f"{ACTOR}.use_dynamic_bsz is off", f"{ACTOR}.ppo_max_token_len_per_gpu")
    if size is None:
        reason = f"is off and {size_path} is not given: nothing says how large a micro-batch is; give one of them"
        yield error(f"{ACTOR}.use_dynamic_bsz", reason, size_path, f"{ACTOR}.ppo_micro_batch_size")
        return
    rows = actor.ppo_mini_batch_size * answers
    if rows % size:
        near = sorted((n for n in range(1, rows + 1) if rows % n == 0), key=lambda n: (abs(n - size), n))[:3]
        reason = (
            f"does not divide the {rows} answers of a mini-batch (ppo_mini_batch_size {actor.ppo_mini_batch_size} x "
            f"rollout.n {answers}); nearest that do: {', '.join(map(str, sorted(near)))}"
        )
        yield error(size_path, reason, *involved)


def log_prob_micro_batches(config: Config, given: Given) -> Iterator[Issue]:
    tree = config.actor_rollout_ref
    parts = ((ROLLOUT, tree.rollout), (REF, tree.ref)) if uses_reference(config) else ((ROLLOUT, tree.rollout),)
    for prefix, part in parts:
        size, tokens = f"{prefix}.log_prob_micro_batch_size_per_gpu", f"{prefix}.log_prob_max_token_len_per_gpu"
        if part.log_prob_use_dynamic_bsz:
            yield from inert("log_prob_use_dynamic_bsz forms micro-batches by tokens", size)
            continue
        yield from inert("log_prob_use_dynamic_bsz is off", tokens)
        # What only follows the actor's setting is reported once, at the actor's.
        if part.log_prob_micro_batch_size_per_gpu is None and f"{prefix}.log_prob_use_dynamic_bsz" in given:
            reason = f"is off and {size} is not given: nothing says how large a micro-batch is; give one of them"
            yield error(
                f"{prefix}.log_prob_use_dynamic_bsz",
                reason,
                size,
                f"{ACTOR}.use_dynamic_bsz",
                f"{ACTOR}.ppo_micro_batch_size_per_gpu",
                f"{ACTOR}.ppo_micro_batch_size",
            )


def token_budgets(config: Config, given: Given) -> Iterator[Issue]:
    tree, data = config.actor_rollout_ref, config.data
    longest = data.max_prompt_length + data.max_response_length
    lengths = ("data.max_prompt_length", "data.max_response_length")
    budgets = (
        (f"{ACTOR}.ppo_max_token_len_per_gpu", tree.actor.ppo_max_token_len_per_gpu, tree.actor.use_dynamic_bsz),
        (
            f"{ROLLOUT}.log_prob_max_token_len_per_gpu",
            tree.rollout.log_prob_max_token_len_per_gpu,
            tree.rollout.log_prob_use_dynamic_bsz,
        ),
        (
            f"{REF}.log_prob_max_token_len_per_gpu",
            tree.ref.log_prob_max_token_len_per_gpu,
            tree.ref.log_prob_use_dynamic_bsz and uses_reference(config),
        ),
    )
    own = budgets[0][0]
    for path, tokens, used in budgets:
        # A budget that only follows the actor's is reported once, at the actor's.
        if used and tokens < longest and (path == own or path in given):
            reason = (
                f"is below data.max_prompt_length + data.max_response_length = {longest} tokens: "
                "the longest answer would fit no micro-batch"
            )
            yield error(path, reason, *lengths, f"{ACTOR}.use_dynamic_bsz", own)
    for path, value, length in (
        ("prompt_length", tree.rollout.prompt_length, data.max_prompt_length),
        ("response_length", tree.rollout.response_length, data.max_response_length),
    ):
        if value != length:
            reason = f"differs from data.max_{path} = {length}, which it is another name of; leave it out"
            yield error(f"{ROLLOUT}.{path}", reason, f"data.max_{path}")
