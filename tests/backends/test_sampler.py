"""The embedded sampler on real models: what it draws, and that nothing but the policy and the seed decides it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from gmpo.backends import fast_decoder, torch_sampler
from gmpo.backends.decoding import Decoder
from gmpo.backends.devices import Device
from gmpo.backends.fast_decoder import FastDecoder
from gmpo.backends.forward import PolicyModule
from gmpo.backends.kv_cache import GROWTH
from gmpo.backends.models import checkpoint_activations
from gmpo.backends.structure import altered, structure
from gmpo.backends.torch_sampler import TorchSampler
from gmpo.backends.weights import LiveWeights
from gmpo.errors import BackendError, DivergedError
from gmpo.ports import SampleRequest, SamplingParams
from gmpo.records.batch import Batch
from gmpo.records.rollout import Completion

Collated = Callable[[Sequence[tuple[Sequence[int], Sequence[Completion]]]], Batch]

PROMPTS: list[tuple[int, ...]] = [(2, 7, 9, 3), (2, 30, 3), (2, 5, 6, 7, 8, 9, 10, 11, 12, 3), (2, 4, 4, 4, 3)]
REQUESTS = [SampleRequest(prompt, key=100 + i) for i, prompt in enumerate(PROMPTS)]
SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
FAMILIES: dict[str, PretrainedConfig] = {
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "qwen3 with a sliding window": Qwen3Config(
        **SIZES, head_dim=16, use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
    "llama": LlamaConfig(**SIZES),
    # Absolute positions: unlike rotary ones they show it when padding is counted.
    "gpt2": GPT2Config(
        vocab_size=32, n_embd=32, n_layer=2, n_head=2, n_positions=128, bos_token_id=None, eos_token_id=1
    ),
    "qwen3-moe": Qwen3MoeConfig(
        **SIZES, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, decoder_sparse_step=1
    ),
}


def params(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"n": 3, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": 24, **changes})


@pytest.fixture
def policy(fresh_policy: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    return fresh_policy()


def sampler(
    model: PreTrainedModel,
    *,
    seed: int = 0,
    stop_ids: Sequence[int] = (1,),
    max_num_seqs: int = 64,
    library: bool = False,
) -> TorchSampler:
    """With `library`, every step is a pass of the library's model, as for families that have no fast decoder."""
    device = Device(torch.device("cpu"), torch.float32)
    made = TorchSampler(device=device, seed=seed, stop_ids=frozenset(stop_ids), max_num_seqs=max_num_seqs)
    made.load(LiveWeights(model, version=7))
    made._fast = made._fast and not library
    return made


