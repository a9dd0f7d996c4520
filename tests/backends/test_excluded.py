"""Ids that the tokenizer has not: probability 0 in sampler and learner, no gradient, and the distribution over "
"the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from gmpo.backends.devices import Device
from gmpo.backends.forward import PolicyModule
from gmpo.backends.model_files import require_weights
from gmpo.backends.models import Loading, ModelSource, beyond_tokenizer, load_model, what_is_left_out
from gmpo.backends.torch_sampler import TorchSampler
from gmpo.backends.weights import LiveWeights
from gmpo.build.policy import Policy, decode_answers
from gmpo.errors import BackendError
from gmpo.ops.linear_logprob import Head, token_values
from gmpo.ports import SampleRequest, SamplingParams
from gmpo.records.batch import Batch

CPU = Device(torch.device("cpu"), torch.float32)
EXCLUDED = torch.tensor([3, 17, 30, 31])


def test_the_head_gives_the_distribution_over_the_other_ids() -> None:
    """Against a softmax over the 28 columns that are left; entropy too. Blocks of 8 columns: some have none to "
    "close."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 6), torch.randn(32, 6)
    targets = torch.tensor([0, 5, 18, 29, 7])
    logp, entropy = token_values(Head(weight, excluded=EXCLUDED), hidden, targets, with_entropy=True)
    kept = torch.tensor([v for v in range(32) if v not in EXCLUDED.tolist()])
    expected = torch.log_softmax(hidden @ weight[kept].T, -1)
    places = torch.tensor([kept.tolist().index(int(t)) for t in targets])
    assert torch.allclose(logp, expected.gather(1, places[:, None])[:, 0], atol=1e-6)
    assert entropy is not None
    assert torch.allclose(entropy, -(expected.exp() * expected).sum(1), atol=1e-5)


def test_sampler_and_learner_leave_them_out_alike(
    fresh_policy: Callable[[], PreTrainedModel], as_batch: Callable[..., Batch]
) -> None:
    """Of 200 answers none has such an id, though the model gives these four about an eighth of its probability."""
    model = fresh_policy()
    sampler = TorchSampler(device=CPU, seed=0, stop_ids=frozenset(), max_num_seqs=64, excluded=EXCLUDED)
    sampler.load(LiveWeights(model, 0))
    prompt = [4, 5, 6]
    params = SamplingParams(n=200, temperature=1.0, top_p=1.0, top_k=-1, max_tokens=4)
    (answers,) = sampler.generate([SampleRequest(tuple(prompt), 0)], params)
    assert not {int(token) for one in answers for token in one.token_ids} & set(EXCLUDED.tolist())
    batch = as_batch([(prompt, answers[:8])])
    module = PolicyModule(model, CPU, temperature=1.0, excluded=EXCLUDED)
    logp, _ = module(batch)
    assert torch.allclose(logp, batch.rollout_logp, atol=1e-5)
    value, _ = module(batch, lambda _rows, lp, _entropy: lp.sum())
    value.backward()
    head = model.get_output_embeddings().weight
    assert head.grad is not None
    if head is not model.get_input_embeddings().weight:
        assert bool((head.grad[EXCLUDED] == 0).all())
    plain, _ = PolicyModule(model, CPU, temperature=1.0)(batch)
    assert float((logp - plain).max()) > 0.01, "and the others have what these had"


