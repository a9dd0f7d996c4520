"""The critic: where a value is read, what it is fitted to, and that no division of the work changes the fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from gmpo.algo.values import explained_variance
from gmpo.backends.critic import Critic, CriticSettings, load_value_model, value_head
from gmpo.backends.devices import Device
from gmpo.backends.models import ModelSource
from gmpo.backends.trainable import MicroBatching, OptimizerSettings, Trainable
from gmpo.records.batch import Batch, pad_left, pad_right

SETTINGS = CriticSettings(
    gamma=1.0, lam=1.0, clip=10.0, aggregation="token-mean", loss_scale=4.0, mini_batch_problems=2, epochs=1,
    shuffle_seed=None,
)  # fmt: skip
LENGTHS = (4, 1, 3, 2)
Make = Callable[..., Critic]


@pytest.fixture
def make(tiny_folder: Path, words: PreTrainedTokenizerFast, cpu: Device) -> Make:
    """Critics with the same backbone; `head` fills the scalar head, which is new and zero."""

    def build(*, head: float = 0.0, rows: int = 4, rate: float = 1e-3, **changes: Any) -> Critic:
        model = load_value_model(ModelSource(str(tiny_folder)), cpu.torch)
        if head:
            g = torch.Generator().manual_seed(3)
            with torch.no_grad():
                weight: Any = value_head(model).weight
                weight.copy_(head * torch.randn(weight.shape, generator=g))
        optimizer = OptimizerSettings(
            lambda _: rate, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0, max_norm=1e9, max_nonfinite=3
        )
        return Critic(
            Trainable(model, words, optimizer, lr_key="critic.optim.lr"),
            device=cpu,
            settings=replace(SETTINGS, **changes),
            update_split=MicroBatching(rows=rows),
            score_split=MicroBatching(rows=rows),
        )

    return build


def batch_of(seed: int = 0) -> Batch:
    """Two problems with two answers each; a reward on each last token."""
    g = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(4, 32, (length,), generator=g).tolist()

    prompts = [draw(3), draw(5)]
    prompt_ids, prompt_mask = pad_left([prompts[i // 2] for i in range(4)], 0)
    response_ids, mask = pad_right([draw(n) for n in LENGTHS], 0)
    token_rewards = torch.zeros(mask.shape)
    for row, (length, reward) in enumerate(zip(LENGTHS, (1.0, -0.5, 2.0, 0.25), strict=True)):
        token_rewards[row, length - 1] = reward
    return Batch(
        prompt_ids,
        prompt_mask,
        response_ids,
        mask,
        sampled_mask=mask,
        group=torch.tensor([0, 0, 1, 1]),
        index=torch.arange(4),
        rewards=token_rewards.sum(1),
        rollout_logp=torch.zeros(mask.shape),
        token_rewards=token_rewards,
    )


def valued(critic: Critic, batch: Batch) -> Batch:
    return batch.replace(values=critic.values(batch))


def weights(critic: Critic) -> list[Tensor]:
    return [p.detach().clone() for p in critic.trainable.model.parameters()]


def gradient(critic: Critic) -> Tensor:
    return torch.cat([p.grad.flatten() for p in critic.trainable.model.parameters() if p.grad is not None])


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_a_new_critic_says_zero(make: Make) -> None:
    assert not make().values(batch_of()).any()


def test_a_value_is_read_before_its_token_from_a_row_without_padding(make: Make) -> None:
    critic, batch = make(head=0.5), batch_of()
    values = critic.values(batch)
    head = value_head(critic.trainable.model)
    for row, length in enumerate(LENGTHS):
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]]
        ids = torch.cat([prompt, batch.response_ids[row, :length]]).unsqueeze(0)
        with torch.no_grad():
            hidden = critic.trainable.model.base_model(input_ids=ids).last_hidden_state[0]
            expected = head(hidden)[len(prompt) - 1 : len(prompt) - 1 + length, 0]
        assert values[row, :length].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
        assert not values[row, length:].any(), "there is no value outside the response"
    assert values[batch.response_mask].abs().min() > 1e-4


def test_a_value_knows_what_came_before_its_token_and_nothing_later(make: Make) -> None:
    critic, batch = make(head=0.5), batch_of()
    other = batch.response_ids.clone()
    other[0, 2] = 4 + (other[0, 2] - 3) % 28
    change = (critic.values(batch.replace(response_ids=other)) - critic.values(batch))[0].abs()
    assert change[:3].max() < 1e-6
    assert change[3] > 1e-4


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_is_that_of_the_mean_squared_error_for_any_micro_batching(
    make: Make, aggregation: str, masked: bool
) -> None:
    """Written out: `0.5 (V - R)^2` of each token in the loss, in the mean that is asked for."""
    batch = batch_of()
    if masked:  # an answer and a token leave the loss, and its denominators
        out = batch.response_mask.clone()
        out[1] = False
        out[2, 0] = False
        batch = batch.replace(loss_mask=out)
    found = []
    for rows in (1, 2, 4):
        critic = make(head=0.5, rows=rows, aggregation=aggregation, mini_batch_problems=2)
        before = valued(critic, batch)
        metrics = critic.fit(before, step=0)
        found.append(gradient(critic))
        assert metrics["critic/grad_norm"] == pytest.approx(float(found[0].norm()), rel=1e-5)
    assert all(apart(g, found[0]) < 1e-5 for g in found)

    critic = make(head=0.5)
    returns = batch.rewards.unsqueeze(1)  # gamma and lambda are 1: all that is still to come
    terms = []
    for row, length in enumerate(LENGTHS):
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]]
        ids = torch.cat([prompt, batch.response_ids[row, :length]]).unsqueeze(0)
        hidden = critic.trainable.model.base_model(input_ids=ids).last_hidden_state[0, len(prompt) - 1 :][:length]
        errors = 0.5 * (value_head(critic.trainable.model)(hidden)[:, 0] - returns[row]) ** 2
        kept = errors[batch.loss_mask[row, :length]]
        if len(kept):
            terms.append(kept)
    loss = {
        "token-mean": torch.cat(terms).mean(),
        "seq-mean-token-mean": torch.stack([t.mean() for t in terms]).mean(),
        "seq-mean-token-sum-norm": torch.stack([t.sum() / 4.0 for t in terms]).mean(),
    }[aggregation]
    loss.backward()
    assert apart(gradient(critic), found[0]) < 1e-5
    assert metrics["critic/vf_loss"] == pytest.approx(float(loss.detach()), rel=1e-5)


def test_returns_follow_gamma_and_lambda(make: Make) -> None:
    """Of one token the return is `r + gamma V'` mixed by lambda; here V' is 0.5 everywhere, on paper:
    the last token's is R, the one before it `gamma ((1 - lambda) 0.5 + lambda R)`."""
    batch = batch_of()
    batch = batch.replace(values=0.5 * batch.response_mask)
    metrics = make(gamma=0.9, lam=0.6).fit(batch, step=0)
    expected = []
    for length, reward in zip(LENGTHS, (1.0, -0.5, 2.0, 0.25), strict=True):
        value = reward
        expected.append(value)
        for _ in range(length - 1):
            value = 0.9 * (0.4 * 0.5 + 0.6 * value)
            expected.append(value)
    assert metrics["critic/returns/mean"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert metrics["critic/returns/min"] == pytest.approx(min(expected), rel=1e-5)
    assert metrics["critic/values/mean"] == pytest.approx(0.5)


def test_the_explained_variance_is_of_response_tokens_before_the_fit(make: Make) -> None:
    critic, batch = make(head=0.5), batch_of()
    before = valued(critic, batch)
    assert before.values is not None
    returns = batch.rewards.unsqueeze(1).expand_as(before.values)
    expected = explained_variance(before.values, returns, batch.response_mask)
    assert critic.fit(before, step=0)["critic/vf_explained_var"] == pytest.approx(expected)


def test_a_value_is_bounded_around_what_it_was(make: Make) -> None:
    """All values are 0 and are said to have been 6: a bound of 1 holds them at 5, further from every return."""
    critic, batch = make(clip=1.0), batch_of()
    metrics = critic.fit(batch.replace(values=6.0 * batch.response_mask), step=0)
    errors = [0.5 * max(r**2, (5.0 - r) ** 2) for n, r in zip(LENGTHS, batch.rewards.tolist(), strict=True)
              for _ in range(n)]  # fmt: skip
    assert metrics["critic/vf_loss"] == pytest.approx(sum(errors) / len(errors))
    assert metrics["critic/vf_clipfrac"] == 1.0
    assert not gradient(critic).any()


def test_every_pass_makes_an_update_of_each_mini_batch(make: Make) -> None:
    """Adam's first steps move a weight of steady gradient by the rate, so the head tells how many there were."""
    batch = batch_of()
    moved = []
    for epochs, problems in ((1, 2), (2, 2), (2, 1)):
        critic = make(epochs=epochs, mini_batch_problems=problems, rate=1e-6)
        critic.fit(valued(critic, batch), step=0)
        weight = next(value_head(critic.trainable.model).parameters())
        moved.append(float(weight.detach().abs().max()))
    assert moved[:2] == pytest.approx([1e-6, 2e-6], rel=0.05)
    assert moved[2] > 2.5e-6


def test_shuffled_mini_batches_differ_from_step_to_step(make: Make) -> None:
    ends = []
    for step in range(6):
        critic = make(mini_batch_problems=1, shuffle_seed=7, rate=1e-2)
        critic.fit(valued(critic, batch_of()), step=step)
        ends.append(torch.cat([w.flatten() for w in weights(critic)]))
    assert any(not torch.equal(ends[0], end) for end in ends[1:])


def test_fitting_explains_all_that_can_be_known(make: Make) -> None:
    """Before their first token the two answers to a problem look alike, so both get the mean of their rewards: of a
    variance of 0.6375 there remains (2 * 0.75^2 + 2 * 0.875^2) / 10 = 0.2656, and 0.5833 is explained."""
    critic, batch = make(rate=1e-2), batch_of()
    explained = []
    for step in range(120):
        metrics = critic.fit(valued(critic, batch), step=step)
        explained.append(metrics["critic/vf_explained_var"])
    assert explained[0] == pytest.approx(0.0, abs=1e-6)
    assert explained[-1] == pytest.approx(0.5833, abs=2e-3)
    assert math.isfinite(metrics["critic/grad_norm"])


def test_a_model_without_a_linear_head_is_no_critic(fresh_policy: Callable[[], PreTrainedModel]) -> None:
    with pytest.raises(Exception, match="no linear layer score or classifier"):
        value_head(fresh_policy())
