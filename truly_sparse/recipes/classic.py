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
    """Sparse Evolutionary Training: random growth (Mocanu et al., 2018).

    Each layer prunes its ``ζ · nnz`` weights of smallest ``|w|`` (the paper ranks positive and negative ones apart) and
    grows as many connections at random. ``prune_fraction`` is ``ζ``. The settings are those of a published tutorial;
    the paper's are ``SET(0.3, Epochs(1))``.
    """

    prune_fraction: float = 0.1
    every: int | Epochs = field(default=Epochs(2))
    until: float = 1.0
    grow: str | GrowChoice | GrowRule = "random"
    decay: str = "constant"


@dataclass(frozen=True)
class RigL(DynamicRecipe):
    """Rigging the Lottery: growth by gradient, a decaying fraction, an early end (Evci et al., 2020).

    At step ``t`` each layer prunes its ``f(t) · nnz`` weights of smallest ``|w|``, ``f(t) = α/2 (1 + cos(π t / T))``,
    and grows as many inactive connections of largest ``|∂L/∂w|``, with weight zero. A connection that a rewiring prunes
    does not grow in the same rewiring; in the paper it may.
    """

    prune_fraction: float = 0.3
    every: int | Epochs = 100
    until: float = 0.75
    grow: str | GrowChoice | GrowRule = "gradient"
    decay: str = "cosine"


@dataclass(frozen=True)
class SNFS(DynamicRecipe):
    """Sparse Networks From Scratch: growth by the momentum of the gradient (Dettmers & Zettlemoyer, 2019).

    Each layer grows the inactive connections of largest ``|m|``, where ``m ← 0.9 m + ∂L/∂w`` after each batch. The
    number of weights of each layer stays the same; the paper also moves weights between layers, by the layers' mean
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

    The authors' scripts for CIFAR-10 (Yuan et al., 2021) replace 20% of the weights every 5 epochs, 10% from 56% of the
    training on, and nothing in its last quarter; here the share falls linearly. Grown weights start at zero. λ is 0.01,
    as in the code of Zhang et al. (2024). The soft memory bound of the paper, which grows before it prunes and so holds
    more weights in between, is left out.
    """

    prune_fraction: float = 0.2
    every: int | Epochs = field(default=Epochs(5))
    until: float = 0.75
    grow: str | GrowChoice | GrowRule = field(
        default=dataclasses.replace(GROW_RULES["random"], gradient_steps=1, initial_std=0.0)
    )
    decay: str = "linear"
    prune: str | PruneScore = field(default=MagnitudeAndGradient())
