"""One of the processes that a learner is spread over. It knows torch's process group and neither Ray nor the driver.

Every rank is asked the same in the same order: most calls gather weights from all of them.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from transformers import PreTrainedModel

from gmpo.backends.learner import LocalLearner
from gmpo.backends.mini_batch import MiniBatch
from gmpo.backends.ranks.proof import Proof
from gmpo.backends.ranks.sharding import GatheredWeights
from gmpo.backends.ranks.wire import packed, unpacked
from gmpo.backends.storage import Share, held_weights, load_model, save_huggingface
from gmpo.backends.torch_sampler import TorchSampler
from gmpo.backends.weights import LiveWeights
from gmpo.ports import SampleRequest, SamplingParams
from gmpo.records.rollout import Completion

SCORED = ("learner_logp", "entropy", "score_norm", "ref_logp", "values")
"""Fields of a batch that scoring fills in."""


@dataclass(frozen=True, slots=True)
class Member:
    """A rank's place among all."""

    rank: int
    world: int
    threads: int
    """Of torch, on a CPU."""


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a rank runs."""

    rank: int
    host: str
    address: str
    """By which other hosts reach it."""
    pid: int

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"


@dataclass(frozen=True, slots=True)
class RankParts:
    """What a rank computes with."""

    learner: LocalLearner | None
    """Sharded; None where nothing is trained."""
    sampler: TorchSampler | None
    """With a model of its own, whole; None where nothing is sampled."""
    facts: object
    """What the driver must know of the policy; the same on all ranks."""
    untrained: PreTrainedModel | None = None
    """The policy where nothing is trained: whole, and the sampler's."""


class Rank:
    """A process of the learner. Payloads are `packed`; results are too.

    Args:
        member: its place.
        make: builds its parts, once the process group is there.
    """

    def __init__(self, member: Member, make: Callable[[Member], RankParts]) -> None:
        self.member = member
        self.make = make
        self.store: TCPStore | None = None
        self.parts: RankParts | None = None
        self.held: dict[int, Callable[[Path], None]] = {}
        torch.set_num_threads(member.threads)

    @property
    def first(self) -> bool:
        """It writes what all gather."""
        return self.member.rank == 0

    @property
    def learner(self) -> LocalLearner:
        assert self.parts is not None, "build() comes first"
        assert self.parts.learner is not None, "these ranks train nothing"
        return self.parts.learner

    def whereabouts(self) -> Whereabouts:
        """Its host and process."""
        host = socket.gethostname()
        try:
            address = socket.gethostbyname(host)
        except OSError:
            address = host
        return Whereabouts(self.member.rank, host, address, os.getpid())

    def pulse(self) -> bool:
        """Answers while the process lives, whatever else it is doing."""
        return True

    def open_store(self, address: str) -> int:
        """The meeting point of the process group, on the first rank; returns its port."""
        self.store = TCPStore(address, 0, self.member.world, is_master=True, wait_for_workers=False)
        return int(self.store.port)

    def join(self, address: str, port: int, kind: str, patience: float) -> None:
        """Enter the process group.

        Args:
            address, port: of the meeting point; kind: of the device; patience: seconds that a collective may take.
        """
        limit = timedelta(seconds=patience)
        store = self.store or TCPStore(address, port, self.member.world, timeout=limit)
        backend = "nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=store, rank=self.member.rank, world_size=self.member.world, timeout=limit
        )

    def prove(self, proof: Proof) -> list[str]:
        """What this node does not see as the driver does."""
        return proof.lacking()

    def build(self) -> object:
        """Load the models; returns what the driver must know of them."""
        self.parts = self.make(self.member)
        return self.parts.facts

    def score(self, part: Any, old: bool) -> Any:
        """The fields that scoring fills in, of this rank's rows."""
        filled = self.learner.score(unpacked(part), old=old)
        return packed({n: value for n in SCORED if (value := getattr(filled, n)) is not None})

    def logp(self, part: Any) -> Any:
        """Log-probs of the present policy."""
        return packed(self.learner.logp(unpacked(part)))

    def update(self, part: Any) -> Any:
        """This rank's share of an update of the policy: its records, and the optimizer's step."""
        return packed(self.learner.update_part(_mini(part)))

    def update_critic(self, part: Any) -> Any:
        """The same for the critic."""
        critic = self.learner.critic
        assert critic is not None
        return packed(critic.update_part(_mini(part)))

    def load_sampler(self, version: int) -> None:
        """Give the sampler the policy's present weights."""
        assert self.parts is not None
        assert self.parts.sampler is not None
        live = self.parts.untrained
        source = GatheredWeights(self.learner.model, version) if live is None else LiveWeights(live, version)
        self.parts.sampler.load(source)

    def generate(
        self, requests: Sequence[SampleRequest], params: SamplingParams
    ) -> Iterator[tuple[int, Sequence[Completion]]]:
        """The answers to each request, with its place, as soon as they are there."""
        assert self.parts is not None
        sampler = self.parts.sampler
        assert sampler is not None
        done: queue.SimpleQueue[tuple[int, Sequence[Completion]] | BaseException | None] = queue.SimpleQueue()

        def sample() -> None:
            torch.set_num_threads(self.member.threads)  # a thread's own number
            try:
                sampler.generate(requests, params, lambda place, found: done.put((place, list(found))))
            except BaseException as error:
                done.put(error)
            else:
                done.put(None)

        thread = threading.Thread(target=sample, name="sampling")
        thread.start()
        while (one := done.get()) is not None:
            if isinstance(one, BaseException):
                thread.join()
                raise one
            yield one
        thread.join()

    def hold(self, number: int, contents: Sequence[str], copy: bool) -> None:
        """Gather what a checkpoint holds, and keep this rank's share of it under `number` for `write`."""
        self.held[number] = self.learner.snapshot(contents, copy=copy, share=Share(self.member.rank, self.member.world))

    def hold_model(self, number: int) -> None:
        """Gather the policy alone, to be written as a Hugging Face folder by the first rank."""
        model, tokenizer = self.learner.model, self.learner.tokenizer
        weights = held_weights(model, copy=False, keep=lambda name: self.first)
        self.held[number] = lambda folder: save_huggingface(model, tokenizer, folder, weights) if self.first else None

    def write(self, number: int, folder: Path) -> None:
        """Write what is held under `number`."""
        self.held.pop(number)(folder)

    def load(self, folder: Path, contents: Sequence[str]) -> None:
        """Read a checkpoint: of every tensor this rank's shard."""
        self.learner.load(folder, contents)

    def load_untrained(self, folder: Path, content: str) -> None:
        """Read the policy of a checkpoint, where nothing is trained; `content` as of `storage.load_model`."""
        assert self.parts is not None
        assert self.parts.untrained is not None
        load_model(self.parts.untrained, folder, content)

    def leave(self) -> None:
        """Take leave of the others, so that none is missed while it ends."""
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()


def _mini(part: Any) -> MiniBatch:
    mini: MiniBatch = unpacked(part)
    return mini
