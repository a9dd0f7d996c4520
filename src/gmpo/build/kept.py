"""What is found out at a run's first start and kept for all of it: the moment that a chat template writes, and the
float32 products that are fast here.

It stands in the run's record beside the other content, and is taken from there by every later start, by a validation on
its own, and by a run that begins with one of its checkpoints: else they would ask other prompts than the run that they
continue, or round otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from gmpo.build.identity import MOMENT, PRODUCTS, compare, describe_run
from gmpo.build.old_folder import recorded_run
from gmpo.build.origin import run_of
from gmpo.build.start import FOLDER, asked_checkpoint, candidates
from gmpo.config import Resolved
from gmpo.config.schema import Trainer
from gmpo.data.prompts import ChatTokenizer, writes_the_time
from gmpo.records.run_folder import Program, RunRecord


def moment_of(resolved: Resolved[Any], tokenizer: ChatTokenizer, program: Program) -> datetime | None:
    """The moment that a chat template writes (`strftime_now`, as Llama 3.1's does), to the second, in local time; None
    where the template writes none.

    Raises:
        CheckpointError: there is no checkpoint where `trainer.resume_from_path` names one.
    """
    if not writes_the_time(tokenizer):
        return None
    for then in _continued(resolved, program):
        if isinstance(kept := then.content.get(MOMENT), str):
            return datetime.fromisoformat(kept)
    return datetime.now().replace(microsecond=0)


def products_of(resolved: Resolved[Any], program: Program) -> Mapping[str, Any] | None:
    """The float32 products that the run takes (`gmpo.backends.products.Product.kept`); None where it has not begun.

    Raises:
        CheckpointError: there is no checkpoint where `trainer.resume_from_path` names one.
    """
    for then in _continued(resolved, program):
        if isinstance(kept := then.content.get(PRODUCTS), Mapping):
            return kept
    return None


def _continued(resolved: Resolved[Any], program: Program) -> Iterator[RunRecord]:
    """The runs that this start may continue, the likeliest first. Of several derived folders the one whose settings
    are these; what their paths lead to is not known yet."""
    trainer = resolved.config.trainer
    if isinstance(trainer, Trainer) and trainer.resume_mode == "disable" and not trainer.val_only:
        return
    asked = asked_checkpoint(resolved)
    if asked is not None and (then := run_of(asked)) is not None:
        yield then
    for folder in candidates(resolved):
        if (then := recorded_run(folder)) is None:
            return
        now = describe_run(resolved, program, then.content, then.total_steps)
        if FOLDER in resolved.given or (then.program == program and not compare(then, now, resolved).identity):
            yield then
            return
