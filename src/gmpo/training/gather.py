"""The groups of a training step: rounds of sampling, until there are enough groups that can teach something."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gmpo.data.problems import Problem
from gmpo.errors import CheckpointError, DataError
from gmpo.ports import Step
from gmpo.records.rollout import Graded, Group, group_records, groups_from_records, number_of, numbers_of
from gmpo.rewards.verdict import Verdict
from gmpo.training.interrupt import StepAbandonedError
from gmpo.training.pass_rates import PassRates
from gmpo.training.producer import Producer
from gmpo.training.state import GATHER, PartState


@dataclass(frozen=True, slots=True)
class GroupFilter:
    """DAPO's dynamic sampling (arXiv 2503.14476, section 3.2): only groups whose answers differ fill the batch."""

    metric: str
    """What must differ: `acc`, `score` (the scorer's), `seq_reward` (after shaping), or any other of `number_of`."""
    max_rounds: int
    """Rounds of sampling within a step, after which the run stops; 0 or less sets no limit."""
    max_staleness: int
    """Training steps that a surplus group may wait for its turn; 0 discards what a step does not need."""


@dataclass(frozen=True, slots=True)
class StepGroups:
    """The groups that a step learns from."""

    groups: Sequence[Group]
    metrics: Mapping[str, float]


class Gather:
    """The groups of each step, out of the rounds of a producer.

    Args:
        groups: groups a step needs.
        group_filter: None takes every group of one round.
        stopping: whether the user asked for the end, looked at between two rounds.
    """

    def __init__(
        self,
        producer: Producer,
        history: PassRates,
        *,
        groups: int,
        group_filter: GroupFilter | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.producer = producer
        self.history = history
        self.groups = groups
        self.filter = group_filter
        self.stopping = stopping
        self._by_id = {item.problem.id: item for item in producer.stream.problems}
        self._waiting: list[Group] = []

    def __call__(self, step: int, rec: Step) -> StepGroups:
        """The groups of the step after `step` steps; times the phases `gen` and `reward` on `rec`.

        Raises:
            DataError: the limit of rounds is reached, or a whole pass over the data since the last group that teaches
                something holds no other.
            StepAbandonedError: the user asked for the end, and a round did not suffice.
        """
        waiting, useful = self._waiting, self.producer.position
        sampled, kept = list[Group](), [group for group in waiting if self._fresh(group, step)]
        expired = len(waiting) - len(kept)
        rounds = 0
        while len(kept) < self.groups:
            if self.filter is not None:
                self._check_limits(rounds, self.producer.position - useful, sampled, kept)
            if rounds and self.stopping():
                raise StepAbandonedError
            found = self.producer.next_round(rec)
            sampled += found
            new = [group for group in found if self.filter is None or varies(group, self.filter.metric)]
            kept += new
            useful = self.producer.position if new else useful
            rounds += 1
        surplus = kept[self.groups :]
        self._waiting = [group for group in surplus if self._fresh(group, step + 1)]
        if sampled:
            self.history.record(step + 1, sampled)
        metrics: dict[str, float] = {"training/epoch": self.producer.epoch}
        if self.filter is not None:
            metrics |= {
                "train/num_gen_batches": rounds,
                "train/sampled_groups": len(sampled),
                "train/dropped_groups": len(sampled) + len(waiting) - expired - len(kept),
                "train/reused_groups": min(len(waiting) - expired, self.groups),
                "train/waiting_groups": len(self._waiting),
                "train/discarded_groups": expired + len(surplus) - len(self._waiting),
            }
            if sampled:
                metrics["train/sampled_pass_rate"] = sum(map(pass_rate, sampled)) / len(sampled)
        self.producer.run_ahead(rec)
        return StepGroups(kept[: self.groups], metrics)

    def state(self) -> PartState:
        """The groups that wait for a later step."""
        records, arrays = group_records(self._waiting)
        return PartState({"waiting": records}, arrays)

    def restore(self, state: PartState) -> None:
        """Raises CheckpointError for groups that cannot be read, or whose problems are not there any more."""
        state.check_format(GATHER, known=1)
        try:
            self._waiting = groups_from_records(state.values["waiting"], state.arrays, self._asked)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint's waiting groups cannot be read: {error!r}") from error

    def _asked(self, problem_id: str) -> tuple[Problem, tuple[int, ...]]:
        item = self._by_id[problem_id]
        return item.problem, item.prompt_ids

    def _fresh(self, group: Group, step: int) -> bool:
        """Whether a waiting group may be learned from in the step after `step`."""
        assert self.filter is not None, "only a filter leaves a surplus"
        return step - group.graded[0].completion.weight_versions[0] <= self.filter.max_staleness

    def _check_limits(self, rounds: int, asked: int, sampled: Sequence[Group], kept: Sequence[Group]) -> None:
        assert self.filter is not None
        useless = asked >= self.producer.stream.epoch_length
        if useless or 0 < self.filter.max_rounds <= rounds:
            limit = "a whole pass over the data" if useless else f"max_num_gen_batches={rounds} rounds of sampling"
            raise DataError(_too_few_message(limit, self.filter.metric, self.groups, sampled, kept))


def varies(group: Group, metric: str) -> bool:
    """Whether the answers of a group differ in `metric`. A group of one has nothing to compare, and is kept."""
    return len(group.graded) == 1 or len({_value(graded, metric, group) for graded in group.graded}) > 1


def _value(graded: Graded, metric: str, group: Group) -> float:
    value = number_of(graded, metric)
    if value is None:
        raise DataError(
            f"algorithm.filter_groups.metric={metric}: the grading of an answer to {group.problem.id} gives no such "
            f"number. There are {', '.join(numbers_of(graded))}."
        )
    return value


def pass_rate(group: Group) -> float:
    """Share of right answers."""
    return sum(graded.grade.verdict == Verdict.CORRECT for graded in group.graded) / len(group.graded)


_BINS = ("none right", "up to 1/4", "up to 1/2", "up to 3/4", "below 1", "all right")


def histogram(groups: Sequence[Group]) -> str:
    """The pass rates of groups as a table for people, a line for each range."""
    counts = dict.fromkeys(_BINS, 0)
    for group in groups:
        rate = pass_rate(group)
        inner = min(4, 1 + int(rate * 4 - 1e-9))  # (0, 1/4] -> 1, .. (3/4, 1) -> 4
        counts[_BINS[0 if rate == 0 else 5 if rate == 1 else inner]] += 1
    widest = max(1, *counts.values())
    bars = ((name, count, "#" * round(30 * count / widest)) for name, count in counts.items())
    return "\n".join(f"  {name:<10} {count:>6}  {bar}".rstrip() for name, count, bar in bars)


def _too_few_message(limit: str, metric: str, needed: int, sampled: Sequence[Group], kept: Sequence[Group]) -> str:
    none, all_ = (sum(pass_rate(g) == rate for g in sampled) for rate in (0.0, 1.0))
    hard = "too hard: give easier ones, more tokens (data.max_response_length) or a stronger model"
    easy = "too easy: give harder ones"
    return (
        f"{limit} gave {len(kept)} groups whose answers differ in {metric}, and a step needs {needed} "
        f"(algorithm.filter_groups). Share of right answers in the {len(sampled)} groups sampled:\n{histogram(sampled)}"
        f"\nThe problems are mostly {hard if none >= all_ else easy}. More answers to each problem (rollout.n) make "
        "differences likelier; data.pass_rate_range leaves out what is known to be solved or hopeless; a higher "
        "algorithm.filter_groups.max_num_gen_batches goes on longer. Checkpoints are intact."
    )
