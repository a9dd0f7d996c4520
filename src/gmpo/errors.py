"""The errors a user can meet. Each message names the cause and the remedy; none is a bare library traceback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class GmpoError(Exception):
    """Base of everything gmpo raises on purpose. The command line prints it without a traceback and exits with 1."""


class ConfigError(GmpoError, ValueError):
    """A setting is unknown, malformed, out of range or impossible in combination with another."""


class DataError(GmpoError):
    """A data file is missing, empty or malformed, or a row cannot be used."""


class BackendError(GmpoError):
    """A model, sampler, learner or grader cannot do what was asked of it."""


class DivergedError(BackendError):
    """The weights, or what is computed from them, are no longer finite: nothing of them is worth keeping."""


class LostRankError(BackendError):
    """A process of the learner died or does not answer: the run cannot go on, and nothing can be saved of this step."""


class GradingError(BackendError):
    """Too many answers of a step could not be graded.

    Args:
        answers: what was asked and found, a record of each answer, once they are known.
    """

    def __init__(self, message: str, answers: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.answers = answers


class CheckpointError(GmpoError):
    """A checkpoint is missing, incomplete, or was made by another run."""


class UnwrittenError(CheckpointError):
    """A checkpoint could not be written.

    Args:
        step: training steps behind the weights that it was to keep.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step
