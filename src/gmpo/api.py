"""The programs as Python calls: `gmpo.train` and `gmpo.sft`. The command line calls the same functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar

from rich.console import Console
from transformers import PreTrainedModel

from gmpo.backends.devices import describe
from gmpo.build.objective import build_credit
from gmpo.build.rewards import RewardFunction, build_rewards, check_run_references
from gmpo.build.run import (
    Policy,
    Rows,
    build_collector,
    build_evaluation,
    build_gather,
    build_history,
    build_learner,
    build_plan,
    build_policy,
    build_problems,
    build_scoring,
    build_store,
    build_supervised_learner,
    build_tokenizer,
    data_sources,
    longest_prompt,
)
from gmpo.config import Config, Resolved, SftConfig, load, load_sft
from gmpo.config.fields import Section
from gmpo.config.numbers import Length, Numbers, numbers, run_length
from gmpo.config.resolved import as_tree
from gmpo.config.schema import Trainer
from gmpo.config.schema_sft import SftTrainer
from gmpo.data.demonstrations import demonstrations_from_rows, encode_demonstrations, load_demonstrations
from gmpo.data.problems import ProblemStream, sample
from gmpo.data.prompts import EncodedProblems
from gmpo.errors import ConfigError
from gmpo.records.rollout import Group
from gmpo.tracking.console import ConsoleSink, sample_panel
from gmpo.tracking.folder import METRICS, RunFolder, claimed
from gmpo.tracking.profile import Profiled
from gmpo.tracking.sinks import SINKS, JsonLines, RunInfo, Sink
from gmpo.tracking.tracker import RunTracker, SamplePolicy, SampleWriter
from gmpo.training.checkpoint import export
from gmpo.training.interrupt import Stop
from gmpo.training.loop import train as run_loop
from gmpo.training.loop import validate
from gmpo.training.supervised import fine_tune

ConfigT = TypeVar("ConfigT", bound=Section)
Settings = Mapping[str, Any] | Sequence[str] | str | Path | Resolved[Any]
"""A mapping (nested or dotted keys), a list of `KEY=VALUE`, a YAML file, or what `gmpo.config.load` returned."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a program leaves behind.

    Example: `run = gmpo.train({...}, rows=rows, reward=my_function); run.history[-1]["critic/score/mean"]`.
    """

    folder: Path
    """Configuration, metrics, samples and checkpoints."""
    model: Path
    """The trained model as a Hugging Face folder."""
    steps: int
    """Training steps done, those of earlier processes included."""
    total_steps: int
    history: tuple[Mapping[str, float], ...]
    """Metrics of each step of this process, and of the validation before training."""

    @property
    def finished(self) -> bool:
        """False when the run was interrupted; calling again with the same settings goes on."""
        return self.steps >= self.total_steps


def train(
    config: Settings,
    *,
    rows: Rows | None = None,
    val_rows: Rows | None = None,
    reward: RewardFunction | Sequence[RewardFunction] | None = None,
    reward_weights: Sequence[float] | None = None,
    console: Console | None = None,
    label: str = "train",
    profile: bool = False,
) -> Run:
    """Train a policy.

    Args:
        config: settings under verl's keys.
        rows: training problems in verl's row schema, instead of `data.train_files`; val_rows likewise.
        reward: a function with verl's signature `(data_source, solution_str, ground_truth, extra_info)` or TRL's
            `(prompts, completions, **columns)`, instead of the scorers. It runs in bounded worker processes, so it
            must not rely on state of this process. Of a list, the first says what is right, and the weighted sum is
            the reward.
        reward_weights: factors of a list's functions; 1 each when None.
        console: where progress goes; `Console(quiet=True)` for none.
        profile: profile one step: tables on the console, and a trace in the run folder.

    Raises:
        GmpoError: any of its kinds, see `gmpo.errors`; nothing has been trained after a ConfigError or DataError.
    """
    console = console or Console()
    resolved = _resolved(config, partial(load, rows=rows is not None, val_rows=val_rows is not None))
    _refuse_unavailable(resolved)
    c: Config = resolved.config
    _need(c.actor_rollout_ref.model.path, "actor_rollout_ref.model.path", "a Hugging Face model folder or hub name")
    _need(rows is not None or c.data.train_files, "data.train_files", "the training problems (parquet or JSONL)")
    say = _speaker(console)
    _print_notes(say, resolved)
    folder = _folder(c.trainer.default_local_dir)
    _check_writable(folder)
    tokenizer = build_tokenizer(c)
    problems, validation = build_problems(c, tokenizer, rows, val_rows)
    counts = numbers(c, len(problems.items), len(validation.items) if validation else 0)
    length = _length(counts)
    asked = data_sources(problems, validation)
    functions = [] if reward is None else [reward] if callable(reward) else list(reward)
    with claimed(folder), build_rewards(c, functions, reward_weights, asked) as rewards:
        rewards.start([problem.data_source for problem in asked])
        if (unmet := check_run_references(c, rewards, asked)) is not None:
            say(unmet)
        policy = build_policy(c, tokenizer, longest_prompt=longest_prompt(problems, validation))
        learner = build_learner(c, policy, length.total_steps)
        collector = build_collector(c, policy, rewards)
        say(_overview(c, problems, validation, counts, policy))
        writer = SampleWriter(
            folder,
            SamplePolicy(groups=c.trainer.sample_groups, token_groups=c.trainer.token_record_groups),
            all_training=_folder(c.trainer.rollout_data_dir) if c.trainer.rollout_data_dir else None,
            all_validation=_folder(c.trainer.validation_data_dir) if c.trainer.validation_data_dir else None,
        )
        history = build_history(c, folder, problems)
        sinks = _sinks(resolved, folder, policy, console, label, length, history)
        checkpoints = build_store(c, folder, data_sources(problems), say)
        with _tracker(sinks, writer) as tracker, checkpoints as store, Stop(say) as stop:
            evaluate = build_evaluation(c, collector, validation, partial(_keep_validation, writer, console, c))
            if c.trainer.val_only:
                done = validate(
                    sampler=collector.sampler, learner=learner, evaluate=evaluate, store=store, tracker=tracker
                )
                return Run(folder, Path(c.actor_rollout_ref.model.path), done, done, tuple(tracker.history))
            state = run_loop(
                build_plan(c, policy, counts),
                sampler=collector.sampler,
                learner=learner,
                gather=build_gather(c, collector, problems, history),
                score=build_scoring(c, learner, counts),
                credit=build_credit(c),
                evaluate=evaluate,
                store=store,
                tracker=_profiled(tracker, folder, policy, console, length) if profile else tracker,
                stop=stop,
                kl_coef=c.algorithm.kl_ctrl.kl_coef,
            )
            model = export(learner, folder)
    return Run(folder, model, state.step, length.total_steps, tuple(tracker.history))


def sft(config: Settings, *, rows: Rows | None = None, console: Console | None = None, label: str = "sft") -> Run:
    """Fine-tune a model on rows that carry an answer (`data.response_key`); arguments and errors as for `train`."""
    console = console or Console()
    resolved = _resolved(config, partial(load_sft, rows=rows is not None))
    _refuse_unavailable(resolved)
    c: SftConfig = resolved.config
    _need(c.model.path, "model.path", "a Hugging Face model folder or hub name")
    _need(rows is not None or c.data.train_files, "data.train_files", "the demonstrations (parquet or JSONL)")
    say = _speaker(console)
    _print_notes(say, resolved)
    folder = _folder(c.trainer.default_local_dir)
    _check_writable(folder)
    data = c.data
    keys: dict[str, Any] = {"prompt_key": data.prompt_key, "response_key": data.response_key}
    if rows is not None:
        items = sample(demonstrations_from_rows(rows, **keys), data.max_samples, None)
    else:
        items = load_demonstrations(data.train_files, limit=data.max_samples, **keys)
    held_out = load_demonstrations(data.val_files, **keys) if data.val_files else []
    length = run_length(
        rows=len(items),
        batch_size=data.train_batch_size,
        total_epochs=c.trainer.total_epochs,
        total_training_steps=c.trainer.total_training_steps,
        key="data.train_batch_size",
    )
    learner, policy = build_supervised_learner(c, length.total_steps)
    encode = partial(
        encode_demonstrations,
        tokenizer=policy.tokenizer,
        encode_answer=partial(policy.tokenizer.encode, add_special_tokens=False),
        end_id=policy.tokenizer.eos_token_id if policy.tokenizer.eos_token_id is not None else min(policy.stop_ids),
        max_length=data.max_length,
        truncation=data.truncation,
    )
    stream = ProblemStream(encode(items), data.train_batch_size, shuffle=True, seed=c.trainer.seed)
    say(
        f"{len(items)} demonstrations; {_size(policy.model)} parameters on {describe(policy.device)}; "
        f"{length.total_steps} updates of {data.train_batch_size} -> {folder}"
    )
    writer = SampleWriter(folder, SamplePolicy(0, 0), all_training=None, all_validation=None)
    sinks = _sinks(resolved, folder, policy, console, label, length)
    with claimed(folder), _tracker(sinks, writer) as tracker, Stop(say) as stop:
        done = fine_tune(
            stream,
            total_steps=length.total_steps,
            pad_id=policy.pad_id,
            learner=learner,
            tracker=tracker,
            stop=stop,
            validation=encode(held_out) if held_out else (),
        )
        model = export(learner, folder)
    return Run(folder, model, done, length.total_steps, tuple(tracker.history))


def _resolved(settings: Settings, loader: Callable[..., Resolved[ConfigT]]) -> Resolved[ConfigT]:
    if isinstance(settings, Resolved):
        return settings
    if isinstance(settings, Mapping):
        return loader(tree=settings)
    if isinstance(settings, str | Path):
        return loader(file=Path(settings))
    return loader(list(settings))


def _refuse_unavailable(resolved: Resolved[Any]) -> None:
    if resolved.unavailable:
        listed = "\n".join(f"  {note.path}: {note.reason}" for note in resolved.unavailable)
        raise ConfigError(f"these settings make sense, but this version cannot run them:\n{listed}")


def _need(given: object, path: str, what: str) -> None:
    if not given:
        raise ConfigError(f"{path} is not set: it names {what}. `gmpo train --help` has an example.")


def _speaker(console: Console) -> Callable[..., None]:
    """Prints lines as they are: a bracket in a path is no markup, and no line is broken."""
    return partial(console.print, markup=False, highlight=False, soft_wrap=True)


def _print_notes(say: Callable[..., None], resolved: Resolved[Any]) -> None:
    """Warnings and inert keys, one line each; `gmpo check` shows everything."""
    notes = [("warning", note.path, note.reason) for note in resolved.warnings]
    notes += [("no effect", note.path, note.reason) for note in resolved.inert]
    notes += [("no effect", key.path, key.reason) for key in resolved.ignored]
    for kind, path, reason in notes:
        say(f"{kind}: {path}: {reason}", style="yellow")


def _check_writable(folder: Path) -> None:
    """Fail before the model is loaded rather than at the first checkpoint."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"trainer.default_local_dir={folder}: cannot write there: {error}. Name a folder that can be written to."
        ) from error