def ids(answers: Sequence[Sequence[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[tuple(c.token_ids.tolist()) for c in group] for group in answers]


def flat(answers: Sequence[Sequence[Completion]]) -> list[Completion]:
    return [c for group in answers for c in group]


@pytest.mark.parametrize("library", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_logits_that_are_not_finite_end_the_sampling_after_one_token_by_name(
    policy: PreTrainedModel, broken: float, temperature: float, library: bool
) -> None:
    """Greedy or drawn, top-p or not: such a distribution has no answers, and no token beyond the vocabulary."""
    policy.get_output_embeddings().weight.data[3] = broken  # type: ignore[index,union-attr,operator]
    for top_p in (1.0, 0.5):
        drawn = list[int]()
        made = sampler(policy, library=library)
        made.drew = drawn.append
        message = "step 8, sampling: the policy's logits are not finite with the weights after step 7"
        with pytest.raises(DivergedError, match=message):
            made.generate(REQUESTS, params(temperature=temperature, top_p=top_p))
        assert drawn[0] == 3 * len(REQUESTS)
        assert len(drawn) <= 24


def test_what_was_drawn_is_told_token_by_token(policy: PreTrainedModel) -> None:
    drawn = list[int]()
    made = sampler(policy, max_num_seqs=4)
    made.drew = drawn.append
    answers = flat(made.generate(REQUESTS, params()))
    assert sum(drawn) == sum(len(c) for c in answers)


class Noting:
    """A decoder that notes how many rows each prefill and each step has."""

    def __init__(self, decoder: Decoder, entered: list[int], stepped: list[int]) -> None:
        self.decoder, self.entered, self.stepped = decoder, entered, stepped
        self.enters_running = decoder.enters_running
        self.rows = 0

    def enter(self, prompts: Sequence[Sequence[int]], copies: int) -> Tensor:
        self.rows += len(prompts) * copies
        self.entered.append(len(prompts) * copies)
        return self.decoder.enter(prompts, copies)

    def step(self, tokens: Tensor) -> Tensor:
        self.stepped.append(len(tokens))
        return self.decoder.step(tokens)

    def keep(self, rows: Tensor) -> None:
        self.rows = len(rows)
        self.decoder.keep(rows)


def rows_per_pass(made: TorchSampler) -> tuple[list[int], list[int]]:
    """Filled with the rows of each prefill and of each step from now on."""
    entered: list[int] = []
    stepped: list[int] = []
    own = made._decoder
    made._decoder = lambda model: Noting(own(model), entered, stepped)  # type: ignore[method-assign]
    return entered, stepped


# --- the distribution


def plain_logp(model: PreTrainedModel, prompt: Sequence[int], answer: Completion, temperature: float) -> list[float]:
    """Log-probs of one answer by a plain forward pass of its row alone, without padding, mask or positions."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *answer.token_ids.tolist()]])).logits[0, len(prompt) - 1 : -1]
    logp = torch.log_softmax(logits.double() / temperature, -1)
    return logp.gather(1, torch.tensor(answer.token_ids).unsqueeze(1)).squeeze(1).tolist()


def test_weights_of_bfloat16_have_it_where_the_products_are_theirs(policy: PreTrainedModel) -> None:
    policy.to(torch.bfloat16)
    assert FastDecoder.supports(policy, torch.bfloat16)
    assert not FastDecoder.supports(policy), "float32 products round less than the model's own"
    with torch.no_grad():
        policy.model.layers[0].self_attn.k_norm.weight.fill_(2.0)
    policy.model.layers[0].self_attn.k_norm.variance_epsilon = 100.0  # not the configuration's, which we read
    assert not FastDecoder.supports(policy, torch.bfloat16)


def test_the_common_families_have_a_fast_decoder_and_others_the_librarys() -> None:
    fast = {name: FastDecoder.supports(AutoModelForCausalLM.from_config(c)) for name, c in FAMILIES.items()}
    assert fast == {name: name not in ("gpt2", "qwen3 with a sliding window") for name in FAMILIES}


class Adapter:
    """A forward hook that adds `B A x` to a layer's output; B is zero at first, so nothing shows."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        generator = torch.Generator().manual_seed(0)
        self.down = torch.randn(4, layer.in_features, generator=generator)
        self.up = torch.zeros(layer.out_features, 4)

    def __call__(self, module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + args[0] @ self.down.T @ self.up.T


def with_hook(layer: torch.nn.Linear) -> Adapter:
    adapter = Adapter(layer)
    layer.register_forward_hook(adapter)
    return adapter


def with_forward(layer: torch.nn.Linear) -> Adapter:
    adapter, own = Adapter(layer), layer.forward
    layer.forward = lambda x: adapter(layer, (x,), own(x))  # type: ignore[method-assign]
    return adapter


class WithAdapter(torch.nn.Linear):
    """A layer of another class, with the weight of the one that it takes the place of."""

    adapter: Adapter

    def forward(self, x: Tensor) -> Tensor:
        return self.adapter(self, (x,), super().forward(x))


def with_class(layer: torch.nn.Linear) -> Adapter:
    layer.__class__ = WithAdapter
    layer.adapter = Adapter(layer)
    return layer.adapter


@pytest.mark.parametrize("attach", [with_hook, with_forward, with_class])
@pytest.mark.parametrize("when", ["before the first load", "after it"])
def test_an_adapter_that_adds_nothing_yet_ends_the_fast_decoder(
    policy: PreTrainedModel, attach: Callable[[torch.nn.Linear], Adapter], when: str
) -> None:
    """Its effect is in the samples as soon as it has one, whenever it was attached."""
    layer = policy.model.layers[0].self_attn.q_proj
    adapter = attach(layer) if when == "before the first load" else None
    made = sampler(policy)
    assert FastDecoder.supports(policy) == (adapter is None)
    adapter = adapter or attach(layer)
    assert altered(policy) == "model.layers.0.self_attn.q_proj"
    adapter.up.fill_(0.3)
    made.load(LiveWeights(policy, 1))
    answer = made.generate(REQUESTS, params(n=1, temperature=1.0))[0][0]
    assert list(answer.logprobs) == pytest.approx(plain_logp(policy, PROMPTS[0], answer, 1.0), abs=1e-4)


def test_the_fast_decoder_is_asked_again_when_the_structure_changes_and_not_else(policy: PreTrainedModel) -> None:
    first = structure(policy)
    with torch.no_grad():
        policy.model.norm.weight.mul_(2.0)
    assert structure(policy) == first
    handle = policy.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda module, args: None)
    assert structure(policy) != first
    handle.remove()
    assert structure(policy) == first
    checkpoint_activations(policy)  # the library's own hook on the embeddings changes nothing
    assert FastDecoder.supports(policy)
    policy.model.layers[1].mlp.down_proj = torch.nn.Linear(64, 32, bias=True)
    assert structure(policy) != first


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("family", FAMILIES)
def test_sampler_learner_and_transformers_have_the_same_log_probs(
    family: str,
    temperature: float,
    sharpened: Callable[[PreTrainedModel], PreTrainedModel],
    as_batch: Collated,
    cpu: Device,
) -> None:
    """Token by token with a cache, in one pass over left-padded rows, and row by row without any padding."""
    torch.manual_seed(0)
    model = sharpened(AutoModelForCausalLM.from_config(FAMILIES[family])).eval()
    answers = sampler(model).generate(REQUESTS, params(temperature=temperature))
    batch = as_batch(list(zip(PROMPTS, answers, strict=True)))
    logp, _ = PolicyModule(model, cpu, temperature=temperature)(batch)
    mask = batch.response_mask
    assert mask.sum() > 60
    assert batch.rollout_logp[mask].std() > 0.3, "the probabilities must differ for the test to say something"
    assert (logp - batch.rollout_logp)[mask].abs().max() < 1e-5
    plain = [
        x
        for p, group in zip(PROMPTS, answers, strict=True)
        for c in group
        for x in plain_logp(model, p, c, temperature)
    ]
    assert (logp[mask] - torch.tensor(plain)).abs().max() < 1e-5


def test_an_answer_longer_than_the_caches_first_buffers(
    policy: PreTrainedModel, as_batch: Collated, cpu: Device
) -> None:
    answers = sampler(policy, stop_ids=[99]).generate(REQUESTS, params(n=2, max_tokens=4 * GROWTH))
    assert {len(c.token_ids) for c in flat(answers)} == {4 * GROWTH}
    batch = as_batch(list(zip(PROMPTS, answers, strict=True)))
    logp, _ = PolicyModule(policy, cpu, temperature=1.0)(batch)
    assert (logp - batch.rollout_logp)[batch.response_mask].abs().max() < 1e-5


def test_tokens_are_drawn_with_the_models_probabilities(policy: PreTrainedModel) -> None:
    draws = 3000
    answers = sampler(policy, max_num_seqs=draws).generate(REQUESTS[:1], params(n=draws, max_tokens=1))[0]
    with torch.no_grad():
        probs = torch.softmax(policy(torch.tensor([PROMPTS[0]])).logits[0, -1].double(), -1)
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in answers]), minlength=32).double()
    expected = probs * draws
    assert expected.min() >= 5, "the test needs every class to be frequent"
    # 31 degrees of freedom: exceeded by one seed in a thousand
    assert ((counts - expected) ** 2 / expected).sum() < 61.1


