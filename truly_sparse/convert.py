"""Dense or masked model in, truly sparse model out, and back."""

from __future__ import annotations

import copy

from torch import nn

from .arguments import require
from .errors import InvalidArgumentError
from .interface import SparsifiableLayer, check_has_numbers, sparse_layers, weight_layers
from .layers import SparseConv2d, SparseLayer, SparseLinear
from .topology import to_connections


def sparsify(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` with truly sparse layers that computes the same function.

    Masked layers keep their topology; in plain ``nn.Linear`` and ``nn.Conv2d`` layers the nonzero weights are the
    topology. ReLU and 2×2 max-pooling that directly follow a sparse layer stay where they are;
    :func:`tutorial_lib.fuse` moves them into the layer.

    Raises:
        InvalidArgumentError: no such layers, a convolution whose padding is not zeros, or a model on the meta device.
    """
    check_has_numbers(model)
    sparse = copied(model)
    for name, layer in weight_layers(model).items():
        if not isinstance(layer, SparseLayer):
            sparse = replace_layer(sparse, name, _sparse_layer(layer).train(layer.training))
    return sparse


def _sparse_layer(layer: nn.Linear | nn.Conv2d) -> SparseLayer:
    if isinstance(layer, SparsifiableLayer):
        connections, values = layer.active(), layer.active_values()
    else:
        connections = to_connections(layer.weight.detach() != 0)
        values = layer.weight.detach().reshape(-1)[connections]
    common = {"bias": layer.bias is not None, "connections": connections, "device": "meta"}
    if isinstance(layer, nn.Linear):
        sparse = SparseLinear(layer.in_features, layer.out_features, **common)
    elif layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise InvalidArgumentError(f"{layer} pads in a way that SparseConv2d does not; use zeros and numbers")
    else:
        sparse = SparseConv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            **common,
        )
    sparse.values = nn.Parameter(values.clone(), layer.weight.requires_grad)
    sparse.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone(), layer.bias.requires_grad)
    return sparse


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """Put ``layer`` in the place called ``name``; return the model (the layer itself if that is the whole model)."""
    if not name:
        return layer
    names = [each for each, _ in model.named_modules()]
    require(name in names, "name", name, f"use one of {', '.join(map(repr, names[:20]))}")
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
    return model


def densify(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` in which every sparse layer is a plain torch layer that computes the same.

    Raises:
        InvalidArgumentError: the model is on the meta device.
    """
    check_has_numbers(model)
    dense = copied(model)
    for name, layer in sparse_layers(model).items():
        dense = replace_layer(dense, name, layer.to_dense_layer().train(layer.training))
    return dense


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model that shares nothing with it.

    Raises:
        InvalidArgumentError: it holds something that cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:  # a tensor that was computed, such as weight_norm's; an open file
        why = " ".join(str(error).split())[:200]
        raise InvalidArgumentError(
            f"model={type(model).__name__} cannot be copied ({why}); use one of parameters and buffers"
        ) from error
