"""What makes a run the run it is: its settings by role, and the content that their paths lead to."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from gmpo.backends.models import ModelSource, load_config, resolve
from gmpo.build.rewards import RewardFunction, factors
from gmpo.config import Config, Resolved, SftConfig
from gmpo.config.fields import Section
from gmpo.config.resolved import as_tree
from gmpo.config.roles import by_role, length_matters
from gmpo.config.tree import leaves
from gmpo.data.problems import Problem
from gmpo.data.prompts import EncodedProblems, encode_prompts
from gmpo.records import fingerprint
from gmpo.records.run_folder import PASS_RATES, Difference, Program, RunRecord

CONTENT_OF = "content of "
VALIDATION = f"{CONTENT_OF}data.val_files"
RENDERED = "prompts as token ids"
"""Differs with equal template and tokenizer where a template writes the date, or the library renders it differently."""
RENDERED_DEMONSTRATIONS = 64
"""So many prompts are rendered to see whether the template still renders them alike."""
LENGTH = "steps of the run"
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
    settings = by_role(resolved)
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


def training_content(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    problems: EncodedProblems | None,
    validation: EncodedProblems | None,
    functions: Sequence[RewardFunction],
    weights: Sequence[float] | None,
) -> dict[str, Any]:
    """What the paths of `gmpo train` lead to, as fingerprints.

    Args:
        functions, weights: rewards that were handed over in Python, see `gmpo.build.rewards.build_rewards`.
    """
    model, custom = config.actor_rollout_ref.model, config.custom_reward_function
    content: dict[str, Any] = _text(model.path, model.trust_remote_code, tokenizer)
    if config.uses_reference:
        source = ModelSource(config.actor_rollout_ref.ref.model.path, model.trust_remote_code)
        content[f"{CONTENT_OF}actor_rollout_ref.ref.model.path"] = _model(source)
    if config.critic.enable:
        source = ModelSource(config.critic.model.path, config.critic.model.trust_remote_code)
        content[f"{CONTENT_OF}critic.model.path"] = _model(source)
    if problems is not None:
        content[f"{CONTENT_OF}data.train_files"] = _problems([item.problem for item in problems.items])
        content[RENDERED] = fingerprint.of_json([item.prompt_ids for item in problems.items])
    if validation is not None:
        content[VALIDATION] = _problems([item.problem for item in validation.items])
    if functions:
        content["reward functions"] = [_function(function) for function in functions]
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
) -> dict[str, Any]:
    """What the paths of `gmpo sft` lead to, as fingerprints."""
    content = _text(config.model.path, config.model.trust_remote_code, tokenizer, key="model.path")
    content[f"{CONTENT_OF}data.train_files"] = _problems(items)
    some = encode_prompts(items[:RENDERED_DEMONSTRATIONS], tokenizer, max_prompt_length=sys.maxsize)
    content[RENDERED] = fingerprint.of_json([item.prompt_ids for item in some.items])
    return {**content, VALIDATION: _problems(held_out)} if held_out else content


def _text(
    path: str, trust: bool, tokenizer: PreTrainedTokenizerBase, key: str = "actor_rollout_ref.model.path"
) -> dict[str, Any]:
    return {
        f"{CONTENT_OF}{key}": _model(ModelSource(path, trust)),
        "tokenizer": fingerprint.of_json([sorted(tokenizer.get_vocab().items()), tokenizer.eos_token]),
        "chat template": fingerprint.of_json(tokenizer.chat_template),
    }


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


def _function(function: Callable[..., Any]) -> str:
    """Name and source text, or bytecode where there is no text. The values that a closure holds are not seen."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    code = getattr(function, "__code__", None)
    try:
        return f"{name} {fingerprint.of_json(inspect.getsource(function))}"
    except Exception:  # it reads and parses the file that the function says it comes from, which may be anything
        return name if code is None else f"{name} {fingerprint.of_json([code.co_code.hex(), code.co_names])}"


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
    content = [
        Difference(key, then.content.get(key), now.content.get(key))
        for key in {**then.content, **now.content}
        if then.content.get(key) != now.content.get(key)
    ]
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
