"""From a denser network to a sparse one during training: gradual magnitude pruning, and GraNet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from typing_extensions import override

from ..gradual import GradualPruning
from .base import Recipe, last_step


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
            until=max(1, last_step(self.until, total_steps)),
            every=self.every,
            scheme=self.scheme,
        )
