"""The batch-innermost memory format: ``[B, F]`` and ``[B, C, H, W]`` tensors whose strides put the batch last.

It is a memory format like torch's ``channels_last``: shapes and results are as usual, only the strides differ. A layer
whose input is in this format gives a result in it; for any other input the result is contiguous. The batch of one
feature is one *row* of contiguous floats, so one nonzero weight is one multiply-add over a row. Rows are aligned to 64
bytes and padded to a multiple of 16 floats. The padding may hold any value; kernels mask it where it matters.
"""

from __future__ import annotations

import functools
import math
import threading
import weakref

import torch

from ..arguments import shown
from ..errors import InvalidArgumentError

CPU = torch.device("cpu")  # said everywhere, because torch.set_default_device may name another
LANES = 16  # floats to a vector: one 64-byte cache line
LENT_FROM, LENT_AT_MOST = 2**16, 2**24  # bytes of a buffer that is kept for the next pass
KEPT_AT_MOST = 8  # number of these buffers
_lock = threading.Lock()
_kept: list[tuple[int, torch.Tensor, weakref.ref[torch.Tensor]]] = []  # size, buffer, and its last user
conversions = 0  # number of tensors copied into this format since the import, for tests


def row_lanes(batch: int) -> int:
    """Return ``batch`` rounded up to whole vectors: the floats of a row that kernels read and write."""
    if not isinstance(batch, int) or batch < 0:
        raise InvalidArgumentError(f"batch={batch!r}; give a whole number of at least 0.")
    return -(-batch // LANES) * LANES


def row_floats(batch: int) -> int:
    """Return the floats from one row to the next in a tensor of this format."""
    row = max(row_lanes(batch), LANES)
    # Rows whose distance is a multiple of 256 bytes share cache sets and would evict each other.
    return row + LANES if row > 64 and row % 64 == 0 else row


def empty_batch_innermost(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return an uninitialised CPU tensor of this shape (batch first) in the batch-innermost format.

    torch aligns the memory of CPU tensors to 64 bytes (``c10::gAlignment``), and so all rows are.
    """
    floats, of_format = _layout(tuple(shape))
    # as_strided_ gives no view: autograd forbids in-place changes of such views, as by a ReLU after the layer.
    return torch.empty(floats, dtype=dtype, device=CPU).as_strided_(shape, of_format)


def empty_in_format(shape: tuple[int, ...], innermost: bool) -> torch.Tensor:
    """Return an uninitialised float32 CPU tensor, in the batch-innermost format or contiguous."""
    if innermost:
        return empty_batch_innermost(shape)
    # Takes less time than torch.empty.
    return torch.empty_strided(shape, _contiguous(shape), dtype=torch.float32, device=CPU)


@functools.lru_cache(1024)
def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor."""
    return torch.empty(shape, device="meta").stride()


@functools.lru_cache(1024)
def _layout(shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Return the floats and the strides of a tensor in this format."""
    row = row_floats(shape[0])
    return math.prod(shape[1:]) * row, strides(shape, row)


def is_batch_innermost(x: torch.Tensor) -> bool:
    """Tell whether ``x`` (floating, ``[B, F]`` or ``[B, C, H, W]``) is in this format, so that kernels can read it."""
    if not isinstance(x, torch.Tensor) or x.dim() not in (2, 4):
        raise InvalidArgumentError(f"x={shown(x)}; give activations [B, F] or [B, C, H, W].")
    found = x.stride()
    if found[0] != 1:
        return False
    batch, row = x.shape[0], found[-1]
    if found != strides(x.shape, row) or row % LANES or row < batch or x.data_ptr() % 64:
        return False
    if batch % LANES == 0:
        return True
    # Kernels read the padding of the last row too, so the storage must hold it.
    read = x.storage_offset() + (math.prod(x.shape[1:]) - 1) * row + row_lanes(batch)
    return bool(read * x.element_size() <= x.untyped_storage().nbytes())


def in_format_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return ``y`` in the memory format of results for ``x``: batch innermost if ``x`` is, else contiguous.

    A tensor that is both, such as a batch of single numbers, counts as contiguous.
    """
    ours = x.is_cpu and not x.is_contiguous() and is_batch_innermost(x)
    return to_batch_innermost(y) if ours else y.contiguous()


def to_batch_innermost(x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` (float32, CPU) in the batch-innermost format: ``x`` itself, or one copy.

    Raises:
        InvalidArgumentError: ``x`` is not ``[B, F]`` or ``[B, C, H, W]``.
    """
    global conversions
    if is_batch_innermost(x):
        return x
    conversions += 1
    y = empty_batch_innermost(x.shape, x.dtype)
    rows = x.reshape(
        len(x), math.prod(x.shape[1:])
    ).t()  # torch transposes matrices in blocks, other shapes element by element
    y.as_strided(rows.shape, (y.stride(-1), 1)).copy_(rows if y.stride(-1) == len(x) else rows.contiguous())
    return y


def strides(shape: tuple[int, ...], row: int) -> tuple[int, ...]:
    """Return the strides of ``[B, F]`` or ``[B, C, H, W]`` in this format, with ``row`` floats from row to row."""
    if len(shape) == 2:
        return 1, row
    if len(shape) != 4:
        raise InvalidArgumentError(f"shape={tuple(shape)}; give [B, F] or [B, C, H, W].")
    return 1, shape[2] * shape[3] * row, shape[3] * row, row


def borrow(size: int) -> torch.Tensor:
    """Return uninitialised memory, uint8 ``[size]``. Buffers are cached by size and reused once the tensor is deleted.

    Large pieces of newly allocated memory cost a page fault per 4 KiB, more than the arithmetic of a layer. A view of
    the tensor does not keep the buffer: data that is needed longer must be copied.
    """
    if not LENT_FROM <= size <= LENT_AT_MOST:
        return torch.empty(size, dtype=torch.uint8, device=CPU)
    with _lock:
        back = next((n for n, (kept, _, holder) in enumerate(_kept) if kept == size and holder() is None), None)
        piece = torch.empty(size, dtype=torch.uint8, device="cpu") if back is None else _kept.pop(back)[1]
        lent = piece.view(-1)
        _kept.append((size, piece, weakref.ref(lent)))
        del _kept[:-KEPT_AT_MOST]
        return lent
