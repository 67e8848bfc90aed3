"""What sparse layers hand to the kernels. A chain is a list of stages, computed in one go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ..arguments import shown
from ..errors import InvalidArgumentError
from .index import ConvIndex, LinearIndex


class Stage(NamedTuple):
    """One sparse layer, with the ReLU and the pooling that are part of its pass.

    Attributes:
        index: which weights there are.
        relu: whether negative results become zero.
        pool: whether each 2×2 window of the result is reduced to its largest (convolutions); an odd last row or
            column is dropped.
    """

    index: LinearIndex | ConvIndex
    relu: bool = False
    pool: bool = False


class Trace(NamedTuple):
    """One stage's tensors in a pass.

    Attributes:
        x: the input, ``[B, in]`` or ``[B, C, H, W]``.
        y: the result; None for the last stage where nothing depends on it.
        winners: uint8, of the shape of ``y``: which pixel of its window (0 to 3, the first of equals) each result is,
            4 where ReLU stopped it; None without pooling.
        grad: the gradient of ``y``; what ReLU stops may be zero in it already.
    """

    x: torch.Tensor
    y: torch.Tensor | None
    winners: torch.Tensor | None
    grad: torch.Tensor


class Gradients(NamedTuple):
    """What the backward pass of a chain returns.

    Attributes:
        x: gradient of the input, None where it is not wanted.
        parameters: gradients of values and bias, stage after stage; of the bias also where there is none.
        traces: for each stage, if asked for.
    """

    x: torch.Tensor | None
    parameters: Sequence[torch.Tensor]
    traces: list[Trace]


Trained = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # a parameter, Adam's two moments, its steps


def check_kinds(kind: type | tuple[type, ...], index: Any, **tensors: Any) -> None:
    """Refuse an index of another kind, and what is no tensor: cheap enough for every pass.

    Raises:
        InvalidArgumentError: one of them is something else.
    """
    if not isinstance(index, kind):
        raise InvalidArgumentError(f"index={shown(index)} does not fit this layer; give what its build() returns.")
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise InvalidArgumentError(f"{name}={shown(tensor)}; give a torch.Tensor.")


def check_pass(
    x: torch.Tensor,
    index: LinearIndex | ConvIndex,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    grad: torch.Tensor | None = None,
) -> None:
    """Refuse tensors that do not fit a layer, before one of another size is read where it has nothing.

    Args:
        x: the layer's input.
        index: the layer's index.
        values: its weights.
        bias: its bias.
        grad: gradient of its result (of a linear layer), where there is one.

    Raises:
        InvalidArgumentError: a wrong shape, or tensors of several types or devices.
    """
    outputs, linear = index.shape[0], isinstance(index, LinearIndex)
    inputs = index.shape[1] * (1 if linear else index.groups)
    if x.dim() != (2 if linear else 4) or x.shape[1] != inputs:
        takes = f"[B, {inputs}]" if linear else f"[B, {inputs}, H, W]"
        raise InvalidArgumentError(f"the input has shape {tuple(x.shape)}; give {takes}.")
    if linear and grad is not None and grad.shape != (len(x), outputs):
        raise InvalidArgumentError(f"the gradient has shape {tuple(grad.shape)}; give {(len(x), outputs)}.")
    if values.shape != (index.nnz,):
        raise InvalidArgumentError(f"values have shape {tuple(values.shape)}; give {index.nnz}.")
    if bias is not None and getattr(bias, "shape", None) != (outputs,):
        raise InvalidArgumentError(f"bias={shown(bias)}; give {outputs} numbers.")
    for tensor in (values, bias, grad):
        if tensor is not None and (tensor.dtype, tensor.device) != (x.dtype, x.device):
            raise InvalidArgumentError(
                f"a tensor is {tensor.dtype} on {tensor.device}, the input {x.dtype} on {x.device}; "
                "use one type and one device, such as x.to(layer.values)."
            )


def fitted(x: torch.Tensor, stage: Stage) -> torch.Tensor:
    """Return images ``[B, C, H, W]`` as ``[B, C·H·W]`` if it is a linear layer that takes them."""
    return x.flatten(1) if x.dim() == 4 and isinstance(stage.index, LinearIndex) else x