def test_truncation_reports_the_log_probs_of_the_truncated_distribution(policy: PreTrainedModel) -> None:
    (answer,) = sampler(policy).generate(REQUESTS[:1], params(n=1, top_k=2, max_tokens=1))[0]
    with torch.no_grad():
        best = policy(torch.tensor([PROMPTS[0]])).logits[0, -1].topk(2)
    shares = dict(zip(best.indices.tolist(), torch.log_softmax(best.values, 0).tolist(), strict=True))
    assert answer.logprobs == pytest.approx([shares[answer.token_ids[0]]], abs=1e-5)


# --- nothing but the policy and the seed


def test_sampling_is_reproducible_and_another_seed_samples_otherwise(policy: PreTrainedModel) -> None:
    first, again = sampler(policy).generate(REQUESTS, params()), sampler(policy).generate(REQUESTS, params())
    assert first == again
    assert ids(sampler(policy, seed=1).generate(REQUESTS, params())) != ids(first)


def test_the_n_answers_differ_and_the_first_k_do_not_depend_on_n(policy: PreTrainedModel) -> None:
    eight = ids(sampler(policy).generate(REQUESTS, params(n=8)))
    assert all(len(set(group)) >= 6 for group in eight)
    assert ids(sampler(policy).generate(REQUESTS, params(n=3))) == [group[:3] for group in eight]


