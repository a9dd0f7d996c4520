"""Supervised fine-tuning: the warm-up before reinforcement, on rows that carry an answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from gmpo.data.demonstrations import EncodedDemonstration
from gmpo.data.problems import ProblemStream
from gmpo.errors import CheckpointError, DivergedError
from gmpo.ports import Learner, Step, Tracker, Update
from gmpo.records.batch import Batch, pad_left, pad_right
from gmpo.training.checkpoint import Store
from gmpo.training.interrupt import Stop
from gmpo.training.state import LOSSES, PartState, capture, restore


def demonstration_batch(items: Sequence[EncodedDemonstration], *, pad_id: int) -> Batch:
    """Demonstrations as a batch whose every answer token has advantage 1: the loss is then their mean `-logp`."""
    prompt_ids, prompt_mask = pad_left([d.prompt_ids for d in items], pad_id)
    response_ids, response_mask = pad_right([d.answer_ids for d in items], pad_id)
    zeros = torch.zeros(response_ids.shape)
    return Batch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        response_ids=response_ids,
        response_mask=response_mask,
        sampled_mask=response_mask,  # as if the policy had said them
        group=torch.arange(len(items)),
        index=torch.arange(len(items)),
        rewards=torch.zeros(len(items)),
        rollout_logp=zeros,
        learner_logp=zeros,
        entropy=zeros,
        advantage=torch.ones(response_ids.shape),
    )


def mean_loss(learner: Learner, items: Sequence[EncodedDemonstration], *, pad_id: int) -> float:
    """Mean `-logp` per answer token, in nats, without learning."""
    batch = demonstration_batch(items, pad_id=pad_id)
    scored = learner.score(batch, old=True)
    assert scored.learner_logp is not None
    return float(-scored.learner_logp[batch.sampled_mask].double().mean())


RISES_BY = 2.0, 1.0
"""A loss above so many times the first one and so many nats more is said to rise. Batches differ by far less."""


class LossCourse:
    """What there is to say of the losses of the updates, in their order.

    Args:
        say: called with a line for the user, once for a loss that rises and once for one that is not finite.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._first = self._last = math.nan
        self._steps = 0
        self._warned: set[str] = set()

    def add(self, loss: float, rate: float) -> None:
        """The next update's loss, and its learning rate."""
        self._steps += 1
        self._last = loss
        self._first = loss if self._steps == 1 else self._first
        lower = f"the learning rate is {rate:.3g}; lower optim.lr, or look at the rows of this update"
        if not math.isfinite(loss):
            self._once("not finite", f"warning: update {self._steps}: the loss is {loss}, not a number; {lower}")
        elif loss > RISES_BY[0] * self._first + RISES_BY[1]:
            rises = f"the loss is {loss:.3g} and was {self._first:.3g} at first: it rises instead of falling"
            self._once("rises", f"warning: update {self._steps}: {rises}; {lower}")

    def _once(self, kind: str, line: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            self._say(line)

    def state(self) -> PartState:
        """The first and the last loss, and what was said."""
        return PartState(
            {"first": self._first, "last": self._last, "steps": self._steps, "warned": sorted(self._warned)}
        )

    def restore(self, state: PartState) -> None:
        """Raises CheckpointError for another entry."""
        state.check_format(LOSSES, known=1)
        try:
            self._first, self._last = float(state.values["first"]), float(state.values["last"])
            self._steps, self._warned = int(state.values["steps"]), set(map(str, state.values["warned"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint's losses cannot be read: {error!r}") from error

    def conclude(self) -> None:
        """The first and the last loss, and whether that is what is wanted."""
        if self._steps < 2:
            return
        line = f"loss of an answer's token: {self._first:.4g} in update 1, {self._last:.4g} in update {self._steps}"
        fell = self._last < self._first
        self._say(line if fell else f"warning: {line}: it did not fall; look at optim.lr")


def _update(learner: Learner, batch: Batch, done: int, rec: Step) -> Update:
    """An update. The demonstrations of one whose gradient is not finite are kept, as token ids."""
    rows = [
        {
            "demonstration": row,
            "prompt_ids": batch.prompt_ids[row][batch.prompt_mask[row]].tolist(),
            "answer_ids": batch.response_ids[row][batch.response_mask[row]].tolist(),
        }
        for row in range(batch.rows)
    ]
    try:
        update = learner.update(batch, step=done)
    except DivergedError as error:
        raise DivergedError(f"{error} {rec.failed(rows)}") from error
    if update.skipped:
        rec.failed(rows)
    return update


def fine_tune(
    demonstrations: ProblemStream[EncodedDemonstration],
    *,
    total_steps: int,
    pad_id: int,
    learner: Learner,
    tracker: Tracker,
    stop: Stop,
    store: Store,
    save_freq: int = -1,
    validation: Sequence[EncodedDemonstration] = (),
    say: Callable[[str], object] = lambda line: None,
) -> int:
    """`total_steps` updates, one batch each, from the newest checkpoint or the start; returns how many are done before
    the end or an interruption, which leaves a checkpoint.

    Args:
        save_freq: a checkpoint after every so many updates and after the last; 0 or less none.
        say: told of a loss that goes wrong, and of the first and the last one.
    """
    course = LossCourse(say)
    done, parts = 0, {LOSSES: course}
    if (state := store.restore(learner)) is not None:
        restore(state, parts)
        done = state.step
        store.settle(done)
    tracker.start(done)
    stopping = False
    while done < total_steps and not stopping:
        with tracker.step(done + 1) as rec:
            batch = demonstration_batch(demonstrations.take(done), pad_id=pad_id)
            update = _update(learner, batch, done, rec)
            course.add(update.scalars["pg_loss"], update.scalars["lr"])
            rec.add({"train/loss": update.scalars["pg_loss"], "train/lr": update.scalars["lr"]})
            rec.add({"train/grad_norm": update.scalars["grad_norm"], "train/skipped_updates": float(update.skipped)})
            rec.add({"perf/total_num_tokens": float(batch.lengths.sum())})
            done += 1
            if validation and (done == total_steps or done % demonstrations.steps_per_epoch == 0):
                with rec.time("testing"):
                    rec.add({"val/loss": mean_loss(learner, validation, pad_id=pad_id)})
            stopping = stop.step_ended()
            due = save_freq > 0 and (done % save_freq == 0 or done == total_steps)
            if due or (stopping and done < total_steps):
                with rec.time("save_checkpoint"):
                    store.save(learner, capture(done, parts))
        if store.pending:
            tracker.sync()
            store.publish()
    course.conclude()
    return done
