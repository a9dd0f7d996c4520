"""The gradient of an update on a real model: equal to the objective written out in float64, however it is divided."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from gmpo.algo.losses import POLICY_LOSSES, SUPERVISED
from gmpo.algo.masks import AGGREGATIONS
from gmpo.algo.objective import Objective
from gmpo.backends.devices import Device
from gmpo.backends.forward import PolicyModule
from gmpo.backends.learner import LocalLearner
from gmpo.backends.models import checkpoint_activations
from gmpo.backends.trainable import MicroBatching, OptimizerSettings
from gmpo.ports import Update
from gmpo.records.batch import Batch, pad_left, pad_right

TEMPERATURE = 0.8
GEO = Objective(
    POLICY_LOSSES["geo_mean"],
    {"clip_low": 0.1, "clip_high": 0.15},
    "token-mean",
    loss_scale=9.0,
    temperature=TEMPERATURE,
)
VANILLA = replace(
    GEO, policy_loss=POLICY_LOSSES["vanilla"], loss_numbers={"clip_low": 0.1, "clip_high": 0.15, "clip_dual": 1.3}
)
WITH_TERMS = {"kl_coef": 0.3, "kl_kind": "low_var_kl", "entropy_coef": 0.05}
SPLITS = {
    "one row": MicroBatching(rows=1),
    "two rows": MicroBatching(rows=2),
    "three rows": MicroBatching(rows=3),
    "all rows": MicroBatching(rows=99),
    "few tokens": MicroBatching(tokens=10),
    "30 tokens": MicroBatching(tokens=30),
}


@dataclass(frozen=True)
class Case:
    """A policy and a mini-batch of 8 ragged rows: two of advantage 0, one without tokens."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    batch: Batch

    def having(self, **tensors: Any) -> Case:
        """The case with some of the batch's tensors exchanged."""
        return replace(self, batch=self.batch.replace(**tensors))


@pytest.fixture
def case(fresh_policy: Callable[[], PreTrainedModel], words: PreTrainedTokenizerFast) -> Case:
    g = torch.Generator().manual_seed(0)

    def draw(length: int) -> list[int]:
        return torch.randint(4, 32, (length,), generator=g).tolist()

    lengths = [(3, 5), (7, 1), (2, 9), (5, 0), (4, 4), (4, 7), (6, 2), (1, 3)]
    prompt_ids, prompt_mask = pad_left([draw(p) for p, _ in lengths], 0)
    response_ids, response_mask = pad_right([draw(r) for _, r in lengths], 0)
    advantage = torch.tensor([1.0, -0.5, 0.7, 2.0, 0.0, -1.2, 0.0, -2.0]).unsqueeze(1) * response_mask
    batch = Batch(
        prompt_ids,
        prompt_mask,
        response_ids,
        response_mask,
        sampled_mask=response_mask,
        group=torch.arange(8) // 2,
        index=torch.arange(8),
        rewards=torch.zeros(8),
        rollout_logp=torch.zeros(response_mask.shape),
        advantage=advantage,
    )
    model = fresh_policy()
    logp = per_token_logp(model, batch)
    noise = 0.2 * torch.randn(response_mask.shape, generator=g)
    other = 0.5 * torch.randn(response_mask.shape, generator=g)
    old = (logp.float() + noise) * response_mask
    return Case(model, words, batch.replace(learner_logp=old, ref_logp=(logp.float() + other) * response_mask))


def updated(case: Case, objective: Objective, split: MicroBatching) -> tuple[Tensor, Update]:
    """All gradients of one update (at learning rate 0), flat, and its record."""
    learner = LocalLearner(
        case.model,
        case.tokenizer,
        device=Device(torch.device("cpu"), torch.float32),
        objective=objective,
        optimizer=OptimizerSettings(
            lambda step: 0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, max_norm=1e9, max_nonfinite=3
        ),
        update_split=split,
        score_split=split,
    )
    update = learner.update(case.batch, step=0)
    return flat_gradient(case.model), update