def test_the_same_prompt_under_another_key_gets_other_answers(policy: PreTrainedModel) -> None:
    a, b = sampler(policy).generate([SampleRequest(PROMPTS[0], 1), SampleRequest(PROMPTS[0], 2)], params())
    assert ids([a]) != ids([b])


def test_the_order_of_requests_does_not_matter(policy: PreTrainedModel) -> None:
    there = ids(sampler(policy).generate(REQUESTS, params()))
    assert ids(sampler(policy).generate(REQUESTS[::-1], params())) == there[::-1]


def test_which_other_prompts_are_there_does_not_matter(policy: PreTrainedModel) -> None:
    together = ids(sampler(policy).generate(REQUESTS, params()))
    assert [ids(sampler(policy).generate([request], params()))[0] for request in REQUESTS] == together


@pytest.mark.parametrize("library", [False, True], ids=["fast", "library"])
@pytest.mark.parametrize("max_num_seqs", [1, 2, 3, 7])
def test_the_number_of_sequences_side_by_side_changes_nothing_and_is_kept(
    policy: PreTrainedModel, max_num_seqs: int, library: bool
) -> None:
    together = ids(sampler(policy).generate(REQUESTS, params()))
    few = sampler(policy, max_num_seqs=max_num_seqs, library=library)
    entered, stepped = rows_per_pass(few)
    assert ids(few.generate(REQUESTS, params())) == together
    assert max(entered + stepped) <= max_num_seqs
    assert sum(entered) == 12


def test_waiting_prompts_enter_while_others_run_and_nothing_changes(policy: PreTrainedModel) -> None:
    """Six places for 4 prompts with 3 answers: the third prompt enters when three answers have ended, not all six."""
    stop_ids = (1, 5, 9, 14, 20, 25)
    together = sampler(policy, stop_ids=stop_ids).generate(REQUESTS, params())
    few, by_library = (sampler(policy, stop_ids=stop_ids, max_num_seqs=6, library=x) for x in (False, True))
    (entered, stepped), (_, in_turns) = rows_per_pass(few), rows_per_pass(by_library)
    answers = few.generate(REQUESTS, params())
    assert ids(answers) == ids(together) == ids(by_library.generate(REQUESTS, params()))
    for got, expected in zip(flat(answers), flat(together), strict=True):
        assert got.logprobs == pytest.approx(expected.logprobs, abs=1e-5)
    assert entered == [6, 3, 3]
    assert len(stepped) < len(in_turns)


def test_each_requests_answers_are_handed_over_once_while_others_are_still_sampled(policy: PreTrainedModel) -> None:
    few = sampler(policy, stop_ids=(1, 5, 9, 14, 20, 25), max_num_seqs=6)
    _, stepped = rows_per_pass(few)
    handed: dict[int, tuple[int, Sequence[Completion]]] = {}

    def finished(place: int, completions: Sequence[Completion]) -> None:
        assert place not in handed
        handed[place] = (len(stepped), completions)

    answers = few.generate(REQUESTS, params(), finished)
    assert [list(handed[i][1]) for i in range(len(REQUESTS))] == answers
    assert min(steps for steps, _ in handed.values()) < len(stepped), "the first did not wait for the last"


