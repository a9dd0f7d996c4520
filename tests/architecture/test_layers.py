"""The layer rule: imports point down, in no circle, and the light layers start without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "gmpo"

LAYERS = {
    0: ("errors", "version", "streams", "objectives", "config"),
    1: ("algo", "ops", "data", "rewards"),
    2: ("records",),
    3: ("ports",),
    4: ("metrics", "backends", "tracking"),
    5: ("training",),
    6: ("build", "api", "quickstart", "check"),
    7: ("cli", "__main__", "__init__"),
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}
SIBLINGS_APART = {("data", "rewards"), ("rewards", "data"), ("data", "algo"), ("rewards", "algo"), ("algo", "ops")}
LATE_IMPORTS_ALLOWED = {
    "cli.py",
    "__init__.py",
    "tracking/sinks.py",
    "data/prepare.py",
    "rewards/algebra.py",
    "ops/kernels.py",
}
"""Modules that import by name when they run: optional packages, and what would make `gmpo --help` slow."""


def _module(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _imports(path: Path) -> list[str]:
    """Dotted names of gmpo modules that a file imports, inside functions too; for type checking alone left out."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("gmpo."):
            found.append(node.module)
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("gmpo.")]
    return found


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    own = _module(path)
    for name in _imports(path):
        other = name.split(".")[1]
        if other == own:
            continue
        assert LAYER_OF[other] <= LAYER_OF[own], f"{path.name} (layer {LAYER_OF[own]}) imports {name}"
        assert (own, other) not in SIBLINGS_APART, f"{own} and {other} are siblings that do not know each other"


def test_there_is_no_circle_between_modules() -> None:
    names = {path: "gmpo." + ".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in FILES}
    known = {name.removesuffix(".__init__"): name for name in names.values()}
    graph = {name: {known[i] for i in _imports(path) if i in known} for path, name in names.items()}
    # A package's __init__ re-exports its own modules; they do not import it back.
    done: set[str] = set()

    def visit(node: str, trail: tuple[str, ...]) -> None:
        assert node not in trail, " -> ".join((*trail, node))
        if node not in done:
            for other in graph[node]:
                visit(other, (*trail, node))
            done.add(node)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_no_import_hides_in_a_function(path: Path) -> None:
    tree = ast.parse(path.read_text())
    hidden = [
        ast.unparse(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    ]
    assert not hidden
    late = "import_module" in path.read_text()
    allowed = str(path.relative_to(SOURCE)) in LATE_IMPORTS_ALLOWED or "rewards" in path.parts
    assert not late or allowed, f"{path.name} imports by name"


@pytest.mark.parametrize(
    "module",
    [
        "gmpo",
        "gmpo.config",
        "gmpo.data.prepare",
        "gmpo.rewards.grader",
        "gmpo.records.rollout",
        "gmpo.records.run_folder",
        "gmpo.records.fingerprint",
        "gmpo.cli",
        "gmpo.check.report",
    ],
)
def test_the_light_layers_start_without_torch(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'ray', 'vllm') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_stays_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_remote_code_is_trusted_nowhere_by_default() -> None:
    for path in FILES:
        assert "trust_remote_code=True" not in path.read_text(), path
