"""What may import what: layers that point down, a table of forbidden imports and of names that must not be said."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from gmpo.objectives import ESTIMATORS, LOSSES, REJECTIONS
from gmpo.ports import Learner, Sampler, Tracker

SOURCE = Path(__file__).parents[2] / "src" / "gmpo"
FILES = sorted(SOURCE.rglob("*.py"))
PACKAGE = {str(path.relative_to(SOURCE)): path.read_text() for path in FILES}
"""Path below the package -> source."""

LAYERS = {
    0: ("errors", "limits", "version", "streams", "objectives", "config"),
    1: ("algo", "ops", "data", "rewards"),
    2: ("records",),
    3: ("ports",),
    4: ("metrics", "backends", "tracking"),
    5: ("training",),
    6: ("build", "api", "quickstart", "check", "report", "verl_script"),
    7: ("cli", "cli_parts", "cli_report", "cli_runs", "__main__", "__init__"),
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}
LATE_IMPORTS_ALLOWED = {
    "cli_parts.py",
    "__init__.py",
    "tracking/sinks.py",
    "data/prepare.py",
    "rewards/custom.py",
    "ops/kernels.py",
    "check/readiness.py",
    "build/ranks.py",
    "backends/adapters.py",
}
"""Modules that import by name when they run: optional packages, users' files, what would make `gmpo --help` slow."""


@dataclass(frozen=True)
class Forbidden:
    """Imports that some modules must not have."""

    where: tuple[str, ...]
    """Paths below the package; a folder ends in `/` and stands for all in it."""
    never: tuple[str, ...]
    """Modules or packages, with all below them."""
    reason: str
    even_indirectly: bool = False
    """Nor may anything that they import, when it is loaded. Otherwise only their own imports count."""
    apart_from: tuple[str, ...] = ()
    """Modules of `where` that may."""


PROGRAM = ("gmpo.build", "gmpo.api", "gmpo.check", "gmpo.quickstart", "gmpo.cli")
FORBIDDEN = (
    Forbidden(
        ("algo/",),
        ("gmpo.config", "gmpo.data", "gmpo.rewards", "gmpo.records", "gmpo.ports", "gmpo.ops", "transformers"),
        "mathematics is tensors and numbers in, tensors out: it can be read and tested beside its paper",
        even_indirectly=True,
    ),
    Forbidden(
        ("ops/",),
        ("gmpo.algo", "gmpo.config", "gmpo.data", "gmpo.rewards", "gmpo.records", "gmpo.ports", "transformers"),
        "kernels are functions of tensors, whatever model and objective they serve",
        even_indirectly=True,
    ),
    Forbidden(
        ("data/",),
        ("gmpo.config", "gmpo.algo", "gmpo.ops", "gmpo.rewards"),
        "rows become problems without knowing who trains on them or grades them",
        even_indirectly=True,
    ),
    Forbidden(
        ("rewards/",),
        ("gmpo.config", "gmpo.algo", "gmpo.ops", "gmpo.data"),
        "grading takes strings: other programs use it without a run",
        even_indirectly=True,
    ),
    Forbidden(
        ("records/",),
        ("gmpo.config", "gmpo.objectives", "gmpo.ports", "gmpo.backends", "gmpo.tracking", "transformers"),
        "records are what all parts share, so they depend on none",
        even_indirectly=True,
    ),
    Forbidden(
        ("metrics/",),
        ("gmpo.config", "gmpo.backends", "gmpo.tracking", "transformers"),
        "a metric is a function of records, the same for every backend",
        even_indirectly=True,
    ),
    Forbidden(
        ("ports.py", "training/loop.py"),
        ("gmpo.config", "gmpo.objectives", "gmpo.algo", "gmpo.ops", "gmpo.backends", "transformers"),
        "another sampler, learner or objective must fit without a change here",
    ),
    Forbidden(
        ("training/loop.py",),
        ("torch", "numpy"),
        "the loop passes records on; arithmetic belongs to the parts that it calls",
    ),
    Forbidden(
        ("ports.py", "training/"),
        ("gmpo.config", "gmpo.backends", *PROGRAM),
        "values travel down, not settings; a program knows samplers and learners as ports",
        even_indirectly=True,
    ),
    Forbidden(
        ("training/",), ("gmpo.ops", "transformers"), "models are behind the ports: another backend may have none"
    ),
    Forbidden(
        ("backends/",),
        ("gmpo.config", "gmpo.data", "gmpo.rewards", "gmpo.metrics", "gmpo.tracking", "gmpo.training"),
        "a backend fulfils ports with the values that it is built from, and decides nothing about the run",
    ),
    Forbidden(
        ("tracking/",),
        ("gmpo.config", "gmpo.algo", "gmpo.ops", "gmpo.backends", "gmpo.training", "transformers"),
        "loggers write down what they are given",
    ),
    Forbidden(
        ("config/", "data/", "rewards/", "records/", "check/", "report/"),
        ("torch", "transformers", "triton"),
        "`gmpo --help`, `gmpo check`, `gmpo report`, grading workers and readers of a run folder start at once",
        even_indirectly=True,
        apart_from=("records/batch.py",),
    ),
    Forbidden(
        ("errors.py", "version.py", "streams.py", "objectives.py", "cli.py", "__main__.py", "__init__.py"),
        ("torch", "transformers", "triton"),
        "what every module imports, and what starts the command line, must cost nothing",
        even_indirectly=True,
    ),
    Forbidden(
        ("errors.py", "version.py", "streams.py", "objectives.py"),
        ("gmpo.config", "gmpo.algo", "gmpo.ops", "gmpo.data", "gmpo.rewards", "gmpo.records"),
        "the ground floor stands on nothing",
    ),
    Forbidden(
        ("report/",),
        ("gmpo.algo", "gmpo.ops", "gmpo.backends", "gmpo.training", "gmpo.tracking", "gmpo.build", "gmpo.ports"),
        "a report knows a run by its folder, whatever program and version wrote it",
        even_indirectly=True,
    ),
    Forbidden(
        ("config/", "check/"),
        ("gmpo.algo", "gmpo.ops", "gmpo.records", "gmpo.ports", "gmpo.backends", "gmpo.training", "gmpo.build"),
        "settings are checked by tables of names and traits, without the code that they set",
        even_indirectly=True,
    ),
)
"""What no merge may bring in. Layers leave these free, or would allow them again after a move."""


