"""Updates of a real model: what they do to weights and optimizer, what is skipped, saved and scored."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from gmpo.algo.losses import POLICY_LOSSES
from gmpo.algo.objective import Objective
from gmpo.backends import trainable
from gmpo.backends.devices import Device
from gmpo.backends.learner import LocalLearner
from gmpo.backends.trainable import MicroBatching, Movement, OptimizerSettings
from gmpo.errors import BackendError, CheckpointError, DivergedError
from gmpo.metrics.updates import update_metrics
from gmpo.records.batch import Batch, pad_left, pad_right

OBJECTIVE = Objective(
    POLICY_LOSSES["geo_mean"], {"clip_low": 0.4, "clip_high": 0.4}, "token-mean", loss_scale=8.0, temperature=1.0
)
RATE, DECAY = 1e-3, 0.1
SETTINGS = OptimizerSettings(
    lambda step: RATE * (step + 1), betas=(0.9, 0.99), eps=1e-8, weight_decay=DECAY, max_norm=1.0, max_nonfinite=3
)
EVERYTHING = ("model", "optimizer", "extra", "hf_model")

Make = Callable[..., LocalLearner]


@pytest.fixture
def make(fresh_policy: Callable[[], PreTrainedModel], words: PreTrainedTokenizerFast, cpu: Device) -> Make:
    """Learners that all begin with the same weights."""

    def build(
        *,
        objective: Objective = OBJECTIVE,
        settings: OptimizerSettings = SETTINGS,
        split: MicroBatching | None = None,
        reference: PreTrainedModel | None = None,
        attention: str = "sdpa",
    ) -> LocalLearner:
        micro, model = split or MicroBatching(rows=2), fresh_policy()
        model.set_attn_implementation(attention)
        return LocalLearner(
            model,
            words,
            device=cpu,
            objective=objective,
            optimizer=settings,
            update_split=micro,
            score_split=micro,
            reference=reference,
        )

    return build


def batch_of(advantages: list[float], seed: int = 0) -> Batch:
    """Responses of 1, 2, 3, ... tokens with the given advantages, without old log-probs."""
    g = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(4, 32, (length,), generator=g).tolist()

    prompt_ids, prompt_mask = pad_left([draw(2 + i % 3) for i in range(len(advantages))], 0)
    response_ids, mask = pad_right([draw(1 + i) for i in range(len(advantages))], 0)
    return Batch(
        prompt_ids,
        prompt_mask,
        response_ids,
        mask,
        sampled_mask=mask,
        group=torch.zeros(len(advantages), dtype=torch.long),
        index=torch.arange(len(advantages)),
        rewards=torch.zeros(len(advantages)),
        rollout_logp=torch.zeros(mask.shape),
        advantage=torch.tensor(advantages).unsqueeze(1) * mask,
    )


def weights(learner: LocalLearner) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in learner.model.named_parameters()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a.keys() | b.keys())


# --- an update


def test_of_the_weights_that_a_gradient_asks_to_move_those_are_counted_that_rounding_lets() -> None:
    # AdamW's first step is the learning rate, 2.5e-3. Half the spacing of bfloat16 is 2^-8 = 3.9e-3 from 1 on, 2^-9 =
    # 2.0e-3 just below 1, 2^-10 at 0.25: of the five weights with a gradient 1.5 and -1 (which goes away from 0) stay.
    narrow = torch.nn.Parameter(torch.tensor([1.5, -1.0, 1.0, 0.25, 0.25, 0.25], dtype=torch.bfloat16))
    wide = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([narrow, wide], lr=2.5e-3, weight_decay=0.0)
    narrow.grad = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, 0.0], dtype=torch.bfloat16)
    wide.grad = torch.ones(3)
    movement = Movement([narrow, wide])
    movement.begin()
    optimizer.step()
    assert movement.share(optimizer) == 3 / 5
    assert Movement([wide]).share(optimizer) is None, "float32 is not probed"


def test_a_large_model_is_probed_on_a_million_weights_of_every_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainable, "PROBED_WEIGHTS", 64)
    weight = torch.nn.Parameter(torch.zeros(64, 16, dtype=torch.bfloat16))
    movement = Movement([weight])
    movement.begin()
    (probed,) = movement.before
    assert 48 <= len(probed) <= 64
    columns = torch.arange(16).expand(64, 16).flatten()[:: movement.stride]
    assert columns.unique().numel() == 16


def test_an_update_is_a_step_of_adamw_on_the_bounded_gradient(make: Make) -> None:
    learner = make()
    before = weights(learner)
    update = learner.update(batch_of([1.0, -1.0, 0.5]), step=4)
    norm = update.scalars["grad_norm"]
    assert norm > 1.0, "the example must reach the bound"
    assert update.scalars["lr"] == 5 * RATE
    total = 0.0
    for name, parameter in learner.model.named_parameters():
        assert parameter.grad is not None
        g = parameter.grad.double()
        total += g.norm().item() ** 2
        # the first step of Adam: both moments are bias-corrected to g and g^2
        expected = before[name].double() * (1 - 5 * RATE * DECAY) - 5 * RATE * g / (g.abs() + 1e-8)
        moved = g.abs() > 1e-6  # below, epsilon and rounding have their say
        assert torch.allclose(parameter.double()[moved], expected[moved], rtol=1e-5, atol=1e-6)
    assert math.sqrt(total) == pytest.approx(1.0, rel=1e-4)


def test_an_update_makes_good_answers_more_and_bad_ones_less_probable(make: Make) -> None:
    learner = make()
    batch = batch_of([1.0, -1.0, 1.0, -1.0])
    before = learner.score(batch, old=True).old_logp
    learner.update(batch, step=0)
    after = learner.score(batch, old=True).old_logp
    assert before is not None
    assert after is not None
    change = (after - before).sum(1)
    assert (change[[0, 2]] > 0).all()
    assert (change[[1, 3]] < 0).all()


def test_a_mini_batch_without_signal_makes_its_decayed_step(make: Make) -> None:
    learner = make()
    before = weights(learner)
    update = learner.update(batch_of([0.0, 0.0]), step=0)
    assert update.rows.numel() == 0
    assert update.logp.shape == (0, 2)
    assert update.scalars == {"grad_norm": 0.0, "lr": RATE}
    assert not update.skipped
    for name, parameter in learner.model.named_parameters():
        assert torch.allclose(parameter, before[name] * (1 - RATE * DECAY), rtol=1e-6, atol=0), name


def test_a_mini_batch_without_signal_carries_the_momentum_on(make: Make) -> None:
    learner = make()
    learner.update(batch_of([1.0, -1.0]), step=0)
    twin = [p.detach().clone().requires_grad_() for p in learner.model.parameters()]
    reference = torch.optim.AdamW(twin, lr=RATE, betas=SETTINGS.betas, eps=SETTINGS.eps, weight_decay=DECAY)
    reference.load_state_dict(deepcopy(learner.policy.optimizer.state_dict()))
    for copy in twin:
        copy.grad = torch.zeros_like(copy)
    reference.step()
    learner.update(batch_of([0.0, 0.0]), step=0)
    for parameter, copy in zip(learner.model.parameters(), twin, strict=True):
        assert torch.allclose(parameter, copy, rtol=1e-6, atol=1e-7)


def test_gradients_of_one_update_do_not_reach_the_next(make: Make) -> None:
    still = replace(SETTINGS, learning_rate=lambda step: 0.0)
    learner, other = make(settings=still), make(settings=still)
    learner.update(batch_of([1.0, -1.0], seed=1), step=0)
    norms = [x.update(batch_of([0.5, 2.0]), step=0).scalars["grad_norm"] for x in (learner, other)]
    assert norms[0] == norms[1]


def test_responses_without_any_token_give_no_gradient_and_no_error(make: Make) -> None:
    batch = batch_of([1.0, 1.0])
    none = torch.zeros_like(batch.response_mask)
    empty = batch.replace(response_mask=none, sampled_mask=none, loss_mask=none)
    assert make(objective=replace(OBJECTIVE, entropy_coef=0.1)).update(empty, step=0).scalars["grad_norm"] == 0.0


@pytest.mark.parametrize("attention", ["sdpa", "eager"], ids=["packed", "padded"])
def test_the_heads_gradient_is_held_once_in_the_same_memory(make: Make, attention: str) -> None:
    """Micro-batches add to it; the largest tensor of a small model would otherwise be there twice."""
    learner = make(split=MicroBatching(rows=1), attention=attention)
    head: Any = learner.model.get_output_embeddings()
    learner.policy.begin()
    place = head.weight.grad.data_ptr()
    learner.update(batch_of([1.0, -1.0, 0.5]), step=0)
    assert head.weight.grad.any()
    assert head.weight.grad.data_ptr() == place


# --- frozen parameters


def frozen_but(model: PreTrainedModel, part: str) -> list[str]:
    """Freeze all parameters but those whose name has `part`; the names of the frozen ones."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part in name)
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


