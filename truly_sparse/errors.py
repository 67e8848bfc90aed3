"""The exceptions of this project: each message names what was wrong, the value, and what to do."""

from __future__ import annotations


class SparseTrainingError(Exception):
    """Base of every exception that this project raises on purpose."""


class InvalidArgumentError(SparseTrainingError, ValueError):
    """An argument has a value that cannot be used."""


class TrainingError(SparseTrainingError, RuntimeError):
    """Training cannot go on, for example because the loss is no longer a number."""
