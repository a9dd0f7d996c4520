"""The READMEs say the same in both languages, their commands parse, their Python runs, and no link leads nowhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

import gmpo
from gmpo.backends.tiny_model import bpe_tokenizer, make_model, word_tokenizer
from gmpo.cli import app
from gmpo.config import load, load_sft
from gmpo.data.prepare import DATASETS
from gmpo.data.stories import vocabulary

ROOT = Path(__file__).parents[2]
READMES = (ROOT / "README.md", ROOT / "README_CN.md")
GUIDES = sorted((ROOT / "examples").glob("*_trainer/README.md"))
PAIRS = [
    (page, page.with_name(f"{page.stem}_CN.md"))
    for page in (READMES[0], *GUIDES, *sorted((ROOT / "docs").glob("*.md")))
    if page.with_name(f"{page.stem}_CN.md").exists()
]
"""A page and the same page in Chinese."""
PAGES = (
    *READMES,
    *GUIDES,
    *(guide.with_name("README_CN.md") for guide in GUIDES),
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
SEVERAL_GPUS = (
    "a Ray cluster",
    "multi-GPU support",
    "one process",
    "several ranks",
    "between ranks",
    "a Ray cluster",
    "computed with",
    "vllm",
)
"""Words of the reasons of settings that wait for several GPUs."""
CODE = r"`[^`]+`"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block of code."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def _prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def _commands(page: Path) -> list[str]:
    """The `gmpo` commands of a page's shell blocks, continued lines joined."""
    lines = [line for kind, text in _blocks(page) if kind == "bash" for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("gmpo ")]


COMMANDS = [pytest.param(command, id=f"{page.stem}-{i}") for page in PAGES for i, command in enumerate(_commands(page))]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command: str) -> None:
    """Options exist, and keys are settings of which none is refused or in vain. What needs more GPUs is checked."""
    _, name, *arguments = shlex.split(command)
    group: Any = typer.main.get_command(app)
    parsed = group.commands[name].make_context(name, list(arguments))
    if name in ("train", "check", "sft"):
        given = [*(parsed.params["settings"] or []), *parsed.args]
        assert given
        resolved = (load_sft if name == "sft" else load)(given)
        assert name == "check" or not [n for n in resolved.unavailable if "is not installed" not in n.reason]
        notes = (*resolved.unavailable, *resolved.inert)
        assert not [note for note in notes if not any(word in note.reason for word in SEVERAL_GPUS)]
    if name == "data":
        assert parsed.params["name"] in DATASETS


def test_both_readmes_have_commands() -> None:
    assert len(_commands(READMES[0])) >= 5
    assert _commands(READMES[0]) == _commands(READMES[1])


def test_every_guide_is_there_in_both_languages() -> None:
    assert {guide.parent.name for guide in GUIDES} == {"gmpo_trainer", "grpo_trainer", "gspo_trainer"}
    assert {pair[0] for pair in PAIRS} >= {READMES[0], *GUIDES}


def _name(value: object) -> str:
    return f"{value.parent.name}/{value.name}" if isinstance(value, Path) else str(value)


@pytest.mark.parametrize(("page", "translated"), PAIRS, ids=_name)
def test_a_page_and_its_translation_are_in_step(page: Path, translated: Path) -> None:
    english, chinese = ([line for line in _prose(p).splitlines() if line] for p in (page, translated))
    for start in ("#", "## ", "|", "!["):
        assert [line[: len(start)] for line in english].count(start) == [c[: len(start)] for c in chinese].count(start)
    columns = [[line.count("|") for line in lines if line.startswith("|")] for lines in (english, chinese)]
    assert columns[0] == columns[1]
    targets = [{re.sub(r"_CN(?=\.md)", "", t) for t in _targets(lines)} for lines in (english, chinese)]
    assert targets[0] - {page.name} == targets[1] - {page.name}


@pytest.mark.parametrize(("page", "translated"), PAIRS, ids=_name)
def test_a_section_and_its_translation_have_as_many_paragraphs_and_items(page: Path, translated: Path) -> None:
    """So that a paragraph that one language has and the other has not, or has elsewhere, is found."""
    sections = (re.split(r"^#+ ", _prose(p), flags=re.MULTILINE) for p in (page, translated))
    for one, other in zip(*sections, strict=True):
        heading, *parts = _parts(one)
        assert parts == list(_parts(other)[1:]), heading


