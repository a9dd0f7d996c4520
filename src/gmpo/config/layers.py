"""What the user gave: file, tree and command line, each above the recipe that it names, as one list of settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gmpo.config.fields import Section
from gmpo.config.keys import UNSET, moved, nearest, unsupported, without_counterpart
from gmpo.config.overrides import Kind, parse_overrides
from gmpo.config.tree import coerce, enclosing, leaves, merge, nest, sections, shown
from gmpo.errors import ConfigError

RECIPES = Path(__file__).with_name("recipes")
COMMAND_LINE = "command line"
LISTED = 12
"""Most keys of a section that a message lists."""
GIVEN = "given"
"""Key of a saved configuration with what was set, path and value; see `gmpo.config.saved`."""
_ACTOR = "actor_rollout_ref.actor"
OBJECTIVE = (
    "algorithm.adv_estimator",
    "algorithm.norm_adv_by_std_in_grpo",
    "algorithm.use_kl_in_reward",
    f"{_ACTOR}.policy_loss.loss_mode",
    f"{_ACTOR}.loss_agg_mode",
    f"{_ACTOR}.clip_ratio",
    f"{_ACTOR}.clip_ratio_low",
    f"{_ACTOR}.clip_ratio_high",
    f"{_ACTOR}.use_kl_loss",
)
"""Which objective is trained: what tells recipes apart. A bound of GSPO's must not stay under GMPO's loss."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What one source gives."""

    trees: tuple[Mapping[Any, Any], ...]
    """Nested or dotted keys; later ones win."""
    place: str
    """Its name in messages, for example `"command line"`."""
    recipe: str | None = None
    """The recipe that lies directly below it."""
    given: Mapping[str, Any] | None = None
    """Of a saved configuration: path -> value of what was set when it was saved."""
    nulls: frozenset[str] = frozenset()
    """Settings of texts at which the command line says `none`, which is read as null."""


