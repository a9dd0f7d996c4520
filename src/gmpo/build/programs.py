"""The parts of each program, put together: what `gmpo.api` opens a run around."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from gmpo.backends.ranks.sampler import RankWeights
from gmpo.backends.storage import load_model
from gmpo.backends.weights import LiveWeights
from gmpo.build.identity import describe_run, supervised_content, training_content
from gmpo.build.kept import moment_of
from gmpo.build.learner import build_learner, build_sampler
from gmpo.build.objective import build_credit
from gmpo.build.opened import Opening, OpenRun
from gmpo.build.policy import (
    PolicyFacts,
    build_policy,
    build_supervised_learner,
    build_supervised_tokenizer,
    end_token,
)
from gmpo.build.ranks import (
    Job,
    SupervisedJob,
    ValidationJob,
    start_ranks,
    start_supervised_ranks,
    start_validating_ranks,
)
from gmpo.build.rewards import RewardFunction
from gmpo.build.run import (
    Machine,
    Rows,
    build_collector,
    build_evaluation,
    build_gather,
    build_history,
    build_machine,
    build_plan,
    build_problems,
    build_scoring,
    build_tokenizer,
    build_validation,
    data_sources,
    longest_prompt,
)
from gmpo.config import Config, Resolved, SftConfig
from gmpo.config.numbers import Length, Numbers, numbers, run_length
from gmpo.data.demonstrations import (
    EncodedDemonstration,
    demonstrations_from_rows,
    encode_demonstrations,
    load_demonstrations,
)
from gmpo.data.problems import Problem, ProblemStream, sample
from gmpo.data.prompts import EncodedProblems
from gmpo.objectives import ESTIMATORS
from gmpo.ports import Learner, Sampler, Tracker, WeightSource
from gmpo.records.rollout import Group
from gmpo.records.run_folder import SAMPLES, VALIDATION, read_metrics
from gmpo.rewards.combined import Rewards
from gmpo.tracking.alarms import Alarms
from gmpo.tracking.notices import Notices
from gmpo.tracking.rounding import SwallowedUpdates
from gmpo.training.evaluation import Evaluation
from gmpo.training.loop import Parts, Plan

Keep = Callable[[int, Sequence[Group]], None]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What `gmpo train` reads before its run is opened: no model yet."""

    config: Config
    machine: Machine
    tokenizer: Any
    problems: EncodedProblems
    validation: EncodedProblems | None
    counts: Numbers
    length: Length
    opening: Opening

    @property
    def asked(self) -> Sequence[Problem]:
        """All problems that will be graded."""
        return data_sources(self.problems, self.validation)


def read_training(
    resolved: Resolved[Config],
    rows: Rows | None,
    val_rows: Rows | None,
    functions: Sequence[RewardFunction],
    reward_weights: Sequence[float] | None,
    label: str,
) -> TrainingData:
    """Tokenizer, problems and what the run would be."""
    config = resolved.config
    tokenizer = build_tokenizer(config)
    machine = build_machine(resolved, "train")
    moment = moment_of(resolved, tokenizer, "train")
    problems = build_problems(config, tokenizer, rows, moment)
    validation = build_validation(config, tokenizer, val_rows, moment)
    counts = numbers(config, len(problems.items), len(validation.items) if validation else 0)
    length = _length(counts)
    content = training_content(config, tokenizer, problems, validation, functions, reward_weights, moment)
    record = describe_run(resolved, "train", {**content, **machine.kept}, length.total_steps)
    opening = Opening(record, length.steps_per_epoch, str(machine), machine.product.report(), label)
    return TrainingData(config, machine, tokenizer, problems, validation, counts, length, opening)


def _end(run: OpenRun, why: str) -> None:
    """An alarm ends the run, before its next step."""
    run.say(f"{why}: the run ends (trainer.alarm=stop), with a checkpoint; trainer.alarm=warn goes on from it.")
    run.stopped_by(why)
    run.stop.end()


def _recorded(run: OpenRun) -> list[Mapping[str, float]]:
    return [one.values for one in read_metrics(run.folder)]


def _length(counts: Numbers) -> Length:
    """The length of a run whose number of problems is known."""
    assert counts.steps_per_epoch is not None
    assert counts.total_steps is not None
    assert counts.epochs is not None
    return Length(counts.steps_per_epoch, counts.total_steps, counts.epochs)


