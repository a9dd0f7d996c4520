"""No setting is silently ignored: each is read by the program, or declares itself inert with a reason.

A read is an attribute access `x.name` in the package where `x` is known to be the section that declares `name`: by its
annotation (`actor: Actor`), by assignment (`actor = config.actor_rollout_ref.actor`) or by the attributes before it
(`...actor.name`). Where the type of `x` is not known, a name that only one section declares counts as well.

A property of the schema counts as a reader where the package reads it in turn. The rules and the report do not count:
they only talk about settings.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import gmpo
from gmpo.config import Config, SftConfig, load
from gmpo.config.fields import Section
from gmpo.config.objective_keys import ESTIMATOR_KEYS, LOSS_KEYS
from gmpo.config.tree import leaves
from gmpo.errors import ConfigError

PACKAGE = Path(gmpo.__file__).parent
SCHEMA = "config/schema"
NOT_READERS = ("config/rules", "config/reference", "check/")
CONSUMED_BY_LOADING = {
    "trainer.seed",
    "trainer.project_name",
    "trainer.experiment_name",
    "actor_rollout_ref.actor.ppo_micro_batch_size",
    "actor_rollout_ref.actor.clip_ratio",
}
"""Settings whose effect is the value of other, derived ones, where no program reads them itself."""
CONSUMED_BY_RULES = {"algorithm.allow_truncated_sampling"}
"""Permissions: their effect is that a configuration is accepted."""
READ_BY_PATH = {*LOSS_KEYS.values(), *ESTIMATOR_KEYS.values()}
"""Numbers of losses and estimators, which build reads through their table: `tests/build/test_objective_numbers.py`."""
ONE_CHOICE = {"actor_rollout_ref.rollout.name": "hf"}
"""Settings of which the rules leave one value, so that there is nothing to read yet."""

Reads = set[tuple[str, str]]
"""(section class, or "" where it is not known; field)."""


def _sections(root: type[Section]) -> Iterator[type[Section]]:
    yield root
    for field in root.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _sections(field.annotation)


SECTIONS = {section.__name__: section for root in (Config, SftConfig) for section in _sections(root)}


Types = frozenset[str]
"""The sections that a variable may be; empty when it is not known to be one."""


def _attribute(sections: Types, name: str) -> Types:
    """The sections that `x.name` may be, where `x` is of `sections`."""
    fields = [field for section in sections if (field := SECTIONS[section].model_fields.get(name))]
    return frozenset(
        field.annotation.__name__
        for field in fields
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    )


class _Reader(ast.NodeVisitor):
    """Collects the reads of one module. Names keep their section per function."""

    def __init__(self) -> None:
        self.reads: Reads = set()
        self.types: dict[str, Types] = {}

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer = dict(self.types)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            if argument.arg != "self":
                self._bind(argument.arg, self._annotated(argument.annotation))
        self.generic_visit(node)
        self.types = outer

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if isinstance(node.target, ast.Name):
            self._bind(node.target.id, self._annotated(node.annotation))
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            for name, value in pairs:
                if isinstance(name, ast.Name):
                    self._bind(name.id, self._type(value))
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load):
            self.reads.update((section, node.attr) for section in self._type(node.value) or {""})
        self.generic_visit(node)

    def _bind(self, name: str, sections: Types) -> None:
        self.types[name] = sections

    def _type(self, node: ast.expr) -> Types:
        if isinstance(node, ast.Name):
            return self.types.get(node.id, frozenset())
        return _attribute(self._type(node.value), node.attr) if isinstance(node, ast.Attribute) else frozenset()

    @staticmethod
    def _annotated(node: ast.expr | None) -> Types:
        """The sections in an annotation such as `Actor`, `schema.Actor` or `Config | SftConfig`."""
        parts = ast.walk(node) if node else ()
        names = (getattr(part, "id", None) or getattr(part, "attr", None) for part in parts)
        return frozenset(name for name in names if name in SECTIONS)


def reads(source: str) -> Reads:
    reader = _Reader()
    reader.visit(ast.parse(source))
    return reader.reads


def package_reads() -> Reads:
    files = {path.relative_to(PACKAGE).as_posix(): path.read_text("utf-8") for path in PACKAGE.rglob("*.py")}
    found: Reads = set().union(
        *(reads(text) for name, text in files.items() if not name.startswith((SCHEMA, *NOT_READERS)))
    )
    properties = _properties(text for name, text in files.items() if name.startswith(SCHEMA))
    for _ in properties:  # One that is read may read others.
        names = {name for _, name in found}
        found |= set().union(*(inner for name, inner in properties.items() if name in names))
    return found


def _properties(schema: Iterable[str]) -> dict[str, Reads]:
    """What each property of a section reads."""
    found: dict[str, Reads] = {}
    for section in (node for text in schema for node in ast.parse(text).body if isinstance(node, ast.ClassDef)):
        for method in (node for node in section.body if isinstance(node, ast.FunctionDef)):
            reader = _Reader()
            reader.types["self"] = frozenset({section.name} & SECTIONS.keys())
            reader.visit(method)
            found[method.name] = found.get(method.name, set()) | reader.reads
    return found


def unread(root: type[Section], found: Reads) -> list[str]:
    """Paths of settings that are neither read nor inert."""
    declared = Counter(leaf.name for tree in (Config, SftConfig) for leaf in leaves(tree).values())
    return [
        path
        for path, leaf in leaves(root).items()
        if leaf.inert is None
        and path not in CONSUMED_BY_LOADING | CONSUMED_BY_RULES | READ_BY_PATH | ONE_CHOICE.keys()
        # What reads a section that others extend reads their settings too.
        and not {(section.__name__, leaf.name) for section in leaf.owner.__mro__} & found
        and not (declared[leaf.name] == 1 and ("", leaf.name) in found)
    ]


def test_reads_are_found_through_annotations_assignments_and_attributes() -> None:
    source = """
