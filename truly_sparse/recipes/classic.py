"""Prune the smallest weights of each layer, grow by one rule: SET, RigL, SNFS, ITOP, and the static control."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..rules import GrowChoice, GrowRule
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