def build_training(
    data: TrainingData, rewards: Rewards, run: OpenRun, keep: Keep, tracker: Tracker
) -> tuple[PolicyFacts, Plan, Parts]:
    """Load the models and put the parts of the loop together.

    Args:
        keep: receives the graded groups of each validation.
        tracker: the run's, or what stands around it.
    """
    assert run.store is not None, "a training has checkpoints"
    config = data.config
    longest = longest_prompt(data.problems, data.validation)
    drew = run.tracker.activity.drew
    learner: Learner
    sampler: Sampler
    if config.devices > 1:
        ranked = Job(config, data.tokenizer, longest, data.length.total_steps, data.machine.product)
        facts, learner, sampler = start_ranks(ranked, run.folder, drew)
    else:
        policy = build_policy(config, data.tokenizer, data.machine.device, longest_prompt=longest)
        learner, beyond = build_learner(config, policy, data.length.total_steps)
        facts = replace(policy.facts, notes=(*policy.notes, *beyond))
        sampler = build_sampler(config, policy, drew)
    collector = build_collector(config, sampler, data.tokenizer, facts, rewards, run.tracker.activity)
    history = build_history(config, run.folder, data.problems, run.say, run.writer.held.append)
    run.tracker.add(history)
    run.tracker.add(SwallowedUpdates(run.say))
    compares = ESTIMATORS[config.algorithm.adv_estimator].needs_groups
    places = (f"{run.folder / SAMPLES}/", f"{run.folder / VALIDATION}/")
    run.tracker.add(Notices(run.say, *places, compares=compares, past=partial(_recorded, run)))
    run.tracker.alarms = Alarms(
        run.say,
        run.alarmed,
        partial(_end, run) if config.trainer.alarm == "stop" else None,
        compares=compares,
        past=partial(_recorded, run),
    )
    parts = Parts(
        sampler=collector.sampler,
        learner=learner,
        gather=build_gather(config, collector, data.problems, history, lambda: run.stop.requested),
        score=build_scoring(config, learner, collector.sampler),
        credit=build_credit(config),
        evaluate=build_evaluation(config, collector, data.validation, keep),
        store=run.store,
        tracker=tracker,
        stop=run.stop,
    )
    return facts, build_plan(config, facts, data.counts), parts


@dataclass(frozen=True, slots=True)
class ValidationData:
    """What a validation on its own reads: neither training problems nor an optimizer, a critic or a reference."""

    config: Config
    machine: Machine
    tokenizer: Any
    problems: EncodedProblems
    opening: Opening

    @property
    def asked(self) -> Sequence[Problem]:
        """All problems that will be graded."""
        return data_sources(self.problems)


def read_validation(
    resolved: Resolved[Config],
    val_rows: Rows | None,
    functions: Sequence[RewardFunction],
    reward_weights: Sequence[float] | None,
    label: str,
) -> ValidationData:
    """Tokenizer, validation problems and the run that would be validated."""
    config = resolved.config
    tokenizer = build_tokenizer(config)
    machine = build_machine(resolved, "train")
    moment = moment_of(resolved, tokenizer, "train")
    problems = build_validation(config, tokenizer, val_rows, moment)
    assert problems is not None, "a rule asks for them"
    content = training_content(config, tokenizer, None, problems, functions, reward_weights, moment)
    record = describe_run(resolved, "train", {**content, **machine.kept}, 0)
    opening = Opening(record, 1, str(machine), machine.product.report(), label)
    return ValidationData(config, machine, tokenizer, problems, opening)


@dataclass(frozen=True, slots=True)
class Validator:
    """The parts of a validation on its own."""

    facts: PolicyFacts
    read: Callable[[Path, str], object]
    """Reads the policy from a checkpoint's folder."""
    weights: Callable[[int], WeightSource]
    """The policy's, with so many steps of training behind them."""
    sampler: Sampler
    evaluate: Evaluation
    close: Callable[[], None]


