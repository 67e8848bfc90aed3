"""The exceptions of this project: each message names what was wrong, the value, and what to do."""

from __future__ import annotations


class TutorialError(Exception):
    """Base of every exception that this project raises on purpose."""


class InvalidArgumentError(TutorialError, ValueError):
    """An argument has a value that cannot be used."""


class DataError(TutorialError, RuntimeError):
    """A data set is missing, damaged or out of reach."""


class TrainingError(TutorialError, RuntimeError):
    """Training cannot go on, for example because the loss is no longer a number."""


class CheckpointError(TutorialError, RuntimeError):
    """A checkpoint is missing, damaged, of another version, or of another model."""
