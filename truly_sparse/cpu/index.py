"""The positions of a layer's weights, in the two orders that kernels need: by output and by input.

An index is built from sorted flat positions in the dense weight at each change of the topology, and never changes
itself. All checks are made here, because compiled kernels check nothing. Positions use the narrowest type that holds
them (2 bytes up to 65,536 rows or columns). No array has the size of the dense weight.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..arguments import check_count, pair, require, shown
from ..errors import InvalidArgumentError
from ..positions import check_connections, loops_or_none

MOST = 2**32  # weights of a layer; kernels store their numbers in 4 bytes
CHUNKS = 64  # pieces of work with equal numbers of nonzeros; fixed, so that results do not depend on the threads
# In the order by input, consecutive weights are far apart in ``values``. In a large layer they lie on more memory pages
# than the TLB holds, so the outputs are divided into blocks of at least BLOCK weights, on average RUN per input.
BLOCK, RUN = 2**20, 8


_numbers = itertools.count()


class _Index:
    """Common base. Compiled code receives addresses of an index's arrays, so copies share them; pickles rebuild them.

    Attributes:
        number: unique in this process.
        programs: the programs of chains that begin with this index (``program.py``).
    """

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self


@dataclass(frozen=True, eq=False)
class LinearIndex(_Index):
    """The nonzeros of a ``[out, in]`` weight.

    Attributes:
        shape: ``(out, in)``.
        indptr: ``values[indptr[o]:indptr[o + 1]]`` are the weights of output ``o``; int64 ``[out + 1]``.
        cols: their inputs; uint16 or uint32 ``[nnz]``.
        t_indptr: the order by block of outputs, then by input: weights ``t_indptr[b * in + i]`` to
            ``t_indptr[b * in + i + 1]`` belong to input ``i`` in block ``b``; int64 ``[blocks * in + 1]``.
        t_rows: their outputs; uint16 or uint32 ``[nnz]``.
        t_perm: their positions in ``values``; uint32 ``[nnz]``.
        row_chunks: borders between outputs of about equal work; int64 ``[≤ CHUNKS + 1]``.
        col_chunks: borders between inputs of about equal work; int64 ``[≤ CHUNKS + 1]``.
    """

    shape: tuple[int, int]
    indptr: np.ndarray
    cols: np.ndarray
    t_indptr: np.ndarray
    t_rows: np.ndarray
    t_perm: np.ndarray
    row_chunks: np.ndarray
    col_chunks: np.ndarray
    number: int = field(default_factory=_numbers.__next__, repr=False)
    programs: dict[Any, Any] = field(default_factory=dict, repr=False)
    _places: dict[torch.device, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        rows, columns = self.shape
        _check_array("indptr", self.indptr, _is_pointers(self.indptr, rows, self.nnz))
        _check_array("cols", self.cols, _is_below(self.cols, columns, self.nnz, _unsigned(columns)))
        _check_array("t_indptr", self.t_indptr, _is_pointers(self.t_indptr, max(1, self.blocks) * columns, self.nnz))
        _check_array("t_rows", self.t_rows, _is_below(self.t_rows, rows, self.nnz, _unsigned(rows)))
        _check_array("t_perm", self.t_perm, _is_below(self.t_perm, self.nnz, self.nnz, np.uint32))
        for name, chunks, end in (("row_chunks", self.row_chunks, rows), ("col_chunks", self.col_chunks, columns)):
            _check_array(name, chunks, _is_pointers(chunks, chunks.size - 1, end))

    @classmethod
    def build(cls, flat: torch.Tensor, shape: tuple[int, int]) -> LinearIndex:
        """Index the weights at positions ``flat`` (int64 ``[nnz]``, sorted, unique) of a dense ``(out, in)`` weight.

        Raises:
            InvalidArgumentError: wrong dtype or dimension, out of range, unsorted or duplicate positions, bad shape.
        """
        if len(shape) != 2 or not all(isinstance(size, (int, np.integer)) for size in shape):
            raise InvalidArgumentError(f"shape={shown(shape)} of a linear layer's weight; give integers (out, in).")
        shape = int(shape[0]), int(shape[1])
        positions = _checked(flat, shape)
        nnz, inputs = len(positions), shape[1]
        indptr, cols = _split(positions, shape)
        blocks = max(1, min(nnz // BLOCK, nnz // (RUN * max(inputs, 1))))
        t_rows: np.ndarray = np.empty(nnz, _unsigned(shape[0]))
        t_perm = np.empty(nnz, np.uint32)
        ends = np.zeros((blocks, inputs), np.int64)  # where the weights of each block and input end
        borders = np.searchsorted(indptr, np.linspace(0, nnz, blocks + 1))  # of the outputs of each block
        for block, (top, bottom) in enumerate(itertools.pairwise(borders)):
            _sort_by_column(indptr, cols, top, bottom, ends[block], t_rows, t_perm)
        t_indptr = np.concatenate([[0], ends.reshape(-1)])
        sizes = np.diff(t_indptr).reshape(blocks, inputs)
        return cls(
            shape,
            indptr,
            cols,
            t_indptr,
            t_rows,
            t_perm,
            _chunks(indptr),
            _chunks(np.concatenate([[0], np.cumsum(sizes.sum(0))])),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return LinearIndex.build, (self.flat(), self.shape)

    @property
    def nnz(self) -> int:
        """The number of weights."""
        return self.cols.size

    @property
    def blocks(self) -> int:
        """The number of blocks of outputs in ``t_indptr``."""
        return (self.t_indptr.size - 1) // max(self.shape[1], 1)

    @property
    def largest_piece(self) -> int:
        """The largest number of weights in one block between two ``col_chunks``."""
        starts = self.shape[1] * np.arange(self.blocks)[:, None] + self.col_chunks
        return int(np.diff(self.t_indptr[starts]).max(initial=0))

    @property
    def nbytes(self) -> int:
        """Bytes that the index occupies."""
        arrays = (self.indptr, self.cols, self.t_indptr, self.t_rows, self.t_perm, self.row_chunks, self.col_chunks)
        return sum(array.nbytes for array in arrays)

    def flat(self) -> torch.Tensor:
        """Return the flat positions: int64 ``[nnz]``, sorted (computed, not stored)."""
        loops, positions = loops_or_none(), np.empty(self.nnz, np.int64)
        if loops is None:
            positions[:] = np.repeat(np.arange(self.shape[0]), np.diff(self.indptr)) * self.shape[1] + self.cols
        else:
            loops.joined(self.indptr, self.cols, self.shape[1], positions)
        return torch.from_numpy(positions)

    def coordinates(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows and columns as int64 tensors ``[nnz]`` on a device, for ``reference.py``; cached."""
        if device not in self._places:
            flat = self.flat().to(device)
            self._places[device] = flat // max(self.shape[1], 1), flat % max(self.shape[1], 1)
        rows, columns = self._places[device]
        return rows, columns


