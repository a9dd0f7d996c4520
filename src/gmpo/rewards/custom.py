"""User-written reward functions, in verl's or TRL's signature, distinguished by the names of their parameters.

verl: `compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs) -> float | {"score": float, ...}`,
called once per answer. TRL: `reward(prompts, completions, **columns) -> list[float]`, called once per problem with all
its answers. Both may be `async`. They run in workers, never in the training process.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import json
import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any

from gmpo.errors import ConfigError
from gmpo.rewards.verdict import Grade, Verdict

_VERL_PARAMETERS = ("data_source", "solution_str", "ground_truth", "extra_info")
_MODULE_NAME = "gmpo_custom_reward"


class Signature(StrEnum):
    """The two calling conventions."""

    VERL = "verl"
    TRL = "trl"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, with what a reward function may ask for."""

    data_source: str
    prompt: Sequence[Mapping[str, str]] | str
    text: str
    ground_truth: str
    extra_info: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RewardFunction:
    """A user's function, how it is called, and the fixed keyword arguments (`reward_kwargs`) it gets."""

    call: Callable[..., Any]
    signature: Signature
    kwargs: Mapping[str, Any]
    accepted: frozenset[str] | None
    """Names of its parameters; None when it takes any keyword."""
    required: frozenset[str]
    """Names of its parameters without default."""

    def grade(self, group: Sequence[Answer]) -> list[Grade]:
        """Grade the answers to one problem. An error in the function becomes the grade of the answers it was given."""
        if self.signature is Signature.TRL:
            return self._grade_group(group)
        return [self._grade_one(answer) for answer in group]

    def _grade_one(self, answer: Answer) -> Grade:
        arguments = {
            "data_source": answer.data_source,
            "solution_str": answer.text,
            "ground_truth": answer.ground_truth,
            "extra_info": answer.extra_info,
        }
        try:
            return grade_of(self._call(arguments))
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:
            return failed(describe(error))

    def _grade_group(self, group: Sequence[Answer]) -> list[Grade]:
        arguments = trl_arguments(group)
        missing = sorted(self.required - set(arguments) - set(self.kwargs))
        if missing:
            has = ", ".join(sorted(arguments))
            reason = f"the reward function requires the column {', '.join(missing)}; the rows have {has}"
            return [failed(reason)] * len(group)
        try:
            returned = self._call(arguments)
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:
            return [failed(describe(error))] * len(group)
        scores = _list_of(returned)
        if scores is None or len(scores) != len(group):
            found = _shown(returned) if scores is None else f"{len(scores)} scores"
            reason = (
                f"the reward function {_name(self.call)} returned {found} for {len(group)} completions; it takes a "
                "list of completions, and must return a list with one number for each"
            )
            return [failed(reason)] * len(group)
        return [grade_of(score) for score in scores]

    def _call(self, arguments: Mapping[str, Any]) -> Any:
        given = {name: value for name, value in arguments.items() if self.accepted is None or name in self.accepted}
        returned = self.call(**{**given, **self.kwargs})
        return asyncio.run(_awaited(returned)) if inspect.isawaitable(returned) else returned


def _name(call: Any) -> str:
    return str(getattr(call, "__name__", repr(call)))


def _list_of(returned: Any) -> list[Any] | None:
    """What was returned as a list; None where it is one value (a number, a text, a dict), and no row of them."""
    if isinstance(returned, str | bytes | Mapping) or getattr(returned, "ndim", 1) == 0:
        return None
    try:
        return list(returned)
    except TypeError:
        return None


async def _awaited(value: Any) -> Any:
    return await value


def trl_arguments(group: Sequence[Answer]) -> dict[str, Any]:
    """TRL's keyword arguments: chat completions when the prompt is a chat, and one list per column of the rows."""
    columns: dict[str, list[Any]] = {}
    for key in dict.fromkeys(key for answer in group for key in answer.extra_info):
        columns[key] = [answer.extra_info.get(key) for answer in group]
    chat = not isinstance(group[0].prompt, str)
    return columns | {
        "prompts": [answer.prompt for answer in group],
        "completions": [[{"role": "assistant", "content": answer.text}] if chat else answer.text for answer in group],
        "data_source": [answer.data_source for answer in group],
        "ground_truth": [answer.ground_truth for answer in group],
    }


def reward_function(call: Any, kwargs: Mapping[str, Any]) -> RewardFunction:
    """Wrap a user's function. Raises ConfigError when its parameters fit neither signature or reject `kwargs`."""
    name = _name(call)
    if not callable(call):
        raise ConfigError(f"The reward function {name} is a {type(call).__name__}, not a function.")
    try:
        parameters = inspect.signature(call).parameters
    except ValueError as error:
        raise ConfigError(
            f"The parameters of the reward function {name} cannot be read; define it with def."
        ) from error
    any_keyword = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    signature = _signature(name, set(parameters))
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    accepted = {p.name for p in parameters.values() if p.kind in by_name}
    _check_parameters(name, signature, list(parameters.values()), accepted, kwargs, any_keyword)
    required = frozenset(p.name for p in parameters.values() if p.default is p.empty and p.kind in by_name)
    return RewardFunction(call, signature, dict(kwargs), None if any_keyword else frozenset(accepted), required)