def _parts(section: str) -> tuple[str, int, int]:
    """Heading, paragraphs and items of a section."""
    paragraphs = [part for part in re.split(r"\n\s*\n", section) if part.strip()]
    return section.partition("\n")[0], len(paragraphs), len(re.findall(r"^- ", section, re.MULTILINE))


def _targets(lines: list[str]) -> set[str]:
    return set(re.findall(r"\]\(([^)#]+)\)", "\n".join(lines)))


@pytest.mark.parametrize(("page", "translated"), PAIRS, ids=_name)
def test_a_page_and_its_translation_name_the_same_things(page: Path, translated: Path) -> None:
    """Keys, metrics, files and whatever else is set as code: row by row in tables, and on the whole page."""
    english, chinese = (_prose(p) for p in (page, translated))
    rows = [[set(re.findall(CODE, row)) for row in _rows(text)] for text in (english, chinese)]
    assert rows[0] == rows[1]
    named = [{" ".join(code.split()) for code in re.findall(CODE, text)} for text in (english, chinese)]
    assert named[0] == named[1]


@pytest.mark.parametrize(("page", "translated"), PAIRS, ids=_name)
def test_a_page_and_its_translation_have_the_same_numbers_in_their_tables(page: Path, translated: Path) -> None:
    english, chinese = ([_figures(row) for row in _rows(_prose(p))] for p in (page, translated))
    assert english == chinese


def _rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def _figures(row: str) -> set[str]:
    """Numbers of two digits or more, for small ones are words in one language or the other."""
    return set(re.findall(r"\d[\d.,]*\d", re.sub(CODE, "", row)))


@pytest.mark.parametrize(("page", "translated"), PAIRS, ids=_name)
def test_a_page_and_its_translation_have_the_same_code(page: Path, translated: Path) -> None:
    """Apart from what is written for people: docstrings, and the words between the formulas."""
    english, chinese = (_blocks(p) for p in (page, translated))
    assert [kind for kind, _ in english] == [kind for kind, _ in chinese]
    for (kind, one), (_, other) in zip(english, chinese, strict=True):
        if kind:
            assert re.sub(r'""".*?"""', "", one) == re.sub(r'""".*?"""', "", other)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_script_that_a_page_runs_is_there(page: Path) -> None:
    words = [word for kind, text in _blocks(page) if kind == "bash" for word in text.split()]
    scripts = [word for word in words if re.fullmatch(r"(examples|benchmarks)/\S+\.(py|sh)", word)]
    assert all((ROOT / script).is_file() for script in scripts)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_no_link_to_a_file_leads_nowhere(page: Path) -> None:
    for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", _prose(page)):
        if "://" in target:
            continue
        file, _, heading = target.partition("#")
        assert (page.parent / file).exists(), target
        if heading:
            assert heading in _anchors(page.parent / file if file else page), target


def _anchors(page: Path) -> set[str]:
    """Names of a page's headings as GitHub forms them."""
    headings = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_python_of_the_readme_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed, with a small random model in the place of MODEL, and three of its ten steps."""
    make_model(tmp_path / "model", bpe_tokenizer([], 260), seed=0, hidden=32, layers=1, heads=2, intermediate=64)
    (text,) = (text for kind, text in _blocks(READMES[0]) if kind == "python" and "gmpo.train" in text)
    for before, after in (("MODEL", str(tmp_path / "model")), ('_steps": 10', '_steps": 3')):
        assert text.count(before) == 1
        text = text.replace(before, after)
    monkeypatch.chdir(tmp_path)
    train = gmpo.train
    monkeypatch.setattr(gmpo, "train", lambda *a, **k: train(*a, **k, console=Console(quiet=True)), raising=False)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, "README.md", "exec"), names)
    run = names["run"]
    assert run.finished
    assert (run.model / "model.safetensors").is_file()
    assert all(metrics["reward/grader_error"] == 0 for metrics in run.history)


def test_the_python_of_the_readme_asks_a_model_and_grades_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As printed, with a model of random weights in the place of the trained one."""
    (text,) = (text for kind, text in _blocks(READMES[0]) if kind == "python" and "gmpo.grade" in text)
    make_model(tmp_path / "runs" / "quickstart" / "run" / "huggingface", word_tokenizer(vocabulary()), seed=0, layers=1)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, "README.md", "exec"), names)
    grade = names["grade"]
    assert grade == gmpo.grade(names["answer"], "48", "stories")
    assert f"-> {grade.verdict} {grade.score} {grade.pred}" in capsys.readouterr().out