@pytest.fixture
def make_frozen(fresh_policy: Callable[[], PreTrainedModel], words: PreTrainedTokenizerFast, cpu: Device) -> Make:
    """Learners of the same weights in which the named part alone is trained."""

    def build(part: str) -> LocalLearner:
        model, split = fresh_policy(), MicroBatching(rows=2)
        frozen_but(model, part)
        return LocalLearner(
            model, words, device=cpu, objective=OBJECTIVE, optimizer=SETTINGS, update_split=split, score_split=split
        )

    return build


@pytest.mark.parametrize("part", ["q_proj", "embed_tokens", "model.norm"])
def test_what_is_frozen_neither_moves_nor_decays_nor_holds_a_gradient(make_frozen: Make, part: str) -> None:
    learner = make_frozen(part)
    before = weights(learner)
    learner.update(batch_of([1.0, -1.0, 0.5]), step=99)
    learner.update(batch_of([0.0, 0.0]), step=99)
    for name, parameter in learner.model.named_parameters():
        if part in name:
            assert not torch.equal(parameter, before[name]), name
        else:
            assert torch.equal(parameter, before[name]), name
            assert parameter.grad is None, name


def test_what_is_trained_is_trained_as_if_the_rest_were_not_frozen(make: Make, make_frozen: Make) -> None:
    whole, part = make(settings=replace(SETTINGS, max_norm=1e9)), make_frozen("q_proj")
    part.policy.settings = replace(SETTINGS, max_norm=1e9)
    for learner in (whole, part):
        learner.update(batch_of([1.0, -1.0, 0.5]), step=0)
    after = weights(whole)
    for name, parameter in part.model.named_parameters():
        if "q_proj" in name:
            assert torch.equal(parameter, after[name]), name


