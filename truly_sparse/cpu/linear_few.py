"""The compiled loop of a linear layer for a few samples, 2 to 32, of a contiguous tensor, for inference.

Each thread copies all inputs for itself and hands out its own results, so that nothing is written that another thread
reads.
"""
# Compiled functions have no type hints: numba infers them. Names mean the same everywhere (``linear.py``).
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from .convert import turn_block, turn_in
from .kernel import Kernel, kernel
from .linear_shape import output
from .memory import LANES
from .plan import ARENA, SCRATCH, Address, Memory, X, Y, parameters
from .records import CALL, LINEAR, PLAN, Call, Phase, Plan
from .simd import floats, longs, maximum, positions, store, zeros
from .stage import Stage

FEW = (8, 16, 32)  # lanes of a tile: all samples at once


def _lanes(batch: int) -> int:
    return next(width for width in FEW if batch <= width)


def are_few(plans: Sequence[Plan], batch: int) -> bool:
    """Tell whether this kernel serves the batch, and all layers are linear and of single weights."""
    return 1 < batch <= FEW[-1] and all(plan.kind == LINEAR and plan.tall % 4 for plan in plans)


def few_bytes(plans: Sequence[Plan], batch: int) -> int:
    """Return the bytes that a thread needs for its copy of the inputs and for the results of eight outputs."""
    return 4 * _lanes(batch) * (max(plan.inputs for plan in plans) + 8)


def few_samples(plan: Plan, stage: int, batch: int) -> Phase:
    """Return the kernel of the forward pass."""
    loop = few_of(_lanes(batch), plan.col_bytes)
    return Phase(loop.address, stage, plan.row_pieces, max(LANES, _lanes(batch)) * plan.nnz)


def calls_of_few(stages: Sequence[Stage], plans: list[Plan], batch: int, memory: Memory, scratch: int) -> list[Call]:
    """Return the calls of a chain of linear layers.

    Args:
        stages: the layers.
        plans: their plans.
        batch: number of samples.
        memory: of the activations between the layers.
        scratch: bytes of scratch memory of a thread.
    """
    calls: list[Call] = []
    at: Address = X, 0
    for i, (stage, plan) in enumerate(zip(stages, plans, strict=True)):
        source = {"source": at, "source_sample": plan.inputs, "source_pixel": 1}
        at = (ARENA, memory.take(4 * batch * plan.outputs)) if i + 1 < len(plans) else (Y, 0)
        result = {"result": at, "result_sample": plan.outputs, "result_pixel": 1}
        own = {"scratch": (SCRATCH, 0), "scratch_bytes": scratch}
        fields: dict[str, Any] = parameters(i) | source | result | own
        calls.append(Call(0, 0, 0, relu=stage.relu, pool=False, **fields))
    return calls


@functools.cache
def few_of(width: int, position_bytes: int) -> Kernel:
    """Return the kernel for a tile of ``width`` lanes; a piece is some outputs. It reads and writes contiguous rows."""

    @kernel(CALL, PLAN)
    def few(call, plan, first, last, thread):
        copy = call.scratch + thread * call.scratch_bytes
        x, results, waiting = floats(copy), floats(copy + 4 * width * plan.inputs), 0
        values, bias, relu, zero = floats(call.values), floats(call.bias), call.relu, zeros(width)
        cols, indptr, borders = positions(plan.cols, position_bytes), longs(plan.indptr), longs(plan.row_chunks)
        for b in range(0, width, 8):
            turn_in(call, 0, b, x, b, width, plan.inputs, plan.inputs, 0)
        for block in range(borders[first], borders[last]):
            start, end = indptr[block], indptr[block + 1]
            to_value = (plan.tall - 1) * start
            for o in range(plan.tall * block, plan.tall * (block + 1)):
                result = output(x, width, cols, values, to_value, start, end, bias[o], zero)
                store(results, waiting * width, maximum(zero, result) if relu else result)
                waiting += 1
                if waiting == 8 or o + 1 == plan.tall * borders[last]:
                    for b in range(0, width, 8):
                        to = b * call.result_sample + o + 1 - waiting
                        turn_block(call, b, results, b, width, to, waiting)
                    waiting = 0
                to_value += end - start

    return few