def build(config: Config, rollout: Rollout | ValKwargs):
    actor, data = config.actor_rollout_ref.actor, config.data
    actor.optim.lr
    rollout.val_kwargs.n
    rollout.top_p
    data.seed = 3
    return path.path
"""
    found = reads(source)
    assert {("Optim", "lr"), ("ValKwargs", "n"), ("ValKwargs", "top_p"), ("Rollout", "top_p")} <= found
    assert not {("Data", "seed"), ("Rollout", "n"), ("Model", "path")} & found


def test_a_property_of_a_section_reads_its_settings() -> None:
    source = """
class Actor(Section):
    def has_kl_term(self) -> bool:
        return self.use_kl_loss and self.optim.lr > 0
class Other:
    def other(self) -> bool:
        return self.shuffle
"""
    found = _properties([source])
    assert {("Actor", "use_kl_loss"), ("Optim", "lr")} <= found["has_kl_term"]
    assert found["other"] == {("", "shuffle")}


def test_every_property_of_a_section_is_read() -> None:
    declared = {name for section in SECTIONS.values() for name, value in vars(section).items() if _is_own(name, value)}
    assert "uses_reference" in declared
    unread_ones = declared - {name for _, name in package_reads()}
    assert not unread_ones, f"nothing reads {', '.join(sorted(unread_ones))}"


def _is_own(name: str, value: object) -> bool:
    return isinstance(value, property) and not name.startswith("model_")


def test_a_setting_that_nobody_reads_is_found() -> None:
    assert "data.seed" in unread(Config, set())
    assert "data.seed" not in unread(Config, {("Data", "seed")})
    assert "data.seed" in unread(Config, {("", "seed")})  # several sections have a seed
    assert "trainer.balance_batch" not in unread(Config, set())  # inert, with its reason


def test_what_reads_a_section_reads_those_that_extend_it() -> None:
    assert "critic.optim.lr" in unread(Config, set())
    assert "critic.optim.lr" not in unread(Config, {("Optim", "lr")})
    assert "actor_rollout_ref.actor.optim.lr" in unread(Config, {("CriticOptim", "lr")})


def test_a_permission_that_rules_consume_lets_pass_what_is_refused_without_it() -> None:
    assert {"algorithm.allow_truncated_sampling"} == CONSUMED_BY_RULES
    biased = "actor_rollout_ref.rollout.top_p=0.9"
    with pytest.raises(ConfigError, match="allow_truncated_sampling=True"):
        load([biased])
    assert load([biased, "algorithm.allow_truncated_sampling=True"]).honoured


@pytest.mark.parametrize("path", list(ONE_CHOICE))
def test_a_setting_that_needs_no_reader_has_one_available_value(path: str) -> None:
    for choice in leaves(Config)[path].choices:
        unavailable = {note.path for note in load([f"{path}={choice}"]).unavailable}
        assert (path in unavailable) == (choice != ONE_CHOICE[path])


def test_a_setting_that_loading_consumes_changes_another_one() -> None:
    values = {
        "trainer.seed": 7,
        "trainer.project_name": "p",
        "trainer.experiment_name": "e",
        "actor_rollout_ref.actor.ppo_micro_batch_size": 4,
        "actor_rollout_ref.actor.clip_ratio": 0.3,
    }
    assert values.keys() == CONSUMED_BY_LOADING
    for path, value in values.items():
        assert load(tree={path: value}).derived != load().derived


@pytest.mark.parametrize("root", [Config, SftConfig])
def test_every_setting_is_read_or_inert(root: type[Section]) -> None:
    missing = unread(root, package_reads())
    assert not missing, f"nothing reads {', '.join(missing)}"