def _length(counts: Numbers) -> Length:
    """The length of a run whose number of problems is known."""
    assert counts.steps_per_epoch is not None
    assert counts.total_steps is not None
    assert counts.epochs is not None
    return Length(counts.steps_per_epoch, counts.total_steps, counts.epochs)


def _overview(
    config: Config, problems: EncodedProblems, validation: EncodedProblems | None, counts: Numbers, policy: Policy
) -> str:
    """What is about to happen, in one line."""
    held_out = _counted(validation) if validation is not None else "0"
    return (
        f"{_counted(problems)} problems, {held_out} for validation; "
        f"{_size(policy.model)} parameters on {describe(policy.device)}; {counts.total_steps} steps of "
        f"{counts.prompts_per_step} x {config.actor_rollout_ref.rollout.n} answers and {counts.updates_per_step} "
        f"updates -> {config.trainer.default_local_dir}"
    )


def _counted(part: EncodedProblems) -> str:
    """The number of problems, and what happened to the others: `14 (2 overlong ones dropped)`."""
    dropped = f" ({part.dropped} overlong ones dropped)" if part.dropped else ""
    cut = f" ({part.truncated} prompts cut)" if part.truncated else ""
    return f"{len(part.items)}{dropped}{cut}"


def _keep_validation(
    writer: SampleWriter, console: Console, config: Config, step: int, groups: Sequence[Group]
) -> None:
    """Keep a validation's samples, and show the first `log_val_generations` of them."""
    writer.validation(step, groups)
    for group in groups[: config.trainer.log_val_generations]:
        console.print(sample_panel(group, step))


