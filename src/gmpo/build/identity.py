"""What makes a run the run it is: its settings by role, and the content that their paths lead to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from gmpo.backends.models import ModelSource, load_config, load_generation, resolve, stop_token_ids
from gmpo.build.rewards import RewardFunction, factors
from gmpo.config import Config, Resolved, SftConfig
from gmpo.config.fields import Section
from gmpo.config.resolved import as_tree
from gmpo.config.roles import by_role, length_matters
from gmpo.config.tree import leaves
from gmpo.config.tree import replace as with_setting
from gmpo.data.demonstrations import rendered
from gmpo.data.problems import Problem
from gmpo.data.prompts import EncodedProblems
from gmpo.records import fingerprint
from gmpo.records.functions import of_function, same_function
from gmpo.records.run_folder import PASS_RATES, Difference, Program, RunRecord

CONTENT_OF = "content of "
VALIDATION = f"{CONTENT_OF}data.val_files"
RENDERED = "prompts as token ids"
"""Differs with equal template and tokenizer where the library renders them differently, or an earlier version of gmpo
let the template write the clock's time."""
MOMENT = "moment that the chat template writes"
"""Where it writes one, see `gmpo.build.kept`. Not compared: what it makes of the prompts is."""
PRODUCTS = "float32 products"
"""What `trainer.matmul_precision=auto` chose at the run's first start. Not compared: it is taken again."""
RENDERED_DEMONSTRATIONS = 64
"""So many prompts are rendered to see whether the template still renders them alike."""
MODEL_PATH = f"{CONTENT_OF}actor_rollout_ref.model.path"
LENGTH = "steps of the run"
FUNCTION = "reward function "
UNSEEN = "not compared"
"""What reward functions hold that no two starts can be compared by."""
BASE = "base model"
"""The model that the weights began with, whatever the settings' path leads to now; null where nobody knows it."""
PERMISSION = "trainer.allow_changed_config"
OLD = 0
"""Format of a folder without run.json, whose content nobody recorded."""


@dataclass(frozen=True, slots=True)
class Changes:
    """How a start of the program differs from the run that is there."""

    identity: tuple[Difference, ...]
    inexact: tuple[Difference, ...]
    """Of execution: the same is computed, but for rounding."""
    other: tuple[Difference, ...]
    """Execution that changes no number, and bookkeeping."""

    @property
    def all(self) -> tuple[Difference, ...]:
        return (*self.identity, *self.inexact, *self.other)


def describe_run(
    resolved: Resolved[Any], program: Program, content: Mapping[str, Any], total_steps: int, steps: int = 0
) -> RunRecord:
    """The record that a run of these settings has at its start."""
    settings = by_role(without_permission(resolved))
    length = {LENGTH: total_steps} if length_matters(resolved.config) else {}
    return RunRecord(
        program=program,
        status="running",
        steps=steps,
        total_steps=total_steps,
        identity=settings["identity"],
        execution=settings["execution"],
        bookkeeping=settings["bookkeeping"],
        idle=settings["idle"],
        content={**content, **length},
    )


def without_permission(resolved: Resolved[Any]) -> Resolved[Any]:
    """The settings as a run keeps them: a permission belongs to the start that it was given to."""
    values = {path: value for path, value in resolved.values.items() if path != PERMISSION}
    return replace(resolved, config=with_setting(resolved.config, PERMISSION, False), values=values)


def training_content(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    problems: EncodedProblems | None,
    validation: EncodedProblems | None,
    functions: Sequence[RewardFunction],
    weights: Sequence[float] | None,
    moment: datetime | None,
) -> dict[str, Any]:
    """What the paths of `gmpo train` lead to, as fingerprints.

    Args:
        functions, weights: rewards that were handed over in Python, see `gmpo.build.rewards.build_rewards`.
        moment: that the prompts are rendered with.
    """
    model, custom = config.actor_rollout_ref.model, config.custom_reward_function
    source = ModelSource(model.source, model.trust_remote_code, model.override_config)
    content: dict[str, Any] = _text(source, tokenizer, "actor_rollout_ref.model.path", moment)
    if config.uses_reference:
        source = ModelSource(config.actor_rollout_ref.ref.model.source, model.trust_remote_code)
        content[f"{CONTENT_OF}actor_rollout_ref.ref.model.path"] = _model(source)
    if config.critic.enable:
        source = ModelSource(config.critic.model.source, config.critic.model.trust_remote_code)
        content[f"{CONTENT_OF}critic.model.path"] = _model(source)
    if problems is not None:
        content[f"{CONTENT_OF}data.train_files"] = _problems([item.problem for item in problems.items])
        content[RENDERED] = fingerprint.of_json([item.prompt_ids for item in problems.items])
    if validation is not None:
        content[VALIDATION] = _problems([item.problem for item in validation.items])
    if functions:
        content |= _functions(functions)
        content["weights of the reward functions"] = factors(functions, weights)
    elif custom.path is not None:
        content[f"{CONTENT_OF}custom_reward_function.path"] = _file(custom.path)
    if config.reward_model.extra_rewards:
        files = [_file(extra.path) for extra in config.reward_model.extra_rewards]
        content[f"{CONTENT_OF}reward_model.extra_rewards"] = files
    if config.data.pass_rate_range and config.data.pass_rate_history:
        place = Path(config.data.pass_rate_history).expanduser()
        history = place / PASS_RATES if place.is_dir() else place
        content[f"{CONTENT_OF}data.pass_rate_history"] = fingerprint.of_file(history)
    return content


