"""What sparse layers pass to the kernels. A chain is a list of stages that are computed in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ..arguments import shown
from ..errors import InvalidArgumentError
from .index import ConvIndex, LinearIndex


class Stage(NamedTuple):
    """What one sparse layer computes, with the ReLU and the pooling that are part of its pass.

    Attributes:
        index: the positions of the weights.
        relu: whether to apply ReLU.
        pool: whether to apply 2×2 max-pooling (convolutions only); an odd last row or column is dropped.
    """

    index: LinearIndex | ConvIndex  # type: ignore[assignment]  # a tuple has a method of this name
    relu: bool = False
    pool: bool = False


class Trace(NamedTuple):
    """What the gradient of one stage's dense weight is computed from.

    Attributes:
        x: the input, ``[B, in]`` or ``[B, C, H, W]``.
        grad: the gradient of the result before ReLU and pooling.
    """

    x: torch.Tensor
    grad: torch.Tensor


class Gradients(NamedTuple):
    """The results of the backward pass of a chain.

    Attributes:
        x: gradient of the input; None if it was not requested.
        parameters: gradients of values and bias of each stage in turn, also of a missing bias.
        traces: one per stage, if requested.
    """

    x: torch.Tensor | None
    parameters: Sequence[torch.Tensor]
    traces: list[Trace]


Trained = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # a parameter, Adam's two moments, its steps


def check_kinds(kind: type | tuple[type, ...], index: Any, **tensors: Any) -> None:
    """Refuse an index of another kind, and arguments that are no tensors.

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
    """Refuse tensors whose shape, dtype or device does not fit the layer.

    Args:
        x: the layer's input.
        index: the layer's index.
        values: its weights.
        bias: its bias.
        grad: gradient of its result (linear layers), if there is one.

    Raises:
        InvalidArgumentError: a wrong shape, or tensors of several types or devices.
    """
    outputs, linear = index.shape[0], isinstance(index, LinearIndex)
    inputs = index.shape[1] * (index.groups if isinstance(index, ConvIndex) else 1)
    if x.dim() != (2 if linear else 4) or x.shape[1] != inputs:
        takes = f"[B, {inputs}]" if linear else f"[B, {inputs}, H, W]"
        raise InvalidArgumentError(f"the input has shape {tuple(x.shape)}; give {takes}.")
    if linear and grad is not None and grad.shape != (len(x), outputs):
        raise InvalidArgumentError(f"the gradient has shape {tuple(grad.shape)}; give {(len(x), outputs)}.")
    if values.shape != (index.nnz,):
        raise InvalidArgumentError(f"values have shape {tuple(values.shape)}; give {index.nnz}.")
    if bias is not None and getattr(bias, "shape", None) != (outputs,):
        raise InvalidArgumentError(f"bias={shown(bias)}; give {outputs} numbers.")
    for name, tensor in (("values", values), ("bias", bias), ("grad", grad)):
        if tensor is None or (tensor.dtype, tensor.device) == (x.dtype, x.device):
            continue
        if tensor.device == x.device and tensor.is_floating_point() and x.is_floating_point():
            raise InvalidArgumentError(two_types(x.dtype, name, tensor.dtype))
        raise InvalidArgumentError(
            f"a tensor is {tensor.dtype} on {tensor.device}, the input {x.dtype} on {x.device}; "
            "use one type and one device, such as x.to(layer.values)."
        )


def two_types(of_input: torch.dtype, name: str, other: torch.dtype) -> str:
    """Return the message of an error about an input and a tensor of the layer that have different types."""
    called = "the weights" if name == "values" else name
    types = f"the input is {of_input}, {called} {other}".replace("torch.", "")
    return f"{types}: use one type, or keep float32 and torch.autocast"


def fitted(x: torch.Tensor, stage: Stage) -> torch.Tensor:
    """Return ``x``, flattened to ``[B, C·H·W]`` if the stage is a linear layer and ``x`` are images."""
    return x.flatten(1) if x.dim() == 4 and isinstance(stage.index, LinearIndex) else x
