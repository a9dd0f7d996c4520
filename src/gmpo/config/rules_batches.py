"""Rules over sizes: batches, mini-batches, micro-batches, token budgets."""

from __future__ import annotations

from collections.abc import Iterator

from gmpo.config.derive import ACTOR, CRITIC, REF, ROLLOUT, Given
from gmpo.config.issues import Issue, error, inert, warning
from gmpo.config.schema import Config
from gmpo.config.schema_actor import Actor
from gmpo.config.schema_critic import Critic
from gmpo.objectives import ESTIMATORS


def _updated(config: Config) -> tuple[tuple[str, Actor | Critic], ...]:
    """The sections that are trained, with their paths. The actor's, which the critic's keys follow, comes first."""
    actor, critic = config.actor_rollout_ref.actor, config.critic
    return ((ACTOR, actor), (CRITIC, critic)) if critic.enable else ((ACTOR, actor),)


def batch_sizes(config: Config, given: Given) -> Iterator[Issue]:
    data = config.data
    for prefix, part in _updated(config):
        mini, path = part.ppo_mini_batch_size, f"{prefix}.ppo_mini_batch_size"
        if prefix != ACTOR and path not in given:
            continue  # It follows the actor's and is reported there.
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
    if config.actor_rollout_ref.rollout.n == 1 and ESTIMATORS[estimator].needs_groups:
        reason = f"gives {estimator} nothing to compare: every advantage would be meaningless; use at least 2"
        yield error(f"{ROLLOUT}.n", reason, "algorithm.adv_estimator")


def micro_batches(config: Config, given: Given) -> Iterator[Issue]:
    for prefix, part in _updated(config):
        yield from _micro_batches(config, given, prefix, part)
    critic = config.critic
    if critic.enable:
        unused = ("forward_micro_batch_size_per_gpu" if critic.use_dynamic_bsz else "forward_max_token_len_per_gpu",)
        state = "forms micro-batches by tokens" if critic.use_dynamic_bsz else "is off"
        yield from inert(f"{CRITIC}.use_dynamic_bsz {state}", *(f"{CRITIC}.{name}" for name in unused))


def _micro_batches(config: Config, given: Given, prefix: str, part: Actor | Critic) -> Iterator[Issue]:
    size_path, old_path = f"{prefix}.ppo_micro_batch_size_per_gpu", f"{prefix}.ppo_micro_batch_size"
    if part.ppo_micro_batch_size is not None and part.ppo_micro_batch_size_per_gpu is not None:
        # The global form was replaced by the other when it was given alone.
        yield error(old_path, f"is deprecated and {size_path} is given as well; remove it")
    size, answers = part.ppo_micro_batch_size_per_gpu, config.actor_rollout_ref.rollout.n
    involved = (f"{prefix}.ppo_mini_batch_size", f"{ROLLOUT}.n", old_path)
    if part.use_dynamic_bsz:
        yield from inert(f"{prefix}.use_dynamic_bsz forms micro-batches by tokens", size_path, old_path)
        return
    yield from inert(f"{prefix}.use_dynamic_bsz is off", f"{prefix}.ppo_max_token_len_per_gpu")
    if prefix != ACTOR and not given & {size_path, old_path, involved[0], f"{prefix}.use_dynamic_bsz"}:
        return  # All of it follows the actor's and is reported there.
    if size is None:
        reason = f"is off and {size_path} is not given: nothing says how large a micro-batch is; give one of them"
        yield error(f"{prefix}.use_dynamic_bsz", reason, size_path, old_path)
        return
    rows = part.ppo_mini_batch_size * answers
    if rows % size:
        near = sorted((n for n in range(1, rows + 1) if rows % n == 0), key=lambda n: (abs(n - size), n))[:3]
        reason = (
            f"does not divide the {rows} answers of a mini-batch (ppo_mini_batch_size {part.ppo_mini_batch_size} x "
            f"rollout.n {answers}); nearest that do: {', '.join(map(str, sorted(near)))}"
        )
        yield error(size_path, reason, *involved)


def log_prob_micro_batches(config: Config, given: Given) -> Iterator[Issue]:
    tree = config.actor_rollout_ref
    parts = ((ROLLOUT, tree.rollout), (REF, tree.ref)) if config.uses_reference else ((ROLLOUT, tree.rollout),)
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
    shards = {
        ACTOR: tree.actor.ulysses_sequence_parallel_size,
        ROLLOUT: tree.actor.ulysses_sequence_parallel_size,
        REF: tree.ref.ulysses_sequence_parallel_size,
        CRITIC: config.critic.ulysses_sequence_parallel_size,
    }
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
            tree.ref.log_prob_use_dynamic_bsz and config.uses_reference,
        ),
        *(
            (f"{CRITIC}.{name}", tokens, config.critic.use_dynamic_bsz and config.critic.enable)
            for name, tokens in (
                ("ppo_max_token_len_per_gpu", config.critic.ppo_max_token_len_per_gpu),
                ("forward_max_token_len_per_gpu", config.critic.forward_max_token_len_per_gpu),
            )
        ),
    )
    own = budgets[0][0]
    for path, tokens, used in budgets:
        # A budget that only follows another is reported once, at the other.
        reported = path in given or path in (own, f"{CRITIC}.ppo_max_token_len_per_gpu")
        degree = shards[path.rpartition(".")[0]]  # A sequence is cut into so many parts, one for each device.
        if used and reported and tokens * degree < longest:
            times = f" times ulysses_sequence_parallel_size = {degree}" if degree > 1 else ""
            reason = (
                f"{times and times[1:] + ' '}is below data.max_prompt_length + data.max_response_length = {longest} "
                "tokens: the longest answer would fit no micro-batch"
            )
            yield error(path, reason, *lengths, f"{ACTOR}.use_dynamic_bsz", own)
    for path, value, length in (
        ("prompt_length", tree.rollout.prompt_length, data.max_prompt_length),
        ("response_length", tree.rollout.response_length, data.max_response_length),
    ):
        if value != length:
            reason = f"differs from data.max_{path} = {length}, which it is another name of; leave it out"
            yield error(f"{ROLLOUT}.{path}", reason, f"data.max_{path}")
