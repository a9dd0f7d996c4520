"""The training loop. It names no backend, algorithm or device, and nothing optional may enter it."""

from __future__ import annotations

from dataclasses import dataclass

from gmpo.metrics.updates import batch_metrics, rollout_metrics, update_metrics
from gmpo.ports import Learner, Sampler, Tracker, Weights
from gmpo.records.batch import collate
from gmpo.training.checkpoint import State, Store
from gmpo.training.credit import Credit
from gmpo.training.evaluation import Evaluation
from gmpo.training.gather import Gather
from gmpo.training.interrupt import Stop
from gmpo.training.scoring import Scoring


@dataclass(frozen=True, slots=True)
class Plan:
    """The numbers that govern a run."""

    total_steps: int
    max_prompt_length: int
    pad_id: int
    mini_batch_problems: int
    """Problems per optimizer update."""
    epochs_per_batch: int
    """Passes over each rollout batch (`ppo_epochs`)."""
    shuffle_seed: int | None
    """Permutes problems between the mini-batches of a pass; None keeps their order."""
    test_freq: int
    """Validate after every so many steps and after the last; 0 or less never."""
    save_freq: int
    """Save after every so many steps and after the last; 0 or less never."""
    validate_first: bool
    critic_warmup: int = 0
    """Steps at the start in which only the critic learns."""

    def due(self, frequency: int, step: int) -> bool:
        """Whether something that happens every `frequency` steps happens after `step` of them."""
        return frequency > 0 and (step % frequency == 0 or step == self.total_steps)


def train(
    plan: Plan,
    *,
    sampler: Sampler,
    learner: Learner,
    gather: Gather,
    score: Scoring,
    credit: Credit,
    evaluate: Evaluation,
    store: Store,
    tracker: Tracker,
    stop: Stop,
    kl_coef: float,
) -> State:
    """Train from the newest checkpoint, or from the start, to `plan.total_steps`; returns the state that was reached.

    Args:
        kl_coef: coefficient of the KL penalty in the reward at step 0.
    """
    state = store.restore(learner) or State(step=0, kl_coef=kl_coef)
    tracker.start(state.step)
    sampler.load(learner.weights(state.step))
    if plan.validate_first and state.step == 0:
        tracker.validation(0, evaluate(0))
    stopping = False
    while state.step < plan.total_steps and not stopping:
        with tracker.step(state.step + 1) as rec:
            gathered = gather(state, rec)
            groups = gathered.groups
            with rec.time("old_log_prob"):
                scored = score(collate(groups, pad_id=plan.pad_id), step=state.step)
            with rec.time("adv"):
                credited = credit(scored.batch, state.kl_coef)
            with rec.time("update_critic"):
                rec.add(learner.update_critic(credited.batch, step=state.step))
            with rec.time("update_actor"):
                seed = None if plan.shuffle_seed is None else plan.shuffle_seed + state.step
                rows = credited.batch.mini_batches(
                    plan.mini_batch_problems, epochs=plan.epochs_per_batch, shuffle_seed=seed
                )
                minis = [credited.batch.select(r) for r in rows] if state.step >= plan.critic_warmup else []
                updates = [learner.update(mini, step=state.step) for mini in minis]
            state = State(state.step + 1, credited.kl_coef, gathered.position, gathered.surplus)
            with rec.time("update_weights"):
                sampler.load(learner.weights(state.step))
            rec.add({**gathered.metrics, **rollout_metrics(groups, max_prompt_length=plan.max_prompt_length)})
            rec.add({**batch_metrics(credited.batch), **update_metrics(minis, updates), **credited.metrics})
            rec.add(scored.metrics)
            rec.samples(groups, credited.batch, minis, updates)
            if plan.due(plan.test_freq, state.step):
                with rec.time("testing"):
                    rec.add(evaluate(state.step))
            stopping = stop.requested  # asked once a step: a later signal must not end the loop without a checkpoint
            if plan.due(plan.save_freq, state.step) or stopping:
                with rec.time("save_checkpoint"):
                    store.save(learner, state)
    return state


def validate(weights: Weights, *, sampler: Sampler, evaluate: Evaluation, tracker: Tracker) -> None:
    """Validate a policy on its own; no learner is needed."""
    tracker.start(weights.version)
    sampler.load(weights)
    tracker.validation(weights.version, evaluate(weights.version))
