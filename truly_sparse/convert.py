"""Dense or masked model in, truly sparse model out, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .adapters import adapted, unadapted
from .arguments import require
from .computed import is_trained, tensor_of
from .conv1d import SparseConv1d
from .copies import copied
from .errors import InvalidArgumentError
from .interface import Names, SparsifiableLayer, check_has_numbers, sparse_layers, untied_layers
from .layers import SparseConv2d, SparseLinear
from .report import tell_what_stays_dense
from .sparse_layer import SparseLayer
from .structure import UNSTRUCTURED, Structure, StructureLike
from .topology import initial_topology, own_topology, structures_of


def sparsify(
    model: nn.Module,
    sparsity: float | None = None,
    scheme: str = "uniform",
    seed: int = 0,
    include: Names = ("*",),
    exclude: Names = (),
    topology: str = "random",
    structure: StructureLike = UNSTRUCTURED,
) -> nn.Module:
    """Return a copy of ``model`` with truly sparse layers in place of its Linear, Conv1d and Conv2d layers.

    Without ``sparsity`` the copy computes the same function: masked layers keep their topology, and in dense layers the
    nonzero weights are the topology. With ``sparsity`` the topology of a dense model is drawn at random, or holds the
    largest weights; the remaining weights keep their values. No mask is made.

    A layer pruned by ``torch.nn.utils.prune`` keeps its mask, also where ``sparsity`` says something else. A layer with
    ``weight_norm`` keeps the weight that it computes now, as a plain weight. ``nn.MultiheadAttention`` becomes
    :class:`Attention`, and other kinds of module what their adapter makes of them (:func:`register_adapter`). All else
    stays dense, as does a layer that shares a parameter with an embedding: one line names what was not excluded.

    ReLU and 2×2 max-pooling after a sparse layer stay separate modules; :func:`fuse` moves them into the layer.

    Args:
        model: any module with such layers, masked or dense, nested or not. It is not changed.
        sparsity: share of the weights to remove from a dense model, in [0, 1); None: see above.
        scheme: how the layers share the remaining weights, see :func:`layer_nnz`.
        seed: seed of the random topology.
        include: name patterns or classes of the layers to convert, or of modules that contain them.
        exclude: the same of layers that stay as they are.
        topology: ``"random"``, or ``"magnitude"``: the largest weights of each layer.
        structure: outputs × inputs of the blocks in which weights exist, or ``"auto"``, see :func:`structures_of`.

    Raises:
        InvalidArgumentError: no such layers, layers that share a parameter, a convolution with a
            ``padding_mode`` other than zeros or a text as ``padding``, a model on the meta device, or a
            ``sparsity`` for a model that holds masked or truly sparse layers already.
    """
    check_has_numbers(model)
    chosen: dict[str, torch.Tensor] = {}
    if sparsity is None:
        plain = (scheme, seed, topology, structure) == ("uniform", 0, "random", UNSTRUCTURED)
        require(plain, "sparsity", None, "give a number, or leave scheme, seed, topology and structure out")
    elif sparse_layers(model):
        raise InvalidArgumentError(
            f"model={type(model).__name__} holds sparse layers; leave sparsity={sparsity} out, or densify(model) first"
        )
    model = adapted(model, include, exclude)
    if sparsity is not None:
        chosen = initial_topology(model, sparsity, scheme, seed, include, exclude, topology, structure)
    found = untied_layers(model, include, exclude)
    structures = structures_of(found, structure)
    layers = {
        name: _sparse_layer(layer, chosen.get(name), structures[name]).train(layer.training)
        for name, layer in found.items()
        if not isinstance(layer, SparseLayer)
    }
    sparse = copied(model, layers)
    tell_what_stays_dense(sparse, include, exclude)
    return sparse


def densify(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` in which every sparse layer is a dense torch layer that computes the same.

    Each :class:`Attention` becomes ``nn.MultiheadAttention`` again, so that the original network can load the copy's
    ``state_dict``. A module that another adapter put in (:func:`register_adapter`) stays, with its own names.

    Raises:
        InvalidArgumentError: the model is on the meta device.
    """
    check_has_numbers(model)
    layers = {name: layer.to_dense_layer().train(layer.training) for name, layer in sparse_layers(model).items()}
    return unadapted(copied(model, layers))


def _sparse_layer(layer: nn.Module, connections: torch.Tensor | None, structure: Structure) -> SparseLayer:
    """Return the truly sparse layer of a dense or sparsifiable one, with these connections or its own."""
    dense: Any = layer.to_dense_layer() if isinstance(layer, SparsifiableLayer) else layer
    if not isinstance(dense, (nn.Linear, nn.Conv1d, nn.Conv2d)):
        what = f"{type(layer).__name__}.to_dense_layer() returns {type(dense).__name__}"
        raise InvalidArgumentError(f"{what}; it must return nn.Linear, nn.Conv1d or nn.Conv2d")
    if isinstance(layer, SparsifiableLayer):
        connections, values, trained = layer.active(), layer.active_values(), layer.weight_parameter.requires_grad
    else:
        weight, trained = tensor_of(layer, "weight"), is_trained(layer, "weight")
        connections = own_topology(layer) if connections is None else connections.to(weight.device)
        values = weight[torch.unravel_index(connections, weight.shape)]  # a flat view may not exist
    sparse, bias = _like(dense, connections, structure), tensor_of(dense, "bias")
    sparse.values = nn.Parameter(values.clone(), trained)
    sparse.bias = None if bias is None else nn.Parameter(bias.clone(), is_trained(dense, "bias"))
    return sparse


def _like(dense: nn.Linear | nn.Conv1d | nn.Conv2d, connections: torch.Tensor, structure: Structure) -> SparseLayer:
    """Return a sparse layer of the same sizes whose values and bias are on the meta device."""
    has_bias = dense.bias is not None
    topology: Any = {"connections": connections, "structure": structure, "device": "meta"}
    if isinstance(dense, nn.Linear):
        return SparseLinear(dense.in_features, dense.out_features, has_bias, **topology)
    if dense.padding_mode != "zeros" or isinstance(dense.padding, str):
        kind = f"Sparse{'Conv1d' if isinstance(dense, nn.Conv1d) else 'Conv2d'}"
        raise InvalidArgumentError(f"{kind} does not support the padding of {dense}; use zeros and numbers")
    sizes: Any = (dense.in_channels, dense.out_channels, dense.kernel_size)
    geometry: Any = (dense.stride, dense.padding, dense.dilation, dense.groups, has_bias)
    if isinstance(dense, nn.Conv1d):
        sizes, geometry = (*sizes[:2], *sizes[2]), (*(size for (size,) in geometry[:3]), *geometry[3:])
        return SparseConv1d(*sizes, *geometry, **topology)
    return SparseConv2d(*sizes, *geometry, **topology)
