"""Recipes: settings of a driver that wait for a model, an optimizer and the length of the training."""

from __future__ import annotations

import dataclasses
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from types import CodeType

import torch
from torch import nn

from .arguments import require
from .dst import DynamicSparsity, Epochs, GradualPruning, Rewirer
from .rules import GrowChoice, GrowRule, PruneScore


def describe(settings: object) -> str:
    """Return settings as a text that is the same in every process and differs where settings or rules differ.

    A function in them is told by its name and its compiled code.
    """
    if dataclasses.is_dataclass(settings):
        settings = {"": type(settings).__name__} | {f.name: getattr(settings, f.name) for f in fields(settings)}
    if isinstance(settings, dict):
        return "{" + ", ".join(f"{key}: {describe(value)}" for key, value in settings.items()) + "}"
    if callable(settings) and hasattr(settings, "__code__"):
        code = settings.__code__
        return f"{settings.__qualname__} {zlib.crc32(code.co_code)} {code.co_names} {_constants(code)}"
    return repr(settings)


def _constants(code: CodeType) -> str:
    """Return a function's constants, with the code of functions inside it in place of their addresses."""
    return str([zlib.crc32(c.co_code) if isinstance(c, CodeType) else c for c in code.co_consts])


class Recipe(ABC):
    """How the topology changes during one training run."""

    @abstractmethod
    def attach(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, steps_per_epoch: int, total_steps: int, seed: int
    ) -> Rewirer:
        """Return the driver for one training run of ``total_steps`` optimizer steps."""


@dataclass(frozen=True)
class DynamicRecipe(Recipe):
    """Settings of a :class:`DynamicSparsity`.

    Attributes:
        prune_fraction: see :class:`DynamicSparsity`.
        every: see :class:`DynamicSparsity`.
        until: share of the training after which the topology is left alone. Whatever it is, the last step never
            rewires: the network that is evaluated has trained in its topology.
        grow: see :class:`DynamicSparsity`.
        decay: see :class:`DynamicSparsity`.
        prune: see :class:`DynamicSparsity`.
        scope: see :class:`DynamicSparsity`.
    """

    prune_fraction: float
    every: int | Epochs
    until: float
    grow: str | GrowChoice | GrowRule
    decay: str
    prune: str | PruneScore = "magnitude"
    scope: str = "layer"

    def attach(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, steps_per_epoch: int, total_steps: int, seed: int
    ) -> DynamicSparsity:
        """Return the driver for one training run of ``total_steps`` optimizer steps."""
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
    """The topology drawn at the start stays: the control for everything below."""

    prune_fraction: float = 0.0
    every: int | Epochs = 1
    until: float = 1.0
    grow: str | GrowChoice | GrowRule = "random"
    decay: str = "constant"


@dataclass(frozen=True)
class SET(DynamicRecipe):
    """Sparse Evolutionary Training: random growth (Mocanu et al., 2018), with the published tutorial's settings."""

    prune_fraction: float = 0.1
    every: int | Epochs = field(default=Epochs(2))
    until: float = 1.0
    grow: str | GrowChoice | GrowRule = "random"
    decay: str = "constant"


@dataclass(frozen=True)
class RigL(DynamicRecipe):
    """Rigging the Lottery: growth by gradient, a decaying fraction, an early end (Evci et al., 2020)."""

    prune_fraction: float = 0.3
    every: int | Epochs = 100
    until: float = 0.75
    grow: str | GrowChoice | GrowRule = "gradient"
    decay: str = "cosine"


@dataclass(frozen=True)
class SNFS(DynamicRecipe):
    """Sparse Networks From Scratch: growth by the gradient's momentum (Dettmers & Zettlemoyer, 2019).

    Weights stay in their layer; the paper also moves them between layers, by the layers' mean momentum. The rest is
    set as for :class:`RigL`, so that the two differ in the growth rule alone.
    """

    prune_fraction: float = 0.3
    every: int | Epochs = 100
    until: float = 0.75
    grow: str | GrowChoice | GrowRule = "momentum"
    decay: str = "cosine"


@dataclass(frozen=True)
class GradualMagnitudePruning(Recipe):
    """From dense to sparse while training (Zhu & Gupta, 2017): what a sparse start has to be compared with.

    Attributes:
        sparsity: share of weights removed at the end.
        scheme: see :class:`GradualPruning`.
        every: see :class:`GradualPruning`.
        until: share of the training at which the final sparsity is reached.
    """

    sparsity: float
    scheme: str = "erk"
    every: int = 100
    until: float = 0.75

    def attach(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, steps_per_epoch: int, total_steps: int, seed: int
    ) -> GradualPruning:
        """Return the driver for one training run of ``total_steps`` optimizer steps."""
        return GradualPruning(
            model,
            optimizer,
            sparsity=self.sparsity,
            until=max(1, _last_step(self.until, total_steps)),
            every=self.every,
            scheme=self.scheme,
        )
