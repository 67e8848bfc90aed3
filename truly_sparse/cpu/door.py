"""What happens before compiled code begins: tensors are checked, and it is listed where they are."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import torch

from ..arguments import shown
from ..errors import InvalidArgumentError
from . import memory
from .memory import borrow, is_batch_innermost
from .program import ARENA, PARAMETERS, PARTIAL, ROOM, SCRATCH, SHARED, Program
from .records import CALL
from .stage import Stage


def readable(x: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Return ``x`` as compiled code can read it, and whether that is batch innermost; else it is contiguous.

    Raises:
        InvalidArgumentError: it is not float32 on the CPU, or not ``[B, F]`` or ``[B, C, H, W]``.
    """
    x = our_kind("activations", x)
    if x.dim() not in (2, 4):
        raise InvalidArgumentError(f"activations have shape {tuple(x.shape)}; use [B, F] or [B, C, H, W].")
    if x.is_contiguous():
        memory.conversions += 1  # on the way in
    elif not is_batch_innermost(x):
        x = memory.to_batch_innermost(x)
    # A batch of single numbers is both: the backward pass, which only sees the tensor, has to call it the same.
    return x, not x.is_contiguous()


def checked_parameters(
    stages: Sequence[Stage], parameters: Sequence[torch.Tensor | None], with_bias: bool
) -> list[torch.Tensor | None]:
    """Check what compiled code is about to read; return the parameters, with zeros for a bias that is not there."""
    if not stages or len(parameters) != 2 * len(stages):
        raise InvalidArgumentError(
            f"{len(stages)} stages, {len(parameters)} parameters; give at least one stage, and values and bias of each."
        )
    checked = []
    for stage, values, bias in zip(stages, parameters[::2], parameters[1::2], strict=True):
        values = check_numbers("values", values, stage.index.nnz)
        if with_bias:
            outputs = stage.index.shape[0]
            bias = torch.zeros(outputs, dtype=torch.float32, device="cpu") if bias is None else bias
            bias = check_numbers("bias", bias, outputs)
        checked += [values, bias]
    return checked


def check_numbers(name: str, numbers: torch.Tensor, count: int) -> torch.Tensor:
    """Return ``count`` contiguous numbers."""
    numbers = our_kind(name, numbers)
    if numbers.shape != (count,) or not numbers.is_contiguous():
        raise InvalidArgumentError(f"{name} has shape {tuple(numbers.shape)}; give {count} contiguous numbers.")
    return numbers


def our_kind(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose memory holds its numbers: a view may only say that they are negated."""
    if not isinstance(tensor, torch.Tensor):
        raise InvalidArgumentError(f"{name}={shown(tensor)}; give a torch.Tensor, float32 on the CPU.")
    if tensor.dtype is not torch.float32 or not tensor.is_cpu or tensor.layout is not torch.strided:
        raise InvalidArgumentError(
            f"{name} are {tensor.dtype} on {tensor.device}, {tensor.layout}; these kernels take float32 on the CPU, "
            "torch.strided; use reference.py for any other."
        )
    return tensor.resolve_neg() if tensor.is_neg() else tensor


def list_bases(
    parameters: Sequence[torch.Tensor | None], arena: torch.Tensor, tensors: dict[int, torch.Tensor | None]
) -> list[int]:
    """Return the bases of a pass; ``tensors`` by the base at which each begins (the next one is its row)."""
    bases = [0] * PARAMETERS + [0 if parameter is None else parameter.data_ptr() for parameter in parameters]
    bases[ARENA] = arena.data_ptr()
    for base, tensor in tensors.items():
        if tensor is not None:
            bases[base : base + 2] = tensor.data_ptr(), tensor.stride(-1)
    return bases


def borrow_room(program: Program, bases: list[int], threads: int, extra: int = 0) -> torch.Tensor:
    """Return borrowed memory for a backward pass to work in, with ``extra`` bytes; where it is is added to the bases.

    The extra bytes are for the gradients of several spans, which are added up in the end (``PARTIAL``).
    """
    parts = program.pieces(threads) * program.bytes, threads * program.scratch, program.shared, extra
    room = borrow(sum(parts))
    starts = [room.data_ptr() + sum(parts[:n]) for n in range(4)]
    bases[ROOM], bases[SCRATCH], bases[SHARED], bases[PARTIAL] = starts
    return room


def records_of(program: Program, bases: np.ndarray, batch: int, threads: int) -> tuple:
    """Return what the compiled passes take; ``calls`` and ``numbers`` are the same memory."""
    calls = np.empty((program.spans, len(program.plans)), CALL)
    link = bases, program.bases, program.offsets, program.by_span, program.by_thread
    return calls, calls.view(np.int64), link, (batch, program.span, threads), program.plans


def use_threads() -> int:
    """Let ``torch.set_num_threads`` govern these kernels too, and return the number of threads."""
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    if threads != numba.get_num_threads():
        numba.set_num_threads(threads)
    return threads