def build_validator(data: ValidationData, rewards: Rewards, keep: Keep, run: OpenRun) -> Validator:
    """Load the policy, and put a validation together."""
    longest, config, activity = longest_prompt(data.problems), data.config, run.tracker.activity
    sampler: Sampler
    read: Callable[[Path, str], object]
    weights: Callable[[int], WeightSource]
    if config.devices > 1:
        job = ValidationJob(config, data.tokenizer, longest, data.machine.product)
        facts, ranks, sampler = start_validating_ranks(job, run.records, activity.drew)
        close, weights = ranks.close, RankWeights

        def read(folder: Path, content: str) -> None:
            ranks.call("load_untrained", lambda _: (folder, content), phase=f"reading {folder}")

    else:
        policy = build_policy(config, data.tokenizer, data.machine.device, longest_prompt=longest)
        facts, sampler = policy.facts, build_sampler(config, policy, activity.drew)
        close, read, weights = sampler.close, partial(load_model, policy.model), partial(LiveWeights, policy.model)
    collector = build_collector(config, sampler, data.tokenizer, facts, rewards, activity)
    evaluate = build_evaluation(config, collector, data.problems, keep)
    return Validator(facts, read, weights, collector.sampler, evaluate, close)


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """What `gmpo sft` reads before its run is opened."""

    config: SftConfig
    machine: Machine
    tokenizer: Any
    items: Sequence[Problem]
    held_out: Sequence[Problem]
    moment: datetime | None
    length: Length
    opening: Opening


def read_demonstrations(resolved: Resolved[SftConfig], rows: Rows | None, label: str) -> Demonstrations:
    """Tokenizer, demonstrations and what the run would be."""
    config: SftConfig = resolved.config
    data = config.data
    keys: Mapping[str, Any] = {"prompt_key": data.prompt_key, "response_key": data.response_key}
    if rows is not None:
        items = sample(demonstrations_from_rows(rows, **keys), data.max_samples, None)
    else:
        items = load_demonstrations(data.train_files, limit=data.max_samples, **keys)
    held_out = load_demonstrations(data.val_files, **keys) if data.val_files else []
    length = run_length(
        rows=len(items),
        batch_size=data.train_batch_size,
        total_epochs=config.trainer.total_epochs,
        total_training_steps=config.trainer.total_training_steps,
        key="data.train_batch_size",
    )
    tokenizer = build_supervised_tokenizer(config)
    machine = build_machine(resolved, "sft")
    moment = moment_of(resolved, tokenizer, "sft")
    content = supervised_content(config, tokenizer, items, held_out, moment)
    record = describe_run(resolved, "sft", {**content, **machine.kept}, length.total_steps)
    opening = Opening(record, length.steps_per_epoch, str(machine), machine.product.report(), label)
    return Demonstrations(config, machine, tokenizer, items, held_out, moment, length, opening)


@dataclass(frozen=True, slots=True)
class FineTuning:
    """The parts of supervised fine-tuning."""

    facts: PolicyFacts
    learner: Learner
    stream: ProblemStream[EncodedDemonstration]
    """The demonstrations in the order in which they are learned."""
    validation: Sequence[EncodedDemonstration]


def build_fine_tuning(demonstrations: Demonstrations, folder: Path) -> FineTuning:
    """Encode the demonstrations and load the model. `folder` is the run's, which every rank must see."""
    config: SftConfig = demonstrations.config
    tokenizer, data = demonstrations.tokenizer, config.data
    encode = partial(
        encode_demonstrations,
        tokenizer=tokenizer,
        encode_answer=partial(tokenizer.encode, add_special_tokens=False),
        end_id=end_token(config, tokenizer),
        max_length=data.max_length,
        truncation=data.truncation,
        moment=demonstrations.moment,
    )
    items, held_out = encode(demonstrations.items), demonstrations.held_out
    validation = encode(held_out) if held_out else []
    longest = max(len(one.prompt_ids) + len(one.answer_ids) for one in (*items, *validation))
    total, machine = demonstrations.length.total_steps, demonstrations.machine
    learner: Learner
    if config.devices > 1:
        job = SupervisedJob(config, tokenizer, longest, total, machine.product)
        facts, learner = start_supervised_ranks(job, folder)
    else:
        learner, policy = build_supervised_learner(config, tokenizer, machine.device, total, longest=longest)
        facts = policy.facts
    return FineTuning(
        facts,
        learner,
        ProblemStream(items, data.train_batch_size, shuffle=True, seed=config.trainer.seed),
        validation,
    )