def _folder(name: str) -> Path:
    return Path(name).expanduser()


def _size(model: PreTrainedModel) -> str:
    return f"{sum(p.numel() for p in model.parameters()):,}"


def _sinks(
    resolved: Resolved[Any], folder: Path, policy: Policy, console: Console, label: str, length: Length, *own: Sink
) -> list[Sink]:
    """The run folder, metrics.jsonl and the run's own records always, then the loggers that were asked for."""
    trainer: Trainer | SftTrainer = resolved.config.trainer
    info = RunInfo(folder, trainer.project_name, trainer.experiment_name, as_tree(resolved.config))
    sinks: list[Sink] = [
        RunFolder(folder, config=resolved.to_yaml(), device=f"{describe(policy.device)}; {policy.product}"),
        JsonLines(folder / METRICS),
        *own,
        *(SINKS[name](info) for name in trainer.logger if name != "console"),
    ]
    if "console" in trainer.logger:
        sinks.append(
            ConsoleSink(console, label=label, total_steps=length.total_steps, steps_per_epoch=length.steps_per_epoch)
        )
    return sinks


def _profiled(tracker: RunTracker, folder: Path, policy: Policy, console: Console, length: Length) -> Profiled:
    return Profiled(tracker, folder, device=policy.device.torch, show=console.print, last_step=length.total_steps)


@contextmanager
def _tracker(sinks: Sequence[Sink], writer: SampleWriter) -> Iterator[RunTracker]:
    tracker = RunTracker(sinks, writer)
    try:
        yield tracker
    finally:
        tracker.close()
