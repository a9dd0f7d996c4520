"""The embedded sampler: answers drawn from a `transformers` model in this process, with a key-value cache.

The n answers to a prompt share one prefill; finished answers leave the batch; every answer draws from a random stream
of its own, so what is sampled does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from gmpo.backends.devices import Device, out_of_memory_hint
from gmpo.backends.kv_cache import growing_cache
from gmpo.batch import pad_left
from gmpo.errors import BackendError
from gmpo.ops.sampling import draw, truncated_logprobs
from gmpo.ports import SampleRequest, SamplingParams, Weights
from gmpo.rollout import Completion
from gmpo.streams import uniform

COMPACT_BELOW = 0.8
"""Rows are dropped from the cache when fewer than this share is still running: dropping copies the cache once."""


class TorchSampler:
    """A `Sampler` over a `transformers` causal language model.

    Args:
        seed: root of the random streams.
        stop_ids: drawing one of these ends an answer; it belongs to the answer.
        pad_id: any id of the vocabulary, for the left padding of prompts.
        max_num_seqs: answers sampled side by side, a bound on the memory of the cache.
    """

    def __init__(self, *, device: Device, seed: int, stop_ids: frozenset[int], pad_id: int, max_num_seqs: int) -> None:
        self.device = device
        self.seed = seed
        self.stop_ids = torch.tensor(sorted(stop_ids), device=device.torch)
        self.pad_id = pad_id
        self.max_num_seqs = max_num_seqs
        self._model: PreTrainedModel | None = None
        self._version = 0

    def load(self, weights: Weights) -> None:
        """Sample from `weights.module` from now on. It is the learner's own module: nothing is copied."""
        self._model = weights.module
        self._version = weights.version

    def generate(self, requests: Sequence[SampleRequest], params: SamplingParams) -> list[list[Completion]]:
        """`params.n` completions for each request, in the order of the requests.

        Raises:
            BackendError: the device ran out of memory; the message names the settings to lower.
        """
        # Prompts of like length together, so that little padding is computed.
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_ids))
        width = max(1, self.max_num_seqs // params.n)
        answers: list[list[Completion]] = [[] for _ in requests]
        assert self._model is not None, "load() comes before generate()"
        self._model.eval()
        for start in range(0, len(order), width):
            chunk = order[start : start + width]
            for first in range(0, params.n, self.max_num_seqs):  # once, unless n alone passes the bound
                numbers = range(first, min(first + self.max_num_seqs, params.n))
                with torch.inference_mode(), self.device.autocast(), out_of_memory_hint("sampling"):
                    sampled = self._sample(self._model, [requests[i] for i in chunk], numbers, params)
                for i, completions in zip(chunk, sampled, strict=True):
                    answers[i] += completions
        return answers

    def _sample(
        self, model: PreTrainedModel, requests: Sequence[SampleRequest], numbers: range, params: SamplingParams
    ) -> list[list[Completion]]:
        """The answers `numbers` (of 0 to n - 1) to each request."""
        n, rows = len(numbers), len(requests) * len(numbers)
        where = self.device.torch
        chances = torch.from_numpy(_uniform_numbers(self.seed, requests, numbers, params)).to(where)
        tokens = torch.full((rows, params.max_tokens), self.pad_id, device=where)
        logprobs = torch.zeros((rows, params.max_tokens), device=where)
        lengths = torch.full((rows,), params.max_tokens, device=where)
        stopped = torch.zeros(rows, dtype=torch.bool, device=where)

        prompt_ids, prompt_mask = (x.to(where) for x in pad_left([r.prompt_ids for r in requests], self.pad_id))
        position = (prompt_mask.long().cumsum(1) - 1).clamp(min=0)
        cache = growing_cache(model.config)
        out = model(
            input_ids=prompt_ids,
            attention_mask=prompt_mask.long(),
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        group = torch.arange(len(requests), device=where).repeat_interleave(n)
        cache.batch_select_indices(group)
        logits, position = out.logits[group, -1], position[group, -1:]
        attention = torch.ones((rows, prompt_mask.shape[1] + params.max_tokens), dtype=torch.long, device=where)
        attention[:, : prompt_mask.shape[1]] = prompt_mask[group]

        alive = torch.arange(rows, device=where)  # cache row -> answer
        running = torch.ones(rows, dtype=torch.bool, device=where)  # by cache row
        for t in range(params.max_tokens):
            token, logprob = _choose(logits, chances[alive, t], params)
            tokens[alive, t] = token
            logprobs[alive, t] = logprob
            ends = running & torch.isin(token, self.stop_ids)
            lengths[alive[ends]] = t + 1
            stopped[alive[ends]] = True
            running = running & ~ends
            still = int(running.sum())
            if still == 0 or t + 1 == params.max_tokens:
                break
            if still < COMPACT_BELOW * len(running):
                keep = running.nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                alive, token, position, running = alive[keep], token[keep], position[keep], running[keep]
                attention = attention[keep]
            position = position + 1
            logits = model(
                input_ids=token.unsqueeze(1),
                attention_mask=attention[:, : prompt_mask.shape[1] + t + 1],
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
        if not bool(logprobs.isfinite().all()):
            raise BackendError(
                f"the policy's probabilities are not finite (weights of step {self._version}): its weights hold NaN or "
                "infinity. Resume from an earlier checkpoint with a lower learning rate."
            )
        return self._completions(tokens, logprobs, lengths, stopped, n)

    def _completions(
        self, tokens: Tensor, logprobs: Tensor, lengths: Tensor, stopped: Tensor, n: int
    ) -> list[list[Completion]]:
        rows = zip(tokens.tolist(), logprobs.tolist(), lengths.tolist(), stopped.tolist(), strict=True)
        flat = [
            Completion(tuple(ids[:length]), tuple(logp[:length]), "stop" if stop else "length", self._version)
            for ids, logp, length, stop in rows
        ]
        return [flat[i : i + n] for i in range(0, len(flat), n)]


def _choose(logits: Tensor, uniform: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Next tokens `[B]` and their log-probs; greedy decoding draws from a point mass, whose log-prob is 0."""
    if params.temperature == 0.0:
        token = logits.argmax(dim=-1)
        return token, torch.zeros(token.shape, device=token.device)
    distribution = truncated_logprobs(logits, temperature=params.temperature, top_k=params.top_k, top_p=params.top_p)
    token = draw(distribution, uniform)
    return token, distribution.gather(1, token.unsqueeze(1)).squeeze(1)


def _uniform_numbers(
    seed: int, requests: Sequence[SampleRequest], numbers: range, params: SamplingParams
) -> np.ndarray:
    """[rows, max_tokens] numbers in [0, 1): row (request, j) comes from the counter-based stream (seed, key, j)."""
    if params.temperature == 0.0:
        return np.zeros((len(requests) * len(numbers), params.max_tokens))
    return np.stack([uniform(params.max_tokens, seed, request.key, j) for request in requests for j in numbers])
