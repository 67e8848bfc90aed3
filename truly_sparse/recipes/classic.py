"""Each layer prunes its lowest scores and grows as many by one rule: SET, RigL, SNFS, ITOP, MEST, and the control."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch

from ..interface import Units
from ..rules import GROW_RULES, GrowChoice, GrowRule, PruneScore, over_all_ranks
from ..schedule import Epochs
from .base import DynamicRecipe


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
class ITOP(DynamicRecipe):
    """In-Time Over-Parameterization: rarer and larger rewirings, in batches small enough for many (Liu et al., 2021).

    The paper's subject is the exploration rate ``R_s = |⋃_t topology(t)| / weights``, the share of all connections that
    were ever active. It claims that accuracy follows ``R_s`` as long as the steps between two rewirings suffice to
    train a grown weight. The settings are those of SET-ITOP in the authors' code; ``ITOP(every=4000, grow="gradient")``
    is RigL-ITOP. The interval is meant for trainings of 100,000 steps: in a shorter one, shorten it in proportion.
    """

    prune_fraction: float = 0.5
    every: int | Epochs = 1500
    until: float = 1.0
    grow: str | GrowChoice | GrowRule = "random"
    decay: str = "cosine"


@dataclass(frozen=True)
class MagnitudeAndGradient:
    """The score ``|w| + λ |∂L/∂w|`` of each active unit (Yuan et al., 2021).

    It reads the gradient of the last batch before the rewiring, so the growth rule must record one.

    Attributes:
        weight: λ.
    """

    weight: float = 0.01

    def __call__(self, layer: Units) -> torch.Tensor:
        """Return one score per active unit, ``[n]``."""
        gradient = over_all_ranks(layer.gradient_at(layer.active()))
        return layer.active_values().abs() + self.weight * gradient.abs()


@dataclass(frozen=True)
class MEST(DynamicRecipe):
    """Memory-Economic Sparse Training with elastic mutation: prune by :class:`MagnitudeAndGradient`, grow at random.

    Yuan et al. (2021) reduce the share that is replaced in two or three steps; here it decreases linearly. Grown
    weights start at zero. λ is 0.01, as in the code of Zhang et al. (2024); the default of the authors' code is 0.5.
    Their soft memory bound, which grows before it prunes and so holds more weights in between, is left out.
    """

    prune_fraction: float = 0.3
    every: int | Epochs = field(default=Epochs(5))
    until: float = 0.75
    grow: str | GrowChoice | GrowRule = field(
        default=dataclasses.replace(GROW_RULES["random"], gradient_steps=1, initial_std=0.0)
    )
    decay: str = "linear"
    prune: str | PruneScore = field(default=MagnitudeAndGradient())
