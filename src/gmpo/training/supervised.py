"""Supervised fine-tuning: the warm-up before reinforcement, on rows that carry an answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gmpo.data.demonstrations import EncodedDemonstration
from gmpo.data.problems import ProblemStream
from gmpo.ports import Learner, Tracker
from gmpo.records.batch import Batch, pad_left, pad_right
from gmpo.training.interrupt import Stop


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


def fine_tune(
    demonstrations: ProblemStream[EncodedDemonstration],
    *,
    total_steps: int,
    pad_id: int,
    learner: Learner,
    tracker: Tracker,
    stop: Stop,
    validation: Sequence[EncodedDemonstration] = (),
) -> int:
    """`total_steps` updates, one batch each; returns how many were made before the end or an interruption."""
    tracker.start(0)
    done = 0
    while done < total_steps and not stop.requested:
        with tracker.step(done + 1) as rec:
            batch = demonstration_batch(demonstrations.take(done), pad_id=pad_id)
            update = learner.update(batch, step=done)
            rec.add({"train/loss": update.scalars["pg_loss"], "train/lr": update.scalars["lr"]})
            rec.add({"train/grad_norm": update.scalars["grad_norm"], "train/skipped_updates": float(update.skipped)})
            rec.add({"perf/total_num_tokens": float(batch.lengths.sum())})
            done += 1
            if validation and (done == total_steps or done % demonstrations.steps_per_epoch == 0):
                with rec.time("testing"):
                    rec.add({"val/loss": mean_loss(learner, validation, pad_id=pad_id)})
    return done
