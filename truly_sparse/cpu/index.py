"""The positions of a layer's weights, in the two orders that kernels need: by output and by input.

An index is built from sorted flat positions in the dense weight at each change of the topology, and never changes
itself. All checks are made here, because compiled kernels check nothing. Positions use the narrowest type that holds
them (2 bytes up to 65,536 rows or columns). No array has the size of the dense weight.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..arguments import check_count, pair, require, shown
from ..errors import InvalidArgumentError
from ..positions import check_connections
from ..structure import check_structure
from .blocks import check_blocks, joined, sort_by_column, split

MOST = 2**32  # weights of a layer; kernels store their numbers in 4 bytes
CHUNKS = 64  # pieces of work with equal numbers of nonzeros; fixed, so that results do not depend on the threads
SHARES = np.arange(CHUNKS + 1) / CHUNKS
# In the order by input, consecutive weights are far apart in ``values``. In a large layer they lie on more memory pages
# than the TLB holds, so the outputs are divided into blocks of at least BLOCK weights, on average RUN per input.
BLOCK, RUN = 2**20, 8


_numbers = itertools.count()


class _Index:
    """Common base. Compiled code receives addresses of an index's arrays, so copies share them; pickles rebuild them.

    Attributes:
        number: unique in this process.
        programs: the programs of chains that begin with this index (``program.py``).
        parts: what it does with inputs of some sizes (``plan.py``).
    """

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self


@dataclass(frozen=True, eq=False)
class LinearIndex(_Index):
    """The nonzeros of a ``[out, in]`` weight, in blocks of ``R`` outputs × ``C`` inputs (1×1: any weight).

    The outputs of one block row have the same inputs, which are listed once; so are the outputs of a block column. The
    weights themselves stay in the order of their flat positions, whatever the blocks are.

    Attributes:
        shape: ``(out, in)``.
        structure: ``(R, C)``.
        indptr: ``cols[indptr[o]:indptr[o + 1]]`` are the ``n`` inputs of the outputs ``R * o`` to ``R * o + R - 1``;
            the ``k``-th weight of the ``r``-th of them is ``values[R * indptr[o] + r * n + k]``; int64
            ``[out / R + 1]``.
        cols: the inputs; uint16 or uint32 ``[nnz / R]``.
        t_indptr: the order by part of the outputs, then by block column: entries ``t_indptr[b * in / C + i]`` to
            ``t_indptr[b * in / C + i + 1]`` belong to inputs ``C * i`` to ``C * i + C - 1`` and part ``b``; int64
            ``[blocks * in / C + 1]``. If ``R`` is a multiple of four, kernels need no order by input, and the gradient
            of the values alone never does: ``blocks`` is 0 then, and ``t_rows`` and ``t_perm`` are empty.
        t_rows: their outputs; uint16 or uint32 ``[nnz / C]``.
        t_perm: the positions in ``values`` of the first of their ``C`` weights; uint32 ``[nnz / C]``.
        row_chunks: borders between block rows of about equal work; int64 ``[CHUNKS + 1]``, fewer for fewer rows.
        col_chunks: borders between block columns of about equal work; likewise.
    """

    shape: tuple[int, int]
    structure: tuple[int, int]
    indptr: np.ndarray
    cols: np.ndarray
    t_indptr: np.ndarray
    t_rows: np.ndarray
    t_perm: np.ndarray
    row_chunks: np.ndarray
    col_chunks: np.ndarray
    number: int = field(default_factory=_numbers.__next__, repr=False)
    programs: dict[Any, Any] = field(default_factory=dict, repr=False)
    parts: dict[Any, Any] = field(default_factory=dict, repr=False)
    _places: dict[torch.device, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        (rows, columns), (tall, wide) = self.shape, self.structure
        by_row, by_column, nnz = rows // tall, columns // wide, self.nnz
        _check_array("indptr", self.indptr, _is_pointers(self.indptr, by_row, nnz // tall))
        _check_array("cols", self.cols, _is_below(self.cols, columns, nnz // tall, _unsigned(columns)))
        listed, parts = (nnz // wide, self.blocks) if self.blocks else (0, 0)
        _check_array("t_indptr", self.t_indptr, _is_pointers(self.t_indptr, parts * by_column, listed))
        _check_array("t_rows", self.t_rows, _is_below(self.t_rows, rows, listed, _unsigned(rows)))
        _check_array("t_perm", self.t_perm, _is_below(self.t_perm, nnz + 1 - wide, listed, np.uint32))
        for name, chunks, end in (("row_chunks", self.row_chunks, by_row), ("col_chunks", self.col_chunks, by_column)):
            _check_array(name, chunks, _is_pointers(chunks, chunks.size - 1, end))

    @classmethod
    def build(
        cls, flat: torch.Tensor, shape: tuple[int, int], structure: tuple[int, int] = (1, 1), *, by_input: bool = True
    ) -> LinearIndex:
        """Index the weights at positions ``flat`` (int64 ``[nnz]``, sorted, unique) of a dense ``(out, in)`` weight.

        Args:
            flat: the positions.
            shape: of the dense weight.
            structure: the positions are whole blocks of so many outputs × inputs.
            by_input: whether the gradient of the input will be computed, which needs the order by input.

        Raises:
            InvalidArgumentError: wrong dtype or dimension, out of range, unsorted or duplicate positions, bad shape,
                blocks that do not divide it or are not whole.
        """
        if len(shape) != 2 or not all(isinstance(size, (int, np.integer)) for size in shape):
            raise InvalidArgumentError(f"shape={shown(shape)} of a linear layer's weight; give integers (out, in).")
        shape = int(shape[0]), int(shape[1])
        structure = check_structure(structure, shape)
        positions = _checked(flat, shape)
        nnz, (tall, wide), columns = len(positions), structure, shape[1] // structure[1]
        indptr, cols = split(positions, shape, tall, _unsigned(shape[1]))
        if structure != (1, 1):
            check_blocks(positions, indptr, cols, shape, structure)
        by_input &= tall % 4 > 0
        blocks = max(1, min(nnz // BLOCK, nnz // (RUN * max(shape[1], 1)))) if by_input else 0
        t_rows: np.ndarray = np.empty(nnz // wide if by_input else 0, _unsigned(shape[0]))
        t_perm = np.empty(len(t_rows), np.uint32)
        t_indptr = np.zeros(blocks * columns + 1, np.int64)
        ends = t_indptr[1:].reshape(blocks, columns)  # where the weights of each part and block column end
        parts = np.searchsorted(indptr, np.linspace(0, nnz // tall, blocks + 1)) if blocks > 1 else (0, len(indptr) - 1)
        for block, (top, bottom) in enumerate(itertools.pairwise(parts[: blocks + 1])):
            sort_by_column(indptr, cols, structure, top, bottom, ends[block], t_rows, t_perm)
        of_columns = t_indptr
        if blocks != 1:
            sizes = np.diff(t_indptr).reshape(blocks, columns)
            of_columns = np.concatenate([[0], np.cumsum(sizes.sum(0))])
        chunks = _chunks(indptr), _chunks(of_columns)
        return cls(shape, structure, indptr, cols, t_indptr, t_rows, t_perm, *chunks)

    def __reduce__(self) -> tuple[Any, ...]:
        return LinearIndex.build, (self.flat(), self.shape, self.structure)

    @property
    def nnz(self) -> int:
        """The number of weights."""
        return self.cols.size * self.structure[0]

    @property
    def blocks(self) -> int:
        """The number of parts of the outputs in ``t_indptr``."""
        return (self.t_indptr.size - 1) // max(self.shape[1] // self.structure[1], 1)

    @property
    def largest_piece(self) -> int:
        """The largest number of weights in one part between two ``col_chunks``."""
        starts = self.shape[1] // self.structure[1] * np.arange(self.blocks)[:, None] + self.col_chunks
        return self.structure[1] * int(np.diff(self.t_indptr[starts]).max(initial=0))

    @property
    def nbytes(self) -> int:
        """Bytes that the index occupies."""
        arrays = (self.indptr, self.cols, self.t_indptr, self.t_rows, self.t_perm, self.row_chunks, self.col_chunks)
        return sum(array.nbytes for array in arrays)

    def flat(self) -> torch.Tensor:
        """Return the flat positions: int64 ``[nnz]``, sorted (computed, not stored)."""
        return torch.from_numpy(joined(self.indptr, self.cols, self.shape[1], self.structure[0]))

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

    Weights exist in blocks of ``R`` output × ``C`` input channels, for each position in the kernel (``LinearIndex``).

    Attributes:
        shape: the dense weight's shape.
        stride, padding, dilation: ``(vertical, horizontal)`` each, as in ``nn.Conv2d``.
        groups: number of groups.
        structure: ``(R, C)``.
        indptr: ``cols[indptr[o]:indptr[o + 1]]`` belong to the output channels ``R * o`` to ``R * o + R - 1``; int64
            ``[out / R + 1]``.
        cols: their positions in an output channel's ``[in / groups, kernel_h, kernel_w]``; uint16 or uint32
            ``[nnz / R]``.
    """

    shape: tuple[int, int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    structure: tuple[int, int]
    indptr: np.ndarray
    cols: np.ndarray
    number: int = field(default_factory=_numbers.__next__, repr=False)
    programs: dict[Any, Any] = field(default_factory=dict, repr=False)
    parts: dict[Any, Any] = field(default_factory=dict, repr=False)
    _places: dict[torch.device, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        size, listed = math.prod(self.shape[1:]), len(self.cols)
        _check_array("indptr", self.indptr, _is_pointers(self.indptr, self.shape[0] // self.structure[0], listed))
        _check_array("cols", self.cols, _is_below(self.cols, size, listed, _unsigned(size)))

    @classmethod
    def build(
        cls,
        flat: torch.Tensor,
        shape: tuple[int, int, int, int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        structure: tuple[int, int] = (1, 1),
    ) -> ConvIndex:
        """Index the weights at positions ``flat`` (int64 ``[nnz]``, sorted, unique) of a dense convolution weight.

        Raises:
            InvalidArgumentError: wrong dtype or dimension, out of range, unsorted or duplicate positions, bad geometry,
                blocks of ``structure`` that do not divide the channels of a group or are not whole.
        """
        if len(shape) != 4 or not all(isinstance(size, (int, np.integer)) for size in shape):
            raise InvalidArgumentError(f"shape={shown(shape)} of a convolution's weight; give (out, in, kh, kw).")
        stride, padding = pair("stride", stride, 1), pair("padding", padding, 0)
        dilation = pair("dilation", dilation, 1)
        check_count("groups", groups, least=1)
        require(shape[0] % groups == 0, "groups", groups, f"use a divisor of the {shape[0]} output channels")
        out, channels, height, width = map(int, shape)
        structure = check_structure(structure, (out, channels), groups)
        positions, inputs = _checked(flat, (out, channels, height, width)), channels * height * width
        indptr, cols = split(positions, (out, inputs), structure[0], _unsigned(inputs))
        if structure != (1, 1):
            check_blocks(positions, indptr, cols, (out, inputs), structure, height * width)
        return cls((out, channels, height, width), stride, padding, dilation, groups, structure, indptr, cols)

    def __reduce__(self) -> tuple[Any, ...]:
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        return ConvIndex.build, (self.flat(), self.shape, *geometry, self.structure)

    @property
    def nnz(self) -> int:
        """The number of weights."""
        return len(self.cols) * self.structure[0]

    @property
    def nbytes(self) -> int:
        """Bytes that the index occupies."""
        return self.indptr.nbytes + self.cols.nbytes

    def flat(self) -> torch.Tensor:
        """Return the flat positions: int64 ``[nnz]``, sorted (computed, not stored)."""
        return torch.from_numpy(joined(self.indptr, self.cols, math.prod(self.shape[1:]), self.structure[0]))

    def taps(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return input channel (counted over all groups), dy and dx of what ``cols`` lists: int64 ``[nnz / R]``."""
        out, channels, height, width = self.shape
        rest, dx = np.divmod(self.cols.astype(np.int64), max(width, 1))
        channel, dy = np.divmod(rest, max(height, 1))
        output = np.repeat(np.arange(0, out, self.structure[0]), np.diff(self.indptr))
        return channel + output // max(out // self.groups, 1) * channels, dy, dx

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


def _unsigned(size: int) -> type:
    return np.uint16 if size <= 2**16 else np.uint32


def _chunks(indptr: np.ndarray) -> np.ndarray:
    """Return borders between pieces of about equal work. Their number depends on that of the rows alone."""
    if len(indptr) <= CHUNKS:
        return np.arange(len(indptr))
    work = indptr + np.arange(len(indptr))  # each row adds a constant cost
    return np.searchsorted(work, work[-1] * SHARES)