def test_nothing_to_train_is_refused(make_frozen: Make) -> None:
    with pytest.raises(BackendError, match="every parameter is frozen"):
        make_frozen("no such part")


def test_a_checkpoint_of_a_partly_frozen_model_goes_on_with_the_same_bits(make_frozen: Make, tmp_path: Path) -> None:
    learner, resumed, other = make_frozen("q_proj"), make_frozen("q_proj"), make_frozen("k_proj")
    learner.update(batch_of([1.0, -1.0]), step=0)
    learner.snapshot(EVERYTHING, copy=False)(tmp_path)
    moments = load_file(tmp_path / "actor" / "optimizer.safetensors")
    assert moments
    assert all("q_proj" in name for name in moments)
    resumed.load(tmp_path, EVERYTHING)
    for x in (learner, resumed):
        x.update(batch_of([0.2, -1.0, 1.0]), step=1)
    assert equal(weights(learner), weights(resumed))
    with pytest.raises(CheckpointError, match="other parameters were frozen"):
        other.load(tmp_path, EVERYTHING)


# --- gradients that are not finite

BROKEN = batch_of([1.0, math.nan])


def test_a_gradient_that_is_not_finite_leaves_weights_and_optimizer_alone(make: Make) -> None:
    learner, other = make(), make()
    for x in (learner, other):
        x.update(batch_of([1.0, -1.0]), step=0)
    before = weights(learner)
    update = learner.update(BROKEN, step=1)
    assert update.skipped
    assert not math.isfinite(update.scalars["grad_norm"])
    assert equal(weights(learner), before)
    # what follows is as if it had never been
    good = [x.update(batch_of([0.5, 2.0]), step=1) for x in (learner, other)]
    assert not good[0].skipped
    assert equal(weights(learner), weights(other))


