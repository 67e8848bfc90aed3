"""Sparse layers in eager mode: a chain of layers is one node of autograd's graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from . import reference
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
        ctx.save_for_backward(x, *parameters, *memory)
        ctx.kernels, ctx.stages, ctx.recorders = kernels, stages, recorders
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        stages, recorders = ctx.stages, ctx.recorders
        x, *saved = ctx.saved_tensors
        parameters, memory = saved[: 2 * len(stages)], saved[2 * len(stages) :]
        need_x, _, _, *needed = ctx.needs_input_grad
        trace = any([recorder.record_gradient for recorder in recorders])
        if not torch.is_grad_enabled():
            of = ctx.kernels.backward(grad, memory, stages, parameters, need_x, trace)
            of_x, of_parameters = of.x, [g if need else None for need, g in zip(needed, of.parameters, strict=True)]
        else:  # create_graph=True: the gradients themselves are differentiated
            with torch.no_grad():
                of = ctx.kernels.backward(grad, memory, stages, parameters, False, True) if trace else None
            of_x, *of_parameters = _differentiable(grad, x, stages, parameters, (need_x, *needed))
        if trace:
            for recorder, (at, gradient) in zip(recorders, of.traces, strict=True):
                if recorder.record_gradient:
                    recorder.record(at.detach(), gradient.detach())
        return of_x, None, None, *of_parameters


# ``Function.apply`` without its Python part, which binds default arguments and unwraps the tensors that a transform of
# torch.func left behind: ``kernels_for`` refuses or computes these.
_apply_chain: Any = super(torch.autograd.Function, _Chain).apply


def run_eagerly(
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
        y: torch.Tensor = _apply_chain(x, stages, recorders, *parameters)
        return y
    return kernels_for(x).forward(x, stages, parameters)[0]


def _differentiable(
    grad: torch.Tensor,
    x: torch.Tensor,
    stages: Sequence[Stage],
    parameters: Sequence[torch.Tensor | None],
    needed: Sequence[bool],
) -> list[torch.Tensor | None]:
    """Return the gradients of ``x`` and the parameters as torch's own operations compute them, which autograd knows."""
    # Views, because x may itself depend on these parameters: only the path through these layers counts.
    inputs: list[Any] = [None if tensor is None else tensor.view_as(tensor) for tensor in (x, *parameters)]
    y, _ = reference.forward(inputs[0], stages, inputs[1:])
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return [next(found) if need else None for need in needed]


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
