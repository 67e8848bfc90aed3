"""From a denser network to a sparse one during training: gradual magnitude pruning, and GraNet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from ..arguments import require
from ..dst import DynamicSparsity, Rewirer, lowest_of_all
from ..gradual import GradualPruning
from ..interface import Units
from ..rules import GrowChoice, GrowRule
from ..schedule import Epochs
from ..topology import check_sparsity
from .base import DynamicRecipe, Recipe, check_interval, last_step
from .sharing import check_exchange


@dataclass(frozen=True)
class GradualMagnitudePruning(Recipe):
    """From dense to sparse during training (Zhu & Gupta, 2017): the baseline for training that starts sparse.

    The sparsity rises as ``s(t) = S (1 − (1 − t / T)³)``, and each layer's weights of smallest ``|w|`` are removed. The
    paper prunes every 100 to 1,000 steps.

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

    def __post_init__(self) -> None:
        check_interval(self.every)

    @override
    def attach(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, steps_per_epoch: int, total_steps: int, seed: int
    ) -> GradualPruning:
        return GradualPruning(
            model,
            optimizer,
            sparsity=self.sparsity,
            until=max(1, last_step(self.until, total_steps)),
            every=self.every,
            scheme=self.scheme,
        )


class PruneAndRegenerate(DynamicSparsity):
    """The driver of :class:`GraNet`.

    Attributes:
        start, sparsity: ``s₀`` and ``S`` of the schedule.
    """

    def __init__(self, *on: Any, start: float, sparsity: float, **settings: Any) -> None:
        super().__init__(*on, **settings)
        check_exchange(self.layers)
        require(self.scope == "layer", "scope", self.scope, "gradual pruning is over all layers anyway; leave it out")
        require(0 <= start < 1, "start", start, "use a number from 0 (dense) up to, not including, 1")
        self.start, self.sparsity = float(start), check_sparsity(sparsity)

    @override
    def settings(self) -> dict[str, Any]:
        return super().settings() | {"start": self.start, "sparsity": self.sparsity}

    @override
    def _counts(self, scores: dict[str, torch.Tensor], rooms: dict[str, int]) -> dict[str, int]:
        nnz = {name: len(score) for name, score in scores.items()}
        left = 1 - min(self.steps / self.until, 1) if self.until else 0.0
        density = 1 - self.sparsity - (self.start - self.sparsity) * left**3
        surplus = sum(nnz.values()) - round(density * sum(nnz[name] + rooms[name] for name in nnz))
        self._gone = lowest_of_all(scores, max(0, surplus))
        share = self.fraction() if self.steps % self.every == 0 else 0.0  # at the end alone no gradient is recorded
        replaced = {name: min(int(share * (nnz[name] - self._gone[name])), rooms[name]) for name in nnz}
        return {name: self._gone[name] + replaced[name] for name in nnz}

    @override
    def _grown(
        self, layers: Mapping[str, Units], active: dict[str, torch.Tensor], pruned: dict[str, torch.Tensor]
    ) -> dict[str, int]:
        return {name: len(positions) - self._gone[name] for name, positions in pruned.items()}

    @override
    def _due(self, step: int) -> bool:
        return Rewirer._due(self, step) or step == self.until  # the final sparsity is reached at any interval


@dataclass(frozen=True)
class GraNet(DynamicRecipe):
    """Gradual pruning with regrowth, from a denser start (Liu et al., 2021).

    The sparsity rises as ``s(t) = S + (s₀ − S) (1 − t / T)³`` until the step ``T``; the smallest weights of all layers
    together go. In the same rewiring each layer also replaces a share of its other weights: the smallest by those of
    largest gradient. A connection that a rewiring prunes does not grow in the same rewiring; in the paper it may. Both
    end at ``until``; the authors' code replaces weights to the end. Their commands for CIFAR-10 rewire every 1,000
    steps of 160 epochs; the default here is meant for shorter trainings.

    Start with ``sparsity=0.5, scheme="er"``, as the paper does in sparse-to-sparse training.

    Attributes:
        sparsity: ``S``, the share of the weights that are removed at the end.
        start: ``s₀``.
    """

    prune_fraction: float = 0.5
    every: int | Epochs = 100
    until: float = 0.75
    grow: str | GrowChoice | GrowRule = "gradient"
    decay: str = "cosine"
    start: float = 0.5
    sparsity: float = 0.95

    @override
    def _driver(self, *on: Any, **settings: Any) -> DynamicSparsity:
        return PruneAndRegenerate(*on, start=self.start, sparsity=self.sparsity, **settings)