def flat_gradient(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


def apart(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_a_loss_that_is_only_looked_at_leaves_the_gradient_alone(case: Case) -> None:
    """That of the head was dropped, as if its backward pass were to come."""
    module = PolicyModule(case.model, Device(torch.device("cpu"), torch.float32), temperature=TEMPERATURE)
    assert module.takes_hidden
    module(case.batch, lambda rows, logp, entropy: logp.sum())[0].backward()
    before = flat_gradient(case.model).clone()
    with torch.no_grad():
        value, _ = module(case.batch, lambda rows, logp, entropy: logp.sum())
    assert not value.requires_grad
    assert torch.equal(flat_gradient(case.model), before)


# --- the objective in float64, one unpadded row at a time


def row_logits(model: torch.nn.Module, batch: Batch, row: int) -> tuple[Tensor, Tensor]:
    """Logits [T, V] over the temperature that predict the row's T response tokens, and the tokens."""
    prompt = batch.prompt_ids[row][batch.prompt_mask[row]]
    response = batch.response_ids[row][batch.response_mask[row]]
    logits = model(torch.cat([prompt, response]).unsqueeze(0), use_cache=False).logits[0]
    return logits[len(prompt) - 1 : len(prompt) - 1 + len(response)] / TEMPERATURE, response


def per_token_logp(model: torch.nn.Module, batch: Batch) -> Tensor:
    result = torch.zeros(batch.response_mask.shape, dtype=torch.float64)
    with torch.no_grad():
        for row in range(batch.rows):
            logits, response = row_logits(model, batch, row)
            logp = torch.log_softmax(logits.double(), -1)
            result[row, : len(response)] = logp[torch.arange(len(response)), response]
    return result


def mean_of(values: list[list[Tensor]], mode: str, scale: float) -> Tensor:
    flat = [v for row in values for v in row]
    rows = [torch.stack(row) for row in values if row]
    if mode in ("token-mean", "token-sum"):
        return torch.stack(flat).sum() / (len(flat) if mode == "token-mean" else 1)
    per_row = {
        "seq-mean-token-sum": [r.sum() for r in rows],
        "seq-mean-token-mean": [r.sum() / len(r) for r in rows],
        "seq-mean-token-sum-norm": [r.sum() / scale for r in rows],
    }[mode]
    return torch.stack(per_row).sum() / len(per_row)


def direct(case: Case, o: Objective) -> tuple[Tensor, dict[str, float]]:
    """Gradient and terms of the objective: loops over rows and tokens of a float64 copy of the model."""
    model = type(case.model)(case.model.config).double()
    model.load_state_dict(case.model.state_dict())
    b = case.batch
    assert b.old_logp is not None
    assert b.ref_logp is not None
    assert b.advantage is not None
    surrogate, kl, entropy, per_row = [], [], [], []
    for row in range(b.rows):
        logits, response = row_logits(model, b, row)
        logp = torch.log_softmax(logits, -1)
        chosen = [logp[t, token] for t, token in enumerate(response.tolist())]
        a = b.advantage[row].double().sum() / max(1, len(response))
        ratios = [torch.exp(x - b.old_logp[row, t].double()) for t, x in enumerate(chosen)]
        if "clip_dual" in o.loss_numbers:
            low, high, dual = (o.loss_numbers[k] for k in ("clip_low", "clip_high", "clip_dual"))
            gains = [torch.minimum(r * a, r.clamp(1 - low, 1 + high) * a) for r in ratios]
            surrogate.append([-(torch.maximum(g, dual * a) if a < 0 else g) for g in gains])
        elif chosen:
            up, down = math.exp(o.loss_numbers["clip_high"]), math.exp(-o.loss_numbers["clip_low"])
            held = [r.clamp(max=up) if a > 0 else r.clamp(min=down) for r in ratios]
            per_row.append(-a * torch.stack(held).prod() ** (1 / len(held)))
        x = [b.ref_logp[row, t].double() - c for t, c in enumerate(chosen)]
        kl.append([v.exp() - v - 1 for v in x])
        entropy.append([-(p.exp() * p).sum() for p in logp[: len(chosen)]])
    pg = torch.stack(per_row).mean() if per_row else mean_of(surrogate, o.aggregation, o.loss_scale)
    kl_loss, mean_entropy = (mean_of(v, o.aggregation, o.loss_scale) for v in (kl, entropy))
    (pg + o.kl_coef * kl_loss - o.entropy_coef * mean_entropy).backward()
    watched = mean_of(entropy, "token-mean", o.loss_scale)  # in the same unit whatever the aggregation
    terms = {"pg_loss": pg.item(), "kl_loss": kl_loss.item(), "entropy": watched.item()}
    return flat_gradient(model), terms


@pytest.mark.parametrize("mode", AGGREGATIONS)
@pytest.mark.parametrize("objective", [GEO, VANILLA], ids=["geo_mean", "vanilla"])
def test_the_update_has_the_gradient_of_the_objective_written_out_in_float64(
    case: Case, objective: Objective, mode: str
) -> None:
    objective = replace(objective, aggregation=mode, **WITH_TERMS)
    gradient, update = updated(case, objective, MicroBatching(rows=3))
    expected, terms = direct(case, objective)
    assert apart(gradient, expected) < 1e-5
    for name, value in terms.items():
        assert update.scalars[name] == pytest.approx(value, rel=1e-5), name
    assert update.scalars["grad_norm"] == pytest.approx(expected.norm().item(), rel=1e-5)
    assert (update.clipped | update.clipped_lower).any(), "the example must reach the bounds"


@pytest.mark.parametrize("objective", [GEO, VANILLA], ids=["geo_mean", "vanilla"])
def test_without_further_terms_it_is_the_surrogates_gradient(case: Case, objective: Objective) -> None:
    gradient, update = updated(case, objective, MicroBatching(rows=3))
    expected, terms = direct(case, objective)
    assert apart(gradient, expected) < 1e-5
    assert update.scalars["pg_loss"] == pytest.approx(terms["pg_loss"], rel=1e-5)
    assert "kl_loss" not in update.scalars


@pytest.mark.parametrize("terms", [{}, WITH_TERMS], ids=["surrogate", "with KL and entropy"])
@pytest.mark.parametrize("objective", [GEO, VANILLA], ids=["geo_mean", "vanilla"])
def test_the_gradient_is_the_same_for_any_micro_batching(
    case: Case, objective: Objective, terms: dict[str, Any]
) -> None:
    objective = replace(objective, aggregation="seq-mean-token-mean", **terms)
    outcomes = {name: updated(case, objective, split) for name, split in SPLITS.items()}
    whole, whole_update = outcomes["all rows"]
    for name, (gradient, update) in outcomes.items():
        assert apart(gradient, whole) < 1e-5, name
        for key, value in whole_update.scalars.items():
            assert update.scalars[key] == pytest.approx(value, rel=1e-5, abs=1e-7), (name, key)


def test_the_record_of_an_update_is_the_same_for_any_micro_batching(case: Case) -> None:
    records = []
    for split in SPLITS.values():
        _, update = updated(case, GEO, split)
        order = update.rows.argsort()
        assert update.rows[order].tolist() == [0, 1, 2, 5, 7]
        mask = case.batch.response_mask[update.rows[order]]
        fields = ("logp", "clipped", "clipped_lower", "sequence_ratio", "capped")
        record = [getattr(update, name)[order] for name in fields]
        record[0] = record[0].masked_fill(~mask, 0.0)
        records.append(record)
    logp = per_token_logp(case.model, case.batch)[[0, 1, 2, 5, 7]]
    assert (records[0][0] - logp).abs().max() < 1e-5
    for record in records[1:]:
        for got, expected in zip(record, records[0], strict=True):
            assert torch.allclose(got.double(), expected.double(), atol=1e-5)


PROBE = 2
"""Passes by which a new learner compares its reading of the head with the model's own."""


def passes(model: PreTrainedModel) -> list[int]:
    """One entry for each pass through the layers; with one row a micro-batch, one for each row."""
    rows: list[int] = []

    def note(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        rows.append(1)

    model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    return rows


@pytest.mark.parametrize("objective", [GEO, VANILLA], ids=["geo_mean", "vanilla"])
def test_rows_without_signal_are_counted_and_not_computed(case: Case, objective: Objective) -> None:
    rows = passes(case.model)
    gradient, update = updated(case, objective, MicroBatching(rows=1))
    assert sum(rows) == PROBE + 5, "of eight rows two have advantage 0 and one has no token"
    # An entropy term, however small, has every row with a token computed.
    all_rows, full = updated(case, replace(objective, entropy_coef=1e-30), MicroBatching(rows=1))
    assert sum(rows) == 2 * PROBE + 5 + 7
    assert sorted(full.rows.tolist()) == [0, 1, 2, 4, 5, 6, 7]
    assert apart(gradient, all_rows) < 1e-6
    assert update.scalars["pg_loss"] == pytest.approx(full.scalars["pg_loss"], rel=1e-6)


def test_a_kl_term_reaches_rows_of_advantage_zero(case: Case) -> None:
    silent = case.having(advantage=torch.zeros(case.batch.response_mask.shape))
    gradient, update = updated(silent, replace(GEO, kl_coef=0.5), MicroBatching(rows=2))
    assert update.rows.numel() == 7
    assert gradient.norm() > 0
    assert apart(gradient, direct(silent, replace(GEO, kl_coef=0.5))[0]) < 1e-5


def test_without_old_log_probs_the_policy_is_compared_with_itself(case: Case) -> None:
    same = per_token_logp(case.model, case.batch).float()
    explicit, _ = updated(case.having(learner_logp=same), GEO, MicroBatching(rows=2))
    implicit, update = updated(case.having(learner_logp=None), GEO, MicroBatching(rows=2))
    assert apart(implicit, explicit) < 1e-5
    assert set(update.sequence_ratio.tolist()) == {1.0}
    vanilla, _ = updated(
        case.having(learner_logp=None),
        replace(VANILLA, aggregation="seq-mean-token-mean"),
        MicroBatching(rows=2),
    )
    assert apart(implicit, vanilla) < 1e-6, "the first update is that of sequence-mean GRPO"


def test_the_watched_entropy_is_a_mean_over_the_rows_that_were_computed(case: Case) -> None:
    # Otherwise it would seem to fall as more and more problems are solved and have no signal.
    for split in SPLITS.values():
        _, update = updated(case.having(learner_logp=None), GEO, split)
        expected = 0.0
        tokens = 0
        with torch.no_grad():
            for row in update.rows.tolist():
                logp = torch.log_softmax(row_logits(case.model, case.batch, row)[0].double(), -1)
                expected += -(logp.exp() * logp).sum().item()
                tokens += len(logp)
        assert update.scalars["entropy"] == pytest.approx(expected / tokens, rel=1e-5)


def test_watching_the_entropy_adds_nothing_to_the_gradient(case: Case) -> None:
    same = per_token_logp(case.model, case.batch).float()
    scored = case.having(learner_logp=same, entropy=torch.zeros_like(same))
    with_old, update = updated(scored, GEO, MicroBatching(rows=2))
    assert "entropy" not in update.scalars
    watched, _ = updated(case.having(learner_logp=None), GEO, MicroBatching(rows=2))
    assert apart(watched, with_old) < 1e-5


def test_supervised_learning_has_the_gradient_of_transformers_own_loss(case: Case) -> None:
    objective = Objective(SUPERVISED, {}, "token-mean", loss_scale=1.0, temperature=1.0)
    batch = case.batch
    gradient, update = updated(
        case.having(advantage=batch.response_mask.float(), learner_logp=None), objective, MicroBatching(rows=2)
    )
    case.model.zero_grad()
    ids = torch.cat([batch.prompt_ids, batch.response_ids], 1)
    mask = torch.cat([batch.prompt_mask, batch.response_mask], 1)
    labels = ids.masked_fill(~torch.cat([torch.zeros_like(batch.prompt_mask), batch.response_mask], 1), -100)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    theirs = case.model(input_ids=ids, attention_mask=mask.long(), position_ids=positions, labels=labels).loss
    theirs.backward()
    assert update.scalars["pg_loss"] == pytest.approx(theirs.item(), rel=1e-5)
    assert apart(gradient, flat_gradient(case.model)) < 1e-5


def test_gradient_checkpointing_does_not_change_the_gradient(case: Case) -> None:
    plain, _ = updated(case, replace(GEO, **WITH_TERMS), MicroBatching(rows=3))
    checkpoint_activations(case.model)
    layer_calls: list[int] = []
    case.model.model.layers[0].self_attn.register_forward_pre_hook(lambda *_: layer_calls.append(1))
    checkpointed, _ = updated(case, replace(GEO, **WITH_TERMS), MicroBatching(rows=3))
    assert len(layer_calls) == PROBE + 2 * 3, "seven rows make three passes, each computed twice"
    assert apart(checkpointed, plain) < 1e-7
