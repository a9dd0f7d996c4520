"""The run folder: the names of everything in it, the record of the run, and readers. It needs no torch: a report, an
evaluation or a study reads a run with this module and nothing else.

    run.json                      what the run is and how far it came: `RunRecord`
    config.yaml, environment.json settings and machine of the newest leg, which is one start of the program
    legs/<k>/                     the same two files of every leg, counted from 1
    metrics.jsonl                 one line a step; *.jsonl.unreadable holds damaged lines that were put aside
    pass_rates.jsonl              one line a step: right and judged answers by problem
    samples/<step>.jsonl          answers of a training step
    validation/<step>.jsonl       answers of the validation after a step
    graders.log                   what reward functions print, if anything; only added to, up to 10 MiB
    val_only/<k>/                 a validation on its own (`trainer.val_only`): its settings, metrics and answers
    tensorboard/                  events
    global_step_<N>/              checkpoints; latest_checkpointed_iteration.txt names the newest
    huggingface/                  the trained model
    .lock                         held by the process that writes here
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from gmpo.errors import BackendError, DataError
from gmpo.records.durable import UNFINISHED, write_atomically
from gmpo.version import __version__

FORMAT = 1
"""Of `run.json`. A reader refuses a later one, and names the version that wrote it."""

RUN, CONFIG, ENVIRONMENT, LEGS = "run.json", "config.yaml", "environment.json", "legs"
METRICS, PASS_RATES, SAMPLES, VALIDATION = "metrics.jsonl", "pass_rates.jsonl", "samples", "validation"
VAL_ONLY, TENSORBOARD, MODEL = "val_only", "tensorboard", "huggingface"
GRADERS = "graders.log"
CHECKPOINT, LATEST, STATE = "global_step_", "latest_checkpointed_iteration.txt", "state.json"
LOCK, UNREADABLE = ".lock", ".unreadable"
KILLED = "it ended without a word: killed, or the machine went down"

Program = Literal["train", "sft"]
Status = Literal["running", "finished", "interrupted", "failed"]


RankPlace = Mapping[str, int | str]
"""Where one of several ranks is: `{"rank": 0, "host": "node-1", "pid": 4711}`; one process has none."""


Alarm = Mapping[str, int | str]
"""What looked wrong while the run went on: `{"step": 40, "name": "entropy", "text": ".."}`."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting, or the content behind one, that is not what it was. Example: `Difference("optim.lr", 1e-6, 5e-6)`."""

    key: str
    then: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.then)} -> {_shown(self.now)}"


def _shown(value: Any) -> str:
    return "null" if value is None else json.dumps(value, ensure_ascii=False, default=str)


@dataclass(frozen=True, slots=True)
class Leg:
    """One start of the program in this folder."""

    number: int
    """From 1; `legs/<number>/` has its settings and its environment."""
    start: int
    """Training steps that were done when it began."""
    steps: int
    """Training steps that were done when it ended; while it runs, `start`."""
    status: Status
    reason: str = ""
    """Why it failed or was interrupted."""
    checkpoint: str | None = None
    """The checkpoint it went on from; None where it began with the base model."""
    differences: tuple[Difference, ...] = ()
    """What differs from the leg before, of any class."""
    exact: bool = True
    """It computes what the leg before would have computed, bit for bit."""
    ranks: tuple[RankPlace, ...] = ()
    gmpo: str = __version__


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What `run.json` holds. Settings are of the newest leg, by path: `{"data.train_batch_size": 64, ..}`."""

    program: Program
    status: Status
    """`running` with a free lock (`is_open`) means that the process was killed."""
    steps: int
    """Training steps done. While the run is running, those of the newest line of metrics.jsonl."""
    total_steps: int
    identity: Mapping[str, Any]
    """Settings that decide what is learned."""
    execution: Mapping[str, Any]
    """Settings that decide where and how it is computed."""
    bookkeeping: Mapping[str, Any]
    """Settings that decide what is recorded and when the run ends."""
    idle: Mapping[str, Any]
    """Settings that have no effect in this configuration."""
    content: Mapping[str, Any]
    """What the settings' paths led to: hashes of the base model, the tokenizer, the problems, reward functions."""
    reason: str = ""
    """Why the run failed or was interrupted."""
    origin: str | None = None
    """The checkpoint of another run that this one began with (`trainer.resume_from_path`)."""
    legs: tuple[Leg, ...] = ()
    outside: tuple[str, ...] = ()
    """Files and folders elsewhere to which the run records, for example `trainer.rollout_data_dir`."""
    alarms: tuple[Alarm, ...] = ()
    """The first step of each alarm in each leg."""
    gmpo: str = __version__
    """The version that wrote the record."""
    format: int = FORMAT

    def with_leg(self, leg: Leg) -> RunRecord:
        """The same run with `leg` in the place of the one of its number, and the status of that leg."""
        others = tuple(known for known in self.legs if known.number != leg.number)
        return replace(self, legs=(*others, leg), status=leg.status, reason=leg.reason, steps=leg.steps)