@dataclass(slots=True)
class Settings:
    """Settings by path, where each comes from, and what was wrong on the way."""

    root: type[Section]
    moved: Mapping[str, str]
    unsupported: Mapping[str, str]
    no_counterpart: Mapping[str, str]
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    """Path -> the layer that gave the value, for example `"command line"`."""
    spellings: dict[str, str] = field(default_factory=dict)
    """Path -> its name as the user wrote it: the path itself, or the other name of verl."""
    problems: list[str] = field(default_factory=list)
    foreign: dict[str, tuple[Any, str]] = field(default_factory=dict)
    """Key that is not in the tree -> its value, and the layer that gave it; judged when all are known."""
    ignored: dict[str, tuple[Any, str]] = field(default_factory=dict)
    """Key of verl that is not in the tree and changes nothing -> its value, and why it changes nothing."""
    doubtful: set[str] = field(default_factory=set)
    """Paths whose value is wrong, or that an unknown key was probably meant to be."""
    set_back: dict[str, str] = field(default_factory=dict)
    """Path that a recipe set back to its default -> which value it had, and which recipe did it."""

    def lay(self, layer: Layer, *, leave_out: frozenset[str] = frozenset()) -> None:
        """Lay the layer's recipe and then the layer over what is there, without the paths of `leave_out`.

        A recipe states a whole objective: of `OBJECTIVE`, what it does not give goes back to its default. One whose
        every value is there already or is overridden by its layer becomes a problem.
        """
        if layer.recipe is None:
            self._add(layer, leave_out)
            return
        below, known = dict(self.values), leaves(self.root)
        place = f"recipe {layer.recipe}"
        recipe = Settings(self.root, self.moved, self.unsupported, self.no_counterpart)
        recipe.add(read_yaml(recipes()[layer.recipe]), place)
        undone = [path for path in OBJECTIVE if path in below and path not in recipe.values]
        for path in undone:
            self._undo(path, place)
        self.add(nest(recipe.values), place)
        self._add(layer, leave_out)
        for path in self.set_back.keys() & self.values.keys():
            del self.set_back[path]  # Given anew beside the recipe.
        there = {
            path
            for path, value in recipe.values.items()
            if path in below and coerce(known[path], below[path]) == coerce(known[path], value)
        }
        overridden = {path for path in recipe.values if self.places[path] != place}
        if there | overridden == recipe.values.keys() and not self.set_back.keys() & set(undone):
            self.problems.append(_without_effect(layer, sorted(there - overridden), sorted(overridden)))

    def _add(self, layer: Layer, leave_out: frozenset[str]) -> None:
        for tree in layer.trees:
            self.add(tree, layer.place, leave_out=leave_out)

    def _undo(self, path: str, place: str) -> None:
        leaf, value = leaves(self.root)[path], self.values.pop(path)
        if coerce(leaf, value) != leaf.field.default:
            self.set_back[path] = (
                f"was {shown(value)} ({self.places[path]}); {place}, which states a whole objective, sets it back to "
                "its default. To keep it, give it beside the recipe"
            )
        self.places.pop(path)
        self.spellings.pop(path)

    def add(
        self,
        tree: Mapping[Any, Any],
        place: str,
        *,
        prefix: str = "",
        spelling: str | None = None,
        leave_out: frozenset[str] = frozenset(),
    ) -> None:
        """Lay a tree over what is there; keys may be nested or dotted. Keys that no setting has become problems.

        `prefix` and `spelling` are for the descent: the path of `tree`, and its other name if it was given under one.
        """
        for key, value in tree.items():
            name = f"{prefix}{key}"
            if isinstance(value, Mapping) and any(other.startswith(f"{name}.") for other in self.moved):
                self.add(value, place, prefix=f"{name}.", spelling=spelling, leave_out=leave_out)
                continue
            old, path = moved(name, self.moved) or (spelling, name)
            section = path in sections(self.root)
            if path in leave_out or (not isinstance(value, Mapping) and value in UNSET.get(name, ())):
                continue
            if path in leaves(self.root):
                self._put(path, value, old or path, place)
            elif (free := enclosing(self.root, path)) is not None:
                self._put(free[0], nest({free[1]: value}), old or free[0], place)
            elif isinstance(value, Mapping) and (value or section):
                self.add(value, place, prefix=f"{path}.", spelling=old, leave_out=leave_out)
            elif section:
                self.problems.append(self._not_a_setting(path, value, place))
            else:
                self.foreign[path] = (value, place)

    def _put(self, path: str, value: Any, spelling: str, place: str) -> None:
        if self.spellings.setdefault(path, spelling) != spelling and path in self.values:
            leaf, one, other = leaves(self.root)[path], self.spellings[path], spelling
            default, there, now = leaf.field.default, coerce(leaf, self.values[path]), coerce(leaf, value)
            both_said = self.places[path] == place == COMMAND_LINE
            # verl's saved files hold every spelling, and the others stand at the default or follow.
            follows = not both_said and _interpolates(there)
            if now == there or (not both_said and not follows and (now == default or _interpolates(now))):
                return
            if both_said or not (there == default or follows):
                self.problems.append(f"{path}\nis given both as {one} and as {other} ({place}); keep one.")
                return
            self.spellings[path] = spelling
        below = self.values.get(path)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        self.values[path] = merge(below or {}, value) if both else value
        self.places[path] = place

    def _not_a_setting(self, path: str, value: Any, place: str) -> str:
        head = f"{path} = {shown(value)} ({place})"
        if path in sections(self.root):
            below = [leaf for leaf in leaves(self.root) if leaf.startswith(f"{path}.")]
            return f"{head}\nis a section, not a setting; it holds {', '.join(below[:3])}, ..."
        if reason := unsupported(path, self.unsupported):
            return f"{head}\nis not supported: {reason}."
        candidates = nearest(path, leaves(self.root))
        self.doubtful.update(candidates)
        hint = f"Did you mean {' or '.join(candidates)}?" if candidates else self._there(path)
        return f"{head}\nunknown key. {hint}"

    def _there(self, path: str) -> str:
        """What there is instead of an unknown key that no setting is like."""
        parts = path.split(".")[:-1]
        above = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        section = next((one for one in above if one in sections(self.root)), None)
        if section is None:
            return "`docs/configuration.md` lists all keys."
        below = (
            leaf.removeprefix(f"{section}.").partition(".")
            for leaf in leaves(self.root)
            if leaf.startswith(f"{section}.")
        )
        names = list(dict.fromkeys(name + dot for name, dot, _ in below))
        shown_names = f"{', '.join(names[:LISTED])}{', ..' * (len(names) > LISTED)}"
        return f"{section} holds {shown_names}; `docs/configuration.md` lists all keys."

    def resolve(self) -> None:
        """Replace interpolations (`${data.max_prompt_length}`) by what they stand for, then fit values to types."""
        known = leaves(self.root)
        tree = {path: _plain(leaf.field.get_default(call_default_factory=True)) for path, leaf in known.items()}
        for path in list(self.values):
            try:
                tree[path] = _plain(self.values[path])
            except TypeError as error:
                self._refuse(path, str(error))
        interpolated = OmegaConf.create(nest(tree))
        self._judge_foreign(interpolated)
        for path in list(self.values):
            try:
                value = OmegaConf.select(interpolated, path)
                value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            except OmegaConfBaseException as error:
                self._refuse(path, f"{str(error).splitlines()[0]} (a text that holds ${{ is written with \\${{)")
                continue
            self.values[path] = coerce(known[path], value)
            if self.values[path] is None and known[path].derived:
                del self.values[path]  # null asks for the derived value, as leaving the key out does

    def _judge_foreign(self, interpolated: DictConfig) -> None:
        """Report each key that is not in the tree: without effect, or a problem. They are added to `interpolated`."""
        values: dict[str, Any] = {}
        for path, (value, place) in self.foreign.items():
            try:
                values[path] = _plain(value)
            except TypeError as error:
                self.problems.append(f"{path} = {value!r} ({place})\n{error}.")
        for path, value in values.items():
            parts = path.split(".")
            if not any(".".join(parts[:end]) in leaves(self.root) for end in range(1, len(parts))):
                OmegaConf.update(interpolated, path, value, force_add=True)
        for path, value in values.items():
            if _interpolates(value):
                with suppress(OmegaConfBaseException):  # It is judged as it is written.
                    selected = OmegaConf.select(interpolated, path)
                    values[path] = OmegaConf.to_container(selected) if OmegaConf.is_config(selected) else selected
        for path, value in values.items():
            place = self.foreign[path][1]
            if reason := without_counterpart(path, value, self.no_counterpart, self.unsupported, values):
                self.ignored[path] = (value, reason)
            else:
                self.problems.append(self._not_a_setting(path, value, place))

    def _refuse(self, path: str, reason: str) -> None:
        self.problems.append(f"{path} = {shown(self.values[path])} ({self.places[path]})\n{reason}.")
        self.drop(path)

    def drop(self, path: str) -> None:
        """Forget a setting whose value is wrong, so that the rest can still be checked."""
        del self.values[path]
        self.doubtful.add(path)


