"""Answers in which a tool speaks too: packed, padded and separate rows agree on what the policy sampled, and the
denominators count it alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from gmpo.algo.kl import kl_penalty
from gmpo.algo.losses import POLICY_LOSSES, reduce_surrogate
from gmpo.algo.masks import AGGREGATIONS, aggregate
from gmpo.algo.objective import Objective
from gmpo.backends.critic import Critic, CriticSettings, load_value_model, value_head
from gmpo.backends.devices import Device
from gmpo.backends.learner import LocalLearner
from gmpo.backends.models import ModelSource, load_model
from gmpo.backends.trainable import MicroBatching, OptimizerSettings, Trainable
from gmpo.records.batch import Batch
from gmpo.records.rollout import Completion

Build = Callable[..., Batch]
CPU = Device(torch.device("cpu"), torch.float32)
STILL = OptimizerSettings(
    lambda step: 0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, max_norm=1e9, max_nonfinite=3
)
SCALE = 8.0
NUMBERS = {"clip_low": 0.2, "clip_high": 0.2, "clip_dual": 3.0}


class OwnHead(torch.nn.Linear):
    """A head that is not recognised, so that the model's own logits are taken."""


def packed(model: PreTrainedModel) -> PreTrainedModel:
    return model


def padded(model: PreTrainedModel) -> PreTrainedModel:
    model.set_attn_implementation("eager")
    return model


def with_own_logits(model: PreTrainedModel) -> PreTrainedModel:
    model.get_output_embeddings().__class__ = OwnHead
    return model


WAYS = [packed, padded, with_own_logits]
Sharpen = Callable[[PreTrainedModel], PreTrainedModel]


@pytest.fixture(scope="module")
def learners(tiny_folder: Path, words: PreTrainedTokenizerFast, sharpened: Sharpen) -> list[LocalLearner]:
    """One for each way through the model, all with the same weights, which never move."""
    return [
        LocalLearner(
            way(sharpened(load_model(ModelSource(str(tiny_folder)), CPU.torch))),
            words,
            device=CPU,
            objective=objective("token-mean"),
            optimizer=STILL,
            update_split=MicroBatching(rows=3),
            score_split=MicroBatching(tokens=40),
        )
        for way in WAYS
    ]


@pytest.fixture(scope="module")
def plain(tiny_folder: Path, sharpened: Sharpen) -> PreTrainedModel:
    """The same policy, for a call with each row by itself."""
    return sharpened(load_model(ModelSource(str(tiny_folder)), CPU.torch))


@pytest.fixture(scope="module")
def critics(tiny_folder: Path, words: PreTrainedTokenizerFast) -> list[Critic]:
    found = []
    for way in (packed, padded):
        model = way(load_value_model(ModelSource(str(tiny_folder)), CPU.torch))
        with torch.no_grad():
            weight: Any = value_head(model).weight
            weight.copy_(0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
        s = CriticSettings(0.9, 0.8, 10.0, "seq-mean-token-mean", SCALE, 99, 1, None)
        trainable = Trainable(model, words, STILL, lr_key="critic.optim.lr")
        split = MicroBatching(rows=2)
        found.append(Critic(trainable, device=CPU, settings=s, update_split=split, score_split=split))
    return found


def objective(mode: str) -> Objective:
    return Objective(
        POLICY_LOSSES["vanilla"], NUMBERS, mode, loss_scale=SCALE, temperature=0.8, kl_coef=0.3, entropy_coef=0.05
    )


def answer(tokens: list[tuple[int, bool]]) -> Completion:
    """What was not sampled has no log-prob."""
    ids, sampled = [t for t, _ in tokens], [s for _, s in tokens]
    return Completion(ids, [-1.0 if s else math.nan for s in sampled], "stop", (0, 0), sampled)  # type: ignore[arg-type]


ids = st.integers(4, 31)
answers = st.lists(st.tuples(ids, st.booleans()), max_size=9).map(answer)
problems = st.lists(
    st.tuples(st.lists(ids, min_size=1, max_size=5), st.lists(answers, min_size=1, max_size=3)), min_size=1, max_size=3
)


def log_softmax_of_rows(model: PreTrainedModel, batch: Batch) -> Tensor:
    """`[N, V]`, for the sampled tokens: each row in a call of its own, without padding."""
    found = []
    for row in range(batch.rows):
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]]
        response = batch.response_ids[row][batch.response_mask[row]]
        logits = model(torch.cat([prompt, response]).unsqueeze(0), use_cache=False).logits[0] / 0.8
        before = logits[len(prompt) - 1 : len(prompt) - 1 + len(response)]
        found.append(before[batch.sampled_mask[row, : len(response)]].log_softmax(-1))
    return torch.cat(found)


