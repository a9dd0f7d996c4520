"""Ranks as Ray actors: started, watched and ended.

Ray tells at once of an actor that died. One that hangs it does not tell from one that computes, so the driver asks each
for a sign of life while it waits.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from gmpo.backends.ranks.rank import Member, Rank, RankParts, Whereabouts
from gmpo.errors import BackendError, GmpoError, LostRankError

PULSE_S = 5.0
"""Seconds between two questions for a sign of life."""
SETTLE_S = 3.0
"""Seconds in which, after a first failure, others are awaited: who lost a partner is heard before the partner's end."""
KNOCKING_S = 20.0
"""Seconds in which a cluster must answer."""
PLACING_S = 60.0
"""Seconds for the ranks' places to be free."""
STARTING_S = 300.0
"""Seconds for the processes to start: the nodes of a cluster may have to load the libraries from a slow disk."""


@dataclass(frozen=True, slots=True)
class RayPlan:
    """What is started."""

    nodes: int
    """Machines, each with equally many ranks."""
    ranks_a_node: int
    device: str
    """cpu or cuda."""
    threads: int
    """Of a rank on a CPU."""
    patience: float
    """Seconds without a sign of life, or in a collective, after which a rank counts as lost."""
    address: str | None = None
    """Of a cluster that runs; None starts one on this machine."""

    @property
    def world(self) -> int:
        """All ranks."""
        return self.nodes * self.ranks_a_node


