"""The tracker of a run: times phases, gathers metrics, keeps samples, and hands all of it to the sinks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.profiler import record_function

from gmpo.errors import BackendError
from gmpo.ports import Update
from gmpo.records.activity import Activity
from gmpo.records.batch import Batch
from gmpo.records.rollout import Graded, Group
from gmpo.rewards.verdict import Verdict
from gmpo.tracking.alarms import Alarms
from gmpo.tracking.held import HeldRecords
from gmpo.tracking.memory import peak_memory
from gmpo.tracking.sinks import Sink

PHASE = "phase "
"""What the names of phases begin with in a profiler's trace."""
UNJUDGED = (Verdict.TIMEOUT, Verdict.GRADER_ERROR)


@dataclass(frozen=True, slots=True)
class SamplePolicy:
    """Which samples are written."""

    groups: int
    """Groups per step whose answers and verdicts are written; -1 all. Answers without a judgement always are."""
    token_groups: int
    """Of these, groups that also carry token ids, log-probs, advantages and the mask of clipped tokens: see
    `token_groups`."""


class StepRecord:
    """A `gmpo.ports.Step`."""

    def __init__(self, number: int, write_samples: SampleWriter, activity: Activity | None = None) -> None:
        self.number = number
        self.activity = activity or Activity()
        self.metrics: dict[str, float] = {}
        self._write_samples = write_samples

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        self.activity.phase = phase
        with record_function(PHASE + phase):  # costs microseconds where no profiler runs
            yield
        name = f"timing_s/{phase}"
        self.metrics[name] = self.metrics.get(name, 0.0) + time.perf_counter() - start

    def add(self, metrics: Mapping[str, float]) -> None:
        self.metrics.update(metrics)

    def samples(self, groups: Sequence[Group], batch: Batch, minis: Sequence[Batch], updates: Sequence[Update]) -> None:
        self._write_samples.training(self.number, groups, batch, minis, updates)

    def nonfinite(self, groups: Sequence[Group], minis: Mapping[int, Batch]) -> str:
        file = self._write_samples.nonfinite(self.number, groups, minis)
        return f"The answers of that update: {file}."

    def failed(self, answers: Sequence[Mapping[str, Any]]) -> str:
        file = self._write_samples.failed(self.number, answers)
        return f"The answers, with what the grader said of each: {file}."


