"""Defaults < file < tree < overrides -> one checked configuration. All that is wrong is reported at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Generic

from pydantic import ValidationError

from gmpo.config.corrections import band
from gmpo.config.derive import CORRECTION, DERIVATIONS, SFT_DERIVATIONS, Derived, Given, derive
from gmpo.config.engines import refuse_other_engines
from gmpo.config.issues import ROWS, VAL_ROWS, Issue
from gmpo.config.keys import (
    MOVED,
    NO_COUNTERPART,
    REFUSED_VALUES,
    SFT_MOVED,
    SFT_UNSUPPORTED,
    UNSUPPORTED,
    asks_nothing,
    switched_off,
)
from gmpo.config.layers import GIVEN, Layer, Settings, read_layers
from gmpo.config.resolved import ConfigT, Ignored, Note, Resolved
from gmpo.config.rules import RULES, SFT_RULES
from gmpo.config.saved import unedited
from gmpo.config.schema import Config
from gmpo.config.schema_sft import SftConfig
from gmpo.config.tree import Leaf, get, leaves, nest, shown
from gmpo.errors import ConfigError

EMPTY = "It is empty: a variable of the shell that is not set? Give one, or leave the key out."
NONE_AS_NULL = "the word none is read as null, that is nothing; for a text of these letters write 'none' in quotes"


@dataclass(frozen=True, slots=True)
class _Program(Generic[ConfigT]):
    """What is particular to the tree of one program."""

    root: type[ConfigT]
    moved: Mapping[str, str]
    unsupported: Mapping[str, str]
    no_counterpart: Mapping[str, str]
    derivations: Sequence[Callable[[ConfigT, Given], Iterator[Derived]]]
    rules: Sequence[Callable[[ConfigT, Given], Iterator[Issue]]]
    with_recipes: bool

    def settings(self) -> Settings:
        return Settings(self.root, self.moved, self.unsupported, self.no_counterpart)

    def complete(self, values: Mapping[str, Any]) -> tuple[ConfigT, tuple[Derived, ...]]:
        """The tree of some settings, with all that follows from them.

        Raises:
            ValidationError: a value is of the wrong type or out of range.
        """
        config, derived = derive(self.root.model_validate(nest(values)), frozenset(values), self.derivations)
        # The first validation skipped the defaults of derived settings; this one finds any that none was derived for.
        return self.root.model_validate(config.model_dump()), derived


_TRAIN = _Program(Config, MOVED, UNSUPPORTED, NO_COUNTERPART, DERIVATIONS, RULES, with_recipes=True)
_SFT = _Program(SftConfig, SFT_MOVED, SFT_UNSUPPORTED, {}, SFT_DERIVATIONS, SFT_RULES, with_recipes=False)


def load(
    overrides: Sequence[str] = (),
    *,
    file: Path | None = None,
    tree: Mapping[str, Any] | None = None,
    rows: bool = False,
    val_rows: bool = False,
) -> Resolved[Config]:
    """The configuration of `gmpo train`.

    Args:
        overrides: verl's forms, for example `["trainer.seed=3", "+data.train_files=['a.parquet']"]`; `recipe=NAME`
            chooses a recipe. Later ones win.
        file: YAML with nested or dotted keys, interpolations and an optional key `recipe`; also the `config.yaml` of a
            run, which says what was set. A recipe over it is given in `overrides`.
        tree: the same as a Python mapping. Each of the three lies above the recipe that it names, and that one above
            the layer before.
        rows: the caller hands over the training problems, so data.train_files is not needed; val_rows likewise.

    Raises:
        ConfigError: one message that lists all problems, each with path, value, place, cause and remedy.
    """
    handed_over = {name for name, handed in ((ROWS, rows), (VAL_ROWS, val_rows)) if handed}
    return _load(_TRAIN, overrides, file, tree, frozenset(handed_over))


def load_sft(
    overrides: Sequence[str] = (),
    *,
    file: Path | None = None,
    tree: Mapping[str, Any] | None = None,
    rows: bool = False,
) -> Resolved[SftConfig]:
    """The configuration of `gmpo sft`; arguments and errors as for `load`. There are no recipes."""
    return _load(_SFT, overrides, file, tree, frozenset({ROWS} if rows else ()))


def _load(
    program: _Program[ConfigT],
    overrides: Sequence[str],
    file: Path | None,
    tree: Mapping[str, Any] | None,
    handed_over: frozenset[str],
) -> Resolved[ConfigT]:
    refuse_other_engines(overrides)
    settings = program.settings()
    layers, problems = read_layers(
        program.root, overrides, file, tree, other_names=program.moved, with_recipes=program.with_recipes
    )
    settings.problems.extend(problems)
    edited: list[Note] = []
    for layer in layers:
        settings.lay(layer, leave_out=_only_shown(program, layer, edited))
    settings.resolve()
    _read_icepop(settings)
    _refuse_values(settings)
    given = frozenset(settings.values) - _drop_invalid(settings, program.root)
    config, derived = program.complete(settings.values)
    issues = [issue for rule in program.rules for issue in rule(config, given | handed_over)]
    places = {item.path: "derived" for item in derived} | settings.places
    problems = settings.problems + [
        f"{_place(issue.path, get(config, issue.path), places)}\n{issue.reason}."
        for issue in issues
        if issue.severity == "error" and not settings.doubtful & {issue.path, *issue.involves}
    ]
    if problems:
        raise ConfigError(_listed(problems))
    unavailable = _notes(issues, "unavailable")
    refused = {note.path for note in unavailable}
    always = [Issue("inert", path, leaf.inert) for path, leaf in leaves(program.root).items() if leaf.inert]
    inert = _notes([*always, *issues], "inert")
    without_effect = {note.path for note in inert}
    return Resolved(
        config=config,
        values=settings.values,
        derived=tuple(item for item in derived if item.path not in without_effect),
        inert=tuple(note for note in inert if note.path in given and note.path not in refused),
        ignored=tuple(Ignored(path, value, reason) for path, (value, reason) in settings.ignored.items()),
        unavailable=unavailable,
        idle=_idle(program, settings, config, without_effect),
        warnings=_other_names(settings)
        + tuple(Note(path, reason) for path, reason in settings.set_back.items())
        + tuple(edited)
        + tuple(Note(path, NONE_AS_NULL) for path in sorted(layers[-1].nulls))
        + _notes(issues, "warning"),
        inert_paths=frozenset(without_effect),
    )


def _idle(
    program: _Program[ConfigT], settings: Settings, config: ConfigT, without_effect: Iterable[str]
) -> frozenset[str]:
    """Given keys without effect that stand at the value which they have when nothing is given."""
    defaults, _ = program.complete({})
    known = {path: leaves(program.root)[path].follows for path in without_effect if path in settings.values}
    idle = (
        path
        for path, source in known.items()
        if get(config, path) == get(defaults, path) or (source is not None and get(config, path) == get(config, source))
    )
    values = {path: value for path, (value, _) in settings.ignored.items()}
    foreign = (path for path, value in values.items() if asks_nothing(path, value) or switched_off(path, values))
    return frozenset((*idle, *foreign))


def _only_shown(program: _Program[ConfigT], layer: Layer, notes: list[Note]) -> frozenset[str]:
    """The paths of a saved configuration that were neither set nor edited; none of any other layer. What was set and
    then edited is added to `notes`."""
    if layer.given is None:
        return frozenset()
    given, saved = program.settings(), program.settings()
    given.add(layer.given, f"{layer.place}, {GIVEN}")
    for tree in layer.trees:
        saved.add(tree, layer.place)
    given.resolve()
    saved.resolve()
    try:
        written = program.root.model_validate(nest(saved.values))
        same = unedited(written, saved.values.keys(), given.values, lambda values: program.complete(values)[0])
    except ValidationError:
        return frozenset()  # What is wrong in it is reported with everything else.
    notes += [
        Note(path, f"was {shown(value)} when {layer.place} was saved (under {GIVEN}); what stands in its tree counts")
        for path, value in given.values.items()
        if path in saved.values and saved.values[path] != value
    ]
    return same - given.values.keys()


def _read_icepop(settings: Settings) -> None:
    """A threshold that is a band, verl's form of IcePop, stands for the setting of that name and its weights."""
    threshold, weights, icepop = (f"{CORRECTION}.{name}" for name in ("rollout_is_threshold", "rollout_is", "icepop"))
    bounds = band(settings.values.get(threshold))
    if bounds is None or threshold not in leaves(settings.root):
        return
    if (level := settings.values.get(weights)) == "sequence":
        head = _place(threshold, settings.values[threshold], settings.places)
        settings.problems.append(f"{head}\nis a band of weights per token, and {weights} is {level}; take token.")
    elif level == "token" and icepop not in settings.values:
        settings.values[icepop], settings.places[icepop] = bounds, settings.places[threshold]
        settings.spellings[icepop] = threshold
        del settings.values[weights]
    if level is not None:
        del settings.values[threshold]
    else:
        settings.values[threshold] = bounds[1]  # Nothing reads it without weights.


