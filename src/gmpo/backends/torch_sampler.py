"""The embedded sampler: answers drawn from a `transformers` model in this process, with a key-value cache.

The n answers to a prompt share one prefill; finished answers leave and waiting prompts enter; every answer draws from a
random stream of its own, so what is sampled does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from gmpo.backends.decoding import Decoder, LibraryDecoder
from gmpo.backends.devices import Device, out_of_memory_hint
from gmpo.backends.fast_decoder import FastDecoder
from gmpo.backends.structure import structure
from gmpo.backends.weights import LiveWeights, copy_weights
from gmpo.errors import BackendError, DivergedError
from gmpo.ops.sampling import sample
from gmpo.ports import SampleRequest, SamplingParams, WeightSource
from gmpo.records.rollout import Completion, FinishReason
from gmpo.streams import uniform

COMPACT_BELOW = 0.8
"""Rows are dropped from the cache when fewer than this share is still running: dropping copies the cache once."""
ENTER_ABOVE = 0.25
"""Waiting prompts enter when this share of the places is free: one prefill of several is cheaper than several."""


def _as_run(ids: Tensor) -> slice | None:
    """Ascending ids as a slice, where none is missing between the first and the last."""
    if not len(ids):
        return None
    first, last = int(ids[0]), int(ids[-1])
    return slice(first, last + 1) if last - first + 1 == len(ids) else None


class TorchSampler:
    """A `Sampler` over a `transformers` causal language model.

    Args:
        seed: root of the random streams.
        stop_ids: drawing one of these ends an answer; it belongs to the answer. Without any, answers have full length.
        max_num_seqs: answers sampled side by side, a bound on the memory of the cache.
        excluded: ids that are never drawn, because the tokenizer has none of them: their probability is 0.
        model: a model of the sampler's own, on `device`, into which weights are copied; None samples from the
            learner's live model.
        drew: is called after every draw, with the number of tokens that answers got by it.
    """

    def __init__(
        self,
        *,
        device: Device,
        seed: int,
        stop_ids: frozenset[int],
        max_num_seqs: int,
        excluded: Tensor | None = None,
        model: PreTrainedModel | None = None,
        drew: Callable[[int], object] = lambda tokens: None,
    ) -> None:
        self.drew = drew
        self.device = device
        self.seed = seed
        self.stop_ids = torch.tensor(sorted(stop_ids), dtype=torch.long, device=device.torch)
        self.max_num_seqs = max_num_seqs
        # One run of ids, as behind the tokenizer's in a padded vocabulary, is filled much faster than a list of them.
        self.excluded = None if excluded is None else _as_run(excluded) or excluded.to(device.torch)
        self._own = model
        self._shares = model is None
        self._closed = False
        self._model: PreTrainedModel | None = None
        self._structure: Hashable = None
        self._fast = False
        self._version = 0

    @property
    def shares_learner_weights(self) -> bool:
        """Without a model of its own."""
        return self._shares

    def load(self, source: WeightSource) -> None:
        """Sample from the source's live model from now on, or from a copy of its tensors in the sampler's own model.

        Raises:
            BackendError: the source has no live model and the sampler none of its own, the tensors do not fit it, or
                the sampler is closed.
        """
        self._refuse_if_closed()
        if self._own is not None:
            copy_weights(source, self._own)
            model = self._own
        elif isinstance(source, LiveWeights):
            model = source.model
        else:
            raise BackendError(
                f"the embedded sampler got weights of step {source.version} without a live model "
                f"({type(source).__name__}) and has no model of its own to copy them into: give it one, or run it in "
                "the learner's process."
            )
        self._model = model
        if (found := structure(model)) != self._structure:
            self._structure, self._fast = found, FastDecoder.supports(model, self.device.compute)
        self._version = source.version

    def close(self) -> None:
        """Let go of the model; `load` and `generate` are refused from now on."""
        self._model = self._own = None
        self._closed = True

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise BackendError("the embedded sampler is closed and holds no model any more: make another one.")

    def generate(
        self,
        requests: Sequence[SampleRequest],
        params: SamplingParams,
        finished: Callable[[int, Sequence[Completion]], None] | None = None,
    ) -> list[list[Completion]]:
        """`params.n` completions for each request, in the order of the requests, each cut at the request's own limit.

        Args:
            finished: is called with a request's place and its completions as soon as the last of them has been taken
                out of the batch.

        Raises:
            BackendError: the device ran out of memory (the message names the settings to lower), a request's limit is
                above the call's, or the sampler is closed.
        """
        self._refuse_if_closed()
        assert self._model is not None, "load() comes before generate()"
        self._model.eval()
        found = _Answers(len(requests), params.n, finished)
        with torch.inference_mode(), self.device.autocast(), out_of_memory_hint("sampling"):
            self._sample(self._decoder(self._model), requests, params, found)
        return found.complete

    def _decoder(self, model: PreTrainedModel) -> Decoder:
        return FastDecoder(model, self.device) if self._fast else LibraryDecoder(model, self.device.torch)

    def _sample(
        self,
        decoder: Decoder,
        requests: Sequence[SampleRequest],
        params: SamplingParams,
        answers: _Answers,
    ) -> None:
        # The longest prompts first: one that enters later then has room before the column where all rows end.
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt_ids))
        # A prompt enters with all its answers at once, so that they share its prefill; only where they are more than
        # there are places does it enter again.
        copies = min(params.n, self.max_num_seqs)
        limits = [request.limit(params) for request in requests]
        waiting = deque(
            (i, range(first, min(first + copies, params.n))) for i in order for first in range(0, params.n, copies)
        )
        rows: _Rows | None = None
        logits: Tensor | None = None
        while waiting or rows is not None:
            running = 0 if rows is None else int(rows.running.sum())
            new_rows = 0
            free = self.max_num_seqs - running
            enough = free >= max(copies, ENTER_ABOVE * self.max_num_seqs)
            enters = bool(waiting) and (running == 0 or (decoder.enters_running and enough))
            # Finished rows go on decoding for nothing until there are enough of them to be worth a copy of the cache.
            if rows is not None and (enters or running == 0 or running < COMPACT_BELOW * len(rows.running)):
                self._collect(rows, answers)
                rows = rows.take(rows.running)
                decoder.keep(rows.kept)
                rows = rows if running else None
            # The rows that are there take their step before others enter: afterwards all have logits for one draw.
            if rows is not None:
                logits = decoder.step(rows.newest)
            if enters:
                entering = _entering(waiting, free)
                prompts = [requests[i].prompt_ids for i, _ in entering]
                new_logits = decoder.enter(prompts, len(entering[0][1]))
                new = self._new_rows(requests, limits, entering, params)
                new_rows = len(new.owners)
                logits = new_logits if rows is None or logits is None else torch.cat([logits, new_logits])
                rows = new if rows is None else rows.join(new)
            if rows is not None and logits is not None:
                self._draw(rows, logits, params)
                self.drew(running + new_rows)

    def _draw(self, rows: _Rows, logits: Tensor, params: SamplingParams) -> None:
        """The next token of every row. A finished row that is still there draws into a spare column."""
        if self.excluded is not None:
            if isinstance(self.excluded, slice):
                logits[:, self.excluded] = -torch.inf
            else:
                logits.index_fill_(1, self.excluded, -torch.inf)
        place = torch.where(rows.running, rows.length, rows.tokens.shape[1] - 1).unsqueeze(1)
        if params.temperature == 0.0:  # a point mass: its log-prob is 0, and NaN where the logit is not finite
            token = logits.argmax(dim=-1)
            chosen = logits.gather(1, token.unsqueeze(1)).squeeze(1)
            logprob = (chosen - chosen).to(rows.logprobs.dtype)
        else:
            token, logprob = sample(
                logits,
                rows.chances.gather(1, place).squeeze(1),
                temperature=params.temperature,
                top_k=params.top_k,
                top_p=params.top_p,
            )
        rows.newest = token
        rows.tokens.scatter_(1, place, token.unsqueeze(1))
        rows.logprobs.scatter_(1, place, logprob.unsqueeze(1))
        rows.length += rows.running
        finite = logprob.isfinite()  # an answer that is not ends at once, and with it the run
        ended = torch.isin(token, self.stop_ids) & rows.running
        rows.stopped |= ended
        rows.running &= ~ended & finite & (rows.length < rows.limit)

    def _new_rows(
        self,
        requests: Sequence[SampleRequest],
        limits: Sequence[int],
        entering: Sequence[tuple[int, range]],
        params: SamplingParams,
    ) -> _Rows:
        where = self.device.torch
        owners = [(i, j) for i, numbers in entering for j in numbers]
        width = max(limits) + 1  # of all that are asked: rows that enter later stand beside these
        return _Rows(
            owners=owners,
            chances=torch.from_numpy(_uniform_numbers(self.seed, requests, owners, width, params)).to(where),
            tokens=torch.zeros((len(owners), width), dtype=torch.long, device=where),
            logprobs=torch.zeros((len(owners), width), device=where),
            limit=torch.tensor([limits[i] for i, _ in owners], device=where),
            length=torch.zeros(len(owners), dtype=torch.long, device=where),
            running=torch.ones(len(owners), dtype=torch.bool, device=where),
            stopped=torch.zeros(len(owners), dtype=torch.bool, device=where),
            newest=torch.zeros(len(owners), dtype=torch.long, device=where),
            kept=torch.arange(len(owners), device=where),
        )

    def _collect(self, rows: _Rows, answers: _Answers) -> None:
        """Hand over the finished rows. The only place where tokens leave the device, so not done for every step."""
        done = (~rows.running).nonzero().squeeze(1)
        if not bool(rows.logprobs[done].isfinite().all()):
            raise DivergedError(
                f"step {self._version + 1}, sampling: the policy's logits are not finite with the weights after step "
                f"{self._version}: training has diverged, or the model was so from the start. Lower "
                "actor_rollout_ref.actor.optim.lr and go on from a checkpoint before that, or begin again."
            )
        tokens, logprobs = rows.tokens[done].cpu().numpy(), rows.logprobs[done].cpu().numpy()
        ends = zip(done.tolist(), rows.length[done].tolist(), rows.stopped[done].tolist(), strict=True)
        for place, (row, length, stopped) in enumerate(ends):
            i, j = rows.owners[row]
            reason: FinishReason = "stop" if stopped else "length"
            versions = self._version, self._version
            answers.add(i, j, Completion(tokens[place, :length], logprobs[place, :length], reason, versions))


class _Answers:
    """What has been sampled, by request."""

    def __init__(self, requests: int, n: int, finished: Callable[[int, Sequence[Completion]], None] | None) -> None:
        self._found: list[dict[int, Completion]] = [{} for _ in range(requests)]
        self._n = n
        self._finished = finished

    def add(self, request: int, number: int, completion: Completion) -> None:
        found = self._found[request]
        found[number] = completion
        if len(found) == self._n and self._finished is not None:
            self._finished(request, self._of(request))

    def _of(self, request: int) -> list[Completion]:
        return [self._found[request][j] for j in range(self._n)]

    @property
    def complete(self) -> list[list[Completion]]:
        return [self._of(i) for i in range(len(self._found))]


@dataclass(slots=True)
class _Rows:
    """The answers in the decoder, in its order of rows."""

    owners: list[tuple[int, int]]
    """Request, and number of the answer to it."""
    chances: Tensor
    """`[R, W]` numbers in [0, 1), float64; W is the highest limit and one."""
    tokens: Tensor
    """`[R, W]`; the last column takes what finished rows draw."""
    logprobs: Tensor
    limit: Tensor
    """Length at which each is cut."""
    length: Tensor
    running: Tensor
    stopped: Tensor
    newest: Tensor
    """The token of the last draw."""
    kept: Tensor
    """The rows' numbers before the last `take`."""

    def take(self, running: Tensor) -> _Rows:
        kept = running.nonzero().squeeze(1)
        names = ("chances", "tokens", "logprobs", "limit", "length", "running", "stopped", "newest")
        return _Rows([self.owners[i] for i in kept.tolist()], **{n: getattr(self, n)[kept] for n in names}, kept=kept)

    def join(self, other: _Rows) -> _Rows:
        names = ("chances", "tokens", "logprobs", "limit", "length", "running", "stopped", "newest", "kept")
        joined = {n: torch.cat([getattr(self, n), getattr(other, n)]) for n in names}
        return _Rows(self.owners + other.owners, **joined)


def _entering(waiting: deque[tuple[int, range]], free: int) -> list[tuple[int, range]]:
    """The first of those that wait, as many as there is room for, all with as many answers: one prefill repeats each of
    its prompts equally often."""
    taken = [waiting.popleft()]
    each = len(taken[0][1])
    while waiting and len(waiting[0][1]) == each and (len(taken) + 1) * each <= free:
        taken.append(waiting.popleft())
    return taken


def _uniform_numbers(
    seed: int,
    requests: Sequence[SampleRequest],
    owners: Sequence[tuple[int, int]],
    width: int,
    params: SamplingParams,
) -> np.ndarray:
    """[rows, width] numbers in [0, 1): row (request, j) comes from the counter-based stream (seed, key, j).

    All are drawn when the row enters, one for each position it may reach: token t then uses number t, whatever stands
    beside the row and however often rows are dropped."""
    if params.temperature == 0.0:
        return np.zeros((len(owners), width))
    drawn = np.stack([uniform(width - 1, seed, requests[i].key, j) for i, j in owners])
    return np.pad(drawn, ((0, 0), (0, 1)))
