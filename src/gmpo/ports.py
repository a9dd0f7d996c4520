"""What the loop expects of the parts it does not know: a sampler, a learner, a tracker.

A backend fulfils these protocols; the loop, evaluation and checkpoints use nothing else of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from jaxtyping import Bool, Float
from torch import Tensor

from gmpo.errors import BackendError
from gmpo.records.batch import Batch
from gmpo.records.rollout import Completion, Group


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How answers are drawn.

    Example: `SamplingParams(n=8, temperature=1.0, top_p=1.0, top_k=-1, max_tokens=512)`.
    """

    n: int
    """Answers to each prompt."""
    temperature: float
    """Divides the logits; 0 takes the most probable token."""
    top_p: float
    """Smallest set of tokens whose probability reaches this; 1 keeps all."""
    top_k: int
    """The k most probable tokens; -1 keeps all."""
    max_tokens: int
    """Length at which an answer is cut."""

    def __post_init__(self) -> None:
        """Raises BackendError where no answer or no token is asked for."""
        for name, value in (("n", self.n), ("max_tokens", self.max_tokens)):
            if value < 1:
                raise BackendError(f"{name} = {value} of a sampler's call: at least 1 answer of 1 token must be asked.")


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """A prompt, the name of its random streams, and how long its answers may be."""

    prompt_ids: tuple[int, ...]
    """At least one token."""
    key: int
    """Answer j draws from the stream (sampler seed, key, j), whatever else is in the batch. Fits 63 bits, as seeds of
    other engines do; see `gmpo.streams.stream_key`."""
    max_tokens: int | None = None
    """Length at which its answers are cut, at most the call's; None: the call's. It changes nothing about which numbers
    an answer draws: with a higher limit it begins alike."""

    def __post_init__(self) -> None:
        """Raises BackendError for an empty prompt, and where no token is asked for."""
        if not self.prompt_ids:
            raise BackendError(f"request {self.key}: the prompt has no tokens, so there is nothing to continue.")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise BackendError(f"request {self.key}: max_tokens = {self.max_tokens}, and an answer has at least 1.")

    def limit(self, params: SamplingParams) -> int:
        """The length at which its answers are cut in a call with `params`.

        Raises:
            BackendError: the request's own is above the call's.
        """
        if self.max_tokens is None:
            return params.max_tokens
        if self.max_tokens > params.max_tokens:
            raise BackendError(
                f"request {self.key}: max_tokens = {self.max_tokens}, above the call's {params.max_tokens}."
            )
        return self.max_tokens


class WeightSource(Protocol):
    """A policy's weights on their way from learner to sampler."""

    @property
    def version(self) -> int:
        """Number of training steps behind them."""
        ...

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor under its Hugging Face name, in full; tied ones under each of their names, because a receiver
        that keeps them apart would go on with an old head otherwise. To be read before the learner's next update."""
        ...


class Sampler(Protocol):
    """Draws answers from the policy it was last loaded with."""

    @property
    def shares_learner_weights(self) -> bool:
        """It runs the learner's own module in the learner's process, so that its log-probs may stand for the
        learner's. False for a sampler with weights or kernels of its own: the two are then two policies."""
        ...

    def load(self, source: WeightSource) -> None:
        """Take over weights; completions sampled from now on carry their version.

        Raises:
            BackendError: the weights do not fit, or cannot reach this sampler.
        """
        ...

    def close(self) -> None:
        """Give up what the sampler holds: processes, memory, the model. It is not used afterwards."""
        ...

    def generate(
        self,
        requests: Sequence[SampleRequest],
        params: SamplingParams,
        finished: Callable[[int, Sequence[Completion]], None] | None = None,
    ) -> list[list[Completion]]:
        """`params.n` completions for each request, in the order of the requests, each cut at `request.limit(params)`.

        Args:
            finished: is called with a request's place and its completions, once for each request, when all are there
                and while others may still be sampled.
        """
        ...


