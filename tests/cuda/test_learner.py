"""Scores and updates on a GPU in float32: loss, gradient norm and weights of the CPU, to rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from gmpo.algo.losses import POLICY_LOSSES
from gmpo.algo.objective import Objective
from gmpo.backends.critic import Critic, CriticSettings, load_value_model, value_head
from gmpo.backends.devices import Device, use_any_length
from gmpo.backends.learner import LocalLearner
from gmpo.backends.models import ModelSource, checkpoint_activations
from gmpo.backends.products import use_product
from gmpo.backends.trainable import MicroBatching, OptimizerSettings, Trainable
from gmpo.records.batch import Batch, pad_left, pad_right

pytestmark = pytest.mark.cuda
GPU, CPU = torch.device("cuda"), torch.device("cpu")
GMPO = Objective(
    POLICY_LOSSES["geo_mean"], {"clip_low": 0.4, "clip_high": 0.4}, "token-mean", loss_scale=8.0, temperature=0.9
)
OBJECTIVES = {
    "gmpo": GMPO,
    "gmpo with KL": replace(GMPO, kl_coef=0.1),
    "gmpo with an entropy bonus": replace(GMPO, entropy_coef=0.05),
    "ppo": replace(
        GMPO,
        policy_loss=POLICY_LOSSES["vanilla"],
        loss_numbers={"clip_low": 0.2, "clip_high": 0.2, "clip_dual": 3.0},
    ),
    "clip_cov": replace(
        GMPO,
        policy_loss=POLICY_LOSSES["clip_cov"],
        loss_numbers={"clip_cov_share": 0.2, "cov_low": 0.0, "cov_high": 1e9, "clip_low": 0.2, "clip_high": 0.2},
    ),
}
# An epsilon above the gradients' noise: AdamW's first steps would else be its sign.
SETTINGS = OptimizerSettings(
    lambda step: 1e-2, betas=(0.9, 0.99), eps=1e-2, weight_decay=0.1, max_norm=1.0, max_nonfinite=3
)
Policy = Callable[[], PreTrainedModel]


@pytest.fixture(autouse=True)
def _float32() -> None:
    use_any_length(GPU)
    use_product("highest", GPU)


def batch_of() -> Batch:
    """Four answers to each of three prompts, of 1 to 40 tokens, with holes, rewards and a critic's inputs."""
    g = torch.Generator().manual_seed(0)

    def draw(length: int) -> list[int]:
        return torch.randint(4, 32, (length,), generator=g).tolist()

    prompts = [draw(n) for n in (3, 9, 1)]
    prompt_ids, prompt_mask = pad_left([prompts[i // 4] for i in range(12)], 0)
    response_ids, mask = pad_right([draw(1 + 11 * i % 40) for i in range(12)], 0)
    sampled = mask.clone()
    sampled[5, 3:6] = False
    advantage = torch.randn(12, 1, generator=g) * sampled
    advantage[7] = 0.0
    rewards = torch.zeros(mask.shape)
    rewards[torch.arange(12), mask.sum(1) - 1] = torch.randn(12, generator=g)
    return Batch(
        prompt_ids,
        prompt_mask,
        response_ids,
        mask,
        sampled_mask=sampled,
        group=torch.arange(12) // 4,
        index=torch.arange(12),
        rewards=rewards.sum(1),
        rollout_logp=torch.zeros(mask.shape),
        token_rewards=rewards * sampled,
        advantage=advantage,
    )


def movement(before: dict[str, Tensor], model: PreTrainedModel) -> Tensor:
    return torch.cat([(p.detach().cpu() - before[name].cpu()).flatten() for name, p in model.named_parameters()])


def held(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def apart(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / one.double().norm())


@pytest.mark.parametrize("recompute", [False, True], ids=["activations kept", "activations recomputed"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_three_updates_are_those_of_the_cpu(
    fresh_policy: Policy, words: PreTrainedTokenizerFast, name: str, recompute: bool
) -> None:
    objective, found = OBJECTIVES[name], []
    for where in (CPU, GPU):
        model: Any = fresh_policy().to(where)  # type: ignore[arg-type]
        if recompute:
            checkpoint_activations(model)
        before = held(model)
        learner = LocalLearner(
            model,
            words,
            device=Device(where, torch.float32),
            objective=objective,
            optimizer=SETTINGS,
            update_split=MicroBatching(rows=4),
            score_split=MicroBatching(tokens=60),
            reference=fresh_policy().to(where) if objective.kl_coef else None,  # type: ignore[arg-type]
            score_norms=True,
        )
        scored = learner.score(batch_of(), old=True)
        updates = [learner.update(scored, step=step) for step in range(3)]
        found.append((scored, updates, movement(before, model), learner.score(batch_of(), old=True)))
    (scored, updates, moved, after), (their_scored, their_updates, their_moved, their_after) = found
    for field in ("learner_logp", "entropy", "score_norm", "ref_logp"):
        one, other = getattr(scored, field), getattr(their_scored, field)
        assert (one is None) == (other is None)
        if one is not None:
            assert float((one - other).abs().max()) <= 1e-4, field
    for one, other in zip(updates, their_updates, strict=True):
        assert one.scalars.keys() == other.scalars.keys()
        for scalar, value in one.scalars.items():
            assert other.scalars[scalar] == pytest.approx(value, rel=1e-3, abs=1e-5), scalar
        assert torch.equal(one.rows.sort().values, other.rows.sort().values)
        assert int((one.clipped.sum() - other.clipped.sum()).abs()) <= 1
    assert apart(moved, their_moved) <= 2e-3
    assert after.learner_logp is not None
    assert their_after.learner_logp is not None
    assert float((after.learner_logp - their_after.learner_logp).abs().max()) <= 5e-3


def test_a_critics_fit_is_that_of_the_cpu(tiny_folder: Path, words: PreTrainedTokenizerFast) -> None:
    settings = CriticSettings(
        gamma=1.0, lam=0.95, clip=0.5, aggregation="token-mean", loss_scale=4.0, mini_batch_problems=2, epochs=2,
        shuffle_seed=0,
    )  # fmt: skip
    found = []
    for where in (CPU, GPU):
        model = load_value_model(ModelSource(str(tiny_folder)), where)
        with torch.no_grad():
            weight: Any = value_head(model).weight
            weight.copy_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
        before = held(model)
        critic = Critic(
            Trainable(model, words, SETTINGS, lr_key="critic.optim.lr"),
            device=Device(where, torch.float32),
            settings=settings,
            update_split=MicroBatching(rows=3),
            score_split=MicroBatching(rows=5),
        )
        values = critic.values(batch_of())
        metrics = critic.fit(batch_of().replace(values=values), step=0)
        found.append((values, metrics, movement(before, model)))
    (values, metrics, moved), (their_values, their_metrics, their_moved) = found
    assert float((values - their_values).abs().max()) <= 1e-4
    assert their_metrics == pytest.approx(metrics, rel=1e-3, abs=1e-5)
    assert apart(moved, their_moved) <= 2e-3


def test_bfloat16_products_leave_the_gradient_its_direction(
    fresh_policy: Policy, words: PreTrainedTokenizerFast
) -> None:
    gradients = []
    for compute in (torch.float32, torch.bfloat16):
        model = fresh_policy().to(GPU)  # type: ignore[arg-type]
        settings = replace(SETTINGS, learning_rate=lambda step: 0.0, max_norm=1e9)
        learner = LocalLearner(
            model,
            words,
            device=Device(GPU, compute),
            objective=GMPO,
            optimizer=settings,
            update_split=MicroBatching(rows=4),
            score_split=MicroBatching(rows=4),
        )
        learner.update(learner.score(batch_of(), old=True), step=0)
        gradients.append(torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None]))
    cosine = torch.nn.functional.cosine_similarity(gradients[0], gradients[1], dim=0)
    assert float(cosine) >= 0.99
    assert float(gradients[1].norm() / gradients[0].norm()) == pytest.approx(1.0, abs=0.05)