@dataclass(frozen=True)
class Unspoken:
    """Words that must not be in the code of some modules: in identifiers and strings; docstrings may explain."""

    where: tuple[str, ...]
    words: frozenset[str]
    reason: str


OBJECTIVES = frozenset({*ESTIMATORS, *LOSSES, *REJECTIONS})
BACKENDS = frozenset(
    {"hf", "vllm", "sglang", "fsdp", "fsdp2", "megatron", "transformers", "cuda", "torch_sampler", "local_learner"}
)
UNSPOKEN = (
    Unspoken(("ports.py", "training/"), OBJECTIVES, "objectives are looked up by their traits, never by a name"),
    Unspoken(("ports.py", "training/loop.py"), BACKENDS, "the ports are the same for every backend and device"),
    # `hf_model` is one of the contents of a checkpoint, in a form that every library of models reads.
    Unspoken(("training/",), BACKENDS - {"hf"}, "the ports are the same for every backend and device"),
)

PORTS = {"sampler": Sampler, "learner": Learner, "tracker": Tracker}
"""Name by which a program holds a port -> the port."""
COMPARED_BY_VALUE = ("algo/", "metrics/", "ports.py", "records/", "training/")
"""Where no identity of objects may mean something: another process, a copy or a checkpoint does not keep it."""


# Reading


def _dotted(path: str) -> str:
    return "gmpo." + path.removesuffix(".py").removesuffix("__init__").replace("/", ".").rstrip(".")


