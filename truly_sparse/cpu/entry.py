"""The entry to compiled code: tensors are checked, and their addresses are listed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from ..arguments import shown
from ..errors import InvalidArgumentError
from . import memory
from .memory import is_batch_innermost
from .stage import Stage, two_types

PLAIN = frozenset((torch.Tensor, nn.Parameter))  # types whose memory is their own
FLOAT, STRIDED = torch.float32, torch.strided


def readable(x: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Return ``x``, or a contiguous copy, and whether it is batch innermost (else it is contiguous).

    Raises:
        InvalidArgumentError: it is not float32 on the CPU, or not ``[B, F]`` or ``[B, C, H, W]``.
    """
    if not _is_plain(x):
        x = our_kind("activations", x)
    if x.dim() not in (2, 4):
        raise InvalidArgumentError(f"activations have shape {tuple(x.shape)}; use [B, F] or [B, C, H, W].")
    # A batch of single numbers is both; the backward pass must give the same answer for the same tensor.
    if not x.is_contiguous():
        if is_batch_innermost(x):
            return x, True
        x = x.contiguous()
    memory.conversions += 1  # inside the compiled pass
    return x, False


def addresses(
    stages: Sequence[Stage], parameters: Sequence[torch.Tensor | None], with_bias: bool
) -> tuple[list[int], list[Any]]:
    """Check the parameters that compiled code will read.

    Returns:
        The address of each (that of zeros for a missing bias; 0 for biases that are not read), and the memory that must
        be kept as long as the addresses are used.
    """
    if not stages or len(parameters) != 2 * len(stages):
        raise InvalidArgumentError(
            f"{len(stages)} stages, {len(parameters)} parameters; give at least one stage, and values and bias of each."
        )
    found: list[int] = []
    kept: list[Any] = []
    for at, stage in enumerate(stages):
        index, bias = stage.index, parameters[2 * at + 1]
        found.append(_address("values", cast(torch.Tensor, parameters[2 * at]), index.nnz, kept))
        if not with_bias:
            found.append(0)
        elif bias is None:
            kept.append(_no_bias(index.shape[0]))  # the cache may drop it, and another thread may replace it there
            found.append(kept[-1].data_ptr())
        else:
            found.append(_address("bias", bias, index.shape[0], kept))
    return found, kept


@functools.lru_cache
def _no_bias(outputs: int) -> torch.Tensor:
    return torch.zeros(outputs, dtype=torch.float32, device="cpu")


def _address(name: str, numbers: torch.Tensor, count: int, kept: list[Any]) -> int:
    """Return the address of ``count`` contiguous float32 numbers on the CPU, after checking that they are."""
    if not _is_plain(numbers):
        numbers = our_kind(name, numbers)
    if numbers.dim() != 1 or numbers.numel() != count or not numbers.is_contiguous():
        raise InvalidArgumentError(f"{name} has shape {tuple(numbers.shape)}; give {count} contiguous numbers.")
    kept.append(numbers.untyped_storage())  # another thread may give a layer more or fewer weights, in other memory
    return numbers.data_ptr()


def _is_plain(tensor: torch.Tensor) -> bool:
    """Tell, at little cost, whether :func:`our_kind` would return this tensor itself; False if that is not certain."""
    try:
        ours = type(tensor) in PLAIN and tensor.dtype is FLOAT and tensor.is_cpu and tensor.layout is STRIDED
        return ours and tensor.data_ptr() != 0 and not tensor.is_nested and not tensor.is_neg()
    except (RuntimeError, ValueError):
        return False


def our_kind(name: str, tensor: torch.Tensor, dtype: torch.dtype = FLOAT) -> torch.Tensor:
    """Return a tensor after checking that its memory holds numbers of this type; a negated view is resolved.

    Raises:
        InvalidArgumentError: it has another type, or no memory that compiled code can read.
    """
    if not isinstance(tensor, torch.Tensor):
        raise InvalidArgumentError(f"{name}={shown(tensor)}; give a torch.Tensor.")
    if name in ("values", "bias") and tensor.is_floating_point() and tensor.is_cpu and tensor.dtype is not FLOAT:
        raise InvalidArgumentError(two_types(FLOAT, name, tensor.dtype))
    if tensor.dtype is not dtype or not tensor.is_cpu or tensor.layout is not torch.strided:
        raise InvalidArgumentError(
            f"{name} are {tensor.dtype} on {tensor.device}, {tensor.layout}; these kernels take {dtype} on the CPU, "
            "torch.strided; use reference.py for any other."
        )
    if not has_memory(tensor):
        raise InvalidArgumentError(f"{name}={shown(tensor)}; give a torch.Tensor with memory, {dtype} on the CPU.")
    return tensor.resolve_neg() if tensor.is_neg() else tensor


def has_memory(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor's numbers are in memory of its own.

    Subclasses with ``__torch_dispatch__`` (FakeTensor, wrappers) decide themselves where they are. Tensors inside the
    transforms of torch.func have no address, those of functionalization and zeros that are not stored the address 0.
    """
    kind = type(tensor)
    if kind not in PLAIN and kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return False
    try:
        return not tensor.is_nested and (tensor.data_ptr() != 0 or tensor.numel() == 0)
    except (RuntimeError, ValueError):
        return False
