"""Forward and backward pass of a chain of sparse layers on torch tensors: float32, CPU, compiled, multi-threaded.

Every kernel is the same loop: *for each output row, for each of its nonzeros, add weight × input row*. A part of the
output row is summed in registers and written once, with bias, ReLU and pooling done. Input rows are contiguous, because
the batch is the innermost dimension. The backward pass goes by input, where the gradients of input and weights share
their loads.

The work is divided into pieces that do not depend on the number of threads, and sums over pieces are taken in a fixed
order, so that results are the same to the last bit for any number of threads. ``entry.py`` checks the tensors,
``program.py`` prepares a pass, ``passes.py`` runs it. ``truly_sparse/reference.py`` computes the same in plain torch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from ..errors import InvalidArgumentError
from ..positions import Largest, are_outside, contained, one_in_each_part, rewired, sorted_distinct, unranked, without
from ..progress import progress_stream
from .entry import addresses, readable
from .gradient_above import gradient_above
from .index import LinearIndex
from .kernel import made
from .linear import make_all
from .memory import CPU, borrow, empty_in_format
from .passes import run_pass
from .plan import ARENA, DX, GRAD, GRADIENTS, X, Y
from .program import backward_program, forward_program
from .stage import Gradients, Stage
from .threads import in_turn, use_threads
from .traces import traced
from .training import Trainer
from .workspace import fill_in, give_back, take

__all__ = ["Trainer", "backward", "forward", "gradient_above", "warmup"]

_run_pass = in_turn(run_pass)


def forward(
    x: torch.Tensor, stages: Sequence[Stage], parameters: Sequence[torch.Tensor | None], remember: bool = False
) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
    """Return the result of a chain of stages; the result of each is the input of the next.

    Args:
        x: float32 on the CPU, ``[B, in]`` or ``[B, C, H, W]``; read in place if it is contiguous or batch innermost,
            otherwise copied and then treated as contiguous.
        stages: the layers, in order. A linear layer flattens the result of a convolution before it.
        parameters: values ``[nnz]``, in the order of the index, and bias ``[out]`` or None of each stage in turn.
        remember: whether to store what :func:`backward` needs.

    Returns:
        The result, batch innermost if ``x`` is (and not contiguous at the same time), else contiguous; and the tensors
        that :func:`backward` needs, if ``remember``.

    Raises:
        InvalidArgumentError: a tensor is not float32 on the CPU, or shapes do not fit.
    """
    x, is_innermost = readable(x)
    places, _alive = addresses(stages, parameters, with_bias=True)
    program = forward_program(stages, x, (is_innermost, is_innermost), remember)
    threads, y = use_threads(), program.empty_result()
    work = take(program, threads)
    frame, arena = work.frame, None
    if remember:
        arena = borrow(program.pieces(threads) * program.bytes)
        frame[ARENA] = arena.data_ptr()
    if y.shape[0]:
        fill_in(frame, ((X, x), (Y, y)), places)
        _run_pass(program.address, frame, threads)
    give_back(program, work)
    if not remember:
        return y, ()
    masks = program.innermost and stages[-1].relu and not stages[-1].pool  # otherwise the arena holds what is needed
    return y, (x, arena, y if masks else None)


def backward(
    grad: torch.Tensor,
    passed: Sequence[torch.Tensor | None],
    stages: Sequence[Stage],
    parameters: Sequence[torch.Tensor | None],
    need_input: bool = True,
    trace: bool = False,
) -> Gradients:
    """Return the gradients of :func:`forward`; that of ``x`` in the memory format of ``x``.

    Args:
        grad: gradient of the result, in any memory format.
        passed: the tensors that the forward pass returned with its result.
        stages: the layers, in order.
        parameters: as in the forward pass; the biases are not read.
        need_input: whether to compute the gradient of the chain's input.
        trace: whether to return each stage's activations and their gradients.

    Raises:
        InvalidArgumentError: a tensor is not float32 on the CPU, or shapes do not fit.
    """
    x, arena, y = cast("tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]", passed)
    grad, grad_innermost = readable(grad)
    places, _alive = addresses(stages, parameters, with_bias=False)
    innermost = not x.is_contiguous()
    program = backward_program(stages, x, (innermost, innermost, grad_innermost), need_input, trace)
    batch, threads = x.shape[0], use_threads()
    if grad.shape != program.result:
        shapes = tuple(grad.shape), program.result
        raise InvalidArgumentError("the gradient has shape {}; give one of the result's, {}.".format(*shapes))
    numbers = sum(program.gradient_sizes)
    gradients = (torch.empty if batch else torch.zeros)(numbers, dtype=torch.float32, device=CPU)
    dx = empty_in_format(x.shape, innermost) if need_input else None
    work = take(program, threads)
    if batch:
        frame = work.frame
        frame[ARENA], frame[GRADIENTS] = arena.data_ptr(), gradients.data_ptr()
        fill_in(frame, ((X, x), (Y, y), (GRAD, grad), (DX, dx)), places)
        _run_pass(program.address, frame, threads)
    every = range(len(stages))
    traces = traced(program, stages, x, arena, y, work.memory, grad, every) if trace else []
    if not trace:
        give_back(program, work)
    return Gradients(dx, gradients.split_with_sizes(program.gradient_sizes), traces)


def start() -> None:
    """Compile or load the entry to compiled code, so that it is known whether this machine can do it at all."""
    x, values = torch.ones(2, 1, dtype=torch.float32, device=CPU).split(1)
    forward(x, [_smallest()], [values[0], None])


def _smallest() -> Stage:
    return Stage(LinearIndex.build(torch.zeros(1, dtype=torch.int64, device=CPU), (1, 1)))


def warmup() -> float:
    """Compile or load the kernels of single weights; print and return the seconds that it took."""
    began = time.perf_counter()
    start()
    make_all()
    for loop in made:
        _ = loop.address
    one = torch.zeros(1, dtype=torch.int64, device=CPU)
    weights = [tuple(torch.ones(4, 1, dtype=torch.float32, device=CPU)), None]
    settings = (0.1, 0.9, 0.99, 1e-8, 1.0)
    Trainer().step(torch.zeros(1, 1, dtype=torch.float32, device=CPU), one, [_smallest()], weights, settings)
    rewired(one, one, one + 1)
    unranked(one, one)
    one_in_each_part(one.double(), 1, 0)
    contained(one, one)
    without(one, one)
    are_outside(one, one, 1)
    sorted_distinct(one.clone(), 1)
    ones = torch.ones(1, 1, dtype=torch.float32, device=CPU)
    Largest(1, one[:0]).add(ones)
    gradient_above([(ones, ones)], 2.0, one[:0].numpy(), 0)
    seconds = time.perf_counter() - began
    print(f"Sparse kernels ready in {seconds:.1f} s.", file=progress_stream())
    return seconds


def _forget_stale_code() -> None:
    """Delete compiled code that is older than any file of this folder; numba compares with the function's file only."""
    sources = Path(__file__).parent
    changed = max(source.stat().st_mtime for source in sources.glob("*.py"))
    for source in sources.glob("*.py"):
        for stored in Path(run_pass.stats.cache_path).glob(f"{source.stem}.*.nbi"):
            with contextlib.suppress(OSError):  # another process may delete it at the same time
                if stored.stat().st_mtime < changed:
                    stored.unlink()


_forget_stale_code()
