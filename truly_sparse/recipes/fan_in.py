"""Outputs with the same number of inputs: Structured RigL."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from ..arguments import require
from ..dst import DynamicSparsity, Plan
from ..interface import SparsifiableLayer
from ..positions import largest
from ..rules import GROW_RULES, GrowChoice, GrowRule, gradient_grow, over_all_ranks, smallest
from ..schedule import Epochs
from .base import DynamicRecipe


def fan_ins(salient: np.ndarray, nnz: int, inputs: int, needed: float) -> np.ndarray:
    """Return how many inputs each output is to have: the same number, or none where too few weights are salient.

    Args:
        salient: salient weights of each output.
        nnz: weights of the layer. Where the remaining outputs do not divide it, the first have one input more.
        inputs: inputs of the dense layer.
        needed: salient weights that an output must have. The outputs with most stay in any case, as many as needed to
            hold ``nnz`` weights.
    """
    fewest = -(-nnz // inputs)
    ranked = np.argsort(-salient, kind="stable")
    kept = np.sort(ranked[: max(fewest, int((salient >= needed).sum()))])
    counts = np.zeros(len(salient), np.int64)
    counts[kept] = nnz // len(kept)
    counts[kept[: nnz % len(kept)]] += 1
    return counts


class ConstantFanIn(DynamicSparsity):
    """The driver of :class:`SRigL`.

    Attributes:
        salient: share of an output's weights that must be salient, or the output loses all of them; 0: none does.
    """

    def __init__(self, *on: Any, salient: float, **settings: Any) -> None:
        super().__init__(*on, **settings)
        require(0 <= salient <= 1, "salient", salient, "use a share from 0 to 1")
        require(self.grow == GROW_RULES["gradient"], "grow", settings.get("grow"), 'SRigL needs grow="gradient"')
        require(self.scope == "layer", "scope", self.scope, "SRigL prunes each layer by itself; leave it out")
        for layer in self.layers.values():
            require(layer.structure == (1, 1), "structure", layer.structure, "constant fan-in needs single weights")
        self.salient, self._last = float(salient), list(self.layers.values())[-1]

    @override
    def settings(self) -> dict[str, Any]:
        return super().settings() | {"salient": self.salient}

    @override
    def _may_read_gradient(self, layer: SparsifiableLayer) -> bool:
        return True  # it grows connections in place of those of an output that loses all

    @override
    def _plans(self, layers: Mapping[str, SparsifiableLayer]) -> dict[str, Plan]:
        return {name: self._rows_plan(layer, layer is self._last) for name, layer in layers.items()}

    def _rows_plan(self, layer: SparsifiableLayer, is_last: bool) -> Plan:
        active, values, outputs = layer.active(), self.score(layer), layer.dense_shape[0]
        inputs, size = math.prod(layer.dense_shape[1:]), math.prod(layer.dense_shape)
        lost = smallest(values, min(int(self.fraction() * len(active)), size - len(active)))
        new = gradient_grow(map(over_all_ranks, layer.gradient_rows()), active, len(lost))
        stays = torch.ones(len(active), dtype=torch.bool, device=active.device).index_fill_(0, lost, False)
        salient = torch.bincount(torch.cat([active[stays], new]) // inputs, minlength=outputs).numpy(force=True)
        needed = 0.0 if is_last or not self.salient else max(1, int(self.salient * (len(active) // outputs)))
        counts = fan_ins(salient, len(active), inputs, needed)
        kept: list[torch.Tensor] = []
        grown: list[torch.Tensor] = []
        ends = torch.searchsorted(active, torch.arange(outputs + 1, device=active.device) * inputs).tolist()
        for row, gradient in enumerate(_single(map(over_all_ranks, layer.gradient_rows()))):
            first, last = ends[row : row + 2]
            of_row, count = active[first:last], int(counts[row])
            room = inputs - len(of_row)
            staying = min(count, max(int(stays[first:last].sum()), count - room))
            kept.append(of_row[largest(values[first:last], staying)])
            grown.append(gradient_grow([gradient[None]], of_row - row * inputs, count - staying) + row * inputs)
        return torch.cat(kept), torch.cat(grown), layer.weight_parameter.new_zeros(sum(map(len, grown)))


def _single(rows: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    for block in rows:
        yield from block


@dataclass(frozen=True)
class SRigL(DynamicRecipe):
    """Structured RigL: constant fan-in, and removal of neurons that hardly contribute (Lasby et al., 2024).

    A rewiring keeps, of each layer, all but the ``K = int(fraction · nnz)`` weights of smallest magnitude. Salient are
    these and the ``K`` inactive connections of largest gradient. An output with fewer than ``γ k`` salient weights,
    where ``k`` is the layer's mean fan-in, loses all (*ablation*); in the last layer none does. The others get the same
    number of inputs: of their own kept weights the largest, and further ones by the largest gradient in their row. A
    connection that a rewiring prunes does not grow in the same rewiring; in the paper it may.

    So that the number of weights of a layer never changes, the fan-ins of a layer differ by one at most. From the first
    rewiring on they are constant, whatever topology the training starts from; the paper's starts with constant ones. An
    output may return by its gradients, as in the authors' code, which counts ``γ`` of the dense fan-in by default.

    Attributes:
        salient: ``γ``.
    """

    prune_fraction: float = 0.3
    every: int | Epochs = 100
    until: float = 0.75
    grow: str | GrowChoice | GrowRule = "gradient"
    decay: str = "cosine"
    salient: float = 0.3

    @override
    def _driver(self, *on: Any, **settings: Any) -> DynamicSparsity:
        return ConstantFanIn(*on, salient=self.salient, **settings)
