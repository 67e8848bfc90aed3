"""Sparse-aware initialisation: the scale of a weight follows the active connections of its output unit."""

from __future__ import annotations

import math

import torch
from torch import nn

from .errors import InvalidArgumentError
from .interface import check_has_numbers, sparse_layers
from .topology import generator_of


def sparse_init(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw all weights of the sparse layers anew from ``U(−b, b)``, ``b = 1 / √fan_in`` of each output unit.

    This is torch's own initialisation with the *active* fan-in in place of the dense one. A dense initialisation makes
    the sums of a layer with 95% sparsity about √20 times too small, layer after layer. Evci et al. (2022, section 3)
    derive the same for He initialisation. The *variance* is ``1 / (3 · fan_in)``. Biases are left as they are.

    Args:
        model: changed in place.
        seed: seed of the draw; torch's global generator is not used.

    Returns:
        The model.

    Raises:
        InvalidArgumentError: the model has no sparse layers.
    """
    layers = sparse_layers(model)
    if not layers:
        raise InvalidArgumentError(
            f"model={type(model).__name__} has no sparse layers; call sparsify(model, sparsity=0.95) first"
        )
    check_has_numbers(model)
    generator = generator_of(seed)
    for layer in layers.values():
        out_features, *rest = layer.dense_shape
        row = layer.active().cpu() // max(1, math.prod(rest))
        fan_in = torch.bincount(row, minlength=out_features)[row]
        draw = 2 * torch.rand(len(row), generator=generator, dtype=torch.float64) - 1
        layer.set_active_values(draw / fan_in.sqrt())
    return model
