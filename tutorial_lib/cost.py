"""Cost of a network on paper: bytes stored and multiply-adds executed, counted from its layers."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import torch
from torch import nn

from truly_sparse.arguments import check_count, check_memory, shown
from truly_sparse.errors import InvalidArgumentError
from truly_sparse.interface import SparsifiableLayer, sparse_layers, weight_layers, weight_shape


def storage_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, masks and indices included."""
    tensors = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    return tensors + sum(layer.index_bytes for layer in sparse_layers(model).values())


@torch.no_grad()
def multiply_adds(model: nn.Module, input_shape: tuple[int, ...]) -> pd.DataFrame:
    """Count the multiply-adds of one forward pass of one sample, per Linear and Conv2d layer and in total.

    Args:
        model: any module.
        input_shape: shape of one sample, without the batch dimension.

    Returns:
        A table with the columns ``executed`` (by all stored weights, zero or not) and ``useful`` (by active weights
        only). The product of weight and mask is not counted.

    Raises:
        InvalidArgumentError: the model does not accept such an input.
    """
    rows: dict[str, dict[str, int]] = {}
    layers = weight_layers(model)
    names: dict[Any, str] = {layer: name for name, layer in layers.items()}

    def count(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        positions = math.prod(output.shape[1:-1]) if len(weight_shape(layer)) == 2 else _pixels(layer, inputs[0])
        size = math.prod(weight_shape(layer))
        active = len(layer.active()) if isinstance(layer, SparsifiableLayer) else size
        stored = layer.weight_parameter.numel() if isinstance(layer, SparsifiableLayer) else size
        rows[names[layer]] = {"executed": stored * positions, "useful": active * positions}

    hooks = [layer.register_forward_hook(count) for layer in layers.values()]
    first = next(model.parameters())
    check_memory("input_shape", input_shape, math.prod(input_shape) * first.element_size(), first.device)
    was_training = model.training
    try:
        model.eval()(torch.zeros(1, *input_shape, dtype=first.dtype, device=first.device))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise InvalidArgumentError(
            f"input_shape={shown(input_shape)} does not pass through {type(model).__name__} ({error}); "
            "give the shape of one sample, without the batch dimension"
        ) from error
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["executed", "useful"])
    table.loc["total"] = table.sum()
    return table


def training_multiply_adds(
    model: nn.Module, input_shape: tuple[int, ...], images: int, growth_images: int = 0
) -> dict[str, int]:
    """Count the multiply-adds that a training run executes.

    Args:
        model: any module.
        input_shape: shape of one sample, without the batch dimension.
        images: number of training samples, each counted once per epoch.
        growth_images: number of samples for which a truly sparse layer computed its dense gradient for growth. (In a
            masked layer it is part of the backward pass.)

    Returns:
        ``forward``; ``backward`` (gradients of weights and inputs, without the network's own input); ``growth``.
    """
    images = check_count("images", images, least=0)
    growth_images = check_count("growth_images", growth_images, least=0)
    executed = multiply_adds(model, input_shape)["executed"].drop("total")
    layers = weight_layers(model)
    unstored = {
        name: math.prod(weight_shape(layer)) / layer.weight_parameter.numel() * executed[name]
        for name, layer in layers.items()
        if isinstance(layer, SparsifiableLayer) and layer.weight_parameter.numel() < math.prod(weight_shape(layer))
    }
    return {
        "forward": images * int(executed.sum()),
        "backward": images * int(2 * executed.sum() - executed.iloc[0]),
        "growth": growth_images * round(sum(unstored.values())),
    }


def _pixels(conv: Any, x: torch.Tensor) -> int:
    """Return the number of positions at which a convolution applies its kernel, before any pooling."""
    dims = len(weight_shape(conv)) - 2
    kind: Any = nn.Conv1d if dims == 1 else nn.Conv2d
    sizes: Any = [size[-dims:] for size in (conv.kernel_size, conv.stride)]
    padding: Any = conv.padding if isinstance(conv.padding, str) else conv.padding[-dims:]
    meta = kind(1, 1, *sizes, padding, conv.dilation[-dims:], device="meta")
    return meta(torch.empty(1, 1, *x.shape[2:], device="meta")).numel()
