"""Dense or masked model in, truly sparse model out, and back."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .arguments import require
from .errors import InvalidArgumentError
from .interface import SparsifiableLayer, check_has_numbers, sparse_layers, weight_layers
from .layers import SparseConv2d, SparseLinear
from .sparse_layer import SparseLayer
from .topology import random_topology, to_connections


def sparsify(
    model: nn.Module,
    sparsity: float | None = None,
    scheme: str = "uniform",
    seed: int = 0,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> nn.Module:
    """Return a copy of ``model`` with truly sparse layers in place of its Linear and Conv2d layers.

    Without ``sparsity`` the copy computes the same function: masked layers keep their topology, and in dense layers the
    nonzero weights are the topology. With ``sparsity`` the topology of a dense model is drawn at random; the
    remaining weights keep their values. No mask and no copy
    of a dense weight is made then; without ``sparsity`` there are temporary ones, one layer at a time.

    ReLU and 2×2 max-pooling after a sparse layer stay separate modules; :func:`fuse` moves them into the layer.

    Args:
        model: any module with ``nn.Linear``, ``nn.Conv2d`` or sparsifiable layers, nested or not. It is not changed.
        sparsity: share of the weights to remove from a dense model, in [0, 1); None: see above.
        scheme: how the layers share the remaining weights, see :func:`layer_nnz`.
        seed: seed of the random topology.
        include: shell-style name patterns of the layers to convert.
        exclude: shell-style name patterns of layers that stay as they are.

    Raises:
        InvalidArgumentError: no such layers, a convolution with a ``padding_mode`` other than zeros or a
            text as ``padding``, a model on the meta device, or a
            ``sparsity`` for a model that holds masked or truly sparse layers already.
    """
    check_has_numbers(model)
    if sparsity is None:
        require((scheme, seed) == ("uniform", 0), "sparsity", None, "give a number, or leave scheme and seed out")
        topology: dict[str, torch.Tensor] = {}
    elif sparse_layers(model):
        raise InvalidArgumentError(
            f"model={type(model).__name__} holds sparse layers; leave sparsity={sparsity} out, or densify(model) first"
        )
    else:
        topology = random_topology(model, sparsity, scheme, seed, include, exclude)
    layers = {
        name: _sparse_layer(layer, topology.get(name)).train(layer.training)
        for name, layer in weight_layers(model, include, exclude).items()
        if not isinstance(layer, SparseLayer)
    }
    return copied(model, layers)


def densify(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` in which every sparse layer is a dense torch layer that computes the same.

    Raises:
        InvalidArgumentError: the model is on the meta device.
    """
    check_has_numbers(model)
    layers = {name: layer.to_dense_layer().train(layer.training) for name, layer in sparse_layers(model).items()}
    return copied(model, layers)


def copied(model: nn.Module, layers: Mapping[str, nn.Module] | None = None) -> nn.Module:
    """Return a copy of ``model`` that shares no tensors with it.

    Args:
        model: is not changed.
        layers: by name, modules that take the place of the model's own in the copy. The model's are not copied.

    Raises:
        InvalidArgumentError: the model holds something that cannot be copied.
    """
    layers = layers or {}
    replaced = {id(model.get_submodule(name)): layer for name, layer in layers.items()}  # deepcopy inserts these
    try:
        return copy.deepcopy(model, dict(replaced))
    except (RuntimeError, TypeError) as error:  # a computed tensor, such as weight_norm's; an open file
        why = " ".join(str(error).split())[:200]
        raise InvalidArgumentError(
            f"model={type(model).__name__} cannot be copied ({why}); "
            "use one that stores its tensors as parameters or buffers"
        ) from error


def _sparse_layer(layer: nn.Module, connections: torch.Tensor | None) -> SparseLayer:
    """Return the truly sparse layer of a dense or sparsifiable one, with these connections or its own."""
    dense: Any = layer.to_dense_layer() if isinstance(layer, SparsifiableLayer) else layer
    linear = isinstance(dense, nn.Linear)
    if not linear and not isinstance(dense, nn.Conv2d):
        what = f"{type(layer).__name__}.to_dense_layer() returns {type(dense).__name__}"
        raise InvalidArgumentError(f"{what}; it must return nn.Linear or nn.Conv2d")
    trained = dense.weight.requires_grad
    if isinstance(layer, SparsifiableLayer):
        connections, values, trained = layer.active(), layer.active_values(), layer.weight_parameter.requires_grad
    else:
        weight = dense.weight.detach()
        connections = to_connections(weight != 0) if connections is None else connections.to(weight.device)
        values = weight[torch.unravel_index(connections, weight.shape)]  # a flat view may not exist
    has_bias = dense.bias is not None
    sparse: SparseLayer
    if linear:
        sparse = SparseLinear(dense.in_features, dense.out_features, has_bias, connections=connections, device="meta")
    elif dense.padding_mode != "zeros" or isinstance(dense.padding, str):
        raise InvalidArgumentError(f"SparseConv2d does not support the padding of {dense}; use zeros and numbers")
    else:
        sizes, geometry = (dense.in_channels, dense.out_channels), (dense.kernel_size, dense.stride, dense.padding)
        more = (dense.dilation, dense.groups, has_bias)
        sparse = SparseConv2d(*sizes, *geometry, *more, connections=connections, device="meta")
    sparse.values = nn.Parameter(values.clone(), trained)
    sparse.bias = nn.Parameter(dense.bias.detach().clone(), dense.bias.requires_grad) if has_bias else None
    return sparse
