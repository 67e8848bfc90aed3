"""The entry to compiled code: tensors are checked, and their addresses are listed."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import cast

import numba
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..arguments import shown
from ..errors import InvalidArgumentError
from . import memory
from .memory import is_batch_innermost
from .stage import Stage

PLAIN = frozenset((torch.Tensor, nn.Parameter))  # types whose memory is their own
FLOAT = torch.float32


def readable(x: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Return ``x``, or a copy that compiled code can read, and whether it is batch innermost (else it is contiguous).

    Raises:
        InvalidArgumentError: it is not float32 on the CPU, or not ``[B, F]`` or ``[B, C, H, W]``.
    """
    x = our_kind("activations", x)
    if x.dim() not in (2, 4):
        raise InvalidArgumentError(f"activations have shape {tuple(x.shape)}; use [B, F] or [B, C, H, W].")
    if x.is_contiguous():
        memory.conversions += 1  # inside the compiled pass
    elif not is_batch_innermost(x):
        x = memory.to_batch_innermost(x)
    # A batch of single numbers is both; the backward pass must give the same answer for the same tensor.
    return x, not x.is_contiguous()


def checked_parameters(
    stages: Sequence[Stage], parameters: Sequence[torch.Tensor | None], with_bias: bool
) -> list[torch.Tensor | None]:
    """Check the parameters that compiled code will read, and return them with zeros for missing biases."""
    if not stages or len(parameters) != 2 * len(stages):
        raise InvalidArgumentError(
            f"{len(stages)} stages, {len(parameters)} parameters; give at least one stage, and values and bias of each."
        )
    checked: list[torch.Tensor | None] = []
    for stage, values, bias in zip(stages, parameters[::2], parameters[1::2], strict=True):
        checked.append(check_numbers("values", cast(torch.Tensor, values), stage.index.nnz))
        outputs = stage.index.shape[0]
        if not with_bias:
            checked.append(None)
        else:
            checked.append(_no_bias(outputs) if bias is None else check_numbers("bias", bias, outputs))
    return checked


@functools.lru_cache
def _no_bias(outputs: int) -> torch.Tensor:
    return torch.zeros(outputs, dtype=torch.float32, device="cpu")


def check_numbers(name: str, numbers: torch.Tensor, count: int) -> torch.Tensor:
    """Return ``numbers`` after checking that they are ``count`` contiguous float32 numbers on the CPU."""
    plain = type(numbers) in PLAIN and numbers.dtype is FLOAT and numbers.is_cpu and numbers.layout is torch.strided
    if not plain or numbers.is_neg():
        numbers = our_kind(name, numbers)
    if numbers.dim() != 1 or numbers.numel() != count or not numbers.is_contiguous():
        raise InvalidArgumentError(f"{name} has shape {tuple(numbers.shape)}; give {count} contiguous numbers.")
    return numbers


def our_kind(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor after checking that its memory holds float32 numbers; a negated view is resolved.

    Subclasses of torch.Tensor may have no memory (FakeTensor, the wrappers of torch.func): reading it would crash.
    """
    if type(tensor) not in PLAIN and not _has_memory(tensor):
        raise InvalidArgumentError(f"{name}={shown(tensor)}; give a torch.Tensor with memory, float32 on the CPU.")
    if tensor.dtype is not torch.float32 or not tensor.is_cpu or tensor.layout is not torch.strided:
        raise InvalidArgumentError(
            f"{name} are {tensor.dtype} on {tensor.device}, {tensor.layout}; these kernels take float32 on the CPU, "
            "torch.strided; use reference.py for any other."
        )
    return tensor.resolve_neg() if tensor.is_neg() else tensor


def _has_memory(tensor: object) -> bool:
    """Tell whether an object is a tensor with memory of its own."""
    if not isinstance(tensor, torch.Tensor) or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return False
    return not is_traceable_wrapper_subclass(tensor) and not isinstance(tensor, FakeTensor)


def use_threads() -> int:
    """Apply ``torch.set_num_threads`` to these kernels, and return the number of threads."""
    threads: int = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    if threads != getattr(_applied, "threads", 0):
        numba.set_num_threads(threads)
        _applied.threads = threads
    return threads


_applied = threading.local()  # numba's number of threads belongs to the thread that set it
