"""The run folder: what it says about the run, and what becomes of records that are there already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from gmpo.errors import BackendError
from gmpo.tracking.environment import write_environment

METRICS, CONFIG, PASS_RATES = "metrics.jsonl", "config.yaml", "pass_rates.jsonl"
RECORDS = (METRICS, CONFIG, "environment.json", "samples", "validation", "tensorboard", PASS_RATES)
"""What a run records beside its checkpoints and its model."""
EARLIER = "earlier-"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Nobody else writes to the run folder meanwhile. The claim ends with the process, however it ends; a file system
    without locks knows no claims.

    Raises:
        BackendError: another process has it.
    """
    lock = FileLock(folder / ".lock")
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
        lock.release()


class RunFolder:
    """A sink that comes first: it makes room for the others' records and writes `config.yaml` and `environment.json`.

    A run from the start moves the records of an earlier one to `earlier-<k>`. A run that goes on drops the samples
    beyond the step it goes on from: these steps happen again.

    Args:
        config: the complete settings as YAML.
        device: for people, see `gmpo.backends.devices.describe`.
    """

    def __init__(self, folder: Path, *, config: str, device: str) -> None:
        self.folder = folder
        self.config = config
        self.device = device

    def start(self, step: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if step == 0:
            self._set_aside()
        for kind in ("samples", "validation"):
            for file in (self.folder / kind).glob("*.jsonl"):
                if file.stem.isdecimal() and int(file.stem) > step:
                    file.unlink()
        (self.folder / CONFIG).write_text(self.config, encoding="utf-8")
        write_environment(self.folder, self.device)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics go to the other sinks."""

    def close(self) -> None:
        """Nothing is open."""

    def _set_aside(self) -> None:
        metrics = self.folder / METRICS
        if not metrics.is_file() or metrics.stat().st_size == 0:
            return
        numbers = [int(p.name.removeprefix(EARLIER)) for p in self.folder.glob(f"{EARLIER}[0-9]*")]
        aside = self.folder / f"{EARLIER}{max(numbers, default=0) + 1}"
        aside.mkdir()
        for name in RECORDS:
            if (self.folder / name).exists():
                (self.folder / name).rename(aside / name)
