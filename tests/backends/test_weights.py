"""Weights on their way from learner to sampler: live, or as named tensors into a model of the sampler's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from gmpo.backends.devices import Device
from gmpo.backends.torch_sampler import TorchSampler
from gmpo.backends.weights import LiveWeights, copy_weights
from gmpo.errors import BackendError
from gmpo.ports import SampleRequest, SamplingParams

REQUESTS = [SampleRequest((2, 7, 9, 3), key=1), SampleRequest((2, 30, 3), key=2)]
PARAMS = SamplingParams(n=3, temperature=1.0, top_p=1.0, top_k=-1, max_tokens=12)


@dataclass
class Named:
    """A source without a live model, as weights from another place are."""

    entries: list[tuple[str, Tensor]]
    version: int

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.entries


def named(model: PreTrainedModel, version: int) -> Named:
    return Named([(name, tensor.clone()) for name, tensor in LiveWeights(model, version).tensors()], version)


def sampler(model: PreTrainedModel | None = None) -> TorchSampler:
    device = Device(torch.device("cpu"), torch.float32)
    return TorchSampler(device=device, seed=0, stop_ids=frozenset({1}), max_num_seqs=16, model=model)


def shifted(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return model


def tied(seed: int, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
    return Qwen2ForCausalLM(Qwen2Config(**{**sizes, **heads, "bos_token_id": None, "eos_token_id": 1, **changes}))


def test_a_sampler_with_its_own_model_samples_what_the_live_one_samples_and_keeps_it_while_the_learner_learns(
    fresh_policy: Callable[[], PreTrainedModel],
) -> None:
    learner = fresh_policy()
    live, apart = sampler(), sampler(shifted(fresh_policy()))
    for made in (live, apart):
        made.load(LiveWeights(learner, 7))
    before = live.generate(REQUESTS, PARAMS)
    assert apart.generate(REQUESTS, PARAMS) == before
    shifted(learner)
    assert live.generate(REQUESTS, PARAMS) != before
    assert apart.generate(REQUESTS, PARAMS) == before
    apart.load(named(learner, 8))
    after = apart.generate(REQUESTS, PARAMS)
    assert [[c.token_ids.tolist() for c in group] for group in after] == [
        [c.token_ids.tolist() for c in group] for group in live.generate(REQUESTS, PARAMS)
    ]
    assert {c.weight_versions for group in after for c in group} == {(8, 8)}


def test_only_a_sampler_of_the_live_model_says_that_it_shares_the_learners_weights(
    fresh_policy: Callable[[], PreTrainedModel],
) -> None:
    assert sampler().shares_learner_weights
    assert not sampler(fresh_policy()).shares_learner_weights


def test_tensors_without_a_model_to_copy_them_into_are_refused(fresh_policy: Callable[[], PreTrainedModel]) -> None:
    with pytest.raises(BackendError, match=r"step 8 without a live model \(Named\) and has no model of its own"):
        sampler().load(named(fresh_policy(), 8))


def test_tied_tensors_come_under_each_of_their_names_so_that_an_untied_receiver_gets_the_new_head() -> None:
    source, receiver = tied(0), tied(1, tie_word_embeddings=False)
    names = dict(LiveWeights(source, 0).tensors())
    assert names["lm_head.weight"].data_ptr() == names["model.embed_tokens.weight"].data_ptr()
    copy_weights(LiveWeights(source, 0), receiver)
    assert torch.equal(receiver.lm_head.weight, source.model.embed_tokens.weight)
    ids = torch.tensor([[2, 7, 9, 3]])
    with torch.no_grad():
        assert torch.equal(receiver(ids).logits, source(ids).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: entries[:-1], r"1 tensors of the sampler's model did not come, the first is lm_head\.weight"),
        (lambda entries: [*entries, ("model.extra", torch.zeros(2))], "model.extra comes with shape .* no such tensor"),
        (lambda entries: [(n, t[:1]) for n, t in entries], r"embed_tokens.weight comes with shape \[1, 16\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_tensor(change: Callable[..., Any], message: str) -> None:
    source = named(tied(0), 4)
    with pytest.raises(BackendError, match=f"weights of step 4: .*{message}"):
        copy_weights(Named(change(source.entries), 4), tied(1))


def test_a_closed_sampler_holds_no_model(fresh_policy: Callable[[], PreTrainedModel]) -> None:
    made = sampler()
    made.load(LiveWeights(fresh_policy(), 0))
    made.close()
    with pytest.raises(BackendError, match="is closed"):
        made.generate(REQUESTS, PARAMS)