@dataclass(slots=True)
class RayRanks:
    """A group of ranks; see `Ranks`."""

    plan: RayPlan
    where: Sequence[Whereabouts] = ()
    actors: list[Any] = field(default_factory=list)
    places: Any = None
    """Ray's placement group: a bundle a node."""
    started: bool = False
    folder: str | None = None
    broken: str | None = None
    """Why no further call can succeed."""

    @classmethod
    def start(cls, plan: RayPlan, make: Callable[[Member], RankParts]) -> RayRanks:
        """Start the processes and let them meet.

        Args:
            make: builds a rank's parts in its process.

        Raises:
            BackendError: no cluster, or too few places in it.
        """
        found = cls(plan)
        try:
            found._connect()
            found._place(make)
        except BaseException:
            found.close()
            raise
        return found

    @property
    def size(self) -> int:
        return self.plan.world

    def _connect(self) -> None:
        plan, options = self.plan, {"log_to_driver": False, "logging_level": "error", "namespace": "gmpo"}
        if ray.is_initialized():
            return
        terminate = signal.getsignal(signal.SIGTERM)
        try:
            if plan.address is not None:
                _knock(plan.address)
                ray.init(address=plan.address, **options)
            else:
                # A path of Ray's sockets must be shorter than 108 characters, which a project's own folder seldom is.
                self.folder = tempfile.mkdtemp(prefix="gmpo-", dir="/tmp" if os.path.isdir("/tmp") else None)
                cpus = plan.world if plan.device == "cpu" else None
                ray.init(num_cpus=cpus, include_dashboard=False, _temp_dir=self.folder, **options)
        except (RayError, ConnectionError, OSError, ValueError, RuntimeError) as error:
            where = f"the Ray cluster at {plan.address}" if plan.address else "Ray on this machine"
            raise BackendError(
                f"{where} cannot be reached: {_first_line(error)}. RAY_ADDRESS names a cluster that runs (`ray status` "
                "tells whether it does, RAY_AUTH_TOKEN must be its token); without it one is started here."
            ) from error
        finally:
            # Ray's own would end this process at once, without a checkpoint.
            if terminate is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, terminate)
        self.started = True

    def _place(self, make: Callable[[Member], RankParts]) -> None:
        plan = self.plan
        self._reserve()
        options = {
            "num_cpus": 1,
            "num_gpus": 1 if plan.device == "cuda" else 0,
            "max_restarts": 0,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(plan.threads), "GMPO_DRIVER": str(os.getpid())}},
        }
        # A sign of life, and files that are written while training goes on, each have a thread of their own.
        actor = ray.remote(concurrency_groups={"pulse": 1, "files": 1})(Rank)
        self.actors = [
            actor.options(
                **options,
                # Neighbours share a node, on which groups of ranks (`fsdp_size`, sequences) then are.
                scheduling_strategy=PlacementGroupSchedulingStrategy(self.places, number // plan.ranks_a_node),
            ).remote(Member(number, plan.world, plan.threads), make)
            for number in range(plan.world)
        ]
        references = [one.whereabouts.remote() for one in self.actors]
        try:
            self.where = ray.get(references, timeout=STARTING_S)
        except GetTimeoutError as error:
            raise BackendError(
                f"the {plan.world} ranks did not start within {STARTING_S:.0f} s: `ray status` shows why they wait."
            ) from error
        except RayError as error:
            raise BackendError(f"a rank did not start: {_first_line(error)}") from error
        alone = len({one.host for one in self.where}) == 1
        address = "127.0.0.1" if alone else self.where[0].address
        port = self._get([self.actors[0].open_store.remote(address)], "meeting", STARTING_S)[0]
        self.call("join", lambda _: (address, port, plan.device, plan.patience), phase="meeting")

    def _reserve(self) -> None:
        """Take the places of all ranks at once.

        Raises:
            BackendError: the cluster has too few, or others hold them.
        """
        plan = self.plan
        kind, need = "GPU" if plan.device == "cuda" else "CPU", plan.ranks_a_node
        nodes = [(node["NodeManagerHostname"], node["Resources"].get(kind, 0)) for node in ray.nodes() if node["Alive"]]
        if sum(has >= need for _, has in nodes) < plan.nodes:
            listed = ", ".join(f"{host} {has:g}" for host, has in nodes)
            raise BackendError(
                f"{_counted(plan.nodes, 'node')} with {_counted(need, kind)} each are needed (trainer.nnodes, "
                f"trainer.n_gpus_per_node), and the Ray cluster's nodes have: {listed}. Lower one of the two, or let "
                "more nodes join; trainer.device=cpu makes each rank a process on CPUs."
            )
        bundle = {"CPU": need} | ({"GPU": need} if kind == "GPU" else {})
        strategy = "STRICT_PACK" if plan.nodes == 1 else "STRICT_SPREAD"
        self.places = placement_group([bundle] * plan.nodes, strategy=strategy)
        if not self.places.wait(PLACING_S):
            raise BackendError(
                f"the places of {plan.world} ranks were not free within {PLACING_S:.0f} s: other work in this Ray "
                f"cluster holds its CPUs or GPUs, of which each rank needs one (`ray status` shows it)."
            )

    def call(self, method: str, arguments: Callable[[int], tuple[Any, ...]], *, phase: str) -> list[Any]:
        """See `Ranks`."""
        self._refuse_if_broken(phase)
        references = [getattr(a, method).remote(*arguments(number)) for number, a in enumerate(self.actors)]
        return self._get(references, phase)

    def call_aside(self, method: str, *arguments: Any, phase: str) -> None:
        """See `Ranks`."""
        self._refuse_if_broken(phase)
        calls = [getattr(a, method).options(concurrency_group="files").remote(*arguments) for a in self.actors]
        for number, reference in enumerate(calls):
            try:
                ray.get(reference)
            except RayActorError as error:
                raise self._failed({number: error}, phase) from error
            except RayTaskError as error:
                raise error.cause from error  # this rank's alone, for example of its disk

    def stream(
        self, method: str, arguments: Callable[[int], tuple[Any, ...]], *, phase: str
    ) -> Iterator[tuple[int, Any]]:
        """See `Ranks`."""
        self._refuse_if_broken(phase)
        generators = {
            getattr(a, method).options(num_returns="streaming").remote(*arguments(number)): number
            for number, a in enumerate(self.actors)
        }
        watch = _Watch(self)
        while generators:
            ready, _ = ray.wait(list(generators), num_returns=1, timeout=PULSE_S, fetch_local=False)
            watch.look(phase)
            for generator in ready:
                number = generators[generator]
                try:
                    yield number, self._read(next(generator), number, phase)
                except StopIteration:
                    del generators[generator]

    def _read(self, reference: Any, number: int, phase: str) -> Any:
        try:
            return ray.get(reference)
        except RayError as error:
            raise self._failed({number: error}, phase) from error

    def _get(self, references: Sequence[Any], phase: str, limit: float | None = None) -> list[Any]:
        """The results, while everyone is watched."""
        waiting, results = dict(enumerate(references)), dict[int, Any]()
        failures: dict[int, RayError] = {}
        watch, began, failed_at = _Watch(self), time.monotonic(), None
        while waiting:
            ready, _ = ray.wait(list(waiting.values()), num_returns=1, timeout=SETTLE_S if failures else PULSE_S)
            for number in [n for n, reference in waiting.items() if reference in ready]:
                try:
                    results[number] = ray.get(waiting.pop(number))
                except RayError as error:
                    failures[number] = error
                    failed_at = failed_at or time.monotonic()
            if failed_at is not None and time.monotonic() - failed_at > SETTLE_S:
                break
            if not failures:
                watch.look(phase)
            if limit is not None and time.monotonic() - began > limit:
                raise self._lost(f"no answer within {limit:.0f} s", phase)
        if failures:
            raise self._failed(failures, phase) from next(iter(failures.values()))
        return [results[number] for number in range(len(references))]

    def _failed(self, failures: dict[int, RayError], phase: str) -> GmpoError:
        """The error to report: a rank's end before what it caused in others, our own kinds before a lost connection."""
        for number, error in failures.items():
            if isinstance(error, RayActorError):
                return self._lost(f"{self._named(number)} died", phase)
        # Others may only have noticed that one is gone, which is not known yet.
        causes = {n: error.cause if isinstance(error, RayTaskError) else error for n, error in failures.items()}
        gone, silent = self._gone()
        if gone:
            return self._lost(f"{self._named(gone[0])} died", phase)
        if silent and not any(isinstance(cause, GmpoError) for cause in causes.values()):
            # The others waited for it in a collective for as long as they may, and were heard before the watch was.
            patience = self.plan.patience
            return self._lost(f"{self._named(silent[0])} has given no sign of life for {patience:.0f} s", phase)
        self.broken = f"an earlier call failed ({phase})"
        for number, cause in causes.items():
            if isinstance(cause, GmpoError):
                cause.add_note(str(self._named(number)))
                return cause
        number, cause = next(iter(causes.items()))
        return BackendError(f"{self._named(number)} failed while {phase}: {_first_line(cause)}")

    def _gone(self) -> tuple[list[int], list[int]]:
        """The ranks that are dead, and those that live and do not answer."""
        gone, silent = [], []
        for number, actor in enumerate(self.actors):
            try:
                ray.get(actor.pulse.options(concurrency_group="pulse").remote(), timeout=SETTLE_S)
            except GetTimeoutError:
                silent.append(number)
            except RayError:
                gone.append(number)
        return gone, silent

    def _lost(self, what: str, phase: str) -> LostRankError:
        self.broken = what
        return LostRankError(f"{what} while {phase}; a run cannot go on without one of its ranks.")

    def _named(self, number: int) -> str:
        return str(self.where[number]) if number < len(self.where) else f"rank {number}"

    def _refuse_if_broken(self, phase: str) -> None:
        if self.broken is not None:
            raise LostRankError(f"{phase}: the ranks are not usable any more, because {self.broken}.")

    def close(self) -> None:
        """See `Ranks`."""
        actors, self.actors = self.actors, []
        if actors and self.broken is None:
            with contextlib.suppress(RayError):
                ray.get([one.leave.remote() for one in actors], timeout=20.0)
        self.broken = self.broken or "they were closed"
        for one in actors:
            with contextlib.suppress(RayError):
                ray.kill(one)
        for one in self.where:  # Ray does not end a process that was stopped
            if one.host == socket.gethostname():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(one.pid, signal.SIGKILL)
        if self.places is not None:
            with contextlib.suppress(RayError):
                remove_placement_group(self.places)
            self.places = None
        if self.started:
            self.started = False
            ray.shutdown()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None


class _Watch:
    """Signs of life, while something is awaited."""

    def __init__(self, ranks: RayRanks) -> None:
        self.ranks = ranks
        now = time.monotonic()
        self.asked = now
        self.seen = dict.fromkeys(range(len(ranks.actors)), now)
        self.open: dict[Any, int] = {}

    def look(self, phase: str) -> None:
        """Ask again where it is time to, and take in what was answered.

        Raises:
            BackendError: a rank is dead, or has been silent for too long.
        """
        now = time.monotonic()
        if self.open:
            ready, _ = ray.wait(list(self.open), num_returns=len(self.open), timeout=0)
            for reference in ready:
                number = self.open.pop(reference)
                try:
                    ray.get(reference)
                except RayError as error:
                    raise self.ranks._failed({number: error}, phase) from error
                self.seen[number] = now
        if now - self.asked >= PULSE_S:
            self.asked = now
            waiting = set(self.open.values())
            for number, actor in enumerate(self.ranks.actors):
                if number not in waiting:
                    self.open[actor.pulse.options(concurrency_group="pulse").remote()] = number
        # A question is answered at the next look at the earliest: silence counts from the last answer.
        silent = [number for number, seen in self.seen.items() if now - seen > self.ranks.plan.patience]
        if silent:
            named = self.ranks._named(silent[0])
            patience = self.ranks.plan.patience
            raise self.ranks._lost(f"{named} has given no sign of life for {patience:.0f} s", phase)


def _knock(address: str) -> None:
    """Raises OSError: nobody listens at `host:port`, for which Ray would wait without an end."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCKING_S).close()


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