def spread(values: Tensor, mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_scatter(mask, values)


def gradient(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def close(a: Tensor, b: Tensor) -> bool:
    """To the rounding of float32, which differs between processors: where terms cancel it is 2e-5 on some."""
    return bool((a - b).norm() <= 5e-5 * b.norm() + 1e-6)


@settings(max_examples=25)
@given(sampled=problems, seed=st.integers(0, 99), mode=st.sampled_from([*AGGREGATIONS]))
def test_holes_anywhere_give_the_log_probs_entropies_and_gradient_of_separate_rows(
    learners: list[LocalLearner], plain: PreTrainedModel, as_batch: Build, sampled: Any, seed: int, mode: str
) -> None:
    batch = as_batch(sampled)
    mask, g = batch.sampled_mask, torch.Generator().manual_seed(seed)
    every = log_softmax_of_rows(plain, batch)
    logp = spread(every.gather(1, batch.response_ids[mask].unsqueeze(1)).squeeze(1), mask)
    entropy = spread(-(every.exp() * every).sum(1), mask)
    old = logp.detach() + 0.3 * torch.randn(mask.shape, generator=g) * mask
    ref = logp.detach() + 0.3 * torch.randn(mask.shape, generator=g) * mask
    advantage = torch.randn(batch.rows, 1, generator=g) * mask
    # Some of the sampled tokens have left the loss besides.
    batch = batch.replace(
        learner_logp=old,
        ref_logp=ref,
        advantage=advantage,
        loss_mask=mask & (torch.rand(mask.shape, generator=g) < 0.8),
    )
    o, kept, counts = objective(mode), batch.loss_mask, batch.counts()
    surrogate = o.policy_loss.fn(logp, old, advantage, kept, **NUMBERS)
    loss = reduce_surrogate(surrogate, kept, traits=o.policy_loss.traits, mode=mode, counts=counts, loss_scale=SCALE)
    loss = loss + o.kl_coef * aggregate(kl_penalty(logp, ref, o.kl_kind), kept, mode, counts, SCALE)
    loss = loss - o.entropy_coef * aggregate(entropy, kept, mode, counts, SCALE)
    plain.zero_grad()
    if kept.any():
        loss.backward()
    for learner in learners:
        scored = learner.score(batch, old=True)
        assert scored.learner_logp is not None
        assert scored.entropy is not None
        assert torch.allclose(scored.learner_logp, logp, atol=1e-5), "and 0 in the holes"
        assert torch.allclose(scored.entropy, entropy, atol=1e-5)
        learner.objective = o
        update = learner.update(batch, step=0)
        if kept.any():
            assert close(gradient(learner.model), gradient(plain))
            assert sorted(update.rows.tolist()) == kept.any(1).nonzero().squeeze(1).tolist()
            assert torch.allclose(update.logp, logp[update.rows], atol=1e-5)
        else:
            assert update.scalars["grad_norm"] == 0.0


@settings(max_examples=25)
@given(sampled=problems, seed=st.integers(0, 99))
def test_holes_anywhere_give_the_values_and_the_critics_gradient_of_separate_rows(
    critics: list[Critic], as_batch: Build, sampled: Any, seed: int
) -> None:
    batch = as_batch(sampled)
    mask, g = batch.sampled_mask, torch.Generator().manual_seed(seed)
    if not mask.any():
        return
    plain = critics[1].trainable.model
    found = []
    for row in range(batch.rows):
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]]
        response = batch.response_ids[row][batch.response_mask[row]]
        hidden = plain.base_model(torch.cat([prompt, response]).unsqueeze(0)).last_hidden_state[0]
        before = hidden[len(prompt) - 1 : len(prompt) - 1 + len(response)]
        found.append(value_head(plain)(before[mask[row, : len(response)]])[:, 0])
    values = spread(torch.cat(found), mask)
    batch = batch.replace(values=values.detach(), token_rewards=torch.randn(mask.shape, generator=g) * mask)
    # The reward still to come over sampled tokens, by the sum over k of (gamma lambda)^k delta_{t+k}.
    assert batch.token_rewards is not None
    returns = torch.zeros(mask.shape)
    for row in range(batch.rows):
        v, r = (x.detach()[row][mask[row]].tolist() for x in (values, batch.token_rewards))
        delta = [r[t] + 0.9 * (v[t + 1] if t + 1 < len(v) else 0.0) - v[t] for t in range(len(v))]
        found_returns = [v[t] + sum((0.9 * 0.8) ** k * d for k, d in enumerate(delta[t:])) for t in range(len(v))]
        returns[row][mask[row]] = torch.tensor(found_returns)
    loss = aggregate(0.5 * (values - returns) ** 2, mask, "seq-mean-token-mean", batch.counts(), SCALE)
    plain.zero_grad()
    loss.backward()
    expected = gradient(plain)
    for critic in critics:
        assert torch.allclose(critic.values(batch), values, atol=1e-5), "and 0 in the holes"
        metrics = critic.fit(batch, step=0)
        assert close(gradient(critic.trainable.model), expected)
        assert metrics["critic/vf_loss"] == pytest.approx(float(loss.detach()), rel=1e-4, abs=1e-7)
        assert metrics["critic/returns/mean"] == pytest.approx(float(returns[mask].mean()), rel=1e-4, abs=1e-6)


def test_a_tools_answer_is_read_by_all_that_follows_and_trained_on_by_nothing(
    learners: list[LocalLearner], as_batch: Build
) -> None:
    """Six tokens of which the third and fourth are a tool's: other words of the tool change the two behind, alone."""
    one = as_batch([([5, 6, 7], [answer([(4, True), (5, True), (9, False), (8, False), (6, True), (7, True)])])])
    other = as_batch([([5, 6, 7], [answer([(4, True), (5, True), (11, False), (12, False), (6, True), (7, True)])])])
    assert (one.counts().tokens, one.lengths.tolist()) == (4, [9])
    for learner in learners:
        a, b = (learner.score(batch, old=True).learner_logp for batch in (one, other))
        assert a is not None
        assert b is not None
        change = (a - b)[0].abs()
        assert change[:4].max() < 1e-6
        assert change[4:].min() > 1e-3