def _interpolates(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def read_yaml(file: Path) -> dict[Any, Any]:
    """The content of a YAML file.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or holds no mapping.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except OSError as error:
        # OmegaConf reports a file with a single value as an OSError without an error number.
        cause = f"cannot be read: {error.strerror}" if error.strerror else "holds no keys with values"
        raise ConfigError(f"{file}: {cause}.") from error
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: holds a list; a configuration file holds keys with values.")
    return content


def recipes() -> dict[str, Path]:
    """The recipes that come with gmpo, by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def read_layers(
    root: type[Section],
    overrides: Sequence[str],
    file: Path | None,
    tree: Mapping[str, Any] | None,
    *,
    other_names: Mapping[str, str],
    with_recipes: bool,
) -> tuple[list[Layer], list[str]]:
    """File, tree and command line in rising order, with the recipes that they name, and what could not be read.

    `recipe=null` in one takes away the recipes of those below. Among the problems are a name that no recipe has, two
    recipes in one place, and a recipe in a saved configuration.
    """
    parsed, problems = parse_overrides(overrides, partial(_kind, root, other_names))
    sources: list[tuple[list[dict[Any, Any]], str]] = []
    if file is not None:
        try:
            sources.append(([read_yaml(file)], str(file)))
        except ConfigError as error:
            problems.append(str(error))
    if tree is not None:
        sources.append(([dict(tree)], "tree"))
    sources.append(([{override.path: override.value} for override in parsed], COMMAND_LINE))
    layers: list[Layer] = []
    known = recipes() if with_recipes else {}
    for trees, place in sources:
        named = [one.pop("recipe") for one in trees if "recipe" in one]
        given = trees[0].pop(GIVEN) if place != COMMAND_LINE and GIVEN in trees[0] else None
        if given is not None and not isinstance(given, Mapping):
            problems.append(
                f"{GIVEN} = {shown(given)} ({place})\nmust hold the keys that were set, with their values. Remove it: "
                "every key of the file then counts as set."
            )
            given = None
        recipe = named[-1] if named else None
        if named == [None] * len(named):
            layers = [replace(layer, recipe=None) for layer in layers] if named else layers
        elif wrong := _wrong_recipe(named, known, saved=given is not None):
            problems.append(f"recipe = {', '.join(map(shown, named))} ({place})\n{wrong}.")
            recipe = None
        layers.append(Layer(tuple(trees), place, recipe, given))
    nulls = frozenset(_here(override.path, other_names) for override in parsed if override.none_as_null)
    layers[-1] = replace(layers[-1], nulls=nulls)
    return layers, problems


def _here(path: str, other_names: Mapping[str, str]) -> str:
    """The path of a key that may be given under another name of verl's."""
    found = moved(path, other_names)
    return path if found is None else found[1]


def _kind(root: type[Section], other_names: Mapping[str, str], path: str) -> Kind:
    leaf = leaves(root).get(_here(path, other_names))
    if leaf is None:
        return "free"
    if leaf.kind is str and not leaf.choices:
        return "text or null" if leaf.nullable or leaf.derived else "text"
    return "texts or null" if leaf.filled else "other"


def _wrong_recipe(named: Sequence[Any], known: Mapping[str, Path], *, saved: bool) -> str | None:
    """What is wrong with the recipes that one layer names, or None.

    Args:
        saved: the layer is a saved configuration.
    """
    recipe = named[-1]
    if any(other != recipe for other in named):
        return "different recipes in one place, and each states a whole objective; keep one"
    if not (isinstance(recipe, str) and recipe in known):
        names = f"known are {', '.join(known)}" if known else "there are none for supervised learning"
        return f"unknown recipe; {names}"
    if saved:
        # A layer lies above its recipe: loss and bounds that were set would stay, with what only the recipe gives.
        return (
            f"a saved configuration (it has the key {GIVEN}) holds a whole objective already, and it would be mixed "
            f"with the recipe's. Give recipe={recipe} on the command line, which lays it over the file"
        )
    return None


def _without_effect(layer: Layer, there: Sequence[str], overridden: Sequence[str]) -> str:
    """The message for a recipe that changes nothing."""
    reasons = [f"given already with its values: {', '.join(there)}"] if there else []
    reasons += [f"overridden ({layer.place}): {', '.join(overridden)}"] if overridden else []
    return f"recipe = {layer.recipe} ({layer.place})\nchanges nothing. {'; '.join(reasons)}. Leave the recipe out."


def _plain(value: Any) -> Any:
    """A value as YAML would hold it: tuples as lists, paths as texts, numpy's numbers as Python's.

    Raises:
        TypeError: there is no such form.
    """
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    raise TypeError(
        f"is of type {type(value).__name__}; allowed are texts, numbers, True, False, None, lists, mappings"
    )
