"""The groups of a training step: problems -> answers -> grades, over again until enough groups can teach something."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gmpo.data.problems import ProblemStream
from gmpo.data.prompts import EncodedProblem
from gmpo.errors import CheckpointError, DataError
from gmpo.ports import SamplingParams, Step
from gmpo.records.rollout import Graded, Group, group_from_record, group_record
from gmpo.rewards.verdict import Verdict
from gmpo.training.checkpoint import State
from gmpo.training.collect import TRAINING, Collector
from gmpo.training.pass_rates import PassRates


@dataclass(frozen=True, slots=True)
class GroupFilter:
    """DAPO's dynamic sampling (arXiv 2503.14476, section 3.2): only groups whose answers differ fill the batch."""

    metric: str
    """What must differ: `acc`, `score` (the scorer's), `seq_reward` (after shaping), or a number in `Grade.extra`."""
    max_rounds: int
    """Rounds of sampling within a step, after which the run stops; 0 or less sets no limit."""
    max_staleness: int
    """Training steps that a surplus group may wait for its turn; 0 discards what a step does not need."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a step learns from, and how the next one goes on."""

    groups: Sequence[Group]
    position: int
    """Position in the stream of problems behind the last one asked."""
    surplus: tuple[Mapping[str, Any], ...]
    """Groups for a later step, as `group_record` writes them."""
    metrics: Mapping[str, float]


class Gather:
    """Samples and grades the groups of a step.

    Args:
        stream: the problems; its batches are what one round asks.
        groups: groups a step needs.
        group_filter: None takes every group of one round.
        greedy_baseline: also draw the greedy answer to each problem.
    """

    def __init__(
        self,
        collector: Collector,
        stream: ProblemStream[EncodedProblem],
        params: SamplingParams,
        history: PassRates,
        *,
        groups: int,
        group_filter: GroupFilter | None = None,
        greedy_baseline: bool = False,
    ) -> None:
        self.collector = collector
        self.stream = stream
        self.params = params
        self.history = history
        self.groups = groups
        self.filter = group_filter
        self.greedy_baseline = greedy_baseline
        self._by_id = {item.problem.id: item for item in stream.problems}

    def __call__(self, state: State, rec: Step) -> Gathered:
        """The groups of the step after `state`; times the phases `gen` and `reward` on `rec`.

        Raises:
            DataError: the limit of rounds is reached, or a whole pass over the data holds nothing to learn.
        """
        waiting = self._restore(state.surplus)
        position, sampled, kept = state.position, list[Group](), [g for g in waiting if self._fresh(g, state.step)]
        expired = len(waiting) - len(kept)
        rounds = 0
        while len(kept) < self.groups:
            if self.filter is not None:
                self._check_limits(rounds, position - state.position, sampled, kept)
            problems, position = self.stream.draw(position, self.history.wanted)
            found = self._round(problems, state.step, first=len(sampled), rec=rec)
            sampled += found
            kept += [group for group in found if self.filter is None or varies(group, self.filter.metric)]
            rounds += 1
        surplus = kept[self.groups :]
        later = [g for g in surplus if self._fresh(g, state.step + 1)]
        if sampled:
            self.history.record(state.step + 1, sampled)
        metrics: dict[str, float] = {"training/epoch": self.stream.epoch_of(max(0, position - 1))}
        if self.filter is not None:
            metrics |= {
                "train/num_gen_batches": rounds,
                "train/sampled_groups": len(sampled),
                "train/dropped_groups": len(sampled) + len(waiting) - expired - len(kept),
                "train/reused_groups": min(len(waiting) - expired, self.groups),
                "train/waiting_groups": len(later),
                "train/discarded_groups": expired + len(surplus) - len(later),
            }
            if sampled:
                metrics["train/sampled_pass_rate"] = sum(map(pass_rate, sampled)) / len(sampled)
        return Gathered(kept[: self.groups], position, tuple(map(group_record, later)), metrics)

    def _round(self, problems: Sequence[EncodedProblem], step: int, *, first: int, rec: Step) -> list[Group]:
        with rec.time("gen"):
            phase = self.collector.begin(
                self.params, namespace=TRAINING, step=step, greedy_baseline=self.greedy_baseline
            )
            phase.sample(problems, first=first)
        with rec.time("reward"):
            return phase.groups()

    def _fresh(self, group: Group, step: int) -> bool:
        """Whether a waiting group may be learned from in the step after `step`."""
        assert self.filter is not None, "only a filter leaves a surplus"
        return step - group.graded[0].completion.weight_versions[0] <= self.filter.max_staleness

    def _restore(self, records: Sequence[Mapping[str, Any]]) -> list[Group]:
        try:
            items = [self._by_id[record["problem"]] for record in records]
            return [group_from_record(r, i.problem, i.prompt_ids) for r, i in zip(records, items, strict=True)]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint's waiting groups cannot be read: {error!r}") from error

    def _check_limits(self, rounds: int, asked: int, sampled: Sequence[Group], kept: Sequence[Group]) -> None:
        assert self.filter is not None
        useless = asked >= self.stream.epoch_length and not kept
        if useless or 0 < self.filter.max_rounds <= rounds:
            limit = "a whole pass over the data" if useless else f"max_num_gen_batches={rounds} rounds of sampling"
            raise DataError(_too_few_message(limit, self.filter.metric, self.groups, sampled, kept))


def varies(group: Group, metric: str) -> bool:
    """Whether the answers of a group differ in `metric`. A group of one has nothing to compare, and is kept."""
    return len(group.graded) == 1 or len({_value(graded, metric, group) for graded in group.graded}) > 1


_OF_ANSWER: Mapping[str, Callable[[Graded], float]] = {
    "score": lambda graded: graded.grade.score,
    "seq_reward": lambda graded: graded.reward,
    "seq_final_reward": lambda graded: graded.reward,
}
"""verl's names of metrics -> value. No KL penalty is in the rewards here, so the last two are one."""


def _value(graded: Graded, metric: str, group: Group) -> float:
    if metric in _OF_ANSWER:
        return _OF_ANSWER[metric](graded)
    if metric == "acc" and metric not in graded.grade.extra:
        return float(graded.grade.verdict == Verdict.CORRECT)
    value = graded.grade.extra.get(metric)
    if isinstance(value, bool | int | float):
        return float(value)
    numbers = [name for name, extra in graded.grade.extra.items() if isinstance(extra, bool | int | float)]
    raise DataError(
        f"algorithm.filter_groups.metric={metric}: the grading of an answer to {group.problem.id} gives no such "
        f"number. There are {', '.join(dict.fromkeys(['acc', 'score', 'seq_reward', *numbers]))}."
    )


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
