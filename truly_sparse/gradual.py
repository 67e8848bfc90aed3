"""Gradual magnitude pruning: the driver that starts dense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from .arguments import check_choice
from .blocks import units_of
from .driver_checks import check_sizes_may_change
from .dst import Plan, Rewirer
from .interface import SparsifiableLayer
from .positions import without
from .rules import magnitude_prune
from .schedule import in_steps
from .structure import whole_blocks
from .topology import SCHEMES, check_sparsity, layer_nnz


class GradualPruning(Rewirer):
    """Gradual magnitude pruning: from a dense topology to a sparse one while training (Zhu & Gupta, 2017, eq. 1).

    The sparsity rises as ``s(t) = S · (1 − (1 − t / until)³)``. Every ``every`` steps each layer keeps its largest
    weights; pruned weights never return. Layers may be masked or truly sparse; the memory of truly sparse ones falls.

    Args:
        model: a model with sparse layers, ``mask_model(model, sparsity=0.0)`` for a dense start.
        optimizer: a ``torch.optim`` optimizer that holds their parameters.
        sparsity: ``S``, reached at ``until``.
        until: step at which the final sparsity is reached.
        every: steps between prunings.
        scheme: how the layers share the remaining weights, see :func:`layer_nnz`.

    Raises:
        InvalidArgumentError: an argument outside its range; or truly sparse layers in one of several processes.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        sparsity: float,
        until: int,
        every: int = 100,
        scheme: str = "uniform",
    ) -> None:
        every, until = in_steps("every", every, None, least=1), in_steps("until", until, None, least=1)
        super().__init__(model, optimizer, every, until)
        check_sizes_may_change(self.layers)
        check_choice("scheme", scheme, SCHEMES)
        self.model, self.end, self.sparsity, self.scheme = model, until, check_sparsity(sparsity), scheme
        self.final = self._nnz(sparsity)

    @override
    def settings(self) -> dict[str, Any]:
        return super().settings() | {"sparsity": self.sparsity, "scheme": self.scheme}

    def _nnz(self, sparsity: float) -> dict[str, int]:
        return layer_nnz(self.model, sparsity, self.scheme, include=list(self.layers))

    @override
    def _plans(self, layers: Mapping[str, SparsifiableLayer]) -> dict[str, Plan]:
        progress = min(self.steps / self.end, 1)
        allowed = self._nnz(self.sparsity * (1 - (1 - progress) ** 3))
        plans = {}
        for name, layer in layers.items():
            units = units_of(layer)
            active, values = units.active(), units.active_values()
            # Rounding may give a layer one unit fewer now than at the end, and pruned weights never return.
            target = max(allowed[name], self.final[name]) // layer.structure.area
            pruned = magnitude_prune(values, max(0, len(active) - target))
            kept = whole_blocks(without(active, pruned), layer.dense_shape, layer.structure)
            plans[name] = kept, active[:0], layer.active_values()[:0]
        return plans

    @override
    def _due(self, step: int) -> bool:
        return super()._due(step) or step == self.end  # the final sparsity is reached at any interval
