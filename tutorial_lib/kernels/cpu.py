"""Truly sparse layers on a CPU: float32, batch innermost, multi-threaded. The time is that of the nonzeros.

Every kernel is the same loop: *for each output row, for each of its nonzeros, add weight × input row*. Three things
make it fast. The part of an output row being added up is a register tile, written once, with bias, ReLU and pooling
already done. Input rows are contiguous, because the batch is innermost. And the backward pass goes by input, where the
gradients of input and weights share their loads.

Work is cut into pieces that do not depend on the number of threads, and each number is added up within one piece or
over the pieces in order: results are the same bits for any number of threads. ``linear.py`` and ``conv.py`` hold the
loops, ``passes.py`` runs them; here they meet torch. ``reference.py`` says in plain torch what is computed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import numba
import numpy as np
import torch

from ..errors import InvalidArgumentError
from ..validate import shown
from . import memory
from .index import ConvIndex, LinearIndex
from .memory import borrow, empty_batch_innermost, is_batch_innermost
from .passes import run_backward, run_forward
from .program import (
    ARENA,
    DX,
    DX_ROW,
    GRAD,
    GRAD_ROW,
    GRADIENTS,
    PARAMETERS,
    PARTIAL,
    ROOM,
    SCRATCH,
    SHARED,
    X_ROW,
    Y_ROW,
    Program,
    X,
    Y,
    backward_program,
    forward_program,
    traced,
)
from .records import CALL
from .stage import Gradients, Stage


def forward(
    x: torch.Tensor, stages: Sequence[Stage], parameters: Sequence[torch.Tensor | None], remember: bool = False
) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
    """Return the result of a chain of stages, where the result of each is the input of the next.

    Args:
        x: float32 on the CPU, ``[B, in]`` or ``[B, C, H, W]``; read where it lies if it is contiguous or batch
            innermost, else copied.
        stages: the layers, in order. A linear layer flattens what a convolution before it returns.
        parameters: values ``[nnz]``, in the order of the index, and bias ``[out]`` or None of each stage in turn.
        remember: whether :func:`backward` may follow.

    Returns:
        The result, batch innermost, and tensors for :func:`backward`.

    Raises:
        InvalidArgumentError: a tensor is not float32 on the CPU, or shapes do not fit.
    """
    x, is_innermost = _readable(x)
    parameters = _checked(stages, parameters, with_bias=True)
    program = forward_program(stages, x, is_innermost, remember)
    batch = x.shape[0]
    y = empty_batch_innermost((batch, *program.y_size))
    arena = borrow(program.pieces(_threads()) * program.bytes)
    addresses = _addresses(parameters)
    addresses[X], addresses[X_ROW], addresses[ARENA] = x.data_ptr(), x.stride(-1), arena.data_ptr()
    addresses[Y], addresses[Y_ROW] = y.data_ptr(), y.stride(-1)
    run_forward(*_records(program, addresses, batch))
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
        parameters: as in the forward pass; the biases are not looked at.
        need_input: whether the gradient of the chain's input is wanted.
        trace: whether each stage's activations and their gradients are.

    Raises:
        InvalidArgumentError: a tensor is not float32 on the CPU, or shapes do not fit.
    """
    x, arena, y = passed
    grad, grad_innermost = _readable(grad)
    parameters = _checked(stages, parameters, with_bias=False)
    program = backward_program(stages, x, (not x.is_contiguous(), grad_innermost), need_input, trace)
    batch = x.shape[0]
    if grad.shape != (batch, *program.y_size):
        expected = (batch, *program.y_size)
        raise InvalidArgumentError(f"the gradient has shape {tuple(grad.shape)}; give one of the result's, {expected}.")
    threads, numbers = _threads(), sum(program.gradient_sizes)
    dx = empty_batch_innermost(x.shape) if need_input else None
    gradients = (torch.empty if batch else torch.zeros)(numbers, dtype=torch.float32, device="cpu")
    parts = program.pieces(threads) * program.bytes, threads * program.scratch, program.shared
    room = borrow(sum(parts) + (4 * numbers * program.spans if program.spans > 1 else 0))
    addresses = _addresses(parameters)
    addresses[X], addresses[X_ROW], addresses[ARENA] = x.data_ptr(), x.stride(-1), arena.data_ptr()
    addresses[GRAD], addresses[GRAD_ROW], addresses[ROOM] = grad.data_ptr(), grad.stride(-1), room.data_ptr()
    addresses[SCRATCH] = addresses[ROOM] + parts[0]
    addresses[SHARED] = addresses[SCRATCH] + parts[1]
    addresses[PARTIAL], addresses[GRADIENTS] = addresses[SHARED] + parts[2], gradients.data_ptr()
    for tensor, at, row in ((y, Y, Y_ROW), (dx, DX, DX_ROW)):
        if tensor is not None:
            addresses[at], addresses[row] = tensor.data_ptr(), tensor.stride(-1)
    if batch:
        run_backward(*_records(program, addresses, batch), numbers)
    traces = traced(program, x, arena, y, room, grad) if trace else []
    return Gradients(dx, gradients.split_with_sizes(program.gradient_sizes), traces)


