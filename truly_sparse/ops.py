"""The operators of sparse layers for autograd: a chain of layers is one operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable

from .backend import kernels_for
from .cpu.stage import Stage


class Recorder(Protocol):
    """A layer, as far as growth by gradient is concerned: it may record batches.

    Attributes:
        record_gradient: whether backward passes hand over their tensors.
    """

    record_gradient: bool

    def record(self, x: torch.Tensor, gradient: torch.Tensor) -> None:
        """Keep a batch's input and the gradient of the result before ReLU and pooling."""


class _Chain(torch.autograd.Function):
    """Layers in a row as one operation; the activations between them exist inside the kernels only."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        stages: Sequence[Stage],
        recorders: Sequence[Recorder],
        *parameters: torch.Tensor | None,
    ) -> torch.Tensor:
        kernels = kernels_for(x)
        y, memory = kernels.forward(x, stages, parameters, remember=True)
        ctx.save_for_backward(*parameters[::2], *memory)
        ctx.kernels, ctx.stages, ctx.recorders = kernels, stages, recorders
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        stages, recorders, saved = ctx.stages, ctx.recorders, ctx.saved_tensors
        parameters, memory = [None] * 2 * len(stages), saved[len(stages) :]
        parameters[::2] = saved[: len(stages)]  # the backward pass does not read the biases
        need_x, _, _, *needed = ctx.needs_input_grad
        trace = any([recorder.record_gradient for recorder in recorders])
        of = ctx.kernels.backward(grad, memory, stages, parameters, need_x, trace)
        for recorder, (x, gradient) in zip(recorders, of.traces, strict=trace):
            if recorder.record_gradient:
                recorder.record(x, gradient)
        return of.x, None, None, *[g if need else None for need, g in zip(needed, of.parameters, strict=True)]


def run(
    x: torch.Tensor,
    stages: Sequence[Stage],
    recorders: Sequence[Recorder],
    parameters: Sequence[torch.Tensor | None],
) -> torch.Tensor:
    """Return the result of sparse layers in a row, differentiable in ``x`` and the parameters.

    Args:
        x: ``[B, in]`` for a linear first layer, ``[B, C, H, W]`` for a convolution.
        stages: what each layer computes.
        recorders: the layers themselves, which may record gradients for growth.
        parameters: values ``[nnz]`` and bias ``[out]`` (or None) of each layer in turn.

    Raises:
        InvalidArgumentError: a tensor that the kernels cannot read, or shapes that do not fit.
    """
    if torch.is_grad_enabled() and any([t is not None and t.requires_grad for t in (x, *parameters)]):
        return _Chain.apply(x, stages, recorders, *parameters)
    return kernels_for(x).forward(x, stages, parameters)[0]


def values_gradient(x: torch.Tensor, grad: torch.Tensor, stages: Sequence[Stage]) -> torch.Tensor:
    """Return the gradient of the values of a single layer: ``[nnz]``.

    Args:
        x: the layer's input.
        grad: the gradient of its result, before ReLU and pooling.
        stages: the layer, without ReLU and pooling.
    """
    kernels, parameters = kernels_for(x), (x.new_zeros(stages[0].index.nnz), None)
    _, passed = kernels.forward(x, stages, parameters, remember=True)
    gradients: Sequence[torch.Tensor] = kernels.backward(grad, passed, stages, parameters, need_input=False).parameters
    return gradients[0]