def test_a_soft_capped_head_stays_in_tiles_and_gives_the_library_s_values_over_the_others(
    as_batch: Callable[..., Batch],
) -> None:
    """Gemma 2, whose cap bends these logits: sampler, learner and the gradient of its own weights are those of a
    softmax over the 60 ids that are left."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 64, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "query_pre_attn_scalar": 8}
    config = Gemma2Config(**sizes, **heads, final_logit_softcapping=2.0, pad_token_id=0)
    config._attn_implementation = "eager"
    model = Gemma2ForCausalLM(config).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0.0, 0.5)
    sampler = TorchSampler(device=CPU, seed=0, stop_ids=frozenset(), max_num_seqs=64, excluded=EXCLUDED)
    sampler.load(LiveWeights(model, 0))
    prompt = [4, 5, 6]
    params = SamplingParams(n=8, temperature=1.0, top_p=1.0, top_k=-1, max_tokens=4)
    (answers,) = sampler.generate([SampleRequest(tuple(prompt), 0)], params)
    batch = as_batch([(prompt, answers)])
    module = PolicyModule(model, CPU, temperature=1.0, excluded=EXCLUDED)
    assert module.takes_hidden
    logp, _ = module(batch)
    assert torch.allclose(logp, batch.rollout_logp, atol=1e-5)
    kept = torch.tensor([v for v in range(64) if v not in EXCLUDED.tolist()])
    ids = torch.cat([batch.prompt_ids, batch.response_ids], 1)
    logits = model(input_ids=ids, use_cache=False).logits[:, len(prompt) - 1 : -1, kept]
    places = torch.searchsorted(kept, batch.response_ids).unsqueeze(-1)
    expected = logits.log_softmax(-1).gather(-1, places).squeeze(-1)
    assert torch.allclose(logp, expected, atol=1e-5)
    (own,) = torch.autograd.grad(expected.sum(), [model.get_input_embeddings().weight])
    value, _ = module(batch, lambda _rows, lp, _entropy: lp.sum())
    value.backward()
    assert torch.allclose(model.get_input_embeddings().weight.grad, own, atol=1e-4)


def test_ids_beyond_the_tokenizer_are_found_wherever_they_stand(words: PreTrainedTokenizerFast) -> None:
    size = len(words.get_vocab())
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=1, n_layer=1, vocab_size=size + 5, n_positions=8))
    assert beyond_tokenizer(model, words).tolist() == list(range(size, size + 5))  # type: ignore[union-attr]
    exact = GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=1, n_layer=1, vocab_size=size, n_positions=8))
    assert beyond_tokenizer(exact, words) is None


def test_an_adapter_in_the_folder_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    for file in tiny_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("{}")
        with pytest.raises(BackendError, match=f"holds an adapter \\({name}\\)"):
            load_model(ModelSource(str(tmp_path)), torch.device("cpu"))
        (tmp_path / name).unlink()
    require_weights(tiny_folder)
    assert AutoTokenizer.from_pretrained(tiny_folder)


def test_a_quantised_folder_is_refused_by_its_method(tmp_path: Path, tiny_folder: Path) -> None:
    for file in tiny_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    with pytest.raises(BackendError, match=r"is quantised \(.*gptq"):
        load_model(ModelSource(str(tmp_path)), torch.device("cpu"))


def test_what_the_folder_asks_for_and_training_leaves_out_is_said(tiny_folder: Path) -> None:
    """The balancing loss, by its coefficient; settings of generation that shape the distribution; and nothing else."""
    model = load_model(ModelSource(str(tiny_folder)), torch.device("cpu"))
    assert what_is_left_out(model) == []
    model.config.router_aux_loss_coef = 0.01
    model.generation_config.repetition_penalty = 1.1  # type: ignore[union-attr]
    model.generation_config.bad_words_ids = [[3]]  # type: ignore[union-attr]
    balancing, penalty, words = what_is_left_out(model)
    assert "coefficient 0.01" in balancing
    assert "repetition_penalty=1.1" in penalty
    assert "bad_words_ids=[[3]]" in words
    with pytest.raises(BackendError, match="balancing loss is not available"):
        load_model(ModelSource(str(tiny_folder), override_config={"output_router_logits": True}), torch.device("cpu"))


def test_special_tokens_reach_the_reward_when_they_are_asked_for(
    words: PreTrainedTokenizerFast, tiny_folder: Path
) -> None:
    """All but the token that ended the answer."""
    stop, ordinary = int(words.eos_token_id), words.convert_tokens_to_ids("w3")
    special = next(i for i in words.all_special_ids if i != stop)
    model = load_model(ModelSource(str(tiny_folder)), torch.device("cpu"))
    policy = Policy(model, words, CPU, frozenset({stop}), stop, longest=8, loading=Loading(CPU))
    answer = [special, ordinary, stop]
    (plain,), (whole,) = (decode_answers(words, policy.stop_ids, skip, [answer]) for skip in (True, False))
    assert "w3" in plain
    assert words.decode([special]) not in plain
    assert words.decode([special]) in whole
    assert words.decode([stop]) not in whole