def read_run(folder: Path) -> RunRecord | None:
    """The record of the run in a folder; None where there is no `run.json`.

    Raises:
        DataError: it is no record, or one of a later version of gmpo.
    """
    file = folder / RUN
    if not file.is_file():
        return None
    try:
        text = file.read_bytes().decode("utf-8")
    except OSError as error:
        raise DataError(
            f"{file}: cannot be read: {error.strerror}. What it holds may be whole, so leave it where it is: make it "
            "readable (permissions, the disk), and start again."
        ) from error
    except UnicodeDecodeError as error:
        raise _no_record(file, error) from error
    try:
        saved = json.loads(text)
        if saved["format"] > FORMAT:
            raise DataError(
                f"{file} was written by gmpo {saved['gmpo']} in format {saved['format']}; this is gmpo {__version__}, "
                f"which reads formats up to {FORMAT}. Use that version, or a later one."
            )
        legs = tuple(_leg(leg) for leg in saved.pop("legs"))
        tuples = {name: tuple(saved.get(name, ())) for name in ("outside", "alarms")}
        record = RunRecord(**{**saved, **tuples}, legs=legs)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _no_record(file, error) from error
    if record.status == "running":
        return replace(record, steps=max(record.steps, recorded_steps(folder)))
    return record


def _no_record(file: Path, error: Exception) -> DataError:
    return DataError(
        f"{file}: not the record of a run ({error!r}). Put it back from a copy; or move it away, and the next start "
        f"makes a new one from {CONFIG}, {LEGS}/, {METRICS} and the checkpoints."
    )


def ended(record: RunRecord) -> RunRecord:
    """The record of a run whose lock is free: what is still running there was killed."""
    if record.status != "running":
        return record
    legs = (replace(leg, steps=max(leg.steps, record.steps)) if leg.status == "running" else leg for leg in record.legs)
    killed = (replace(leg, status="failed", reason=KILLED) if leg.status == "running" else leg for leg in legs)
    return replace(record, status="failed", reason=KILLED, legs=tuple(killed))


def _leg(saved: Mapping[str, Any]) -> Leg:
    differences = tuple(Difference(**d) for d in saved["differences"])
    return Leg(**{**saved, "differences": differences, "ranks": tuple(saved.get("ranks", ()))})