def test_the_third_in_a_row_stops_the_run_and_a_good_one_starts_the_count_anew(make: Make) -> None:
    learner = make()
    for _ in range(2):
        assert learner.update(BROKEN, step=5).skipped
    learner.update(batch_of([1.0, -1.0]), step=6)
    for _ in range(2):
        assert learner.update(BROKEN, step=7).skipped
    with pytest.raises(
        BackendError, match=r"step 8, update: the gradient was not finite .* 3 updates in a row"
    ) as raised:
        learner.update(BROKEN, step=7)
    assert "actor_rollout_ref.actor.optim.lr" in str(raised.value)


def test_the_count_of_bad_gradients_survives_a_checkpoint(make: Make, tmp_path: Path) -> None:
    learner, resumed = make(), make()
    learner.update(BROKEN, step=0)
    learner.update(BROKEN, step=0)
    learner.snapshot(EVERYTHING, copy=False)(tmp_path)
    resumed.load(tmp_path, EVERYTHING)
    with pytest.raises(BackendError, match="3 updates in a row"):
        resumed.update(BROKEN, step=1)


# --- scoring


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_are_log_probs_and_entropies_under_the_temperature_and_zero_elsewhere(
    make: Make, temperature: float
) -> None:
    learner = make(objective=replace(OBJECTIVE, temperature=temperature))
    batch = batch_of([1.0] * 5)
    scored = learner.score(batch, old=True)
    assert scored.old_logp is not None
    assert scored.entropy is not None
    for row in range(batch.rows):
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]]
        response = batch.response_ids[row][batch.response_mask[row]]
        with torch.no_grad():
            logits = learner.model(torch.cat([prompt, response]).unsqueeze(0)).logits[0, len(prompt) - 1 : -1]
        logp = torch.log_softmax(logits.double() / temperature, -1)
        chosen = logp.gather(1, response.unsqueeze(1)).squeeze(1).tolist()
        assert scored.old_logp[row][: len(response)].tolist() == pytest.approx(chosen, abs=1e-5)
        entropies = (-(logp.exp() * logp).sum(-1)).tolist()
        assert scored.entropy[row][: len(response)].tolist() == pytest.approx(entropies, abs=1e-5)
    assert not scored.old_logp[~batch.response_mask].any()
    assert not scored.entropy[~batch.response_mask].any()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("old", [True, False])
def test_score_norms_are_those_of_the_derivative_by_the_logits(make: Make, temperature: float, old: bool) -> None:
    learner = make(objective=replace(OBJECTIVE, temperature=temperature))
    batch = batch_of([1.0, -1.0, 0.5])
    assert learner.score(batch, old=old).score_norm is None
    learner.score_norms = True
    scored = learner.score(batch, old=old)
    assert (scored.learner_logp is None) == (not old)
    assert scored.score_norm is not None
    for row in range(batch.rows):
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]]
        answer = batch.response_ids[row][batch.response_mask[row]]
        z = learner.model(torch.cat([prompt, answer]).unsqueeze(0)).logits[0, len(prompt) - 1 : -1]
        z = (z.detach() / temperature).requires_grad_()
        logp = z.log_softmax(-1)[torch.arange(len(answer)), answer]
        (slope,) = torch.autograd.grad(logp.sum(), z)
        expected = slope.square().sum(-1)
        assert torch.allclose(scored.score_norm[row, : len(answer)], expected, rtol=1e-4, atol=1e-6)
        assert not scored.score_norm[row, len(answer) :].any()


