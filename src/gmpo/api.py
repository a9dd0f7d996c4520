"""The programs as Python calls: `gmpo.train` and `gmpo.sft`. The command line calls the same functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from gmpo.build.identity import MOMENT
from gmpo.build.opened import OpenRun, Say, opened_run, opened_validation, speaker
from gmpo.build.policy import PolicyFacts, load_policy
from gmpo.build.programs import (
    Demonstrations,
    TrainingData,
    ValidationData,
    build_fine_tuning,
    build_training,
    build_validator,
    read_demonstrations,
    read_training,
    read_validation,
)
from gmpo.build.rewards import RewardFunction, build_rewards, check_run_references, hidden_thinking
from gmpo.build.run import Rows, build_store, build_supervised_store, data_sources
from gmpo.build.start import candidates, check_writable
from gmpo.config import Config, Resolved, SftConfig, load, load_sft
from gmpo.config.fields import Section
from gmpo.config.numbers import counted
from gmpo.data.problems import contradictions
from gmpo.data.prompts import EncodedProblems
from gmpo.errors import ConfigError, LostRankError
from gmpo.metrics.conclusion import conclusion
from gmpo.objectives import ESTIMATORS
from gmpo.ports import Learner
from gmpo.records.rollout import Group
from gmpo.records.run_folder import GRADERS, MODEL, read_metrics, what_remains
from gmpo.rewards.combined import Rewards
from gmpo.rewards.printed import PrintedLog
from gmpo.tracking.console import sample_panel
from gmpo.tracking.profile import Profiled
from gmpo.tracking.tracker import SampleWriter, recording
from gmpo.training.final_model import export_for_good, model_kept
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
    stopped_by: int = 0
    """Exit status of what ended it early: 130 for Ctrl-C, 143 for SIGTERM, 75 where a scheduler did; else 0."""

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
    resolved = _checked(config, partial(load, rows=rows is not None, val_rows=val_rows is not None), console)
    c: Config = resolved.config
    _need(c.actor_rollout_ref.model.path, "actor_rollout_ref.model.path", "a Hugging Face model folder or hub name")
    if profile and c.devices > 1:
        raise ConfigError("a profile is of one process, and this run has several ranks: set trainer.n_gpus_per_node=1.")
    check_writable(next(candidates(resolved)))
    functions = [] if reward is None else [reward] if callable(reward) else list(reward)
    if c.trainer.val_only:
        return _validate(resolved, val_rows, functions, reward_weights, console, label)
    _need(rows is not None or c.data.train_files, "data.train_files", "the training problems (parquet or JSONL)")
    data = read_training(resolved, rows, val_rows, functions, reward_weights, label)
    store = partial(build_store, c, resolved.to_yaml(), data_sources(data.problems))
    with opened_run(resolved, data.opening, console=console, store=store) as run:
        if run.done:
            return _finished(run, data.length.total_steps)
        with _graders_log(run) as log, build_rewards(c, functions, reward_weights, data.asked) as rewards:
            _start_graders(rewards, data, run, log)
            keep = partial(_keep_validation, run.writer, console, c)
            tracker = _profiled(run, data, console) if profile else run.tracker
            facts, plan, parts = build_training(data, rewards, run, keep, tracker)
            run.ran_on(facts.ranks)
            with closing(parts.learner), closing(parts.sampler):
                run.say(_overview(data, facts, run.folder))
                _say_notes(run, facts)
                _say_contradictions(run, data)
                with (
                    _naming_checkpoint(run.folder),
                    model_kept(parts.learner, run.folder, say=run.say, stopping=lambda: run.stop.requested),
                ):
                    steps = run_loop(plan, parts)
                model = _kept_model(run, parts.learner, steps)
        compares = ESTIMATORS[c.algorithm.adv_estimator].needs_groups
        for line in conclusion([one.values for one in read_metrics(run.folder)], compares=compares):
            run.say(line)
    return Run(run.folder, model, steps, data.length.total_steps, tuple(run.tracker.history), run.stop.code)


def _validate(
    resolved: Resolved[Config],
    val_rows: Rows | None,
    functions: Sequence[RewardFunction],
    reward_weights: Sequence[float] | None,
    console: Console,
    label: str,
) -> Run:
    """`trainer.val_only`: the newest checkpoint of the run, or the one that is named, or the base model."""
    c = resolved.config
    data = read_validation(resolved, val_rows, functions, reward_weights, label)
    with (
        opened_validation(resolved, data.opening, console=console) as run,
        _graders_log(run) as log,
        build_rewards(c, functions, reward_weights, data.asked) as rewards,
    ):
        _start_graders(rewards, data, run, log)
        keep = partial(_keep_validation, run.writer, console, c)
        parts = build_validator(data, rewards, keep, run)
        allowed = c.actor_rollout_ref.actor.checkpoint.load_contents
        checkpoint = run.start.checkpoint
        with closing(parts):
            step = 0 if checkpoint is None else load_policy(parts.read, checkpoint, allowed)
            run.say(f"{_problems(data.problems)}; {_where(parts.facts)} -> {run.records}")
            _say_notes(run, parts.facts)
            validate(parts.weights(step), sampler=parts.sampler, evaluate=parts.evaluate, tracker=run.tracker)
    return Run(run.folder, Path(c.actor_rollout_ref.model.source), step, step, tuple(run.tracker.history))


def sft(config: Settings, *, rows: Rows | None = None, console: Console | None = None, label: str = "sft") -> Run:
    """Fine-tune a model on rows that carry an answer (`data.response_key`); arguments and errors as for `train`."""
    console = console or Console()
    resolved = _checked(config, partial(load_sft, rows=rows is not None), console)
    c: SftConfig = resolved.config
    _need(c.model.path, "model.path", "a Hugging Face model folder or hub name", "sft")
    _need(rows is not None or c.data.train_files, "data.train_files", "the demonstrations (parquet or JSONL)", "sft")
    check_writable(next(candidates(resolved)))
    data = read_demonstrations(resolved, rows, label)
    store = partial(build_supervised_store, c, resolved.to_yaml(), data.items)
    with opened_run(resolved, data.opening, console=console, store=store) as run:
        if run.done:
            return _finished(run, data.length.total_steps)
        parts = build_fine_tuning(data, run.folder)
        run.ran_on(parts.facts.ranks)
        with _naming_checkpoint(run.folder), closing(parts.learner):
            run.say(_sft_overview(data, parts.facts, run.folder))
            _say_notes(run, parts.facts)
            assert run.store is not None, "fine-tuning has checkpoints"
            with model_kept(parts.learner, run.folder, say=run.say, stopping=lambda: run.stop.requested):
                done = fine_tune(
                    parts.stream,
                    total_steps=data.length.total_steps,
                    pad_id=parts.facts.pad_id,
                    learner=parts.learner,
                    tracker=run.tracker,
                    stop=run.stop,
                    store=run.store,
                    save_freq=c.trainer.save_freq,
                    validation=parts.validation,
                    say=run.say,
                )
            model = _kept_model(run, parts.learner, done)
    return Run(run.folder, model, done, data.length.total_steps, tuple(run.tracker.history), run.stop.code)


@contextmanager
def _naming_checkpoint(folder: Path) -> Iterator[None]:
    """A rank that is lost ends the run: say what it can go on from."""
    try:
        yield
    except LostRankError as error:
        raise LostRankError(f"{error} {what_remains(folder)}") from error


def _kept_model(run: OpenRun, learner: Learner, steps: int) -> Path:
    return export_for_good(learner, run.folder, steps, say=run.say, stopping=lambda: run.stop.requested)


def _graders_log(run: OpenRun) -> PrintedLog:
    """What graders print to."""
    path = run.records / GRADERS
    with recording(str(path)):
        return PrintedLog(path)


def _start_graders(rewards: Rewards, data: TrainingData | ValidationData, run: OpenRun, log: PrintedLog) -> None:
    """A wrong setting, and references that no answer can meet, are known before anything is sampled."""
    rewards.start([problem.data_source for problem in data.asked], log)
    if rewards.main.grader.scoring is None:
        run.say(f"what reward functions print: {log.path}")
    if (hidden := hidden_thinking(data.config, rewards, data.tokenizer)) is not None:
        run.say(hidden)
    if (unmet := check_run_references(data.config, rewards, data.asked)) is not None:
        run.say(unmet)


def _say_notes(run: OpenRun, facts: PolicyFacts) -> None:
    for note in facts.notes:
        run.say(f"note: {note}")
    if (moment := run.start.record.content.get(MOMENT)) is not None:
        run.say(f"note: the chat template writes the time: {moment}, of the run's first start, in every prompt of it")


def _say_contradictions(run: OpenRun, data: TrainingData) -> None:
    if lines := contradictions(data_sources(data.problems), "the training rows", shown=3):
        run.say("\n".join([f"warning: {lines[0]}", *lines[1:]]))


def _finished(run: OpenRun, total_steps: int) -> Run:
    """A run of which nothing is left to do."""
    return Run(run.folder, run.folder / MODEL, run.start.record.steps, total_steps, ())


def _checked(settings: Settings, loader: Callable[..., Resolved[ConfigT]], console: Console) -> Resolved[ConfigT]:
    """The settings, which this version can run, with what there is to say about them."""
    resolved = _resolved(settings, loader)
    _refuse_unavailable(resolved)
    _print_notes(speaker(console), resolved)
    return resolved


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


def _need(given: object, path: str, what: str, program: str = "train") -> None:
    if not given:
        raise ConfigError(f"{path} is not set: it names {what}. `gmpo {program} --help` has an example.")


def _print_notes(say: Say, resolved: Resolved[Any]) -> None:
    """Warnings, and keys that ask for something without effect, one line each; `gmpo check` shows everything."""
    for kind, notes in (("warning", resolved.warnings), ("no effect", resolved.without_effect)):
        for note in notes:
            say(f"{kind}: {note.path}: {note.reason}", style="yellow")
    if count := len(resolved.idle):
        keys = "1 key is" if count == 1 else f"{count} keys are"
        listed = "; `gmpo check --all` lists them" if isinstance(resolved.config, Config) else ""  # it knows no others
        say(f"no effect: {keys} given with the default value, where it changes nothing{listed}")


def _overview(data: TrainingData, facts: PolicyFacts, folder: Path) -> str:
    """What is about to happen, in one line."""
    held_out = "0" if (part := data.validation) is None else f"{len(part.items)}{_lost(part)}"
    counts, answers = data.counts, data.config.actor_rollout_ref.rollout.n
    steps, updates = counted(data.length.total_steps, "step"), counted(counts.updates_per_step, "update")
    return (
        f"{_problems(data.problems)}, {held_out} for validation; {_where(facts)}; {steps} of "
        f"{counts.prompts_per_step} x {answers} answers and {updates} -> {folder}"
    )


def _sft_overview(data: Demonstrations, facts: PolicyFacts, folder: Path) -> str:
    rows, updates = counted(len(data.items), "demonstration"), counted(data.length.total_steps, "update")
    return f"{rows}; {_where(facts)}; {updates} of {data.config.data.train_batch_size} -> {folder}"


def _where(facts: PolicyFacts) -> str:
    part = "" if facts.trained in (0, facts.parameters) else f", of which adapters train {facts.trained:,},"
    return f"{facts.parameters:,} parameters{part} on {facts.where}"


def _problems(part: EncodedProblems) -> str:
    """Their number, and what happened to others: `14 problems (2 overlong ones dropped)`."""
    return counted(len(part.items), "problem") + _lost(part)


def _lost(part: EncodedProblems) -> str:
    dropped = f" ({counted(part.dropped, 'overlong one')} dropped)" if part.dropped else ""
    cut = f" ({counted(part.truncated, 'prompt')} cut)" if part.truncated else ""
    return dropped + cut


def _keep_validation(
    writer: SampleWriter, console: Console, config: Config, step: int, groups: Sequence[Group]
) -> None:
    """Keep a validation's samples, and show the first `log_val_generations` of them."""
    writer.validation(step, groups)
    for group in groups[: config.trainer.log_val_generations]:
        console.print(sample_panel(group, step))


def _profiled(run: OpenRun, data: TrainingData, console: Console) -> Profiled:
    device, last = data.machine.device.torch, data.length.total_steps
    return Profiled(run.tracker, run.folder, device=device, show=partial(console.print, soft_wrap=True), last_step=last)
