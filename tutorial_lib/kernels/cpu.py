"""Truly sparse layers on a CPU: float32, batch innermost, multi-threaded. The time is that of the nonzeros.

Every kernel is the same loop: *for each output row, for each of its nonzeros, add weight × input row*. Three things
make it fast. The part of an output row being added up is a register tile, written once, with bias, ReLU and pooling
already done. Input rows are contiguous, because the batch is innermost. And the backward pass goes by input instead:
the input's gradient is then the same loop, and the weights' gradient (one dot product each) shares its loads.

Work is cut into pieces that do not depend on the number of threads, and each number is added up within one piece or
over the pieces in order: results are the same bits for any number of threads. ``linear.py`` and ``conv.py`` hold the
loops; here they meet torch. ``reference.py`` says in plain torch what is computed.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numba
import numpy as np
import torch
from numba import get_thread_id, prange

from ..errors import InvalidArgumentError
from . import memory
from .conv import conv_backward, conv_backward_alone, conv_forward, conv_forward_alone
from .convert import transpose
from .index import ConvIndex, LinearIndex
from .linear import linear_backward, linear_backward_alone, linear_forward, linear_forward_alone
from .memory import empty_batch_innermost
from .program import backward_program, forward_program, traced
from .records import LINEAR
from .simd import compiled, floats, parallel
from .stage import Gradients, Stage

PIECE = 4096  # gradients of the spans that are added up at a time


@compiled
def _forward_layers(calls: np.ndarray, plans: np.ndarray) -> None:
    for i in range(len(calls)):
        if plans[i].kind == LINEAR:
            linear_forward(calls, plans, i)
        else:
            conv_forward(calls, plans, i)


@parallel
def _forward_spans(calls: np.ndarray, plans: np.ndarray) -> None:
    for span in prange(len(calls) // len(plans)):
        for i in range(len(plans)):
            if plans[i].kind == LINEAR:
                linear_forward_alone(calls[span * len(plans) + i], plans[i])
            else:
                conv_forward_alone(calls[span * len(plans) + i], plans[i], get_thread_id())


@compiled
def _run_forward(calls: np.ndarray, plans: np.ndarray) -> None:
    if len(calls) == len(plans):
        _forward_layers(calls, plans)
    else:
        _forward_spans(calls, plans)


@compiled
def _backward_layers(calls: np.ndarray, plans: np.ndarray) -> None:
    for i in range(len(calls)):
        if plans[i].kind == LINEAR:
            linear_backward(calls, plans, i)
        else:
            conv_backward(calls, plans, i)


@parallel
def _backward_spans(calls: np.ndarray, plans: np.ndarray) -> None:
    for span in prange(len(calls) // len(plans)):
        for i in range(len(plans)):
            if plans[i].kind == LINEAR:
                linear_backward_alone(calls[span * len(plans) + i], plans[i])
            else:
                conv_backward_alone(calls[span * len(plans) + i], plans[i], get_thread_id())


@compiled
def _sum_spans(partial: int, spans: int, size: int, result: int, first: int, last: int) -> None:
    parts, sums = floats(partial), floats(result)
    for at in range(first, last):
        number = parts[at]
        for span in range(1, spans):
            number += parts[span * size + at]
        sums[at] = number


@parallel
def _sum_all_spans(partial: int, spans: int, size: int, result: int) -> None:
    for piece in prange((size + PIECE - 1) // PIECE):
        _sum_spans(partial, spans, size, result, piece * PIECE, min((piece + 1) * PIECE, size))


@compiled
def _run_backward(calls: np.ndarray, plans: np.ndarray, partial: int, size: int, gradients: int) -> None:
    if len(calls) == len(plans):
        _backward_layers(calls, plans)
    else:
        _backward_spans(calls, plans)
        _sum_all_spans(partial, len(calls) // len(plans), size, gradients)


def innermost(x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` in the batch-innermost format: itself where it already is, else one copy."""
    plain = isinstance(x, torch.Tensor) and x.dtype == torch.float32 and x.is_cpu
    plain = plain and x.is_contiguous() and x.dim() in (2, 4)
    if not plain or memory.is_batch_innermost(x):
        return memory.to_batch_innermost(x)
    memory.conversions += 1
    y = memory.empty_batch_innermost(x.shape)
    _threads()
    transpose(x.data_ptr(), len(x), math.prod(x.shape[1:]), y.data_ptr(), y.stride(-1))
    return y


def forward(
    x: torch.Tensor, stages: Sequence[Stage], parameters: Sequence[torch.Tensor | None], remember: bool = False
) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
    """Return the result of a chain of stages, where the result of each is the input of the next.

    Args:
        x: float32 on the CPU, ``[B, in]`` or ``[B, C, H, W]``; converted if it is not batch innermost.
        stages: the layers, in order. A linear layer flattens what a convolution before it returns.
        parameters: values ``[nnz]``, in the order of the index, and bias ``[out]`` or None of each stage in turn.
        remember: whether :func:`backward` may follow.

    Returns:
        The result, batch innermost, and tensors for :func:`backward`.

    Raises:
        InvalidArgumentError: a tensor is not float32 on the CPU, or shapes do not fit.
    """
    parameters = _checked(x, stages, parameters)
    x = innermost(x)
    program = forward_program(stages, x, remember)
    y = empty_batch_innermost((len(x), *program.y_size))
    arena, room = _bytes(program.bytes), _bytes(_threads() * program.thread_bytes)
    _run_forward(program.calls(_addresses(x, y, arena, room, None, None, None, *parameters)), program.plans)
    return y, (x, arena, y if stages[-1].relu and not stages[-1].pool else None)