def test_scores_do_not_depend_on_the_split(make: Make) -> None:
    batch = batch_of([1.0] * 6)
    splits = [MicroBatching(rows=1), MicroBatching(rows=4), MicroBatching(tokens=12), MicroBatching(rows=99)]
    scores = [make(split=split).score(batch, old=True) for split in splits]
    for scored in scores[1:]:
        for name in ("old_logp", "entropy"):
            assert torch.allclose(getattr(scored, name), getattr(scores[0], name), atol=1e-5)


def test_the_reference_stays_where_it_was(make: Make, fresh_policy: Callable[[], PreTrainedModel]) -> None:
    reference = fresh_policy()
    learner = make(reference=reference)
    batch = batch_of([1.0, -1.0, 0.5])
    before = learner.score(batch, old=True)
    assert before.ref_logp is not None
    assert before.old_logp is not None
    assert torch.equal(before.ref_logp, before.old_logp)
    learner.update(batch, step=0)
    after = learner.score(batch, old=True)
    assert after.ref_logp is not None
    assert after.old_logp is not None
    assert torch.equal(after.ref_logp, before.ref_logp)
    assert not torch.equal(after.old_logp, before.old_logp)
    assert not any(p.requires_grad for p in reference.parameters())


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"])
def test_the_kl_of_a_step_does_not_depend_on_its_division_into_mini_batches(
    make: Make, fresh_policy: Callable[[], PreTrainedModel], mode: str
) -> None:
    # learning rate 0: every update sees the same policy; mini-batches of 1 and 4 answers, of 1 and 14 tokens
    still = replace(SETTINGS, learning_rate=lambda step: 0.0)
    objective = replace(OBJECTIVE, kl_coef=0.1, aggregation=mode)
    reference = fresh_policy()
    with torch.no_grad():
        reference.get_output_embeddings().weight.mul_(1.5)
    learner = make(objective=objective, settings=still, reference=reference)
    batch = learner.score(batch_of([1.0, -1.0, 0.5, 0.0, 1.0]), old=True)
    whole = update_metrics([batch], [learner.update(batch, step=0)])["actor/kl_loss"]
    minis = [batch.select(torch.tensor(rows)) for rows in ([0], [1, 2, 3, 4])]
    updates = [learner.update(mini, step=0) for mini in minis]
    assert update_metrics(minis, updates)["actor/kl_loss"] == pytest.approx(whole, rel=1e-5)
    plain = (updates[0].scalars["kl_loss"] + updates[1].scalars["kl_loss"]) / 2
    assert plain != pytest.approx(whole, rel=0.01), "the example must tell the two means apart"


def test_only_what_is_asked_for_is_scored(make: Make) -> None:
    rows: list[int] = []
    learner = make()
    learner.model.register_forward_pre_hook(lambda *_: rows.append(1))
    batch = batch_of([1.0])
    scored = learner.score(batch, old=False)
    assert (scored.old_logp, scored.ref_logp, scored.entropy) == (None, None, None)
    assert not rows


# --- checkpoints


@pytest.mark.parametrize("contents", [EVERYTHING, ("model", "optimizer", "extra"), ("optimizer", "hf_model")])
def test_after_a_checkpoint_the_next_update_gives_the_same_bits(
    make: Make, tmp_path: Path, contents: tuple[str, ...]
) -> None:
    learner, resumed = make(), make()
    for step in range(3):
        learner.update(batch_of([1.0, -1.0, 0.3], seed=step), step=step)
    learner.snapshot(contents, copy=False)(tmp_path)
    saved = weights(learner)
    resumed.load(tmp_path, contents)
    assert equal(weights(resumed), saved)
    for step in (3, 4):
        for x in (learner, resumed):
            x.update(batch_of([0.2, -1.0, 1.0], seed=step), step=step)
    assert not equal(weights(learner), saved)
    assert equal(weights(learner), weights(resumed))


