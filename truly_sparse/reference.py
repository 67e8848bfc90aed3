"""What ``cpu/chain.py`` computes, in plain torch, on any device and in any dtype: the test oracle and the fallback.

:func:`forward` and :func:`backward` take and return the same as those of ``cpu/chain.py``. The linear layer is truly
sparse; the convolution builds its small dense weight anew in each call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from .arguments import require, shown
from .cpu.index import ConvIndex, LinearIndex
from .cpu.memory import in_format_of
from .cpu.stage import Gradients, Stage, Trace, check_kinds, check_pass, fitted
from .errors import InvalidArgumentError


def forward(
    x: torch.Tensor, stages: Sequence[Stage], parameters: Sequence[torch.Tensor | None], remember: bool = False
) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
    """Return the result of a chain of stages; see :func:`truly_sparse.cpu.chain.forward`."""
    _check_stages(stages, parameters)
    check_kinds((LinearIndex, ConvIndex), stages[0].index, x=x)
    memory: list[torch.Tensor | None] = [x]
    winners: torch.Tensor | None
    for i, (index, relu, pool) in enumerate(stages):
        values, bias = cast(torch.Tensor, parameters[2 * i]), parameters[2 * i + 1]
        if isinstance(index, LinearIndex):
            x, winners = linear_forward(fitted(x, stages[i]) if i else x, values, bias, index, relu), None
        else:
            x, winners = conv_forward(x, values, bias, index, relu, pool, remember)
        memory += [x, winners]
    if not stages[-1].relu or stages[-1].pool:
        memory[-2] = None  # the backward pass does not need it
    return in_format_of(cast(torch.Tensor, memory[0]), x), tuple(memory)


def backward(
    grad: torch.Tensor,
    memory: Sequence[torch.Tensor | None],
    stages: Sequence[Stage],
    parameters: Sequence[torch.Tensor | None],
    need_input: bool = True,
    trace: bool = False,
) -> Gradients:
    """Return the gradients of :func:`forward`; see :func:`truly_sparse.cpu.chain.backward`."""
    _check_stages(stages, parameters)
    if len(memory) != 2 * len(stages) + 1:
        raise InvalidArgumentError(f"memory={shown(memory)}; give what forward() returned beside the result")
    gradients: list[torch.Tensor] = []
    traces: list[Trace] = []
    for i in reversed(range(len(stages))):
        (index, relu, pool), values = stages[i], cast(torch.Tensor, parameters[2 * i])
        x, y, winners = _of_stage(memory, i)
        x, want = fitted(x, stages[i]) if i else x, need_input or i > 0
        grad = grad if y is None else grad.reshape(y.shape)
        if trace:
            of_y = y if relu and not pool else None
            traces.insert(0, Trace(x, before_activation(grad, of_y, winners, index, tuple(x.shape[2:]) or None)))
        if isinstance(index, LinearIndex):
            dx, *of_parameters = linear_backward(grad, x, y, values, index, relu, want)
        else:
            y = y if relu and not pool else None
            dx, *of_parameters = conv_backward(grad, x, y, winners, values, index, relu, want)
        grad = cast(torch.Tensor, dx)  # None only before the first stage, where it is not used again
        gradients = of_parameters + gradients
    return Gradients(None if dx is None else in_format_of(x, dx), gradients, traces)


def linear_forward(
    x: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None, index: LinearIndex, relu: bool = False
) -> torch.Tensor:
    """Return ``x @ W.T + bias``, then ReLU if asked: ``[B, in]`` → ``[B, out]``."""
    check_kinds(LinearIndex, index, x=x, values=values)
    _check_flags(relu=relu)
    check_pass(x, index, values, bias)
    rows, cols = index.coordinates(x.device)
    y = x.new_zeros(len(x), index.shape[0]).index_add(1, rows, x[:, cols] * values)
    if bias is not None:
        y = y + bias
    return y.relu() if relu else y


def linear_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor | None,
    values: torch.Tensor,
    index: LinearIndex,
    relu: bool = False,
    need_input: bool = True,
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Return the gradients of :func:`linear_forward`: of the input (or None), of the values and of the bias."""
    check_kinds(LinearIndex, index, grad=grad, x=x, values=values)
    check_pass(x, index, values, None, grad)
    rows, cols = index.coordinates(x.device)
    if relu:
        grad = before_activation(grad, y, None, index)
    at_weights = grad[:, rows]
    dx = torch.zeros_like(x).index_add(1, cols, at_weights * values) if need_input else None
    return dx, (at_weights * x[:, cols]).sum(0), grad.sum(0)


