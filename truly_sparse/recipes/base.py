"""Recipes: settings of a driver, to be attached to a model, an optimizer and a training of known length."""

from __future__ import annotations

import dataclasses
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from ..arguments import check_count, require
from ..dst import DynamicSparsity, Rewirer
from ..rules import GrowChoice, GrowRule, PruneScore
from ..schedule import Epochs, in_steps


def describe(settings: object) -> str:
    """Return settings as a text that is equal in all processes, and differs where settings or rules differ.

    A function is described by its name and its compiled code.
    """
    if dataclasses.is_dataclass(settings):
        settings = {"": type(settings).__name__} | {f.name: getattr(settings, f.name) for f in fields(settings)}
    if isinstance(settings, dict):
        return "{" + ", ".join(f"{key}: {describe(value)}" for key, value in settings.items()) + "}"
    if isinstance(settings, FunctionType):
        code = settings.__code__
        return f"{settings.__qualname__} {zlib.crc32(code.co_code)} {code.co_names} {_constants(code)}"
    return repr(settings)


def _constants(code: CodeType) -> str:
    """Return a function's constants, with the code of inner functions in place of their addresses."""
    return str([zlib.crc32(c.co_code) if isinstance(c, CodeType) else c for c in code.co_consts])


class Recipe(ABC):
    """How the topology changes during one training."""

    @abstractmethod
    def attach(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, steps_per_epoch: int, total_steps: int, seed: int
    ) -> Rewirer:
        """Return the driver for one training of ``total_steps`` optimizer steps.

        Raises:
            InvalidArgumentError: a setting outside its range; see the driver.
        """


@dataclass(frozen=True)
class DynamicRecipe(Recipe):
    """Settings of a :class:`DynamicSparsity`.

    Attributes:
        prune_fraction, every, grow, decay, prune, scope: arguments of :class:`DynamicSparsity`.
        until: share of the training after which the topology stays, above 0 up to 1. The last step never rewires, so
            that the evaluated network has trained in its topology.

    Raises:
        InvalidArgumentError: ``prune_fraction`` or ``every`` outside its range. The others are checked by ``attach``.
    """

    prune_fraction: float
    every: int | Epochs
    until: float
    grow: str | GrowChoice | GrowRule
    decay: str
    prune: str | PruneScore = "magnitude"
    scope: str = "layer"

    def __post_init__(self) -> None:
        require(0 <= self.prune_fraction <= 1, "prune_fraction", self.prune_fraction, "use a number from 0 to 1")
        check_interval(self.every)

    @override
    def attach(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, steps_per_epoch: int, total_steps: int, seed: int
    ) -> DynamicSparsity:
        return self._driver(
            model,
            optimizer,
            prune_fraction=self.prune_fraction,
            every=self.every,
            until=last_step(self.until, total_steps),
            grow=self.grow,
            decay=self.decay,
            prune=self.prune,
            scope=self.scope,
            seed=seed,
            steps_per_epoch=steps_per_epoch,
        )

    def _driver(self, *on: Any, **settings: Any) -> DynamicSparsity:
        """Return the driver; a recipe with another one overrides this."""
        return DynamicSparsity(*on, **settings)


def check_interval(every: int | Epochs) -> None:
    """Refuse an interval that is no number of steps or epochs. Whether epochs make a whole step, ``attach`` can tell.

    Raises:
        InvalidArgumentError: see above.
    """
    if not isinstance(every, Epochs):
        in_steps("every", every, None, least=1)


def last_step(until: float, total_steps: int) -> int:
    """Return the last step at which a rewiring may happen: never the last of the training.

    Raises:
        InvalidArgumentError: ``until`` is not a share above 0 up to 1, or ``total_steps`` is below 1.
    """
    check_count("total_steps", total_steps, least=1)
    require(0 < until <= 1, "until", until, "a recipe takes a share of the training; use above 0 up to 1")
    return min(int(until * total_steps), total_steps - 1)


def learning_rate(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> float:
    """Return the optimizer's present learning rate of a parameter that it holds."""
    groups = optimizer.param_groups
    return next(float(group["lr"]) for group in groups if any(p is parameter for p in group["params"]))
