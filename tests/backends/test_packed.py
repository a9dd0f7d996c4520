"""Packed rows that share their prompts: the same hidden states and gradients as separate rows, for less."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, AutoModelForTokenClassification, PreTrainedModel

from gmpo.backends.devices import Device
from gmpo.backends.models import checkpoint_activations
from gmpo.backends.packed import TiedWeight, packs, response_hidden, scatter_tokens, share_prefixes, why_separate
from gmpo.backends.prefix_attention import LAYOUT, shared_prefix_attention
from gmpo.records.batch import Batch, pad_left, pad_right

VOCABULARY = 40
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "attention_dropout": 0.0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Qwen2Moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "Qwen3Moe": {**EXPERTS, "head_dim": 16},
}
GROUPS = [
    # Prompt length, and the answers' lengths.
    (5, [7, 3, 0, 9]),
    (1, [4]),
    (12, [1, 2, 1, 1, 6, 5, 4, 30]),
    (5, [0, 0]),
    (3, [1]),
    (5, [20, 20]),
]
ROWS = sum(len(answers) for _, answers in GROUPS)


def make(
    family: str, sharpened: Callable[[PreTrainedModel], PreTrainedModel], *, attention: str = "sdpa", **settings: Any
) -> PreTrainedModel:
    """A tiny model of a family, always with the same weights."""
    config = getattr(transformers, f"{family}Config")(**SHAPE, **FAMILIES[family], **settings)
    return sharpened(AutoModelForCausalLM.from_config(config, attn_implementation=attention))


def batch_of(groups: Sequence[tuple[int, Sequence[int]]], *, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()

    prompts = [draw(prompt) for prompt, _ in groups]
    prompt_ids, prompt_mask = pad_left([p for p, (_, answers) in zip(prompts, groups, strict=True) for _ in answers], 0)
    response_ids, response_mask = pad_right([draw(n) for _, answers in groups for n in answers], 0)
    rows = len(response_ids)
    numbers = [i for i, (_, answers) in enumerate(groups) for _ in answers]
    return Batch(
        prompt_ids,
        prompt_mask,
        response_ids,
        response_mask,
        sampled_mask=response_mask,
        group=torch.tensor(numbers),
        index=torch.arange(rows),
        rewards=torch.zeros(rows),
        rollout_logp=torch.zeros(response_mask.shape),
    )


def separately(model: PreTrainedModel, batch: Batch, mask: Tensor) -> Tensor:
    """The model's logits `[N, V]` that predict the tokens of `mask`, each row in a call of its own without padding."""
    found = []
    for row in range(batch.rows):
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]]
        answer = batch.response_ids[row][batch.response_mask[row]]
        logits = model(input_ids=torch.cat([prompt, answer]).unsqueeze(0), use_cache=False).logits[0]
        found.append(logits[len(prompt) - 1 :][: mask.shape[1]][mask[row, : len(answer) + 1]])
    return torch.cat(found)