def conv_forward(
    x: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    index: ConvIndex,
    relu: bool = False,
    pool: bool = False,
    remember: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return ``conv2d(x, W, bias)``, then ReLU and 2×2 max-pooling if asked, and the winners of the pooling."""
    check_kinds(ConvIndex, index, x=x, values=values)
    _check_flags(relu=relu, pool=pool)
    check_pass(x, index, values, bias)
    index.output_size(*x.shape[2:])  # refuses an input that is too small
    y = F.conv2d(x, _dense(values, index), bias, index.stride, index.padding, index.dilation, index.groups)
    if not pool:
        return (y.relu() if relu else y), None
    y, winners = _windows(y).max(-1)
    if relu:
        winners = winners.masked_fill(y <= 0, 4)
        y = y.relu()
    return y, winners.to(torch.uint8) if remember else None


def conv_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor | None,
    winners: torch.Tensor | None,
    values: torch.Tensor,
    index: ConvIndex,
    relu: bool = False,
    need_input: bool = True,
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Return the gradients of :func:`conv_forward`: of the input (or None), of the values and of the bias."""
    check_kinds(ConvIndex, index, grad=grad, x=x, values=values)
    check_pass(x, index, values, None)
    before = index.output_size(*x.shape[2:])
    size = before if winners is None else (before[0] // 2, before[1] // 2)
    if grad.shape != (len(x), index.shape[0], *size):
        raise InvalidArgumentError(
            f"the gradient has shape {tuple(grad.shape)}; give {(len(x), index.shape[0], *size)}."
        )
    if relu or winners is not None:
        grad = before_activation(grad, y, winners, index, x.shape[2:])
    weight, geometry = _dense(values, index), (index.stride, index.padding, index.dilation, index.groups)
    dx = conv2d_input(x.shape, weight, grad, *geometry) if need_input else None
    dweight = conv2d_weight(x, weight.shape, grad, *geometry)
    return dx, dweight.flatten()[index.places(x.device)], grad.sum((0, 2, 3))


def before_activation(
    grad: torch.Tensor,
    y: torch.Tensor | None,
    winners: torch.Tensor | None,
    index: LinearIndex | ConvIndex,
    input_size: tuple[int, ...] | None = None,
) -> torch.Tensor:
    """Return the gradient of the result before ReLU and pooling, from that after them.

    Args:
        grad: gradient of the layer's result.
        y: that result where ReLU was applied without pooling, else None.
        winners: what ``conv_forward`` remembered of the pooling, else None.
        index: the layer's index.
        input_size: height and width of the input; needed with ``winners``.
    """
    check_kinds((LinearIndex, ConvIndex), index, grad=grad)
    for name, tensor in (("y", y), ("winners", winners)):
        if tensor is not None and getattr(tensor, "shape", None) != grad.shape:
            raise InvalidArgumentError(f"{name}={shown(tensor)} for a gradient {tuple(grad.shape)}; give that shape")
    if winners is None:
        return grad if y is None else grad.masked_fill(y <= 0, 0)
    height, width = cast(tuple[int, int], input_size)
    rows, columns = 2 * grad.shape[2], 2 * grad.shape[3]
    size = cast(ConvIndex, index).output_size(height, width)
    new = grad.new_empty if size == (rows, columns) else grad.new_zeros  # pooling drops an odd last row or column
    full = new(len(grad), index.shape[0], *size)
    for n in range(4):  # no pixel is winner 4: there ReLU stopped the gradient
        full[:, :, n // 2 : rows : 2, n % 2 : columns : 2] = grad * (winners == n)
    return full


def gradient_above(*_: Any) -> None:
    """Return None: torch has no faster way than to compute all of the gradient."""


def _check_flags(**flags: bool) -> None:
    for name, flag in flags.items():
        require(isinstance(flag, (bool, np.bool_)), name, flag, "give True or False")


def _check_stages(stages: Sequence[Stage], parameters: Sequence[torch.Tensor | None]) -> None:
    if not stages or len(parameters) != 2 * len(stages) or any(values is None for values in parameters[::2]):
        missing = sum(values is None for values in parameters[::2])
        raise InvalidArgumentError(
            f"{len(stages)} stages, {len(parameters)} parameters, {missing} without values; "
            "give at least one stage, and values and bias of each."
        )


def _of_stage(memory: Sequence[torch.Tensor | None], i: int) -> tuple[Any, Any, Any]:
    """Return a stage's input, result and winners."""
    return memory[max(0, 2 * i - 1)], memory[2 * i + 1], memory[2 * i + 2]


def _dense(values: torch.Tensor, index: ConvIndex) -> torch.Tensor:
    weight = values.new_zeros(math.prod(index.shape))
    return weight.index_copy(0, index.places(values.device), values).view(index.shape)


def _windows(y: torch.Tensor) -> torch.Tensor:
    """``[B, O, H, W]`` → ``[B, O, H // 2, W // 2, 4]``: the four pixels of each 2×2 window."""
    height, width = y.shape[2] // 2 * 2, y.shape[3] // 2 * 2
    return torch.stack([y[:, :, n // 2 : height : 2, n % 2 : width : 2] for n in range(4)], dim=-1)
