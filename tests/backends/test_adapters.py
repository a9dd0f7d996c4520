"""Low-rank adapters: what they compute, what is trained, what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen3Config

from gmpo.algo.losses import POLICY_LOSSES
from gmpo.algo.objective import Objective
from gmpo.backends.adapters import (
    AdapterSettings,
    adapted_layers,
    add_adapters,
    is_adapter,
    weight_of,
    without_adapters,
)
from gmpo.backends.devices import Device
from gmpo.backends.fast_decoder import FastDecoder
from gmpo.backends.learner import LocalLearner
from gmpo.backends.tiny_model import word_tokenizer
from gmpo.backends.trainable import MicroBatching, OptimizerSettings
from gmpo.errors import BackendError, CheckpointError
from gmpo.records.batch import Batch, pad_left, pad_right

CPU = Device(torch.device("cpu"), torch.float32)
GEO = Objective(
    POLICY_LOSSES["geo_mean"],
    {"clip_low": 0.4, "clip_high": 0.4},
    "token-mean",
    loss_scale=9.0,
    temperature=0.8,
    kl_coef=0.1,
)
ADAM = OptimizerSettings(lambda s: 1e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, max_norm=1.0, max_nonfinite=3)
SHAPE: dict[str, Any] = {
    "vocab_size": 33,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
WORDS = word_tokenizer([f"w{i}" for i in range(28)])
KINDS = {"qwen3, tied": (Qwen3Config, True), "qwen2 with biases": (Qwen2Config, False)}


def plain(kind: str = "qwen3, tied") -> PreTrainedModel:
    make, tied = KINDS[kind]
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(make(**SHAPE, tie_word_embeddings=tied))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2) if parameter.dim() > 1 else parameter.add_(0.1)
    return model.eval()


def settings(**changes: Any) -> AdapterSettings:
    given = {"rank": 4, "alpha": 8, "targets": "all-linear", "excluded": (), "seed": 3, "key": "model", **changes}
    return AdapterSettings(**given)


def adapted(kind: str = "qwen3, tied", *, drawn: bool = True, base: str = "base", **changes: Any) -> PreTrainedModel:
    """With adapters that add something, where they are `drawn`."""
    model = plain(kind)
    add_adapters(model, settings(**changes), base)
    if drawn:
        g = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0.0, 0.1, generator=g)
    return model


def learner(model: PreTrainedModel, **more: Any) -> LocalLearner:
    split = MicroBatching(rows=3)
    return LocalLearner(
        model, WORDS, device=CPU, objective=GEO, optimizer=ADAM, update_split=split, score_split=split, **more
    )


def batch_of(seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(4, 32, (length,), generator=g).tolist()

    prompts = [draw(n) for n in (3, 6)]
    ids, prompt_mask = pad_left([prompts[i] for i in (0, 0, 1, 1)], 0)
    answers, mask = pad_right([draw(n) for n in (5, 2, 9, 4)], 0)
    zeros = torch.zeros(mask.shape)
    number = torch.arange(4)
    return Batch(
        ids,
        prompt_mask,
        answers,
        mask,
        mask,
        group=number // 2,
        index=number,
        rewards=torch.zeros(4),
        rollout_logp=zeros,
        learner_logp=zeros - 3.4 * mask,
        ref_logp=zeros - 3.4 * mask,
        advantage=torch.tensor([1.0, -1.0, 0.5, -0.7]).unsqueeze(1) * mask,
    )


def logp(of: LocalLearner) -> Tensor:
    found = of.score(batch_of(), old=True).learner_logp
    assert found is not None
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_the_matrix_that_it_adds(kind: str) -> None:
    """W + (alpha / r) B A in place of W: the same log-probs. Before B is anything they are the base model's."""
    model, merged = adapted(kind), plain(kind)
    layers = dict(adapted_layers(model))
    assert len(layers) == 2 * 7
    base = logp(learner(plain(kind)))
    torch.testing.assert_close(logp(learner(adapted(kind, drawn=False))), base, rtol=0, atol=0)
    with torch.no_grad():
        for name, layer in layers.items():
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            merged.get_submodule(name).weight += 8 / 4 * b @ a  # type: ignore[operator]
            torch.testing.assert_close(weight_of(layer), merged.get_submodule(name).weight)
    found = logp(learner(model))
    torch.testing.assert_close(found, logp(learner(merged)), rtol=0, atol=1e-5)
    assert float((found - base).abs().max()) > 0.1, "the example must differ"


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_all_weights_seen_through_the_adapter(kind: str) -> None:
    """dL/dA = s B'(dL/dW) and dL/dB = s (dL/dW) A' at W + s B A."""
    model, merged = adapted(kind), plain(kind)
    layers = dict(adapted_layers(model))
    with torch.no_grad():
        for name, layer in layers.items():
            merged.get_submodule(name).weight.copy_(weight_of(layer))  # type: ignore[operator, union-attr]
    both = learner(model), learner(merged)
    for one in both:
        one.policy.begin()
        one.accumulate(one.prepare(batch_of(), step=0))
    for name, layer in layers.items():
        slope: Any = merged.get_submodule(name).weight.grad
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        for got, wanted in ((a.grad, 2.0 * b.T @ slope), (b.grad, 2.0 * slope @ a.T)):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5 * float(wanted.detach().abs().max()))


