"""The training loop. It names no backend, algorithm or device, and nothing optional may enter it."""

from __future__ import annotations

from dataclasses import dataclass

from gmpo.metrics.updates import batch_metrics, rollout_metrics, staleness_metrics, update_metrics
from gmpo.ports import Learner, Sampler, Tracker
from gmpo.records.batch import collate
from gmpo.training.checkpoint import Store
from gmpo.training.credit import Credit
from gmpo.training.evaluation import Evaluation
from gmpo.training.gather import Gather
from gmpo.training.interrupt import Stop
from gmpo.training.scoring import Scoring
from gmpo.training.state import CREDIT, GATHER, PRODUCER, Stateful, capture, restore


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
) -> int:
    """Train from the newest checkpoint, or from the start, to `plan.total_steps`; returns the steps that are done."""
    parts: dict[str, Stateful] = {PRODUCER: gather.producer, GATHER: gather, CREDIT: credit}
    step = 0
    if (state := store.restore(learner)) is not None:
        restore(state, parts)
        step = state.step
    tracker.start(step)
    sampler.load(learner.weights(step))
    if plan.validate_first and step == 0:
        tracker.validation(0, evaluate(0))
    stopping = False
    while step < plan.total_steps and not stopping:
        with tracker.step(step + 1) as rec:
            gathered = gather(step, rec)
            groups = gathered.groups
            with rec.time("old_log_prob"):
                scored = score(collate(groups, pad_id=plan.pad_id), step=step)
            with rec.time("adv"):
                credited = credit(scored.batch)
            with rec.time("update_critic"):
                rec.add(learner.update_critic(credited.batch, step=step))
            with rec.time("update_actor"):
                seed = None if plan.shuffle_seed is None else plan.shuffle_seed + step
                rows = credited.batch.mini_batches(
                    plan.mini_batch_problems, epochs=plan.epochs_per_batch, shuffle_seed=seed
                )
                minis = [credited.batch.select(r) for r in rows] if step >= plan.critic_warmup else []
                updates = [learner.update(mini, step=step) for mini in minis]
            rec.add(staleness_metrics(credited.batch, step=step))
            step += 1
            with rec.time("update_weights"):
                sampler.load(learner.weights(step))
            rec.add({**gathered.metrics, **rollout_metrics(groups, max_prompt_length=plan.max_prompt_length)})
            rec.add({**batch_metrics(credited.batch), **update_metrics(minis, updates), **credited.metrics})
            rec.add(scored.metrics)
            rec.samples(groups, credited.batch, minis, updates)
            if plan.due(plan.test_freq, step):
                with rec.time("testing"):
                    rec.add(evaluate(step))
            stopping = stop.requested  # asked once a step: a later signal must not end the loop without a checkpoint
            if plan.due(plan.save_freq, step) or stopping:
                with rec.time("save_checkpoint"):
                    store.save(learner, capture(step, parts))
    return step


def validate(*, sampler: Sampler, learner: Learner, evaluate: Evaluation, store: Store, tracker: Tracker) -> int:
    """Validate the newest checkpoint, or the untrained policy; returns the number of steps behind it."""
    state = store.restore(learner)
    step = 0 if state is None else state.step
    tracker.start(step)
    sampler.load(learner.weights(step))
    tracker.validation(step, evaluate(step))
    return step