def imports(path: str, source: str, *, when_loaded: bool = False) -> set[str]:
    """Dotted names that a file imports, in functions too and by `import_module("...")`; of `from a import b` both `a`
    and `a.b`, which may be a module.

    `when_loaded`: only what is executed when the module is imported: neither in functions nor for type checking.
    """
    found: set[str] = set()
    skipped: tuple[type, ...] = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda) if when_loaded else ()

    def visit(node: ast.AST) -> None:
        if isinstance(node, skipped):
            return
        if when_loaded and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            package = [*_dotted(path).split("."), ""] if path.endswith("__init__.py") else _dotted(path).split(".")
            base = ".".join([*package[: len(package) - node.level], *filter(None, [node.module])])
            base = base if node.level else node.module or ""
            found.update([base, *(f"{base}.{alias.name}" for alias in node.names)])
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found.update(arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return found


def _below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _covers(where: tuple[str, ...], path: str) -> bool:
    return any(path == place or (place.endswith("/") and path.startswith(place)) for place in where)


def chains(path: str, tree: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """Ways by which loading a module loads others: (module, what it imports, what that imports, ...)."""
    modules = {_dotted(other): other for other in tree}
    seen = {_dotted(path)}
    waiting: list[tuple[str, ...]] = [(_dotted(path),)]
    while waiting:
        chain = waiting.pop(0)
        here = modules[chain[-1]]
        loaded = imports(here, tree[here], when_loaded=True)
        loaded |= {name.rpartition(".")[0] for name in loaded}  # a package's __init__ runs before its modules
        for name in sorted(loaded - seen - {""}):
            seen.add(name)
            yield (*chain, name)
            if name in modules:
                waiting.append((*chain, name))


def broken(path: str, tree: Mapping[str, str], rule: Forbidden) -> list[str]:
    """What a module of `tree` does against a rule, as lines that name the import and the reason."""
    if not _covers(rule.where, path) or path in rule.apart_from:
        return []
    own = [(_dotted(path), name) for name in sorted(imports(path, tree[path]))]
    ways = [*own, *(chains(path, tree) if rule.even_indirectly else ())]
    found: dict[str, str] = {}
    for chain in ways:
        for name in rule.never:
            if _below(chain[-1], name):
                found.setdefault(name, f"{path}: {' -> '.join(chain[1:])}: {rule.reason}")
    return list(found.values())


def _words(text: str) -> str:
    """`gspo_token`, `GspoToken` and `gspo-token` -> ` gspo token `."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+\d*|\d+", text)
    return f" {' '.join(part.lower() for part in parts)} "


def spoken(source: str, words: frozenset[str]) -> set[str]:
    """The `words` that stand in a source's identifiers and strings, docstrings left out."""
    tree = ast.parse(source)
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    said = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            said.append(node.value)
        for field in ("id", "attr", "arg", "name", "asname", "module"):
            value = getattr(node, field, None)
            said += [value] if isinstance(value, str) else []
    return {word for word in words if any(_words(word) in _words(text) for text in said)}


def of_the_package_itself(path: str, source: str) -> set[str]:
    """Statements by which a module gets at the package as a whole, whose attributes are loaded when they are read."""
    found = {f"from gmpo import {name[5:]}" for name in imports(path, source) if re.fullmatch(r"gmpo\.\w+", name)}
    found -= {f"from gmpo import {name}" for name in LAYER_OF}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            bound = [a.name for a in node.names if a.name == "gmpo" or (_below(a.name, "gmpo") and a.asname is None)]
            found |= {f"import {name}" for name in bound}
    return found


def late_imports(source: str) -> set[str]:
    """Calls that import or run code by a name, which no table of imports sees."""
    names = {
        name
        for node in ast.walk(ast.parse(source))
        for name in (getattr(node, "id", None), getattr(node, "attr", None), getattr(node, "name", None))
    }
    called = {getattr(node.func, "id", None) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)}
    return names & {"import_module", "exec_module", "resolve_name", "__import__"} | called & {"exec", "eval"}


def by_identity(source: str) -> list[str]:
    """Comparisons by `is` or `id()` of two things that may be equal without being one.

    Not counted where one side is the only one of its kind: a constant, a class, `X.MEMBER` of an enumeration, or what a
    call returns (`type(x)`, `main_thread()`).
    """

    def unique(node: ast.AST) -> bool:
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        return isinstance(node, ast.Constant | ast.Call) or name[:1].isupper()

    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            for sides, operator in zip(pairwise([node.left, *node.comparators]), node.ops, strict=True):
                if isinstance(operator, ast.Is | ast.IsNot) and not any(map(unique, sides)):
                    found.append(ast.unparse(node))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "id":
            found.append(ast.unparse(node))
    return found


def through_a_port(source: str) -> list[str]:
    """What is read of a sampler, learner or tracker beyond its port: `run.learner.objective`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute | ast.Name):
            part = node.value.attr if isinstance(node.value, ast.Attribute) else node.value.id
            if part in PORTS and node.attr not in dir(PORTS[part]):
                found.append(ast.unparse(node))
    return found


# The package


@pytest.mark.parametrize("path", PACKAGE)
def test_imports_point_down(path: str) -> None:
    own = path.split("/")[0].removesuffix(".py")
    assert own in LAYER_OF, f"{own} stands in no layer"
    for name in imports(path, PACKAGE[path]):
        other = name.split(".")[1] if name.startswith("gmpo.") else own
        if other in LAYER_OF:
            assert LAYER_OF[other] <= LAYER_OF[own], f"{path} (layer {LAYER_OF[own]}) imports {name}"


@pytest.mark.parametrize("path", PACKAGE)
def test_no_forbidden_import(path: str) -> None:
    assert not [line for rule in FORBIDDEN for line in broken(path, PACKAGE, rule)]


@pytest.mark.parametrize("path", PACKAGE)
def test_no_unspoken_name(path: str) -> None:
    for rule in UNSPOKEN:
        found = spoken(PACKAGE[path], rule.words) if _covers(rule.where, path) else set()
        assert not found, f"{path} says {', '.join(sorted(found))}: {rule.reason}"


def test_every_rule_guards_something() -> None:
    for rule in (*FORBIDDEN, *UNSPOKEN):
        for place in rule.where:
            assert any(_covers((place,), path) for path in PACKAGE), f"{place} does not exist: correct the table"
    for place in (name for rule in FORBIDDEN for name in rule.apart_from):
        assert place in PACKAGE, f"{place} does not exist: correct the table"


def test_there_is_no_circle_between_modules() -> None:
    modules = {_dotted(path): path for path in PACKAGE}
    graph = {name: imports(path, PACKAGE[path], when_loaded=True) & set(modules) for name, path in modules.items()}
    done: set[str] = set()

    def visit(node: str, trail: tuple[str, ...]) -> None:
        assert node not in trail, " -> ".join((*trail, node))
        if node not in done:
            for other in graph[node]:
                visit(other, (*trail, node))
            done.add(node)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", PACKAGE)
def test_no_import_hides_in_a_function(path: str) -> None:
    hidden = [
        ast.unparse(inner)
        for node in ast.walk(ast.parse(PACKAGE[path]))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    ]
    assert not hidden


@pytest.mark.parametrize("path", PACKAGE)
def test_nothing_is_imported_by_name_or_through_the_package_itself(path: str) -> None:
    allowed = {"import_module", "exec_module"} if path in LATE_IMPORTS_ALLOWED else set()
    assert not late_imports(PACKAGE[path]) - allowed
    assert not of_the_package_itself(path, PACKAGE[path]), "import from the module that defines it"


BY_IDENTITY = {"records/functions.py"}
"""It follows what a function holds, which may hold itself: an object that was met is the same object."""


@pytest.mark.parametrize("path", [p for p in PACKAGE if _covers(COMPARED_BY_VALUE, p) and p not in BY_IDENTITY])
def test_no_identity_of_objects_means_something(path: str) -> None:
    assert not by_identity(PACKAGE[path]), "say it by a field: a copy of a record must mean the same"


@pytest.mark.parametrize("path", [path for path in PACKAGE if _covers(("ports.py", "training/"), path)])
def test_the_parts_of_a_run_are_used_through_their_ports(path: str) -> None:
    assert not through_a_port(PACKAGE[path]), "another backend has no such attribute: put it into the port"


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


def test_remote_code_is_trusted_nowhere_by_default() -> None:
    for path, source in PACKAGE.items():
        assert "trust_remote_code=True" not in source, path


# The rules on made-up sources


def _in(place: str) -> str:
    """A module that a rule for `place` covers."""
    return place + "made_up.py" if place.endswith("/") else place


@pytest.mark.parametrize(
    "template",
    [
        "import {name}",
        "import {name} as other",
        "from {name} import thing",
        "from {package} import {last}",
        "def f():\n    import {name}.part",
        "import importlib\nimportlib.import_module('{name}')",
    ],
)
@pytest.mark.parametrize("rule", FORBIDDEN, ids=lambda rule: f"{rule.where[0]} {rule.never[0]}")
def test_each_forbidden_import_is_found_however_it_is_written(rule: Forbidden, template: str) -> None:
    for place in map(_in, rule.where):
        assert not broken(place, {place: "import json\nfrom gmpo.errors import DataError"}, rule)
        for name in rule.never:
            package, _, last = name.rpartition(".")
            if package or "{package}" not in template:
                source = template.format(name=name, package=package, last=last)
                (line,) = {line.split(": ")[-1] for line in broken(place, {place: source}, rule)}
                assert line == rule.reason.split(": ")[-1]


@pytest.mark.parametrize("rule", [r for r in FORBIDDEN if r.even_indirectly], ids=lambda rule: rule.where[0])
def test_a_forbidden_import_is_found_behind_others(rule: Forbidden) -> None:
    place = _in(rule.where[0])
    tree = {
        place: "from gmpo.one import f",
        "one/__init__.py": "from .two import f",
        "one/two.py": f"import {rule.never[0]}",
    }
    (line,) = broken(place, tree, rule)
    assert f"gmpo.one -> gmpo.one.two -> {rule.never[0]}" in line
    late = {**tree, "one/two.py": f"def f():\n    import_module('{rule.never[0]}')"}
    assert not broken(place, late, rule)


def test_a_module_that_may_is_left_out() -> None:
    (rule,) = (rule for rule in FORBIDDEN if rule.apart_from)
    for path in rule.apart_from:
        assert not broken(path, {path: "import torch"}, rule)
        assert broken(path.replace(".py", "_2.py"), {path.replace(".py", "_2.py"): "import torch"}, rule)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("algo/losses.py", "from gmpo.config.schema_loss import PolicyLoss"),
        ("algo/losses.py", "from gmpo import config"),
        ("ports.py", "from gmpo.backends.torch_sampler import TorchSampler"),
        ("ports.py", "SAMPLERS = {'vllm': None}"),
        ("training/loop.py", "from gmpo.objectives import LOSSES"),
        ("training/loop.py", "def credit(loss): return loss == 'geo_mean'"),
        ("training/loop.py", "from gmpo.algo.token_losses import cispo"),
        ("training/credit.py", "from gmpo.config.schema_algorithm import Algorithm"),
        ("metrics/updates.py", "from gmpo.backends.learner import LocalLearner"),
        ("records/rollout.py", "from gmpo.records.batch import Batch"),
        ("check/report.py", "from gmpo.build.run import build_policy"),
        ("algo/kl.py", "import gmpo\ngmpo.Config"),
        ("algo/kl.py", "import gmpo as whole"),
        ("algo/kl.py", "import gmpo.errors\ngmpo.Config"),
        ("algo/kl.py", "from gmpo import Config"),
        ("api.py", "from . import Config"),
        ("training/credit.py", "def late(): return __import__('gmpo.backends.learner')"),
        ("training/credit.py", "import builtins\nload = builtins.__import__"),
        ("training/credit.py", "exec('import gmpo.backends.learner')"),
        ("training/rollouts.py", "def slow(sampler): return type(sampler).__name__ == 'TorchSampler'"),
        ("training/scoring.py", "DEVICE = 'cuda:0'"),
        ("training/credit.py", "def scored(batch): return batch.learner_logp is not batch.rollout_logp"),
        ("metrics/updates.py", "def scored(a, b): return 0 < a is b"),
        ("records/batch.py", "def same(a, b): return id(a) == id(b)"),
        ("training/loop.py", "def loss(run): return run.learner.objective.policy_loss"),
        ("training/loop.py", "def seed(sampler): return sampler.seed"),
    ],
)
def test_a_line_that_blurs_the_parts_is_found_in_the_package(path: str, line: str) -> None:
    def found(source: str) -> bool:
        said = [spoken(source, rule.words) for rule in UNSPOKEN if _covers(rule.where, path)]
        said += [late_imports(source), of_the_package_itself(path, source)]
        said += [set(by_identity(source))] if _covers(COMPARED_BY_VALUE, path) else []
        said += [set(through_a_port(source))] if _covers(("ports.py", "training/"), path) else []
        return any(said) or any(broken(path, {**PACKAGE, path: source}, rule) for rule in FORBIDDEN)

    assert not found(PACKAGE[path])
    assert found(f"{PACKAGE[path]}\n{line}\n")


def test_what_is_the_only_one_of_its_kind_is_compared_by_identity() -> None:
    allowed = "x is None, x is not True, type(x) is kind, x.verdict is Verdict.RIGHT, x is MISSING, x is NotImplemented"
    assert not by_identity(allowed)
    assert by_identity("a.x is b.x, a[0] is not b, a is None is b") == ["a.x is b.x", "a[0] is not b"]


def test_a_name_is_found_in_strings_and_identifiers_and_not_in_docstrings() -> None:
    words = frozenset({"gspo", "geo_mean", "opo", "token_k1"})
    assert spoken("x = 'gspo'", words) == {"gspo"}
    assert spoken("def geo_mean_loss(a): pass", words) == {"geo_mean"}
    assert spoken("class GeoMean: pass", words) == {"geo_mean"}
    assert spoken("x.loss_opo", words) == {"opo"}
    assert spoken("f(token_k1=True)", words) == {"token_k1"}
    assert not spoken('"""gspo"""\nclass A:\n    """geo_mean"""\n    opossum = "proposal"\n    token: int', words)
