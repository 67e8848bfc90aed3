"""The memory of a pass that nobody reads after it: its frame and its buffers. Small ones are kept for the next pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from .memory import borrow
from .plan import ARENA, PARAMETERS, PARTIAL, ROOM, SCRATCH
from .program import Program

KEPT_AT_MOST = 2**20  # bytes of the buffers of a workspace that is kept


class Workspace(NamedTuple):
    """What one run of a program works with.

    Attributes:
        frame: the pass's bases, and room for its calls; int64 (``passes.py``).
        memory: its buffers, whose addresses the frame holds.
        threads: the number of threads that they are made for.
        is_kept: whether they are small enough to be kept for the next run.
    """

    frame: np.ndarray
    memory: torch.Tensor
    threads: int
    is_kept: bool


def take(program: Program, threads: int) -> Workspace:
    """Return a workspace that no other thread uses: a kept one, or a new one."""
    try:
        work: Workspace = program.idle.pop()
    except IndexError:
        return _made(program, threads)
    return work if work.threads == threads else _made(program, threads)


def give_back(program: Program, work: Workspace) -> None:
    """Keep a workspace for the next run, if it is small. Nobody may use its memory any more."""
    if work.is_kept:
        program.idle.append(work)


def fill_in(frame: np.ndarray, tensors: Sequence[tuple[int, torch.Tensor | None]], parameters: list[int]) -> None:
    """Write addresses into a frame.

    Args:
        frame: of the pass.
        tensors: the number of a base, and a contiguous or batch-innermost tensor or None; the next base is the floats
            from row to row.
        parameters: the addresses of values and bias of each stage in turn.
    """
    for base, tensor in tensors:
        if tensor is not None:
            frame[base] = tensor.data_ptr()
            frame[base + 1] = tensor.stride()[-1]
    frame[PARAMETERS : PARAMETERS + len(parameters)] = parameters


def _made(program: Program, threads: int) -> Workspace:
    own = program.own_bytes(threads)
    scratch = threads * program.scratch
    partial = 4 * sum(program.gradient_sizes) * program.spans if program.spans > 1 else 0
    memory = borrow(own + scratch + partial)
    frame = np.zeros(program.frame, np.int64)
    frame[ARENA] = frame[ROOM] = memory.data_ptr()
    frame[SCRATCH] = frame[ROOM] + own
    frame[PARTIAL] = frame[SCRATCH] + scratch
    return Workspace(frame, memory, threads, own + scratch + partial <= KEPT_AT_MOST)