def test_the_adapters_alone_are_trained() -> None:
    model = adapted()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    one = learner(model)
    one.update(batch_of(), step=0)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if is_adapter(name)}
    assert len(one.policy.optimizer.state) == len(moved)
    assert all(p.grad is None for name, p in model.named_parameters() if not is_adapter(name))


def test_the_reference_is_the_policy_without_its_adapters() -> None:
    model = adapted()
    scored = learner(model, reference="without adapters").score(batch_of(), old=True)
    torch.testing.assert_close(scored.ref_logp, logp(learner(plain())), rtol=0, atol=0)
    torch.testing.assert_close(scored.learner_logp, logp(learner(model)), rtol=0, atol=0)
    with pytest.raises(RuntimeError), without_adapters(model):  # also where something fails
        raise RuntimeError
    assert not any(layer.disable_adapters for _, layer in adapted_layers(model))
    assert all(p.requires_grad == is_adapter(name) for name, p in model.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_sampler_reads_adapters_with_the_layers(kind: str) -> None:
    """Also those that add nothing yet, and no others than the plain kind."""
    for drawn in (True, False):
        assert FastDecoder.supports(adapted(kind, drawn=drawn))
    model = adapted(kind)
    ids = [3, 7, 4, 9]
    decoder = FastDecoder(model, CPU)
    with torch.no_grad():
        decoder.enter([ids[:3]], 1)
        step = torch.log_softmax(decoder.step(torch.tensor(ids[3:])), -1)
        whole = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1], -1)
    torch.testing.assert_close(step[0], whole, rtol=0, atol=1e-5)
    _, layer = next(iter(adapted_layers(model)))
    layer.use_dora["default"] = True
    assert not FastDecoder.supports(model)


EVERYTHING = ("model", "optimizer", "extra", "hf_model")


@pytest.mark.parametrize("contents", [EVERYTHING, ("optimizer", "hf_model")])
def test_after_a_checkpoint_the_next_update_gives_the_same_bits(tmp_path: Path, contents: tuple[str, ...]) -> None:
    one, other = learner(adapted()), learner(adapted(drawn=False))
    for step in range(2):
        one.update(batch_of(step), step=step)
    one.snapshot(contents, copy=False)(tmp_path)
    other.load(tmp_path, contents)
    for each in (one, other):
        each.update(batch_of(2), step=2)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))
    files = list((tmp_path / "actor").rglob("*.safetensors"))
    small = sum(p.numel() for p in one.model.parameters() if p.requires_grad)
    assert all(file.stat().st_size < (2.1 if "optimizer" in file.name else 1.1) * 4 * small + 10_000 for file in files)


def test_a_checkpoint_of_another_rank_or_of_all_weights_is_refused(tmp_path: Path) -> None:
    learner(adapted()).snapshot(("model",), copy=False)(tmp_path / "4")
    learner(plain()).snapshot(("model",), copy=False)(tmp_path / "all")
    with pytest.raises(CheckpointError, match=r"is \(4, 32\), the model has \(2, 32\)"):
        learner(adapted(rank=2)).load(tmp_path / "4", ("model",))
    with pytest.raises(CheckpointError, match="no weights for 28 parameters"):
        learner(adapted()).load(tmp_path / "all", ("model",))
    with pytest.raises(CheckpointError, match="no weights for"):
        learner(plain()).load(tmp_path / "4", ("model",))


def test_the_exported_folder_is_an_adapter_of_pefts(tmp_path: Path) -> None:
    base = tmp_path / "base"
    plain().save_pretrained(base)
    model = adapted(base=str(base))
    learner(model).export(tmp_path / "adapter")
    read = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    ids = torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, model(ids).logits, rtol=0, atol=0)
        through = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
        torch.testing.assert_close(through(ids).logits, model(ids).logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"targets": ("nowhere",)}, "nowhere"),
        ({"targets": ("embed_tokens",)}, "embed_tokens is no linear layer inside the model"),
        ({"targets": ("lm_head",)}, "lm_head is no linear layer inside the model"),
    ],
)
def test_layers_that_cannot_have_adapters_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BackendError, match=said):
        adapted("qwen2 with biases", **changes)


def test_targets_and_seed_decide_what_is_drawn() -> None:
    few = adapted(drawn=False, targets=("q_proj", "v_proj"))
    assert {name.rpartition(".")[2] for name, _ in adapted_layers(few)} == {"q_proj", "v_proj"}
    without = adapted(drawn=False, excluded=("down_proj",))
    assert "down_proj" not in {name.rpartition(".")[2] for name, _ in adapted_layers(without)}
    one, same, other = (
        [p for name, p in adapted(drawn=False, seed=seed).named_parameters() if "lora_A" in name] for seed in (3, 3, 4)
    )
    assert all(torch.equal(x, y) for x, y in zip(one, same, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(one, other, strict=True))