def test_a_checkpoint_before_the_first_update_is_a_checkpoint(make: Make, tmp_path: Path) -> None:
    learner, resumed = make(), make()
    learner.snapshot(EVERYTHING, copy=False)(tmp_path)
    resumed.update(batch_of([1.0, 2.0]), step=0)  # to be undone by loading, moments included
    resumed.load(tmp_path, EVERYTHING)
    for x in (learner, resumed):
        x.update(batch_of([1.0, -1.0]), step=0)
    assert equal(weights(learner), weights(resumed))


def test_the_hugging_face_folder_is_an_ordinary_model_folder(
    make: Make, tmp_path: Path, words: PreTrainedTokenizerFast
) -> None:
    learner = make()
    learner.update(batch_of([1.0, -1.0]), step=0)
    learner.snapshot(("hf_model",), copy=False)(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "actor" / "huggingface")
    ids = torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, learner.model.eval()(ids).logits)
    assert type(words).from_pretrained(tmp_path / "actor" / "huggingface").get_vocab() == words.get_vocab()
    assert not (tmp_path / "actor" / "model.safetensors").exists()


def test_without_hf_model_the_folder_holds_configuration_and_tokenizer_only(make: Make, tmp_path: Path) -> None:
    make().snapshot(("model",), copy=False)(tmp_path)
    names = {path.name for path in (tmp_path / "actor" / "huggingface").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= names
    assert not any(name.endswith(".safetensors") for name in names)


def test_a_copied_snapshot_is_of_its_moment_however_training_goes_on(make: Make, tmp_path: Path) -> None:
    learner = make()
    learner.update(batch_of([1.0, -1.0]), step=0)
    learner.snapshot(EVERYTHING, copy=False)(tmp_path / "at once")
    later = learner.snapshot(EVERYTHING, copy=True)
    learner.update(batch_of([-1.0, 2.0]), step=1)
    learner.update(BROKEN, step=1)
    later(tmp_path / "later")
    files = [p.relative_to(tmp_path / "at once") for p in (tmp_path / "at once").rglob("*") if p.is_file()]
    assert {f.name for f in files} >= {"model.safetensors", "optimizer.safetensors", "optimizer.json", "config.json"}
    assert all((tmp_path / "later" / f).read_bytes() == (tmp_path / "at once" / f).read_bytes() for f in files)
    learner.snapshot(EVERYTHING, copy=False)(tmp_path / "now")
    changed = {f.name for f in files if (tmp_path / "now" / f).read_bytes() != (tmp_path / "later" / f).read_bytes()}
    assert changed == {"model.safetensors", "optimizer.safetensors", "optimizer.json"}


def test_nothing_in_a_checkpoint_is_a_pickle(make: Make, tmp_path: Path) -> None:
    learner = make()
    learner.update(batch_of([1.0, -1.0]), step=0)
    learner.snapshot(EVERYTHING, copy=False)(tmp_path)
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".jinja"}


def damaged(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "optimizer.json"])
@pytest.mark.parametrize("harm", [damaged, lambda folder, name: (folder / name).unlink()], ids=["cut", "missing"])
def test_a_missing_or_damaged_file_is_named(
    make: Make, tmp_path: Path, name: str, harm: Callable[[Path, str], None]
) -> None:
    learner = make()
    learner.update(batch_of([1.0, -1.0]), step=0)
    learner.snapshot(EVERYTHING, copy=False)(tmp_path)
    harm(tmp_path / "actor", name)
    with pytest.raises(CheckpointError, match=f"cannot read .*{name}"):
        make().load(tmp_path, EVERYTHING)


