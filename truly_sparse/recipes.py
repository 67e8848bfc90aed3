"""Recipes: settings of a driver, to be attached to a model, an optimizer and a training of known length."""

from __future__ import annotations

import dataclasses
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from types import CodeType, FunctionType

import torch
from torch import nn
from typing_extensions import override

from .arguments import require
from .dst import DynamicSparsity, Rewirer
from .gradual import GradualPruning
from .rules import GrowChoice, GrowRule, PruneScore
from .schedule import Epochs


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
    """

    prune_fraction: float
    every: int | Epochs
    until: float
    grow: str | GrowChoice | GrowRule
    decay: str
    prune: str | PruneScore = "magnitude"
    scope: str = "layer"

    @override
    def attach(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, steps_per_epoch: int, total_steps: int, seed: int
    ) -> DynamicSparsity:
        return DynamicSparsity(
            model,
            optimizer,
            prune_fraction=self.prune_fraction,
            every=self.every,
            until=_last_step(self.until, total_steps),
            grow=self.grow,
            decay=self.decay,
            prune=self.prune,
            scope=self.scope,
            seed=seed,
            steps_per_epoch=steps_per_epoch,
        )


def _last_step(until: float, total_steps: int) -> int:
    require(0 < until <= 1, "until", until, "a recipe takes a share of the training; use above 0 up to 1")
    return min(int(until * total_steps), total_steps - 1)


@dataclass(frozen=True)
class Static(DynamicRecipe):
    """The first topology stays: the control for all other recipes."""

    prune_fraction: float = 0.0
    every: int | Epochs = 1
    until: float = 1.0
    grow: str | GrowChoice | GrowRule = "random"
    decay: str = "constant"


@dataclass(frozen=True)
class SET(DynamicRecipe):
    """Sparse Evolutionary Training: random growth (Mocanu et al., 2018). The settings are the published tutorial's."""

    prune_fraction: float = 0.1
    every: int | Epochs = field(default=Epochs(2))
    until: float = 1.0
    grow: str | GrowChoice | GrowRule = "random"
    decay: str = "constant"


@dataclass(frozen=True)
class RigL(DynamicRecipe):
    """Rigging the Lottery: growth by gradient, a decaying fraction, an early end (Evci et al., 2020).

    A connection that a rewiring prunes does not grow in the same rewiring; in the paper it may.
    """

    prune_fraction: float = 0.3
    every: int | Epochs = 100
    until: float = 0.75
    grow: str | GrowChoice | GrowRule = "gradient"
    decay: str = "cosine"


@dataclass(frozen=True)
class SNFS(DynamicRecipe):
    """Sparse Networks From Scratch: growth by the momentum of the gradient (Dettmers & Zettlemoyer, 2019).

    The number of weights of each layer stays the same; the paper also moves weights between layers, by the layers' mean
    momentum. The other settings are those of :class:`RigL`, so that the two differ in the growth rule only.
    """

    prune_fraction: float = 0.3
    every: int | Epochs = 100
    until: float = 0.75
    grow: str | GrowChoice | GrowRule = "momentum"
    decay: str = "cosine"


@dataclass(frozen=True)
class GradualMagnitudePruning(Recipe):
    """From dense to sparse during training (Zhu & Gupta, 2017): the baseline for training that starts sparse.

    Attributes:
        sparsity: share of the weights that are removed at the end.
        scheme: see :class:`GradualPruning`.
        every: steps between prunings.
        until: share of the training at which the final sparsity is reached.
    """

    sparsity: float
    scheme: str = "erk"
    every: int = 100
    until: float = 0.75

    @override
    def attach(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, steps_per_epoch: int, total_steps: int, seed: int
    ) -> GradualPruning:
        return GradualPruning(
            model,
            optimizer,
            sparsity=self.sparsity,
            until=max(1, _last_step(self.until, total_steps)),
            every=self.every,
            scheme=self.scheme,
        )