def _readable(x: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Return ``x`` as compiled code can read it, and whether that is batch innermost; else it is contiguous.

    Raises:
        InvalidArgumentError: it is not float32 on the CPU, or not ``[B, F]`` or ``[B, C, H, W]``.
    """
    x = _of_our_kind("activations", x)
    if x.dim() not in (2, 4):
        raise InvalidArgumentError(f"activations have shape {tuple(x.shape)}; use [B, F] or [B, C, H, W].")
    if x.is_contiguous():
        memory.conversions += 1  # on the way in
    elif not is_batch_innermost(x):
        x = memory.to_batch_innermost(x)
    # A batch of single numbers is both: the backward pass, which only sees the tensor, has to call it the same.
    return x, not x.is_contiguous()


def _checked(
    stages: Sequence[Stage], parameters: Sequence[torch.Tensor | None], with_bias: bool
) -> list[torch.Tensor | None]:
    """Check what compiled code is about to read; return the parameters, with zeros for a bias that is not there."""
    if not stages or len(parameters) != 2 * len(stages):
        raise InvalidArgumentError(
            f"{len(stages)} stages, {len(parameters)} parameters; give at least one stage, and values and bias of each."
        )
    checked = []
    for stage, values, bias in zip(stages, parameters[::2], parameters[1::2], strict=True):
        values = _numbers("values", values, stage.index.nnz)
        if with_bias:
            outputs = stage.index.shape[0]
            bias = torch.zeros(outputs, dtype=torch.float32, device="cpu") if bias is None else bias
            bias = _numbers("bias", bias, outputs)
        checked += [values, bias]
    return checked


def _numbers(name: str, numbers: torch.Tensor, count: int) -> torch.Tensor:
    numbers = _of_our_kind(name, numbers)
    if numbers.shape != (count,) or not numbers.is_contiguous():
        raise InvalidArgumentError(f"{name} has shape {tuple(numbers.shape)}; give {count} contiguous numbers.")
    return numbers


def _of_our_kind(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose memory holds its numbers: a view may only say that they are negated."""
    if not isinstance(tensor, torch.Tensor):
        raise InvalidArgumentError(f"{name}={shown(tensor)}; give a torch.Tensor, float32 on the CPU.")
    if tensor.dtype is not torch.float32 or not tensor.is_cpu or tensor.layout is not torch.strided:
        raise InvalidArgumentError(
            f"{name} are {tensor.dtype} on {tensor.device}, {tensor.layout}; these kernels take float32 on the CPU, "
            "torch.strided; use reference.py for any other."
        )
    return tensor.resolve_neg()


def _addresses(parameters: list[torch.Tensor | None]) -> list[int]:
    """Return the bases of a pass: all but those of the parameters are still to be filled in."""
    return [0] * PARAMETERS + [0 if parameter is None else parameter.data_ptr() for parameter in parameters]


def _records(program: Program, addresses: list[int], batch: int) -> tuple:
    """Return what the compiled passes take; ``calls`` and ``numbers`` are the same memory."""
    calls = np.empty((program.spans, len(program.plans)), CALL)
    link = np.array(addresses), program.bases, program.offsets, program.by_span, program.by_thread
    return calls, calls.view(np.int64), link, (batch, program.span), program.plans


def _threads() -> int:
    """Let ``torch.set_num_threads`` govern these kernels too, and return the number of threads."""
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    if threads != numba.get_num_threads():
        numba.set_num_threads(threads)
    return threads


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
    for name in ("conv", "convert", "linear", "passes"):
        for stored in Path(run_forward.stats.cache_path).glob(f"{name}.*.nbi"):
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
