"""What every node must see before models are loaded: the run folder, the models and this code."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gmpo.version import __version__

PROOF = ".nodes-"
"""What the name of the file begins with that the driver leaves in the run folder for the others to find."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What the driver sees."""

    file: Path
    """In the run folder; it holds `word`."""
    word: str
    models: Mapping[str, str]
    """Digest of each model folder's configuration and the names and sizes of its weights, by path."""
    version: str
    code: str
    """Digest of the package's modules."""

    def lacking(self) -> list[str]:
        """What this process does not see as the driver does, in sentences."""
        found = []
        try:
            there = self.file.read_text()
        except OSError as error:
            there = str(error.strerror)
        if there != self.word:
            found.append(
                f"it does not see the run folder {self.file.parent} as the driver does (no {self.file.name} in it): "
                "trainer.default_local_dir must be on a file system that all nodes share"
            )
        for path, digest in self.models.items():
            if digest_of_model(Path(path)) != digest:
                found.append(
                    f"it does not see the same model in {path} (configuration, or names and sizes of weights): put it "
                    "on a file system that all nodes share, or copy it there"
                )
        if (__version__, digest_of_code()) != (self.version, self.code):
            found.append(
                f"it runs another gmpo, {__version__} in {_package()}, than the driver's {self.version}: install "
                "the same on every node"
            )
        return found


@contextmanager
def proof_in(folder: Path, models: list[str]) -> Iterator[Proof]:
    """A proof, for as long as the nodes look for it.

    Args:
        folder: the run folder; models: folders, names on a hub are left out.
    """
    word = secrets.token_hex(8)
    file = folder / f"{PROOF}{word}"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(word)
    try:
        local = {path: digest_of_model(Path(path)) for path in models if Path(path).is_dir()}
        yield Proof(file, word, local, __version__, digest_of_code())
    finally:
        with suppress(OSError):
            file.unlink()


def digest_of_model(folder: Path) -> str:
    """Of `config.json`, and of the names and sizes of the weights; reading all weights on all nodes would take long."""
    digest = hashlib.sha256()
    config = folder / "config.json"
    if config.is_file():
        digest.update(config.read_bytes())
    for file in sorted(folder.glob("*.safetensors*")):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
    return digest.hexdigest()


def digest_of_code() -> str:
    """Of the modules of this package."""
    digest = hashlib.sha256()
    for file in sorted(_package().rglob("*.py")):
        digest.update(str(file.relative_to(_package())).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _package() -> Path:
    return Path(__file__).parents[2]
