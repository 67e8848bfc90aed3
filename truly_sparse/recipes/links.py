"""Growth by link prediction on the topology alone: Cannistraci-Hebb training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from ..dst import DynamicSparsity
from ..interface import Units
from ..positions import loops_or_none, without
from ..rules import GrowChoice, GrowRule, gradient_grow
from ..schedule import Epochs
from .base import DynamicRecipe

NOISE = 1e-9  # tiny against a score; it parts equal ones at random


def ch3_l3_rows(active: torch.Tensor, shape: tuple[int, int]) -> Iterator[torch.Tensor]:
    """Yield the scores of all inactive connections, output by output.

    The topology is a bipartite graph of outputs and inputs. The score of output ``u`` and input ``v`` sums over all
    paths ``u – z₁ – z₂ – v`` the numbers ``1 / √((1 + e(z₁)) (1 + e(z₂)))``, where ``e(z)`` counts the links of ``z``
    that lead neither to ``u`` or ``v`` nor to a node on such a path (CH3-L3; Zhang et al., 2024).

    Args:
        active: flat indices, int64 ``[n]``, sorted.
        shape: outputs and inputs.

    Yields:
        float64 ``[1, inputs]`` for each output; 0 where a connection is active. Memory is proportional to ``n`` and to
        the paths of one output.
    """
    outputs, inputs = shape
    row, column = np.divmod(active.numpy(force=True), max(1, inputs))
    rows = np.r_[0, np.bincount(row, minlength=outputs).cumsum()], column
    columns = np.r_[0, np.bincount(column, minlength=inputs).cumsum()], row[np.argsort(column, kind="stable")]
    loops = loops_or_none()
    for u in range(outputs):
        score = np.zeros(inputs)
        (_link_scores if loops is None else loops.link_scores)(u, *rows, *columns, score)
        yield torch.from_numpy(score[None])


def _link_scores(
    u: int, rows: np.ndarray, inputs_of: np.ndarray, columns: np.ndarray, outputs_of: np.ndarray, score: np.ndarray
) -> None:
    """Add to ``score``, zeros, the scores of an output; in numpy, where there are no compiled loops."""
    inputs, outputs = len(columns) - 1, len(rows) - 1
    z1 = inputs_of[rows[u] : rows[u + 1]]
    first, z2 = _links(z1, columns, outputs_of)
    second, v = _links(z2, rows, inputs_of)
    common = np.bincount(z2, minlength=outputs)  # inputs that z₂ and u share
    new = ~np.isin(v, z1) & (z2[second] != u)
    first, z2, v = first[second][new], z2[second][new], v[new]
    shared = np.bincount(first * inputs + v, minlength=len(z1) * inputs)[first * inputs + v]  # outputs of z₁ and v
    free = (np.diff(columns)[z1[first]] - shared) * (np.diff(rows)[z2] - common[z2])
    score += np.bincount(v, 1 / np.sqrt(free), minlength=inputs)


def _links(nodes: np.ndarray, start: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all links of some nodes: which of the nodes each starts from, and where it ends."""
    count = start[nodes + 1] - start[nodes]
    which = np.repeat(np.arange(len(nodes)), count)
    return which, ends[np.arange(len(which)) + (start[nodes] - count.cumsum() + count)[which]]


def link_grow(
    graph: torch.Tensor, active: torch.Tensor, shape: Sequence[int], count: int, generator: torch.Generator
) -> torch.Tensor:
    """Choose the inactive connections of largest CH3-L3 score; of equal scores, and where no path leads, at random.

    A kernel position of a convolution counts as an input of its own.

    Args:
        graph: the topology that predicts, flat indices, int64 ``[n]``, sorted.
        active: connections that cannot grow, sorted.
        shape: of the dense weight.
        count: how many to grow.
        generator: draws the order of equal scores.

    Returns:
        Flat indices, int64 ``[count]``, sorted, none of them active.
    """
    inputs = math.prod(shape[1:])
    rows = ch3_l3_rows(graph, (shape[0], inputs))
    noisy = (row + NOISE * torch.rand(1, inputs, generator=generator, dtype=row.dtype) for row in rows)
    return gradient_grow(noisy, active, count)


def _choose(layer: Units, active: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    return link_grow(active, active, layer.dense_shape, count, generator)


class LinkPrediction(DynamicSparsity):
    """The driver of :class:`CHT`: it predicts from what pruning has left."""

    @override
    def _chosen(self, units: Units, active: torch.Tensor, pruned: torch.Tensor, count: int) -> torch.Tensor:
        if self.grow.choose is not _choose:
            return super()._chosen(units, active, pruned, count)
        return link_grow(without(active, pruned), active, units.dense_shape, count, self.generator)


@dataclass(frozen=True)
class CHT(DynamicRecipe):
    """Cannistraci-Hebb training: prune by magnitude, grow by :func:`link_grow`, no gradients (Zhang et al., 2024).

    Grown weights start at zero, and once an epoch 30% are replaced, as in the authors' code. Left out are the paper's
    correlated first topology, its first weights, the removal of neurons without inputs or outputs, and the early end
    when most new connections are those just pruned; here these do not grow in the same rewiring. The paper makes linear
    layers sparse only. In a convolution with groups, the groups count as if they had the same inputs.
    """

    prune_fraction: float = 0.3
    every: int | Epochs = field(default=Epochs(1))
    until: float = 1.0
    grow: str | GrowChoice | GrowRule = field(default=GrowRule(_choose, gradient_steps=0))
    decay: str = "constant"

    @override
    def _driver(self, *on: Any, **settings: Any) -> DynamicSparsity:
        return LinkPrediction(*on, **settings)
