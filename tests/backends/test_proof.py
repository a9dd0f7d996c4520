"""What a node must see of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gmpo.backends.ranks.proof import proof_in


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"12345")
    return folder


def test_who_sees_what_the_driver_sees_lacks_nothing_and_nothing_is_left(tmp_path: Path, model: Path) -> None:
    with proof_in(tmp_path / "run", [str(model), "Qwen/Qwen3-8B"]) as proof:
        assert list(proof.models) == [str(model)]
        assert proof.lacking() == []
    assert not list((tmp_path / "run").iterdir())


def test_another_file_system_is_told_with_the_folder(tmp_path: Path, model: Path) -> None:
    """A folder of the same name without the file, and one with a file of another run."""
    with proof_in(tmp_path / "run", []) as proof:
        proof.file.write_text("another word")
        (elsewhere,) = proof.lacking()
        proof.file.unlink()
        (gone,) = proof.lacking()
    for found in (elsewhere, gone):
        assert found.startswith(f"it does not see the run folder {tmp_path / 'run'} as the driver does")


@pytest.mark.parametrize(("name", "content"), [("config.json", "{ }"), ("model.safetensors", "1234")])
def test_another_model_under_the_same_path_is_told(tmp_path: Path, model: Path, name: str, content: str) -> None:
    with proof_in(tmp_path / "run", [str(model)]) as proof:
        (model / name).write_text(content)
        (found,) = proof.lacking()
    assert found.startswith(f"it does not see the same model in {model}")


def test_another_version_is_told(tmp_path: Path) -> None:
    with proof_in(tmp_path / "run", []) as proof:
        for other in (replace(proof, version="0.0.1"), replace(proof, code="00")):
            (found,) = other.lacking()
            assert found.startswith("it runs another gmpo")