def backward(
    grad: torch.Tensor,
    passed: Sequence[torch.Tensor | None],
    stages: Sequence[Stage],
    parameters: Sequence[torch.Tensor | None],
    need_input: bool = True,
    trace: bool = False,
) -> Gradients:
    """Return the gradients of :func:`forward`.

    Args:
        grad: gradient of the result.
        passed: what the forward pass returned beside it.
        stages: the layers, in order.
        parameters: as in the forward pass.
        need_input: whether the gradient of the chain's input is wanted.
        trace: whether each stage's activations and their gradients are.

    Raises:
        InvalidArgumentError: a tensor is not float32 on the CPU, or shapes do not fit.
    """
    x, arena, y = passed
    parameters = _checked(grad, stages, parameters)
    result = (len(x), *forward_program(stages, x, True).y_size)
    if grad.shape != result:
        raise InvalidArgumentError(f"the gradient has shape {tuple(grad.shape)}, the result {result}.")
    grad = innermost(grad)
    program = backward_program(stages, x, grad, need_input)
    dx = empty_batch_innermost(x.shape) if need_input else None
    allocate = torch.empty if len(x) else torch.zeros
    gradients = allocate(sum(program.gradient_sizes), dtype=torch.float32, device="cpu")
    room = _bytes(program.bytes + _threads() * program.thread_bytes)
    addresses = _addresses(x, y, arena, room, grad, dx, gradients, *parameters)
    partial = room.data_ptr() + program.partial
    _run_backward(program.calls(addresses), program.plans, partial, len(gradients), gradients.data_ptr())
    traces = traced(program, *passed, room, grad) if trace else []
    return Gradients(dx, gradients.split_with_sizes(program.gradient_sizes), traces)


def _bytes(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device="cpu")


def _addresses(*bases: torch.Tensor | None) -> list[int]:
    return [0, *(0 if base is None else base.data_ptr() for base in bases)]


def _threads() -> int:
    """Let ``torch.set_num_threads`` govern these kernels too, and return the number of threads."""
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    if threads != numba.get_num_threads():
        numba.set_num_threads(threads)
    return threads


def _checked(
    activations: torch.Tensor, stages: Sequence[Stage], parameters: Sequence[torch.Tensor | None]
) -> list[torch.Tensor]:
    """Check what compiled code is about to read; return the parameters, with zeros for a bias that is not there."""
    given = (activations, *parameters[::2])
    if not stages or len(parameters) != 2 * len(stages) or not all(isinstance(t, torch.Tensor) for t in given):
        raise InvalidArgumentError(
            f"{len(stages)} stages, {len(parameters)} parameters; give at least one stage, and tensors for each."
        )
    checked = [activations]
    for stage, values, bias in zip(stages, parameters[::2], parameters[1::2], strict=True):
        index, outputs = stage.index, stage.index.shape[0]
        if values.shape != (index.nnz,) or not values.is_contiguous():
            raise InvalidArgumentError(f"values have shape {tuple(values.shape)}; give {index.nnz} contiguous ones.")
        bias = torch.zeros(outputs, dtype=torch.float32, device="cpu") if bias is None else bias
        if bias.shape != (outputs,) or not bias.is_contiguous():
            raise InvalidArgumentError(f"bias has shape {tuple(bias.shape)}; give {outputs} contiguous numbers.")
        checked += [values, bias]
    for tensor in checked:
        if tensor.dtype != torch.float32 or not tensor.is_cpu:
            raise InvalidArgumentError(
                f"a tensor is {tensor.dtype} on {tensor.device}; these kernels take float32 on the CPU, "
                "reference.py takes any."
            )
    return checked[1:]


def warmup() -> float:
    """Compile every kernel (or load it from numba's cache), say how long it took, and return the seconds."""
    start = time.perf_counter()
    one = torch.zeros(1, dtype=torch.int64, device="cpu")
    stages = [Stage(ConvIndex.build(one, (1, 1, 1, 1)), pool=True), Stage(LinearIndex.build(one, (1, 1)))]
    parameters = [torch.ones(1, dtype=torch.float32, device="cpu"), None] * 2
    image = torch.zeros(1, 1, 2, 2, dtype=torch.float32, device="cpu")
    y, passed = forward(image, stages, parameters, remember=True)
    backward(y, passed, stages, parameters)
    seconds = time.perf_counter() - start
    print(f"Sparse kernels ready in {seconds:.1f} s.")
    return seconds


def _forget_stale_code() -> None:
    """Delete compiled code that is older than any of these files: numba only compares with a function's own file."""
    sources = Path(__file__).parent
    changed = max(source.stat().st_mtime for source in sources.glob("*.py"))
    for name in ("conv", "convert", "cpu", "linear"):
        for stored in Path(_run_forward.stats.cache_path).glob(f"{name}.*.nbi"):
            with contextlib.suppress(OSError):  # another process may be doing the same
                if stored.stat().st_mtime < changed:
                    stored.unlink()


def _launch_threads() -> None:
    """Start numba's threads now: starting them sets the number of threads of OpenMP, which is torch's own, to all."""
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(threads)


_forget_stale_code()
_launch_threads()
