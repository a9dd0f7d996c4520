"""The errors a user can meet. Each message names the cause and the remedy; none is a bare library traceback."""

from __future__ import annotations


class GmpoError(Exception):
    """Base of everything gmpo raises on purpose. The command line prints it without a traceback and exits with 1."""


class ConfigError(GmpoError, ValueError):
    """A setting is unknown, malformed, out of range or impossible in combination with another."""


class DataError(GmpoError):
    """A data file is missing, empty or malformed, or a row cannot be used."""


class BackendError(GmpoError):
    """A model, sampler, learner or grader cannot do what was asked of it."""


class CheckpointError(GmpoError):
    """A checkpoint is missing, incomplete, or was made by another run."""