def supervised_content(
    config: SftConfig,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Problem],
    held_out: Sequence[Problem],
    moment: datetime | None,
) -> dict[str, Any]:
    """What the paths of `gmpo sft` lead to, as fingerprints."""
    model = config.model
    source = ModelSource(model.source, model.trust_remote_code, model.override_config)
    content = _text(source, tokenizer, "model.path", moment)
    content[f"{CONTENT_OF}data.train_files"] = _problems(items)
    some = rendered(items[:RENDERED_DEMONSTRATIONS], tokenizer, moment)
    content[RENDERED] = fingerprint.of_json([item.prompt_ids for item in some.items])
    return {**content, VALIDATION: _problems(held_out)} if held_out else content


def _text(source: ModelSource, tokenizer: PreTrainedTokenizerBase, key: str, moment: datetime | None) -> dict[str, Any]:
    model = _model(source)
    written = {} if moment is None else {MOMENT: moment.isoformat()}
    return {
        **written,
        BASE: model,
        f"{CONTENT_OF}{key}": model,
        "tokenizer": _tokenizer(tokenizer),
        "chat template": fingerprint.of_json(tokenizer.chat_template),
        "stop tokens": sorted(stop_token_ids(load_generation(source), tokenizer)),
    }


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """All that turns text into token ids and back, the chat template apart; of a tokenizer that is written in Python
    its class and its vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    steps: dict[str, Any] = {} if backend is None else json.loads(backend.to_str())
    # How the last call cut and padded is no part of it.
    steps = {key: value for key, value in steps.items() if key not in ("truncation", "padding")}
    python = type(tokenizer).__qualname__ if backend is None else None
    special = [tokenizer.special_tokens_map, getattr(tokenizer, "clean_up_tokenization_spaces", None)]
    return fingerprint.of_json([python, steps, sorted(tokenizer.get_vocab().items()), special])


def _model(source: ModelSource) -> str:
    """Of a folder its content; of a name on the hub, whose files may not be here yet, the commit."""
    folder = Path(resolve(source.path))
    if folder.is_dir():
        return fingerprint.of_model(folder)
    return f"{source.path}@{getattr(load_config(source), '_commit_hash', None)}"


def _problems(problems: Sequence[Problem]) -> str:
    """What is asked in which order, what is expected, and what a reward function may read beside it."""
    return fingerprint.of_json([[p.data_source, p.prompt, p.ground_truth, p.extra] for p in problems])


def _file(path: str) -> str:
    return fingerprint.of_file(Path(path).expanduser())


def _functions(functions: Sequence[RewardFunction]) -> dict[str, Any]:
    """By number and name, and what of them cannot be compared."""
    found = [(f"{FUNCTION}{number}", of_function(function)) for number, function in enumerate(functions, start=1)]
    unseen = [f"{print_.name}: {place}" for _, print_ in found for place in print_.unseen]
    return {f"{key} ({print_.name})": dict(print_.prints) for key, print_ in found} | (
        {UNSEEN: unseen} if unseen else {}
    )


def compare(then: RunRecord, now: RunRecord, resolved: Resolved[Any]) -> Changes:
    """What differs between a run and a start of the program, by what it means.

    Of settings those count that have an effect now: what took the effect of another one is listed itself. One that the
    version of then did not know counts where the user gave it.
    """
    root: type[Section] = type(resolved.config)
    known, defaults = leaves(root), as_tree(root())
    before = {**then.idle, **then.bookkeeping, **then.execution, **then.identity}

    def differing(settings: Mapping[str, Any]) -> list[Difference]:
        found = []
        for path, value in settings.items():
            if path in before and before[path] != value:
                found.append(Difference(path, before[path], value))
            elif path not in before and path in resolved.given and value != _default(defaults, path):
                found.append(Difference(path, None, value))
        return found

    identity, execution = differing(now.identity), differing(now.execution)
    inexact = [d for d in execution if not known[d.key].exact]
    other = [d for d in execution if known[d.key].exact] + differing(now.bookkeeping)
    if then.format == OLD:
        unknown = _unknown_content(now, resolved.config)
        return Changes(
            (*identity, *(d for d in other if d.key in unknown)),
            tuple(inexact),
            tuple(d for d in other if d.key not in unknown),
        )
    content = list(_differing_content(then.content, now.content))
    same_text = not any(d.key != RENDERED for d in content)
    for difference in content:
        if difference.key == RENDERED:
            # Other problems or another template are listed themselves.
            inexact += [difference] if same_text else []
        elif difference.key == VALIDATION and (difference.then is None or difference.now is None):
            other.append(difference)  # a validation is added or left out; no curve mixes two sets
        else:
            identity.append(difference)
    return Changes(tuple(identity), tuple(inexact), tuple(other))


def _differing_content(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    for key in {**then, **now}:
        before, after = then.get(key), now.get(key)
        if key in (BASE, MOMENT, PRODUCTS, UNSEEN) or before == after:
            continue
        if key.startswith(FUNCTION) and before and after and same_function(before, after):
            continue
        yield Difference(key, before, after)


def _unknown_content(now: RunRecord, config: Config | SftConfig) -> set[str]:
    """Paths and lengths that stand for content where content was not recorded. A checkpoint of `gmpo train` knows its
    problems."""
    paths = {key.removeprefix(CONTENT_OF) for key in now.content if key.startswith(CONTENT_OF)}
    lengths = {"trainer.total_training_steps", "trainer.total_epochs"} if length_matters(config) else set()
    known = {"data.val_files", *(["data.train_files"] if now.program == "train" else [])}
    return (paths - known) | lengths


def _default(defaults: Mapping[str, Any], path: str) -> Any:
    value: Any = defaults
    for name in path.split("."):
        value = value[name]
    return value
