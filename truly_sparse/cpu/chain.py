"""Truly sparse layers on a CPU: float32, batch innermost, multi-threaded. The time is that of the nonzeros.

Every kernel is the same loop: *for each output row, for each of its nonzeros, add weight × input row*. Three things
make it fast. The part of an output row being added up is a register tile, written once, with bias, ReLU and pooling
already done. Input rows are contiguous, because the batch is innermost. And the backward pass goes by input, where the
gradients of input and weights share their loads.

Work is cut into pieces that do not depend on the number of threads, and each number is added up within one piece or
over the pieces in order: results are the same bits for any number of threads. ``linear.py`` and ``conv.py`` hold the
loops, ``passes.py`` runs them, ``door.py`` lets tensors in; here they meet torch, and in ``training.py``.
``reference.py`` says in plain torch what is computed.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numba
import numpy as np
import torch

from ..errors import InvalidArgumentError
from .door import borrow_room, checked_parameters, list_bases, readable, records_of, use_threads
from .index import ConvIndex, LinearIndex
from .memory import borrow, empty_batch_innermost
from .passes import run_backward, run_forward
from .program import DX, GRAD, GRADIENTS, X, Y, backward_program, forward_program, traced
from .stage import Gradients, Stage
from .training import Trainer

__all__ = ["Trainer", "backward", "forward", "warmup"]


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
    x, is_innermost = readable(x)
    parameters = checked_parameters(stages, parameters, with_bias=True)
    program = forward_program(stages, x, is_innermost, remember)
    batch, threads = x.shape[0], use_threads()
    y = empty_batch_innermost((batch, *program.y_size))
    arena = borrow(program.pieces(threads) * program.bytes)
    bases = list_bases(parameters, arena, {X: x, Y: y})
    run_forward(*records_of(program, np.array(bases), batch, threads))
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
    grad, grad_innermost = readable(grad)
    parameters = checked_parameters(stages, parameters, with_bias=False)
    program = backward_program(stages, x, (not x.is_contiguous(), grad_innermost), need_input, trace)
    batch, threads = x.shape[0], use_threads()
    if grad.shape != (batch, *program.y_size):
        expected = (batch, *program.y_size)
        raise InvalidArgumentError(f"the gradient has shape {tuple(grad.shape)}; give one of the result's, {expected}.")
    numbers = sum(program.gradient_sizes)
    gradients = (torch.empty if batch else torch.zeros)(numbers, dtype=torch.float32, device="cpu")
    dx = empty_batch_innermost(x.shape) if need_input else None
    bases = list_bases(parameters, arena, {X: x, Y: y, GRAD: grad, DX: dx})
    room = borrow_room(program, bases, threads, 4 * numbers * program.spans if program.spans > 1 else 0)
    bases[GRADIENTS] = gradients.data_ptr()
    if batch:
        run_backward(*records_of(program, np.array(bases), batch, threads), numbers)
    traces = traced(program, x, arena, y, room, grad) if trace else []
    return Gradients(dx, gradients.split_with_sizes(program.gradient_sizes), traces)


def warmup() -> float:
    """Compile every kernel (or load it from numba's cache), say how long it took, and return the seconds."""
    start = time.perf_counter()
    one = torch.zeros(1, dtype=torch.int64, device="cpu")
    stages = [Stage(ConvIndex.build(one, (1, 1, 1, 1)), pool=True), Stage(LinearIndex.build(one, (1, 1)))]
    parameters = [torch.ones(1, dtype=torch.float32, device="cpu"), None] * 2
    image = torch.zeros(1, 1, 2, 2, dtype=torch.float32, device="cpu")
    y, passed = forward(image, stages, parameters, remember=True)
    backward(y, passed, stages, parameters)
    weights = [tuple(torch.ones(4, 1, dtype=torch.float32, device="cpu")), None] * 2
    Trainer().step(image, one, stages, weights, (0.1, 0.9, 0.99, 1e-8, 1.0))
    seconds = time.perf_counter() - start
    print(f"Sparse kernels ready in {seconds:.1f} s.", file=sys.stderr)
    return seconds


def _forget_stale_code() -> None:
    """Delete compiled code that is older than any of these files: numba only compares with a function's own file."""
    sources = Path(__file__).parent
    changed = max(source.stat().st_mtime for source in sources.glob("*.py"))
    for name in ("adam", "conv", "convert", "linear", "loss", "passes"):
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