@dataclass(frozen=True, slots=True)
class Update:
    """One optimizer update, as the learner saw it. Rows without signal are not computed: they are absent from `rows`.

    Example: with 8 responses of which 2 have advantage 0, `rows` holds 6 indices and `logp` is `[6, T]`.
    """

    rows: Tensor
    """[R] row numbers within the mini-batch that was passed to `update`."""
    logp: Float[Tensor, "R T"]
    """Log-probs of the policy before this update; 0 where nothing was sampled."""
    clipped: Bool[Tensor, "R T"]
    clipped_lower: Bool[Tensor, "R T"]
    sequence_ratio: Float[Tensor, " R"]
    capped: Bool[Tensor, " R"]
    scalars: Mapping[str, float]
    """`pg_loss`, `grad_norm`, `lr`, and `weights_moved`, `kl_loss`, `entropy` where they were computed; means over the
    mini-batch (of the entropy: over the rows that were computed)."""
    skipped: bool
    """The gradient was not finite and the weights were left alone."""
    counted: Mapping[str, int] = field(default_factory=dict)
    """Name of a scalar that measures tokens or answers -> how many of them its mean is over. The scalars of several
    updates are pooled with these; one that is not named counts once for each update."""


class Learner(Protocol):
    """Owns the policy, its optimizer and the reference model."""

    def score(self, batch: Batch, *, old: bool) -> Batch:
        """Fill in old log-probs and entropies (if `old`), and what reference and critic say, where there are such."""
        ...

    def update_critic(self, batch: Batch, *, step: int) -> Mapping[str, float]:
        """Fit the critic to the returns of a credited batch; metrics, none without a critic."""
        ...

    def update(self, batch: Batch, *, step: int) -> Update:
        """One optimizer update on the whole of `batch`, the mini-batch."""
        ...

    def weights(self, version: int) -> WeightSource:
        """The current policy for a sampler, `version` training steps behind it."""
        ...

    def snapshot(self, contents: Sequence[str], *, copy: bool) -> Callable[[Path], None]:
        """`contents` (of model, optimizer, extra, hf_model) as they are now, as a function that writes them to
        `actor/` (and `critic/`) below a folder. With `copy` it may be called while training goes on."""
        ...

    def export(self, folder: Path) -> None:
        """Write the policy as a Hugging Face folder."""
        ...

    def load(self, folder: Path, contents: Sequence[str]) -> None:
        """Read what was written."""
        ...

    def close(self) -> None:
        """Give up what the learner holds: processes and memory elsewhere. It is not used afterwards."""
        ...


class Step(Protocol):
    """The record of one training step while it runs."""

    def time(self, phase: str) -> AbstractContextManager[None]:
        """Measure a phase: becomes `timing_s/<phase>`, the sum where it is entered again."""
        ...

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add metrics to the step; a name given twice keeps the later value."""
        ...

    def samples(self, groups: Sequence[Group], batch: Batch, minis: Sequence[Batch], updates: Sequence[Update]) -> None:
        """Keep the step's samples; which and how much of them the tracker knows."""
        ...

    def nonfinite(self, groups: Sequence[Group], minis: Mapping[int, Batch]) -> str:
        """Keep the answers of updates whose gradient was not finite, by the update's number; says where, in a
        sentence."""
        ...

    def failed(self, answers: Sequence[Mapping[str, object]]) -> str:
        """Keep the answers of a step whose grading failed; says where, in a sentence."""
        ...


class Tracker(Protocol):
    """Where metrics and samples go."""

    def start(self, step: int) -> None:
        """Training begins, or goes on, after `step` steps: what was recorded beyond is dropped, it happens again."""
        ...

    def step(self, number: int) -> AbstractContextManager[Step]:
        """Open the record of training step `number`; it is written out when the context ends without an error."""
        ...

    def sync(self) -> None:
        """Have the disk hold all that was recorded so far."""
        ...

    def validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record a validation outside of any training step (the one before training)."""
        ...
