"""The embedded sampler on a GPU: the tokens of the CPU for equal seeds, and log-probs that are the learner's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from gmpo.backends.devices import Device, use_any_length
from gmpo.backends.fast_decoder import FastDecoder
from gmpo.backends.forward import PolicyModule
from gmpo.backends.torch_sampler import TorchSampler
from gmpo.backends.weights import LiveWeights
from gmpo.ports import SampleRequest, SamplingParams
from gmpo.records.batch import Batch
from gmpo.records.rollout import Completion

pytestmark = pytest.mark.cuda
GPU, CPU = torch.device("cuda"), torch.device("cpu")
PROMPTS = [[4 + (3 * i + 5 * j) % 28 for j in range(1 + 3 * i % 11)] for i in range(12)]
EXCLUDED = torch.tensor([29, 31])
Policy = Callable[[], PreTrainedModel]
AsBatch = Callable[..., Batch]


@pytest.fixture(autouse=True)
def _attention() -> None:
    use_any_length(GPU)


def sampled(
    model: PreTrainedModel, device: Device, *, library: bool = False, **params: Any
) -> list[tuple[Sequence[int], list[Completion]]]:
    """Eight answers of up to 80 tokens to each of twelve prompts, 40 side by side: rows leave, enter, and the cache
    grows."""
    sampler = TorchSampler(device=device, seed=3, stop_ids=frozenset({1}), max_num_seqs=40, excluded=EXCLUDED)
    sampler.load(LiveWeights(model, version=0))
    assert sampler._fast
    sampler._fast = not library
    given = {"n": 8, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": 80, **params}
    answers = sampler.generate([SampleRequest(tuple(p), i) for i, p in enumerate(PROMPTS)], SamplingParams(**given))
    return list(zip(PROMPTS, answers, strict=True))


def flat(found: Sequence[tuple[Sequence[int], list[Completion]]]) -> list[Completion]:
    return [answer for _, answers in found for answer in answers]


@pytest.mark.parametrize("library", [False, True], ids=["our decoder", "the library's"])
@pytest.mark.parametrize(
    "params",
    [{}, {"temperature": 0.7}, {"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.8, "top_k": 20}],
    ids=lambda p: ", ".join(f"{k} {v}" for k, v in p.items()) or "plain",
)
def test_equal_seeds_draw_the_tokens_of_the_cpu(fresh_policy: Policy, library: bool, params: dict[str, Any]) -> None:
    """A draw depends on rounding only where its number falls between two tokens: one answer of 96 may differ."""
    here = flat(sampled(fresh_policy(), Device(CPU, torch.float32), library=library, **params))
    model = fresh_policy().to(GPU)  # type: ignore[arg-type]
    there = flat(sampled(model, Device(GPU, torch.float32), library=library, **params))
    same = [a for a in zip(here, there, strict=True) if a[0].token_ids.tolist() == a[1].token_ids.tolist()]
    assert len(same) >= len(here) - 1
    for one, other in same:
        assert one.finish_reason == other.finish_reason
        assert abs(one.logprobs - other.logprobs).max() <= 1e-4


@pytest.mark.parametrize("library", [False, True], ids=["our decoder", "the library's"])
@pytest.mark.parametrize(
    ("weights", "compute", "largest", "mean"),
    [
        (torch.float32, torch.float32, 1e-4, 1e-5),
        (torch.float32, torch.bfloat16, 0.5, 0.03),
        (torch.bfloat16, torch.bfloat16, 0.5, 0.03),
    ],
    ids=["fp32", "bf16", "bf16 weights"],
)
def test_the_learner_gives_sampled_tokens_the_same_log_probs(
    fresh_policy: Policy,
    as_batch: AsBatch,
    library: bool,
    weights: torch.dtype,
    compute: torch.dtype,
    largest: float,
    mean: float,
) -> None:
    model, device = fresh_policy().to(GPU, weights), Device(GPU, compute)  # type: ignore[arg-type]
    found = sampled(model, device, library=library)
    assert not {int(t) for a in flat(found) for t in a.token_ids} & set(EXCLUDED.tolist())
    batch = as_batch(found)
    module = PolicyModule(model, device, temperature=1.0, excluded=EXCLUDED)
    assert module.takes_hidden, "the head's tiles are left for all logits"
    logp = module(batch)[0].float().cpu()
    apart = (logp - batch.rollout_logp)[batch.sampled_mask].abs()
    assert float(apart.max()) <= largest
    assert float(apart.mean()) <= mean


def test_the_decoder_of_bf16_weights_is_ours(fresh_policy: Policy) -> None:
    assert FastDecoder.supports(fresh_policy().to(GPU, torch.bfloat16), torch.bfloat16)  # type: ignore[arg-type]