class SampleWriter:
    """Samples as JSON lines, one file a step."""

    def __init__(
        self,
        folder: Path,
        policy: SamplePolicy,
        *,
        all_training: Path | None,
        all_validation: Path | None,
        held: HeldRecords | None = None,
    ) -> None:
        self.folder = folder
        self.policy = policy
        self.all_training = all_training
        self.all_validation = all_validation
        self.held = held or HeldRecords()

    def training(
        self, step: int, groups: Sequence[Group], batch: Batch, minis: Sequence[Batch], updates: Sequence[Update]
    ) -> None:
        chosen = token_groups(batch, minis, updates, self.policy.token_groups)
        tokens = _token_records(batch, minis, updates, chosen)
        others = [index for index in range(len(groups)) if index not in chosen]
        kept = {*chosen, *others[: max(0, self.policy.groups - len(chosen))]}
        rows: list[dict[str, Any]] = []
        everything: list[dict[str, Any]] = []
        row = 0
        for index, group in enumerate(groups):
            for number, graded in enumerate(group.graded):
                record = _sample(step, group, number, graded)
                everything.append(record)
                if self.policy.groups < 0 or index in kept or graded.grade.verdict in UNJUDGED:
                    rows.append({**record, **tokens.get(row, {})})
                row += 1
        self._write(self.folder / "samples" / f"{step}.jsonl", rows)
        if self.all_training is not None:
            self._write(self.all_training / f"{step}.jsonl", everything)

    def failed(self, step: int, answers: Sequence[Mapping[str, Any]]) -> Path:
        """The answers of a step that ended in their grading; beside those of finished steps."""
        file = self.folder / "samples" / f"{step}.failed.jsonl"
        self._write(file, [{"step": step, **answer} for answer in answers])
        return file

    def nonfinite(self, step: int, groups: Sequence[Group], minis: Mapping[int, Batch]) -> Path:
        """The answers of updates whose gradient was not finite, by the update's number."""
        flat = [(group, number, graded) for group in groups for number, graded in enumerate(group.graded)]
        rows = []
        for update, mini in minis.items():
            tokens = _token_records(mini, [], [], range(int(mini.group.max()) + 1))
            for place, row in enumerate(mini.index.tolist()):
                group, number, graded = flat[row]
                rows.append({**_sample(step, group, number, graded), "update": update, **tokens.get(place, {})})
        file = self.folder / "samples" / f"{step}.nonfinite.jsonl"
        self._write(file, rows)
        return file

    def validation(self, step: int, groups: Sequence[Group]) -> None:
        records = [(i, _sample(step, g, k, a)) for i, g in enumerate(groups) for k, a in enumerate(g.graded)]
        limit = self.policy.groups if self.policy.groups >= 0 else len(groups)
        kept = [r for i, r in records if i < limit or r["verdict"] in UNJUDGED]
        self._write(self.folder / "validation" / f"{step}.jsonl", kept)
        if self.all_validation is not None:
            self._write(self.all_validation / f"{step}.jsonl", [r for _, r in records])

    def _write(self, file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with recording(str(file)):
            # Half of a surrogate pair, which a reward function may return, becomes the escape that JSON has for it.
            self.held.write(file, lines.encode(errors="backslashreplace"))


def _sample(step: int, group: Group, number: int, graded: Graded) -> dict[str, Any]:
    """A sample as people and later tools read it; `input`, `output`, `gts`, `score` are verl's names."""
    return {
        "step": step,
        "problem": group.problem.id,
        "answer": number,
        "data_source": group.problem.data_source,
        "input": [dict(m) for m in group.problem.prompt],
        "output": graded.text,
        "gts": group.problem.ground_truth,
        "score": graded.grade.score,
        "reward": graded.reward,
        **({"reward_parts": dict(graded.parts)} if graded.parts else {}),
        "verdict": str(graded.grade.verdict),
        "pred": graded.grade.pred,
        "reason": graded.grade.reason,
        "extra": dict(graded.grade.extra),
        "finish_reason": graded.completion.finish_reason,
        "tokens": len(graded.completion),
    }


def token_groups(batch: Batch, minis: Sequence[Batch], updates: Sequence[Update], count: int) -> list[int]:
    """The groups whose tokens are recorded: `count` at even distances over those that were computed, the last included,
    so that updates are among them in which the policy is no longer the one that sampled. Over all groups where fewer
    were computed.

    Example: 2 of 32 groups, all computed: 15 and 31.
    """
    rows = {row for mini, update in zip(minis, updates, strict=True) for row in mini.index[update.rows].tolist()}
    found = list(dict.fromkeys(g for row, g in enumerate(batch.group.tolist()) if row in rows))
    if len(found) < count:
        found = list(dict.fromkeys(batch.group.tolist()))
    count = min(count, len(found))
    return [found[(k + 1) * len(found) // count - 1] for k in range(count)]


def _token_records(
    batch: Batch, minis: Sequence[Batch], updates: Sequence[Update], groups: Sequence[int]
) -> dict[int, dict[str, Any]]:
    """Batch row -> what the learner computed for each token, for the rows of these groups.

    Lists have one entry for each real token of the response. Where some were not sampled, `sampled` has 0 for them, and
    their other entries mean nothing. `updates` lists each update that computed the row: log-probs before the update and
    the tokens a bound held.
    """
    wanted = [row for row, group in enumerate(batch.group.tolist()) if group in groups]
    records: dict[int, dict[str, Any]] = {}
    for row in wanted:
        n = int(batch.response_mask[row].sum())
        sampled = batch.sampled_mask[row, :n]
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]]
        records[row] = {
            "prompt_ids": prompt.tolist(),
            "response_ids": batch.response_ids[row, :n].tolist(),
            **({} if sampled.all() else {"sampled": sampled.int().tolist()}),
            "rollout_logp": batch.rollout_logp[row, :n].tolist(),
            "old_logp": None if batch.old_logp is None else batch.old_logp[row, :n].tolist(),
            "ref_logp": None if batch.ref_logp is None else batch.ref_logp[row, :n].tolist(),
            "advantage": None if batch.advantage is None else batch.advantage[row, :n].tolist(),
            "updates": [],
        }
    for number, (mini, update) in enumerate(zip(minis, updates, strict=True)):
        for position, row in enumerate(mini.index[update.rows].tolist()):
            if row in records:
                n = len(records[row]["response_ids"])
                held = update.clipped[position, :n] | update.clipped_lower[position, :n]
                records[row]["updates"].append(
                    {"update": number, "logp": update.logp[position, :n].tolist(), "bound": held.int().tolist()}
                )
    return records


@contextmanager
def recording(what: str) -> Iterator[None]:
    """Turn a failure to write `what` (a full disk, a folder without permission) into an error for the user."""
    try:
        yield
    except OSError as error:
        raise BackendError(
            f"cannot write {what}: {error}. The run stops here; complete checkpoints are intact. Free some space, and "
            "the same command goes on from the newest; without one it begins again."
        ) from error


@dataclass
class RunTracker:
    """A `gmpo.ports.Tracker`: every metric of a step goes to every sink when the step is complete."""

    sinks: list[Sink]
    writer: SampleWriter
    activity: Activity = field(default_factory=Activity)
    """What the run is doing: phases of the step move it, and so do samplers that it was given to."""
    alarms: Alarms | None = None
    """Looks at the metrics of each step before they are sent."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Metrics of every step of this process, in order; `training/global_step` numbers them."""

    def add(self, sink: Sink) -> None:
        """A further sink, before the start."""
        self.sinks.append(sink)

    def start(self, step: int) -> None:
        with recording("the records of the run"):
            for sink in self.sinks:
                sink.start(step)
            if self.alarms is not None:
                self.alarms.start(step)  # after damaged lines were put aside

    @contextmanager
    def step(self, number: int) -> Iterator[StepRecord]:
        record = StepRecord(number, self.writer, self.activity)
        start = time.perf_counter()
        yield record
        metrics = record.metrics
        metrics["training/global_step"] = number
        # Time and throughput are those of training alone: they must not depend on how often a run validates and saves.
        aside = sum(metrics.get(f"timing_s/{phase}", 0.0) for phase in ("testing", "save_checkpoint"))
        seconds = time.perf_counter() - start - aside
        metrics["timing_s/step"] = metrics["perf/time_per_step"] = seconds
        if "perf/total_num_tokens" in metrics:
            metrics["perf/throughput"] = metrics["perf/total_num_tokens"] / seconds
        metrics |= peak_memory()
        self._send(number, metrics)

    def sync(self) -> None:
        with recording("the records of the run"):
            self.writer.held.sync()

    def validation(self, step: int, metrics: Mapping[str, float]) -> None:
        if metrics:
            self._send(step, {**metrics, "training/global_step": step})

    def _send(self, step: int, metrics: Mapping[str, float]) -> None:
        metrics = {**metrics, **({} if self.alarms is None else self.alarms.look(step, metrics))}
        self.history.append(dict(metrics))
        self.activity.phase = ""
        with recording(f"the metrics of step {step}"):
            for sink in self.sinks:
                sink.write(step, metrics)

    def close(self) -> None:
        with recording("the last records of the run"), ExitStack() as stack:
            for sink in self.sinks:
                stack.callback(sink.close)