def _refuse_values(settings: Settings) -> None:
    """Values that verl knows and this tree does not get their own reason."""
    for path in list(settings.values):
        value = settings.values[path]
        for item in value if isinstance(value, tuple) else (value,):
            reason = REFUSED_VALUES.get((path, item)) if isinstance(item, str) else None
            if reason:
                allowed = leaves(settings.root)[path].allowed
                head = _place(path, item, settings.places)
                settings.problems.append(f"{head}\nis refused: {reason}. Allowed: {allowed}.")
                settings.drop(path)
                break


def _drop_invalid(settings: Settings, root: type[ConfigT]) -> frozenset[str]:
    """Report and forget every value that is of the wrong type or out of range."""
    try:
        root.model_validate(nest(settings.values))
    except ValidationError as error:
        wrong: dict[str, tuple[Any, str]] = {}
        for detail in error.errors(include_url=False):
            names = [str(part) for part in detail["loc"]]
            path = next(p for end in range(len(names), 0, -1) if (p := ".".join(names[:end])) in leaves(root))
            # Within a list the offending item is named; a wrong list length names the whole list.
            below = names[path.count(".") + 1 :]
            item = detail["input"] if below else settings.values[path]
            # Of an object within a list, its place and field are named: `entry 1, weight: ..`.
            in_object = len(below) > 1 and below[0].isdigit()
            said = EMPTY if detail["type"] == "string_pattern_mismatch" else f"{detail['msg']}."
            why = f" In entry {int(below[0]) + 1}, {'.'.join(below[1:])}: {said}" if in_object else ""
            wrong.setdefault(path, (item, why))
        for path, (item, why) in wrong.items():
            leaf = leaves(root)[path]
            blank = leaf.filled is not None and isinstance(item, str) and not item.strip()
            hint = f" {EMPTY}" if blank else _similar_choice(leaf, item)
            head = _place(path, item, settings.places)
            settings.problems.append(f"{head}\nmust be {leaf.allowed}.{hint}{why} {leaf.field.description}")
            settings.drop(path)
        return frozenset(wrong)
    return frozenset()


def _similar_choice(leaf: Leaf, value: Any) -> str:
    similar = get_close_matches(str(value), leaf.choices, n=1, cutoff=0.6)
    return f" Did you mean {similar[0]}?" if similar else ""


def _other_names(settings: Settings) -> tuple[Note, ...]:
    return tuple(
        Note(path, f"was given as {spelling}, another name of it in verl")
        for path, spelling in settings.spellings.items()
        if spelling != path and path in settings.values
    )


def _notes(issues: Sequence[Issue], severity: str) -> tuple[Note, ...]:
    """One note per path, the first that was found."""
    first: dict[str, Note] = {}
    for issue in issues:
        if issue.severity == severity:
            first.setdefault(issue.path, Note(issue.path, issue.reason))
    return tuple(first.values())


def _place(path: str, value: Any, places: Mapping[str, str]) -> str:
    return f"{path} = {shown(value)} ({places.get(path, 'default')})"


def _listed(problems: Sequence[str]) -> str:
    count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
    lines = ("  " + problem.replace("\n", "\n      ") for problem in problems)
    return "\n".join([f"{count} in the configuration:", *lines])