def rewritten(file: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def shortened(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: value[:-1].clone() if key == name else value for key, value in tensors.items()}


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model.safetensors", without(NORM), f"no weights for 1 parameters, for example '{NORM}'"),
        ("model.safetensors", shortened(NORM), f"'{NORM}' is \\(31,\\), the model has \\(32,\\)"),
        ("huggingface/model.safetensors", without(NORM), f"no weights for 1 parameters, for example '{NORM}'"),
        ("optimizer.safetensors", shortened(f"exp_avg.{NORM}"), f"exp_avg of '{NORM}' is \\(31,\\), the parameter"),
        (
            "optimizer.safetensors",
            lambda tensors: {key: value for key, value in tensors.items() if not key.endswith(NORM)},
            f"belongs to another model, see for example '{NORM}'",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    make: Make, tmp_path: Path, file: str, change: Callable[..., Any], message: str
) -> None:
    learner = make()
    learner.update(batch_of([1.0, -1.0]), step=0)
    learner.snapshot(EVERYTHING, copy=False)(tmp_path)
    rewritten(tmp_path / "actor" / file, change)
    contents = ("hf_model",) if file.startswith("huggingface") else ("model", "optimizer")
    with pytest.raises(CheckpointError, match=message):
        make().load(tmp_path, contents)


def test_a_mixture_of_experts_is_read_back_from_its_hugging_face_folder(
    tmp_path: Path, words: PreTrainedTokenizerFast, cpu: Device
) -> None:
    # Its files hold one tensor per expert, the model one tensor of all experts.
    config = Qwen3MoeConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        num_experts=3,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
        eos_token_id=1,
    )

    def learner() -> LocalLearner:
        return LocalLearner(
            Qwen3MoeForCausalLM(config),
            words,
            device=cpu,
            objective=OBJECTIVE,
            optimizer=SETTINGS,
            update_split=MicroBatching(rows=2),
            score_split=MicroBatching(rows=2),
        )

    trained, resumed = learner(), learner()
    trained.update(batch_of([1.0, -1.0]), step=0)
    trained.snapshot(("hf_model", "optimizer"), copy=False)(tmp_path)
    resumed.load(tmp_path, ("hf_model", "optimizer"))
    assert equal(weights(trained), weights(resumed))
    for x in (trained, resumed):
        x.update(batch_of([1.0, 0.5]), step=1)
    assert equal(weights(trained), weights(resumed))


def test_the_norm_of_large_gradients_is_exact_to_float32s_rounding() -> None:
    """torch's own loses 0.3 % of 39 million entries, and so would clipping."""
    g = torch.Generator().manual_seed(0)
    gradients = [torch.randn(n, generator=g) for n in (20_000_003, 77)] + [torch.randn(5, 7, generator=g).bfloat16()]
    exact = math.sqrt(sum(float(x.double().square().sum()) for x in gradients))
    assert float(trainable.gradient_norm(gradients)) == pytest.approx(exact, rel=1e-7)
    assert abs(float(torch.nn.utils.get_total_norm(gradients)) - exact) > 1e-4 * exact


@pytest.mark.parametrize("max_norm", [0.01, 1e6])
def test_clipping_scales_every_gradient_by_the_same_factor(make: Make, max_norm: float) -> None:
    learner = make()
    learner.policy.settings = replace(learner.policy.settings, max_norm=max_norm)
    learner.policy.begin()
    g = torch.Generator().manual_seed(1)
    drawn = {n: torch.randn(p.shape, generator=g) for n, p in learner.model.named_parameters()}
    for name, parameter in learner.model.named_parameters():
        parameter.grad = drawn[name].clone()
    done = learner.policy.step(0)
    norm = math.sqrt(sum(float(x.double().square().sum()) for x in drawn.values()))
    assert done.norm == pytest.approx(norm, rel=1e-7)
    factor = min(1.0, max_norm / norm)
    for name, parameter in learner.model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, factor * drawn[name], rtol=1e-5)


def test_weights_that_are_finite_are_not_called_otherwise_for_a_sum_that_is_not(make: Make) -> None:
    learner = make()
    with torch.no_grad():
        weight = next(learner.model.parameters())
        weight.flatten()[:3] = 3e38
    learner.policy._require_finite(0, 1.0, 1.0)
    with torch.no_grad():
        weight.flatten()[0] = math.nan
    with pytest.raises(DivergedError, match="not finite"):
        learner.policy._require_finite(0, 1.0, 1.0)
