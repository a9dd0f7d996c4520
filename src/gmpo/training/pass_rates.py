"""The history of pass rates: how often each problem was solved when it was last asked.

One line a step in `pass_rates.jsonl` of the run folder: `{"step": 3, "rates": {"<problem>": [right, answers], ..}}`. A
problem goes by a hash of what it asks and expects, so that another run with other files finds it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from gmpo.data.problems import Problem
from gmpo.data.prompts import EncodedProblem
from gmpo.errors import DataError
from gmpo.records.durable import write_atomically
from gmpo.records.rollout import Group
from gmpo.records.run_folder import PASS_RATES, json_lines, read_pass_rates, set_aside_unreadable
from gmpo.rewards.verdict import Verdict
from gmpo.training.checkpoint import content_hash


class PassRates:
    """Remembers pass rates and says which problems are still worth asking. A sink of the run, so that a resumed run
    forgets what happened beyond its checkpoint.

    Args:
        file: where this run's history is kept.
        problems: all that may be asked.
        bounds: the lowest and highest pass rate of a problem that is asked again; None asks all.
        earlier: the history, or the folder, of an earlier run to begin with.
        say: receives a line for the user where lines are damaged.
        append: puts bytes at the end of a file.

    Raises:
        DataError: the earlier history cannot be read.
    """

    def __init__(
        self,
        file: Path,
        problems: Iterable[Problem],
        *,
        bounds: tuple[float, float] | None = None,
        earlier: Path | None = None,
        say: Callable[[str], object] = print,
        append: Callable[[Path, bytes], object] | None = None,
    ) -> None:
        self.file = file
        self.say = say
        self._append = append or _append
        self.bounds = bounds
        self._keys = {problem.id: content_hash([problem]) for problem in problems}
        self._before = {} if earlier is None else _read_earlier(earlier)
        self._rates = dict(self._before)

    def start(self, step: int) -> None:
        """The run goes on after `step`: later lines are dropped, their steps happen again."""
        self._rates = dict(self._before)
        if step == 0 or not self.file.is_file():
            self.file.unlink(missing_ok=True)
            return
        set_aside_unreadable(self.file, "rates", self.say)
        read = zip(json_lines(self.file), read_pass_rates(self.file), strict=True)
        kept = [(line, rates) for (line, _), (number, rates) in read if number <= step]
        write_atomically(self.file, "".join(f"{line}\n" for line, _ in kept))
        for _, rates in kept:
            self._rates |= rates

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics go to the other sinks."""

    def close(self) -> None:
        """Nothing is open."""

    def record(self, step: int, groups: Sequence[Group]) -> None:
        """Keep the pass rates of what was sampled for training step `step`."""
        rates = {self._keys[group.problem.id]: _rate(group) for group in groups}
        self._rates |= rates
        counts = {key: [right, answers] for key, (right, answers) in rates.items()}
        self._append(self.file, (json.dumps({"step": step, "rates": counts}) + "\n").encode())

    def wanted(self, item: EncodedProblem) -> bool:
        """Whether the problem's last pass rate is within bounds; a problem that was never asked is wanted."""
        rate = self._rates.get(self._keys[item.problem.id])
        if self.bounds is None or rate is None:
            return True
        low, high = self.bounds
        right, answers = rate
        return low * answers <= right <= high * answers


def _append(file: Path, data: bytes) -> None:
    with file.open("ab") as out:
        out.write(data)


def _rate(group: Group) -> tuple[int, int]:
    """Right answers and judged ones; a timeout or an error of the grader says nothing about the problem."""
    verdicts = [graded.grade.verdict for graded in group.graded]
    judged = [v for v in verdicts if v not in (Verdict.TIMEOUT, Verdict.GRADER_ERROR)]
    return judged.count(Verdict.CORRECT), len(judged)


def _read_earlier(place: Path) -> dict[str, tuple[int, int]]:
    file = place / PASS_RATES if place.is_dir() else place
    if not file.is_file():
        raise DataError(
            f"data.pass_rate_history={place}: there is no {PASS_RATES}. Name the folder of an earlier run, or the file."
        )
    rates: dict[str, tuple[int, int]] = {}
    for _, found in read_pass_rates(file):
        rates |= found
    if not rates:
        raise DataError(f"data.pass_rate_history={place}: {file.name} holds no pass rates")
    return rates
