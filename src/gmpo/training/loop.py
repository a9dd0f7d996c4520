"""The training loop. It names no backend, algorithm or device, and nothing optional may enter it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from gmpo.errors import DivergedError, GmpoError, GradingError, LostRankError
from gmpo.metrics.updates import step_metrics
from gmpo.ports import Learner, Sampler, Step, Tracker, Update, WeightSource
from gmpo.records.batch import Batch, collate
from gmpo.records.rollout import Group
from gmpo.training.checkpoint import Store
from gmpo.training.credit import Credit
from gmpo.training.evaluation import Evaluation
from gmpo.training.gather import Gather
from gmpo.training.interrupt import StepAbandonedError, Stop
from gmpo.training.scoring import Scoring
from gmpo.training.state import CREDIT, EVALUATION, GATHER, PRODUCER, Stateful, capture, restore


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
    components: tuple[str, ...] = ()
    """Names of the rewards of which advantages are made, where they are several."""
    critic_warmup: int = 0
    """Steps at the start in which only the critic learns."""

    def due(self, frequency: int, step: int) -> bool:
        """Whether something that happens every `frequency` steps happens after `step` of them."""
        return frequency > 0 and (step % frequency == 0 or step == self.total_steps)

    def mini_batches(self, batch: Batch, step: int) -> list[Batch]:
        """What each policy update of the step after `step` steps sees; nothing while only the critic learns."""
        if step < self.critic_warmup:
            return []
        seed = None if self.shuffle_seed is None else self.shuffle_seed + step
        rows = batch.mini_batches(self.mini_batch_problems, epochs=self.epochs_per_batch, shuffle_seed=seed)
        return [batch.select(r) for r in rows]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of."""

    sampler: Sampler
    learner: Learner
    gather: Gather
    score: Scoring
    credit: Credit
    evaluate: Evaluation
    store: Store
    tracker: Tracker
    stop: Stop

    @contextmanager
    def keeping(self, step: int, rec: Step) -> Iterator[None]:
        """Sampling and grading of the step after `step` steps: what ends them ends the run, and loses nothing. A
        checkpoint of the steps that are done is written, and the answers that could not be graded are kept."""
        before = capture(step, self.stateful)
        try:
            with self.stop.abandonable():
                yield
        except (DivergedError, LostRankError):
            raise  # these weights are no checkpoint, and those are out of reach
        except (GmpoError, StepAbandonedError) as error:
            said = [rec.failed(error.answers)] if isinstance(error, GradingError) and error.answers else []
            if step > 0:
                said.append(self.store.keep_going(self.learner, before, spare=self.evaluate.spare))
            if isinstance(error, StepAbandonedError) or not said:
                raise
            raise type(error)(" ".join([str(error), *said])) from error

    def update(self, minis: Sequence[Batch], groups: Sequence[Group], step: int, rec: Step) -> list[Update]:
        """The updates of the step after `step` steps. The answers of one whose gradient is not finite are kept.

        Raises:
            DivergedError: too many of them in a row.
        """
        updates: list[Update] = []
        for mini in minis:
            try:
                updates.append(self.learner.update(mini, step=step))
            except DivergedError as error:
                raise DivergedError(f"{error} {rec.nonfinite(groups, {len(updates): mini})}") from error
        if skipped := {number: minis[number] for number, update in enumerate(updates) if update.skipped}:
            rec.nonfinite(groups, skipped)
        return updates

    @property
    def stateful(self) -> Mapping[str, Stateful]:
        """The parts that a checkpoint has an entry of, by its name there."""
        parts: dict[str, Stateful] = {PRODUCER: self.gather.producer, GATHER: self.gather, CREDIT: self.credit}
        return {**parts, EVALUATION: self.evaluate}

    def publish(self) -> None:
        """What was recorded of the step is on the disk, and then its checkpoint, if there is one, takes its place."""
        if self.store.pending:
            self.tracker.sync()
            self.store.publish()

    def resume(self) -> int:
        """Go on from the checkpoint that the store chooses, if there is one; returns the steps behind it."""
        state = self.store.restore(self.learner)
        if state is None:
            return 0
        restore(state, self.stateful)
        self.store.settle(state.step, spare=self.evaluate.spare)
        return state.step


def train(plan: Plan, run: Parts) -> int:
    """Train from the newest checkpoint, or from the start, to `plan.total_steps`; returns the steps that are done."""
    step = run.resume()
    run.tracker.start(step)
    run.sampler.load(run.learner.weights(step))
    if plan.validate_first and step == 0:
        run.tracker.validation(0, run.evaluate(0))
    stopping = False
    while step < plan.total_steps and not stopping:
        with suppress(StepAbandonedError), run.tracker.step(step + 1) as rec:
            stopping = True  # unless the step is completed
            with run.keeping(step, rec):
                gathered = run.gather(step, rec)
            with rec.time("old_log_prob"):
                scored = run.score(collate(gathered.groups, pad_id=plan.pad_id, components=plan.components), step=step)
            with rec.time("adv"):
                credited = run.credit(scored.batch)
            with rec.time("update_critic"):
                critic = run.learner.update_critic(credited.batch, step=step)
            with rec.time("update_actor"):
                minis = plan.mini_batches(credited.batch, step)
                updates = run.update(minis, gathered.groups, step, rec)
            with rec.time("update_weights"):
                run.sampler.load(run.learner.weights(step + 1))
            reported = (critic, gathered.metrics, credited.metrics, scored.metrics)
            rec.add(
                step_metrics(
                    gathered.groups,
                    credited.batch,
                    minis,
                    updates,
                    reported,
                    step=step,
                    max_prompt_length=plan.max_prompt_length,
                )
            )
            rec.samples(gathered.groups, credited.batch, minis, updates)
            step += 1
            if plan.due(plan.test_freq, step):
                with rec.time("testing"):
                    rec.add(run.evaluate(step))
            stopping = run.stop.step_ended()  # asked once: a later signal must not end the loop without a checkpoint
            if plan.due(plan.save_freq, step) or stopping or run.evaluate.spare == step:
                with rec.time("save_checkpoint"):
                    run.store.save(run.learner, capture(step, run.stateful), spare=run.evaluate.spare)
        run.publish()
    return step


def validate(weights: WeightSource, *, sampler: Sampler, evaluate: Evaluation, tracker: Tracker) -> None:
    """Validate a policy on its own; no learner is needed."""
    tracker.start(weights.version)
    sampler.load(weights)
    tracker.validation(weights.version, evaluate(weights.version))