def gradients(model: PreTrainedModel, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Of a random weighted sum of the targets' log-probs, for every parameter."""
    weights = torch.randn(len(targets), generator=torch.Generator().manual_seed(1)).to(logits.dtype)
    model.zero_grad()
    logp = torch.log_softmax(logits, dim=-1).gather(1, targets.unsqueeze(1)).squeeze(1)
    (logp * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def head(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The logits of hidden states."""
    logits: Tensor = model.get_output_embeddings()(hidden)  # type: ignore[operator,misc]
    return logits


def assert_equal_to_separate_rows(
    model: PreTrainedModel, reference: PreTrainedModel, batch: Batch, device: Device, mask: Tensor, bound: float
) -> None:
    targets = batch.response_ids[mask]
    wanted = separately(reference, batch, mask)
    got = head(model, response_hidden(model, batch, device, mask=mask))
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() < bound * wanted.abs().max()
    expected = gradients(reference, wanted, targets)
    actual = gradients(model, got, targets)
    assert actual.keys() == expected.keys()
    assert len(actual) == len(list(model.parameters()))
    for name, gradient in expected.items():
        assert (actual[name] - gradient).norm() < bound * gradient.norm(), name


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_give_the_logits_and_gradients_of_separate_rows(
    family: str,
    tied: bool,
    checkpointing: bool,
    cpu: Device,
    sharpened: Callable[[PreTrainedModel], PreTrainedModel],
) -> None:
    model, reference = (make(family, sharpened, tie_word_embeddings=tied).train() for _ in range(2))
    assert share_prefixes(model, cpu) is None
    if checkpointing:
        checkpoint_activations(model)
    batch = batch_of(GROUPS)
    assert_equal_to_separate_rows(model, reference, batch, cpu, batch.response_mask, 1e-5)


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_the_reference_attention_of_the_library_says_the_same(
    family: str, cpu: Device, sharpened: Callable[[PreTrainedModel], PreTrainedModel]
) -> None:
    model, reference = make(family, sharpened), make(family, sharpened, attention="eager")
    share_prefixes(model, cpu)
    batch = batch_of(GROUPS)
    assert_equal_to_separate_rows(model, reference, batch, cpu, batch.response_mask, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_float64_only_the_models_own_float32_steps_remain(
    family: str, cpu: Device, sharpened: Callable[[PreTrainedModel], PreTrainedModel]
) -> None:
    model, reference = make(family, sharpened).double(), make(family, sharpened).double()
    for m in (model, reference):
        if "Moe" in family:  # the default path for experts has no float64
            m.set_experts_implementation("eager")
    share_prefixes(model, cpu)
    batch = batch_of(GROUPS)
    # The norms and rotations of all these families work in float32.
    assert_equal_to_separate_rows(model, reference, batch, cpu, batch.response_mask, 1e-6)
    wanted = separately(reference, batch, batch.response_mask)
    got = head(model, response_hidden(model, batch, cpu, mask=batch.response_mask))
    assert (got - wanted).abs().median() < 1e-12


def test_a_gradient_of_the_embedding_is_added_to_a_dense_one_as_it_is_made_without(
    cpu: Device, sharpened: Callable[[PreTrainedModel], PreTrainedModel]
) -> None:
    """Into a `.grad` that is there the lookup adds the rows of its tokens only."""
    batch, found = batch_of([(6, [5, 3]), (4, [2])]), []
    for prepared in (False, True):
        model = make("Qwen3", sharpened)
        share_prefixes(model, cpu)
        weight = model.get_input_embeddings().weight
        if prepared:
            weight.grad = torch.full_like(weight, 2.0**-14)
        response_hidden(model, batch, cpu, mask=batch.response_mask).square().sum().backward()
        found.append(weight.grad - 2.0**-14 * prepared)
        assert not weight.grad.is_sparse
    assert found[0].any()
    assert torch.allclose(found[0], found[1], atol=1e-5 * float(found[0].abs().max()))


@pytest.mark.parametrize("padding", [None, 2])
def test_a_tied_weights_gradient_is_the_heads_and_the_lookups_in_one(padding: int | None) -> None:
    layer = torch.nn.Embedding(5, 3, padding_idx=padding)
    ids, factors = torch.tensor([1, 2, 4, 1]), torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    (layer(ids) @ layer.weight.T * factors).sum().backward()
    assert layer.weight.grad is not None
    expected = layer.weight.grad.clone()
    layer.zero_grad()
    tied = TiedWeight(layer)
    (tied.embedded(ids) @ tied.weight.T * factors).sum().backward()
    assert torch.allclose(layer.weight.grad, expected, atol=1e-6)


def test_a_prompt_is_computed_once_and_a_last_token_never(
    cpu: Device, sharpened: Callable[[PreTrainedModel], PreTrainedModel]
) -> None:
    """3 answers of 4, 2 and 1 tokens to a prompt of 10: 10 + 3 + 1 + 0 tokens, and not 3 * (10 + 4)."""
    model = make("Qwen3", sharpened)
    share_prefixes(model, cpu)
    seen: list[int] = []
    model.base_model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    batch = batch_of([(10, [4, 2, 1])])
    response_hidden(model, batch, cpu, mask=batch.response_mask)
    assert seen == [14]


@pytest.mark.parametrize("attention", ["sdpa", "eager"], ids=["packed", "padded"])
def test_the_mask_chooses_tokens_in_the_order_of_nonzero(
    attention: str, cpu: Device, sharpened: Callable[[PreTrainedModel], PreTrainedModel]
) -> None:
    model, reference = (make("Qwen2", sharpened, attention=attention) for _ in range(2))
    share_prefixes(model, cpu)
    batch = batch_of(GROUPS)
    mask = batch.response_mask & (
        torch.rand(batch.response_mask.shape, generator=torch.Generator().manual_seed(3)) < 0.4
    )
    mask[:4] = False  # a whole group without a token in the loss
    assert packs(model) == (attention == "sdpa")
    assert_equal_to_separate_rows(model, reference, batch, cpu, mask, 1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"], ids=["packed", "padded"])
@pytest.mark.parametrize("rows", [0, 2])
def test_without_a_token_the_model_runs_once_and_its_gradient_is_zero(
    attention: str, rows: int, cpu: Device, sharpened: Callable[[PreTrainedModel], PreTrainedModel]
) -> None:
    """Processes that share a model must all call it equally often, those without work too."""
    model = make("Qwen2", sharpened, attention=attention)
    share_prefixes(model, cpu)
    passes: list[int] = []
    model.base_model.register_forward_pre_hook(lambda *_: passes.append(1))
    batch = batch_of([(3, [2, 0])]).select(torch.arange(rows))
    hidden = response_hidden(model, batch, cpu, mask=torch.zeros_like(batch.response_mask))
    assert hidden.shape == (0, 32)
    hidden.sum().backward()
    assert len(passes) == 1
    assert all(p.grad is not None and not p.grad.any() for p in model.base_model.parameters())


@pytest.mark.parametrize("attention", ["sdpa", "eager"], ids=["packed", "padded"])
def test_a_response_without_a_prompt_is_refused(
    attention: str, cpu: Device, sharpened: Callable[[PreTrainedModel], PreTrainedModel]
) -> None:
    model = make("Qwen2", sharpened, attention=attention)
    share_prefixes(model, cpu)
    batch = batch_of([(0, [2]), (3, [2])])
    with pytest.raises(ValueError, match="no prompt token"):
        response_hidden(model, batch, cpu, mask=batch.response_mask)


def test_bfloat16_products_stay_near_float32_and_give_the_dtype_of_padded_rows(
    cpu: Device, sharpened: Callable[[PreTrainedModel], PreTrainedModel]
) -> None:
    low = Device(cpu.torch, torch.bfloat16)
    batch = batch_of(GROUPS)
    model, padded = make("Qwen3", sharpened), make("Qwen3", sharpened)
    exact = response_hidden(padded, batch, cpu, mask=batch.response_mask)
    share_prefixes(model, low)
    with torch.no_grad():
        got = response_hidden(model, batch, low, mask=batch.response_mask)
        other = response_hidden(padded, batch, low, mask=batch.response_mask)
    assert got.dtype == other.dtype
    # Not further from float32 than padded rows in bfloat16, but for chance.
    assert (got - exact).norm() < 1.2 * (other - exact).norm()
    trained = response_hidden(model, batch, low, mask=batch.response_mask)
    trained.sum().backward()
    assert torch.equal(trained.detach(), got)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.base_model.parameters())


def test_a_switched_model_is_unchanged_in_every_other_call(
    cpu: Device, sharpened: Callable[[PreTrainedModel], PreTrainedModel], tmp_path: Path
) -> None:
    model, reference = make("Qwen3", sharpened).eval(), make("Qwen3", sharpened).eval()
    share_prefixes(model, cpu)
    batch = batch_of(GROUPS)
    ids = torch.cat([batch.prompt_ids, batch.response_ids], dim=1)
    mask = torch.cat([batch.prompt_mask, batch.response_mask], dim=1).long()
    with torch.no_grad():
        a, b = (m(input_ids=ids, attention_mask=mask, use_cache=False).logits for m in (model, reference))
    assert torch.equal(a, b)
    prompt = {"input_ids": batch.prompt_ids[:4], "attention_mask": batch.prompt_mask[:4].long()}
    a, b = (m.generate(**prompt, max_new_tokens=6, do_sample=False, pad_token_id=0) for m in (model, reference))
    assert torch.equal(a, b)
    model.save_pretrained(tmp_path)
    assert "gmpo" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))


def test_a_critic_reads_its_values_from_the_same_hidden_states(
    cpu: Device, sharpened: Callable[[PreTrainedModel], PreTrainedModel]
) -> None:
    config = transformers.Qwen3Config(**SHAPE, head_dim=16, num_labels=1, classifier_dropout=0.0)
    critic = sharpened(AutoModelForTokenClassification.from_config(config, attn_implementation="sdpa")).eval()
    batch = batch_of([(6, [5, 3])])
    wanted = []
    for row, tokens in enumerate((5, 3)):
        ids = torch.cat([batch.prompt_ids[row], batch.response_ids[row, :tokens]]).unsqueeze(0)
        wanted.append(critic(input_ids=ids).logits[0, 5 : 5 + tokens, 0])
    assert share_prefixes(critic, cpu) is None
    values = critic.score(response_hidden(critic, batch, cpu, mask=batch.response_mask)).squeeze(1)
    assert torch.allclose(values, torch.cat(wanted), atol=1e-6)


@pytest.mark.parametrize(
    ("config", "attention", "device", "reason"),
    [
        (transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8), "sdpa", "cpu", "model_type 'gpt2'"),
        (transformers.Qwen2Config(**SHAPE), "eager", "cpu", "'eager'"),
        (transformers.MistralConfig(**SHAPE, sliding_window=8), "sdpa", "cpu", "sliding window"),
        (
            transformers.Qwen3Config(**SHAPE, use_sliding_window=True, sliding_window=8, max_window_layers=1),
            "sdpa",
            "cpu",
            "sliding window",
        ),
        (transformers.Qwen2Config(**SHAPE), "sdpa", "cuda", "'cuda'"),
    ],
    ids=["family", "attention", "all layers slide", "one layer slides", "device"],
)
def test_what_cannot_share_a_prompt_is_left_alone_with_the_reason(
    config: Any, attention: str, device: str, reason: str
) -> None:
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    where = Device(torch.device(device), torch.float32)
    assert reason in (why_separate(model, where) or "")
    assert reason in (share_prefixes(model, where) or "")
    assert not packs(model)
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize(
    "config",
    [transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=VOCABULARY), "Mistral"],
    ids=["another family", "sliding window"],
)
def test_what_cannot_share_a_prompt_gives_the_same_from_padded_rows(
    config: Any, cpu: Device, sharpened: Callable[[PreTrainedModel], PreTrainedModel]
) -> None:
    if config == "Mistral":
        config = transformers.MistralConfig(**SHAPE, sliding_window=6)
    model, reference = (sharpened(AutoModelForCausalLM.from_config(config)).eval() for _ in range(2))
    share_prefixes(model, cpu)
    batch = batch_of([(5, [7, 3, 9]), (8, [4])])
    wanted = separately(reference, batch, batch.response_mask)
    got = head(model, response_hidden(model, batch, cpu, mask=batch.response_mask))
    assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_a_layer_that_does_not_hand_the_layout_on_fails(
    cpu: Device, sharpened: Callable[[PreTrainedModel], PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the layout the rows would run into one another; nothing may come out then."""

    def forgetful(module: torch.nn.Module, *states: Tensor | None, **kwargs: Any) -> Any:
        kwargs.pop(LAYOUT, None)
        return shared_prefix_attention(module, *states, **kwargs)  # type: ignore[arg-type]

    model = make("Llama", sharpened)
    share_prefixes(model, cpu)
    monkeypatch.setitem(AttentionInterface._global_mapping, model.config._attn_implementation, forgetful)
    batch = batch_of([(3, [2, 4])])
    with pytest.raises(RuntimeError):
        response_hidden(model, batch, cpu, mask=batch.response_mask)


def test_values_return_to_their_places_with_their_gradients() -> None:
    mask = torch.tensor([[True, False, True], [False, True, False]])
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    placed = scatter_tokens(values, mask)
    assert placed.tolist() == [[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]
    (placed * torch.tensor([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [10.0, 30.0, 50.0]