def write_run(folder: Path, record: RunRecord) -> None:
    """Replace the record of the run: afterwards there is the new one or the old one, whole."""
    write_atomically(folder / RUN, json.dumps(asdict(record), indent=1, ensure_ascii=False) + "\n")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Nobody else writes to the run folder meanwhile. The lock ends with the process, however it ends; on a file system
    without locks nothing is locked.

    Raises:
        BackendError: another process has it.
    """
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock, fresh = FileLock(folder / LOCK), not (folder / LOCK).exists()
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BackendError(
            f"trainer.default_local_dir={folder}: another run writes there at this moment. Wait for its end, or name "
            "another folder."
        ) from error
    except NotImplementedError:  # what the library makes of ENOSYS
        pass
    try:
        yield
    finally:
        # A start that was refused leaves nothing behind; the lock goes while it is held.
        if fresh and [place.name for place in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
        lock.release()
        remove_empty(new)


def is_open(folder: Path) -> bool:
    """Whether a process writes to the folder at this moment."""
    if not (folder / LOCK).exists():
        return False
    try:
        with claimed(folder):
            return False
    except BackendError:
        return True


def checkpoints(folder: Path) -> dict[int, Path]:
    """Complete checkpoints by step, in rising order. One that is still being written goes by another name."""
    found = ((path.name.removeprefix(CHECKPOINT), path) for path in folder.glob(f"{CHECKPOINT}[0-9]*"))
    numbered = ((int(name), path) for name, path in found if name.isdecimal() and (path / STATE).is_file())
    return dict(sorted(numbered))


def what_remains(folder: Path) -> str:
    """What a run that ends at once can go on from, as a sentence."""
    if saved := checkpoints(folder):
        return f"The newest complete checkpoint is {saved[max(saved)]}: trainer.resume_mode=auto goes on from it."
    return f"There is no complete checkpoint in {folder} to go on from."


def has_model(folder: Path) -> bool:
    """Whether the trained model is there."""
    return (folder / MODEL / "config.json").is_file()


def holds_run(folder: Path) -> bool:
    """Whether the folder holds something of a run that could be lost: records, checkpoints or a model."""
    metrics = folder / METRICS
    recorded = metrics.is_file() and metrics.stat().st_size > 0
    answers = any(file.stem.isdecimal() for kind in (SAMPLES, VALIDATION) for file in (folder / kind).glob("*.jsonl"))
    return recorded or answers or has_model(folder) or bool(checkpoints(folder))


def as_others(folder: Path) -> None:
    """Give the files in a folder the permissions that new files get there (umask, default ACLs): some libraries write
    weights that nobody but the owner can read."""
    probe = folder / f"{UNFINISHED}mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)


def names_of_a_run(folder: Path, further: Iterable[str] = ()) -> list[str]:
    """What lies in a folder under the names that a run replaces or adds to; empty folders do not count."""
    own = (CONFIG, ENVIRONMENT, METRICS, PASS_RATES, LATEST, *further)
    folders = (LEGS, SAMPLES, VALIDATION, TENSORBOARD, MODEL, *(p.name for p in folder.glob(f"{CHECKPOINT}*")))
    files = [name for name in own if (folder / name).exists()]
    return files + [f"{name}/" for name in sorted(folders) if any((folder / name).glob("*"))]


def remove_empty(places: Iterable[Path]) -> None:
    """Remove those of the folders, the deepest first, that hold nothing."""
    for place in places:
        with suppress(OSError):
            place.rmdir()


def legs_kept(folder: Path) -> list[int]:
    """Numbers of the legs whose settings are there, in rising order."""
    return sorted(int(place.name) for place in (folder / LEGS).glob("*") if place.name.isdecimal())


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """A line of metrics.jsonl. Example: `StepMetrics(3, {"critic/score/mean": 0.5})`."""

    step: int
    """Training steps done; 0 before training."""
    values: Mapping[str, float] = field(default_factory=dict)


def read_metrics(folder: Path) -> Iterator[StepMetrics]:
    """The metrics of the run, in the order in which they were recorded."""
    for _, line in json_lines(folder / METRICS):
        try:
            yield StepMetrics(int(line["step"]), line["data"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder / METRICS}: a line without step and data ({error!r})") from error


def recorded_steps(folder: Path) -> int:
    """Training steps of the newest line of metrics.jsonl that can be read; 0 without one."""
    lines = _lines(folder / METRICS)
    return max((int(json.loads(line)["step"]) for line in lines if _is_of_step(line, "data")), default=0)


def set_aside_unreadable(file: Path, key: str, say: Callable[[str], object]) -> None:
    """Move the lines without a step and a mapping `key` to `<file>.unreadable`, and say so. A last line that a crash
    cut short is no damage: it stays, and readers leave it out."""
    lines = _lines(file)
    damaged = [line for line in lines[:-1] if not _is_of_step(line, key)]
    if not damaged:
        return
    aside = file.with_name(f"{file.name}{UNREADABLE}")
    with aside.open("ab") as out:
        out.write(b"".join(line + b"\n" for line in damaged))
    kept = [*(line for line in lines[:-1] if _is_of_step(line, key)), lines[-1]]
    write_atomically(file, b"".join(line + b"\n" for line in kept))
    say(f"warning: {file}: damaged lines are put aside in {aside.name}, {len(damaged)} of {len(lines)}.")


def _lines(file: Path) -> list[bytes]:
    lines = file.read_bytes().split(b"\n") if file.is_file() else []
    return lines[:-1] if lines and not lines[-1] else lines


def _is_of_step(line: bytes, key: str) -> bool:
    try:
        value = json.loads(line)
        return isinstance(value["step"], int) and isinstance(value[key], dict)
    except (ValueError, KeyError, TypeError):
        return False


def read_pass_rates(file: Path) -> Iterator[tuple[int, dict[str, tuple[int, int]]]]:
    """Step, and right and judged answers by problem, of every line of a `pass_rates.jsonl`."""
    for number, (_, line) in enumerate(json_lines(file), start=1):
        try:
            rates = {key: (int(right), int(judged)) for key, (right, judged) in line["rates"].items()}
            yield int(line["step"]), rates
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file}, line {number}: not a line of pass rates ({error!r})") from error


def read_answers(folder: Path, kind: Literal["samples", "validation"]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Step and recorded answers, of training (`samples`) or of validations, in rising order of the steps.

    An answer is a mapping: `problem`, `input`, `output`, `score`, `reward`, `verdict`, .., and token records where the
    run kept them.
    """
    files = sorted((int(p.stem), p) for p in (folder / kind).glob("*.jsonl") if p.stem.isdecimal())
    for step, file in files:
        yield step, [row for _, row in json_lines(file)]


def read_val_only(folder: Path) -> Iterator[tuple[Path, StepMetrics]]:
    """The folder and the metrics of every validation on its own, in the order in which they were made."""
    numbered = sorted((int(p.name), p) for p in (folder / VAL_ONLY).glob("*") if p.name.isdecimal())
    for _, place in numbered:
        for line in read_metrics(place):
            yield place, line


def json_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Text and object of every line. A last line that a crash cut short is left out; a missing file has no lines.

    Raises:
        DataError: another line is no JSON object.
    """
    # Not splitlines: answers may hold other line separators of Unicode, which JSON leaves as they are.
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n") if file.is_file() else []
    lines = lines[:-1] if lines and not lines[-1] else lines
    for number, text in enumerate(lines, start=1):
        try:
            value = json.loads(text)
        except ValueError as error:
            if number == len(lines):
                return
            raise DataError(f"{file}, line {number}: not a line of JSON ({error})") from error
        if not isinstance(value, dict):
            raise DataError(f"{file}, line {number}: not a JSON object")
        yield text, value