def _signature(name: str, parameters: set[str]) -> Signature:
    is_trl, is_verl = "completions" in parameters, "solution_str" in parameters
    if is_trl != is_verl:
        return Signature.TRL if is_trl else Signature.VERL
    found = ", ".join(sorted(parameters)) or "none"
    raise ConfigError(
        f"The reward function {name} must have a parameter solution_str (verl: {', '.join(_VERL_PARAMETERS)}; called "
        f"per answer) or completions (TRL: prompts, completions, **columns; called per problem), and not both. Its "
        f"parameters: {found}."
    )


def _check_parameters(
    name: str,
    signature: Signature,
    parameters: Sequence[inspect.Parameter],
    accepted: set[str],
    kwargs: Mapping[str, Any],
    any_keyword: bool,
) -> None:
    unknown = sorted(set(kwargs) - accepted)
    if unknown and not any_keyword:
        raise ConfigError(
            f"custom_reward_function.reward_kwargs sets {', '.join(unknown)}, but the reward function {name} has no "
            f"such parameter. Add it to the function or remove it from reward_kwargs."
        )
    unfilled = [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        and p.name not in kwargs
        # TRL's columns come with the rows: a missing one is seen at the first call.
        and (p.kind is p.POSITIONAL_ONLY or (signature is Signature.VERL and p.name not in _VERL_PARAMETERS))
    ]
    if unfilled:
        raise ConfigError(
            f"The reward function {name} requires {', '.join(unfilled)}, which it is not given. Called by name with "
            f"{', '.join(_VERL_PARAMETERS)}; give the others a default or set them in reward_kwargs."
        )


def load_function(path: str, name: str) -> Any:
    """The object `name` of a Python file, or of a module when the path is `pkg://package.module` (verl's form).

    Raises ConfigError for a missing file or name, and with the file's own traceback when it cannot be imported.
    """
    module = _import_module(path.removeprefix("pkg://")) if path.startswith("pkg://") else _import_file(Path(path))
    if not hasattr(module, name):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_"]
        raise ConfigError(
            f"{path} has no function {name!r} (custom_reward_function.name). It has: {', '.join(functions) or 'none'}."
        )
    return getattr(module, name)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"custom_reward_function.path: there is no file {path}.")
    spec = importlib.util.spec_from_file_location(_MODULE_NAME, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"custom_reward_function.path: {path} is not a Python file; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE_NAME] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{path} cannot be imported as a reward function:\n{_own_lines(error, path)}") from error
    return module


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        lines = "".join(traceback.format_exception_only(error))
        raise ConfigError(f"custom_reward_function.path: module {name} cannot be imported:\n{lines}") from error


def _own_lines(error: BaseException, path: Path) -> str:
    """The traceback from the user's file on; the frames above are this package and Python's import machinery."""
    frames = traceback.extract_tb(error.__traceback__)
    first = next((i for i, frame in enumerate(frames) if Path(frame.filename) == path), len(frames))
    return "".join([*traceback.format_list(frames[first:]), *traceback.format_exception_only(error)]).rstrip()


def describe(error: BaseException) -> str:
    """One line for a person: the error and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def failed(reason: str) -> Grade:
    """The grade of an answer whose grading failed: there is no judgement."""
    return Grade(Verdict.GRADER_ERROR, 0.0, extra={"acc": 0}, reason=reason)


def grade_of(returned: Any) -> Grade:
    """What a reward function returned, as a grade.

    `acc` decides between correct and wrong when the function returns it, else a score of at least 0.5 is correct.
    """
    fields = returned if isinstance(returned, Mapping) else {"score": returned}
    if "score" not in fields:
        return failed(f"the reward function returned a dict without 'score'; its keys: {', '.join(map(str, fields))}")
    score = _number(fields["score"])
    if score is None:
        return failed(f"the reward function returned {_shown(fields['score'])} as score; a finite number is needed")
    acc = _number(fields["acc"]) if "acc" in fields else score
    if acc is None:
        return failed(f"the reward function returned {_shown(fields['acc'])} as acc; true, false or a number is needed")
    correct = acc >= 0.5
    pred = fields.get("pred")
    extra = {key: _plain(value) for key, value in fields.items() if isinstance(key, str) and _is_json(_plain(value))}
    extra = {key: value for key, value in extra.items() if key not in ("score", "acc", "pred")}
    return Grade(
        Verdict.CORRECT if correct else Verdict.WRONG,
        score,
        pred=None if pred is None else str(pred),
        extra=extra | {"acc": int(correct)},
    )


def _plain(value: Any) -> Any:
    """A NumPy or torch scalar as Python's own number; anything else unchanged. Neither library is imported here."""
    if getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)):
        return value.item()
    return value


def _number(value: Any) -> float | None:
    value = _plain(value)
    if not isinstance(value, (bool, int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text[:80]} ({type(value).__name__})"
