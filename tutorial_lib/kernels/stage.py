"""What sparse layers hand to the kernels. A chain is a list of stages, computed in one go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

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


def fitted(x: torch.Tensor, stage: Stage) -> torch.Tensor:
    """Return images ``[B, C, H, W]`` as ``[B, C·H·W]`` if it is a linear layer that takes them."""
    return x.flatten(1) if x.dim() == 4 and isinstance(stage.index, LinearIndex) else x