@dataclass(frozen=True, eq=False)
class ConvIndex(_Index):
    """The nonzeros of an ``[out, in / groups, kernel_h, kernel_w]`` weight, and the convolution's geometry.

    Attributes:
        shape: the dense weight's shape.
        stride, padding, dilation: ``(vertical, horizontal)`` each, as in ``nn.Conv2d``.
        groups: number of groups.
        indptr: ``values[indptr[o]:indptr[o + 1]]`` are the weights of output channel ``o``; int64 ``[out + 1]``.
        taps: their ``(input channel, dy, dx)``, channels counted over all groups; int32 ``[nnz, 3]``.
    """

    shape: tuple[int, int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    indptr: np.ndarray
    taps: np.ndarray
    number: int = field(default_factory=_numbers.__next__, repr=False)
    programs: dict[Any, Any] = field(default_factory=dict, repr=False)
    _places: dict[torch.device, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        out, channels, *kernel = self.shape
        _check_array("indptr", self.indptr, _is_pointers(self.indptr, out, self.nnz))
        _check_array("taps", self.taps, _is_taps(self.taps, self.nnz, (channels * self.groups, *kernel)))

    @classmethod
    def build(
        cls,
        flat: torch.Tensor,
        shape: tuple[int, int, int, int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> ConvIndex:
        """Index the weights at positions ``flat`` (int64 ``[nnz]``, sorted, unique) of a dense convolution weight.

        Raises:
            InvalidArgumentError: wrong dtype or dimension, out of range, unsorted or duplicate positions, bad geometry.
        """
        if len(shape) != 4 or not all(isinstance(size, (int, np.integer)) for size in shape):
            raise InvalidArgumentError(f"shape={shown(shape)} of a convolution's weight; give (out, in, kh, kw).")
        stride, padding = pair("stride", stride, 1), pair("padding", padding, 0)
        dilation = pair("dilation", dilation, 1)
        check_count("groups", groups, least=1)
        require(shape[0] % groups == 0, "groups", groups, f"use a divisor of the {shape[0]} output channels")
        out, channels, height, width = map(int, shape)
        position = _checked(flat, (out, channels, height, width))
        position, dx = np.divmod(position, max(width, 1))
        position, dy = np.divmod(position, max(height, 1))
        o, c = np.divmod(position, max(channels, 1))
        c += o // max(out // groups, 1) * channels
        return cls(
            (out, channels, height, width),
            stride,
            padding,
            dilation,
            groups,
            np.searchsorted(o, np.arange(out + 1)).astype(np.int64),
            np.stack([c, dy, dx], axis=1).astype(np.int32),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        return ConvIndex.build, (self.flat(), self.shape, *geometry)

    @property
    def nnz(self) -> int:
        """The number of weights."""
        return len(self.taps)

    @property
    def nbytes(self) -> int:
        """Bytes that the index occupies."""
        return sum(array.nbytes for array in (self.indptr, self.taps))

    def flat(self) -> torch.Tensor:
        """Return the flat positions: int64 ``[nnz]``, sorted (computed, not stored)."""
        o = np.repeat(np.arange(self.shape[0]), np.diff(self.indptr))
        c, dy, dx = self.taps.astype(np.int64).T
        _, channels, height, width = self.shape
        return torch.from_numpy(((o * channels + c % max(channels, 1)) * height + dy) * width + dx)

    def places(self, device: torch.device) -> torch.Tensor:
        """Return :meth:`flat` on a device, for ``reference.py``; cached."""
        if device not in self._places:
            self._places[device] = self.flat().to(device)
        places: torch.Tensor = self._places[device]
        return places

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width after the convolution.

        Raises:
            InvalidArgumentError: the kernel is larger than the padded input.
        """
        geometry = zip((height, width), self.padding, self.dilation, self.shape[2:], self.stride, strict=True)
        rows, columns = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in geometry)
        if min(rows, columns) < 1:
            raise InvalidArgumentError(f"a {height}×{width} input is smaller than the kernel {self.shape[2:]}; pad it.")
        return rows, columns


def _checked(flat: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    if min(shape) < 0:
        raise InvalidArgumentError(f"the dense shape is {tuple(shape)}; give sizes of at least 0.")
    positions = check_connections("flat indices", flat, shape)
    if len(flat) >= MOST:
        raise InvalidArgumentError(f"{len(flat)} weights are more than one layer's index can count; split the layer.")
    return positions


# Compiled code reads these arrays without checks: their types, contiguity and ranges must be right.


def _check_array(name: str, array: np.ndarray, fits: bool) -> None:
    if not fits or not array.flags.c_contiguous:
        raise InvalidArgumentError(f"{name}={shown(array)} does not fit the rest; use build(), which makes it.")


def _is_pointers(array: np.ndarray, count: int, end: int) -> bool:
    if array.dtype != np.int64 or array.shape != (count + 1,) or count < 0:
        return False
    return bool(array[0] == 0 and array[-1] == end and (array[1:] >= array[:-1]).all())


def _is_below(array: np.ndarray, size: int, nnz: int, dtype: type) -> bool:
    return array.dtype == dtype and array.shape == (nnz,) and int(array.max(initial=0)) < max(1, size)


def _is_taps(array: np.ndarray, nnz: int, sizes: tuple[int, ...]) -> bool:
    if array.dtype != np.int32 or array.shape != (nnz, 3):
        return False
    return bool((array.min(0, initial=0) >= 0).all() and (array.max(0, initial=-1) < sizes).all())


def _split(positions: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return where each row begins, and the columns."""
    rows, inputs = shape
    loops = loops_or_none()
    cols: np.ndarray = np.empty(len(positions), _unsigned(inputs))
    if loops is None:
        np.remainder(positions, max(inputs, 1), out=cols, casting="unsafe")  # needs no array of wider numbers
        return np.searchsorted(positions, np.arange(rows + 1) * inputs), cols
    indptr = np.zeros(rows + 1, np.int64)
    loops.split(positions, inputs, indptr, cols)
    return indptr, cols


def _sort_by_column(
    indptr: np.ndarray,
    cols: np.ndarray,
    top: int,
    bottom: int,
    ends: np.ndarray,
    t_rows: np.ndarray,
    t_perm: np.ndarray,
) -> None:
    """Write row and place of the weights of rows ``top`` to ``bottom``, by column, and where each column ends."""
    loops = loops_or_none()
    if loops is not None:
        loops.by_column(indptr, cols, top, bottom, ends, t_rows, t_perm)
        return
    first, last = indptr[top], indptr[bottom]
    order = _stable_order(cols[first:last])
    rows = np.repeat(np.arange(top, bottom, dtype=t_rows.dtype), np.diff(indptr[top : bottom + 1]))
    t_rows[first:last], t_perm[first:last] = rows[order], order + first
    ends[:] = first + np.cumsum(np.bincount(cols[first:last], minlength=len(ends)))


def _unsigned(size: int) -> type:
    return np.uint16 if size <= 2**16 else np.uint32


def _stable_order(numbers: np.ndarray) -> np.ndarray:
    """Return the permutation that sorts uint16 or uint32 numbers; equal ones keep their order. Linear time.

    numpy sorts numbers of 16 bits digit by digit, so wider ones are sorted by their low half, then by their high half.
    """
    if numbers.dtype == np.uint16:
        return np.argsort(numbers, kind="stable")
    order = np.argsort(numbers.astype(np.uint16), kind="stable")
    return order[np.argsort((numbers >> 16).astype(np.uint16)[order], kind="stable")]


def _chunks(indptr: np.ndarray) -> np.ndarray:
    work = indptr + np.arange(len(indptr))  # each row adds a constant cost
    borders = np.searchsorted(work, np.linspace(0, work[-1], CHUNKS + 1))
    return np.unique(np.concatenate([[0], borders, [len(indptr) - 1]])).astype(np.int64)
