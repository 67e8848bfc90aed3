"""The exceptions of this package. Messages name what is wrong, its value, and what to do."""

from __future__ import annotations


class SparseTrainingError(Exception):
    """Base class of all exceptions that this project raises itself."""


class InvalidArgumentError(SparseTrainingError, ValueError):
    """An argument has a value that cannot be used."""


class TrainingError(SparseTrainingError, RuntimeError):
    """Training cannot continue, for example because the loss is not finite."""