def test_columns_that_nobody_needs_any_more_are_given_up(
    policy: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty prompts one after another in two places: the cache holds what two rows need and not what forty did."""
    requests = [SampleRequest(PROMPTS[i % 4], key=i) for i in range(40)]
    expected = ids(sampler(policy, library=True, max_num_seqs=200).generate(requests, params(n=1)))
    monkeypatch.setattr(fast_decoder, "GROWTH", 4)
    monkeypatch.setattr(torch_sampler, "ENTER_ABOVE", 0.5)
    widths = []
    step = fast_decoder.FastDecoder.step

    def noting(self: fast_decoder.FastDecoder, tokens: Tensor) -> Tensor:
        logits = step(self, tokens)
        widths.append(self.cache[0].shape[3])
        return logits

    monkeypatch.setattr(fast_decoder.FastDecoder, "step", noting)
    assert ids(sampler(policy, max_num_seqs=2).generate(requests, params(n=1))) == expected
    longest = max(map(len, PROMPTS)) + 24
    assert len(widths) > 3 * longest
    assert max(widths) <= 4 * longest


@pytest.mark.parametrize("library", [False, True], ids=["fast", "library"])
def test_finished_rows_leave_and_nothing_changes(
    policy: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, library: bool
) -> None:
    stop_ids = (1, 5, 9, 14, 20)
    outcomes, rows = {}, {}
    for share in (0.0, 0.8, 1.1):  # never, at times, as soon as one has finished
        monkeypatch.setattr(torch_sampler, "COMPACT_BELOW", share)
        made = sampler(policy, stop_ids=stop_ids, library=library)
        _, rows[share] = rows_per_pass(made)
        outcomes[share] = made.generate(REQUESTS, params(n=6))
    kept = ids(outcomes[0.0])
    assert ids(outcomes[0.8]) == ids(outcomes[1.1]) == kept
    for share in (0.8, 1.1):
        for got, expected in zip(flat(outcomes[share]), flat(outcomes[0.0]), strict=True):
            assert got.logprobs == pytest.approx(expected.logprobs, abs=1e-5)
    lengths = sorted(len(answer) for group in kept for answer in group)
    assert lengths[0] < lengths[-1]
    # with immediate leaving, the t-th decoding pass holds just the answers longer than t
    passes = rows[1.1]
    assert passes == [sum(length > t for length in lengths) for t in range(1, len(passes) + 1)]
    assert set(rows[0.0]) == {24}


def test_sampling_leaves_the_weights_alone_and_needs_no_gradient(policy: PreTrainedModel) -> None:
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    sampler(policy).generate(REQUESTS, params())
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters())
    assert all(p.grad is None for p in policy.parameters())
    policy.train()
    policy(torch.tensor([PROMPTS[0]])).logits.sum().backward()  # and does not stand in the way of one


# --- ends


def test_every_stop_id_ends_an_answer_and_belongs_to_it(policy: PreTrainedModel) -> None:
    stop_ids = {1, 6, 13, 25}
    answers = flat(sampler(policy, stop_ids=sorted(stop_ids)).generate(REQUESTS, params(n=16)))
    assert {c.token_ids[-1] for c in answers if c.finish_reason == "stop"} == stop_ids
    for c in answers:
        assert not stop_ids & set(c.token_ids[:-1])
        assert (c.finish_reason == "stop") == (c.token_ids[-1] in stop_ids)
        assert c.finish_reason == "stop" or len(c.token_ids) == 24
        assert len(c.logprobs) == len(c.token_ids)
        assert c.weight_versions == (7, 7)


def test_an_answer_that_stops_on_its_last_position_is_stopped_and_not_cut(policy: PreTrainedModel) -> None:
    whole = flat(sampler(policy).generate(REQUESTS, params(n=16)))
    stopped = next(c for c in whole if c.finish_reason == "stop" and len(c.token_ids) > 1)
    length = len(stopped.token_ids)
    exact, shorter = (
        flat(sampler(policy).generate(REQUESTS, params(n=16, max_tokens=m))) for m in (length, length - 1)
    )
    position = whole.index(stopped)
    assert exact[position] == stopped
    assert shorter[position].token_ids.tolist() == stopped.token_ids[:-1].tolist()
    assert shorter[position].finish_reason == "length"


def test_one_token_answers(policy: PreTrainedModel) -> None:
    answers = sampler(policy).generate(REQUESTS, params(max_tokens=1))
    assert all(len(c.token_ids) == 1 for group in answers for c in group)


@pytest.mark.parametrize("library", [False, True], ids=["fast", "library"])
@pytest.mark.parametrize("max_num_seqs", [2, 5, 64])
def test_each_request_is_cut_at_its_own_limit_and_draws_as_without_it(
    policy: PreTrainedModel, max_num_seqs: int, library: bool
) -> None:
    limits = [1, 24, 7, None]
    requests = [SampleRequest(r.prompt_ids, r.key, limit) for r, limit in zip(REQUESTS, limits, strict=True)]
    whole = sampler(policy).generate(REQUESTS, params())
    cut = sampler(policy, max_num_seqs=max_num_seqs, library=library).generate(requests, params())
    for limit, group, expected in zip((1, 24, 7, 24), cut, whole, strict=True):
        for answer, long in zip(group, expected, strict=True):
            assert answer.token_ids.tolist() == long.token_ids[:limit].tolist()
            assert answer.logprobs == pytest.approx(long.logprobs[:limit], abs=1e-5)
            assert answer.finish_reason == ("length" if len(long) > limit else long.finish_reason)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda made: made.generate(REQUESTS, params(max_tokens=0)), "max_tokens = 0 of a sampler's call"),
        (lambda made: made.generate(REQUESTS, params(max_tokens=-2)), "max_tokens = -2 of a sampler's call"),
        (lambda made: made.generate(REQUESTS, params(n=0)), "n = 0 of a sampler's call"),
        (lambda made: made.generate([SampleRequest((), 9)], params()), "request 9: the prompt has no tokens"),
        (lambda made: made.generate([SampleRequest((4,), 9, 0)], params()), "request 9: max_tokens = 0"),
        (
            lambda made: made.generate([SampleRequest((4,), 9, 25)], params()),
            "request 9: max_tokens = 25, above the call",
        ),
    ],
)
def test_what_cannot_be_sampled_is_refused_by_name(policy: PreTrainedModel, ask: Any, message: str) -> None:
    """No tokens gave one, and an empty prompt torch's words about shapes."""
    with pytest.raises(BackendError) as caught:
        ask(sampler(policy))
    assert message in str(caught.value)


def test_a_closed_sampler_stays_closed_and_what_it_was(policy: PreTrainedModel, cpu: Device) -> None:
    """One with weights of its own became one that shares the learner's, and took them."""
    for own in (None, policy):
        made = TorchSampler(device=cpu, seed=0, stop_ids=frozenset(), max_num_seqs=4, model=own)
        made.load(LiveWeights(policy, version=0))
        made.close()
        assert made.shares_learner_weights == (own is None)
        with pytest.raises(BackendError, match="is closed"):
            made.load(LiveWeights(policy, version=1))
        with pytest.raises(BackendError, match="is closed"):
            made.generate(REQUESTS, params())


def test_no_requests_give_no_answers(policy: PreTrainedModel) -> None:
    assert sampler(policy).generate([], params()) == []


# --- greedy decoding


def test_greedy_decoding_is_transformers_own(policy: PreTrainedModel) -> None:
    stop_ids = [1, 6]
    answers = sampler(policy, stop_ids=stop_ids).generate(REQUESTS, params(n=1, temperature=0.0))
    for request, (answer,) in zip(REQUESTS, answers, strict=True):
        prompt = torch.tensor([request.prompt_ids])
        theirs = policy.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=24, eos_token_id=stop_ids
        )
        assert list(answer.token_ids) == theirs[0, prompt.shape[1] :].tolist()
        assert set(answer.logprobs) == {0.0}


def test_top_k_of_one_is_greedy(policy: PreTrainedModel) -> None:
    greedy = sampler(policy).generate(REQUESTS, params(n=1, temperature=0.0))
    assert ids(sampler(policy).generate(REQUESTS, params(n=1, top_k=1, temperature=1.3))) == ids(greedy)
    assert ids(sampler(policy).generate(REQUESTS, params(n=1, top_p=1e-6))) == ids(greedy)


def test_greedy_answers_to_one_prompt_are_all_alike(policy: PreTrainedModel) -> None:
    for group in ids(sampler(policy).generate(REQUESTS, params(n=4, temperature=0.0))):
        assert len(set(group)) == 1


def test_running_out_of_memory_names_the_settings_to_lower(policy: PreTrainedModel) -> None:
    def fail(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    made = sampler(policy)
    policy.register_forward_pre_hook(fail)
    with pytest.raises(BackendError, match="out of memory while sampling") as raised:
        made.generate(REQUESTS, params())
    assert "actor_rollout_ref.rollout.max_num_seqs" in str(raised.value)
