"""What is sparse in a model, and how sparse."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import nn

from .interface import SparsifiableLayer, weight_layers, weight_shape


class LayerSparsity(NamedTuple):
    """Weights of one layer, or of a whole model.

    Attributes:
        shape: shape of the dense weight; ``()`` in the total.
        weights: entries of the dense weight.
        active: active connections; all of them in a dense layer.
        sparsity: share of the weights that are not active.
    """

    shape: tuple[int, ...]
    weights: int
    active: int
    sparsity: float


def sparsity_by_layer(model: nn.Module) -> dict[str, LayerSparsity]:
    """Return weights and active weights of each Linear, Conv2d and sparse layer, and of all together (``"total"``).

    Raises:
        InvalidArgumentError: the model has no such layers.
    """
    rows = {}
    for name, layer in weight_layers(model).items():
        shape = weight_shape(layer)
        weights = math.prod(shape)
        active = len(layer.active()) if isinstance(layer, SparsifiableLayer) else weights
        rows[name] = LayerSparsity(shape, weights, active, 1 - active / weights)
    weights, active = (sum(getattr(row, column) for row in rows.values()) for column in ("weights", "active"))
    return rows | {"total": LayerSparsity((), weights, active, 1 - active / weights)}
