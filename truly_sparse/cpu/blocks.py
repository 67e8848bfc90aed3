"""The positions of weights in blocks of ``R`` outputs × ``C`` inputs: checked, listed by row and by column.

The ``R`` rows of a block row have the same columns, which are listed once. The lists are arrays as in ``index.py``.
"""

from __future__ import annotations

import numpy as np

from ..errors import InvalidArgumentError
from ..positions import loops_or_none


def check_blocks(
    positions: np.ndarray,
    indptr: np.ndarray,
    cols: np.ndarray,
    shape: tuple[int, int],
    structure: tuple[int, int],
    taps: int = 1,
) -> None:
    """Check that block rows, whose first rows were read, consist of whole blocks and give all positions back.

    Args:
        positions: of all weights in a matrix of this shape.
        indptr: where each block row begins in ``cols``.
        cols: the columns of its first row.
        shape: of the matrix; the columns are ``(in, taps)``.
        structure: rows of a block row, and inputs of a block.
        taps: weights of one output and input (of a convolution: the positions in the kernel).
    """
    tall, wide = structure
    whole = len(cols) * tall == len(positions) and len(cols) % wide == 0
    if whole:
        keys = _by_block(indptr, cols, wide, taps).reshape(-1, wide)
        whole = bool((keys == keys[:, :1] // wide * wide + np.arange(wide)).all())
    if not whole or not np.array_equal(joined(indptr, cols, shape[1], tall), positions):
        raise InvalidArgumentError(
            f"the connections are not whole blocks of structure={structure} ({tall} outputs × {wide} inputs); "
            "give all weights of each block, or structure=(1, 1)."
        )


def _by_block(indptr: np.ndarray, cols: np.ndarray, wide: int, taps: int) -> np.ndarray:
    """Number the weights by row, block, tap and input of the block; return the numbers sorted."""
    rows, (inputs, tap) = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)), np.divmod(cols.astype(np.int64), taps)
    across = int(inputs.max(initial=0)) // wide + 1
    keys: np.ndarray = ((rows * across + inputs // wide) * taps + tap) * wide + inputs % wide
    return keys if taps == 1 else np.sort(keys)


def split(positions: np.ndarray, shape: tuple[int, int], tall: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Return where each block row of ``tall`` rows begins, and the columns of its first row."""
    rows, inputs = shape
    loops = loops_or_none()
    if tall > 1:
        starts = np.arange(0, rows, tall) * inputs
        first, last = np.searchsorted(positions, starts), np.searchsorted(positions, starts + inputs)
        indptr = np.concatenate([[0], np.cumsum(last - first)]).astype(np.int64)
        places = np.arange(indptr[-1]) + np.repeat(first - indptr[:-1], last - first)
        return indptr, (positions[places] % max(inputs, 1)).astype(dtype)
    cols: np.ndarray = np.empty(len(positions), dtype)
    if loops is None:
        np.remainder(positions, max(inputs, 1), out=cols, casting="unsafe")  # needs no array of wider numbers
        return np.searchsorted(positions, np.arange(rows + 1) * inputs), cols
    indptr = np.zeros(rows + 1, np.int64)
    loops.split(positions, inputs, indptr, cols)
    return indptr, cols


def joined(indptr: np.ndarray, cols: np.ndarray, inputs: int, tall: int) -> np.ndarray:
    """Return the positions of the weights of block rows of ``tall`` rows."""
    loops, positions = loops_or_none(), np.empty(tall * len(cols), np.int64)
    if loops is None:
        rows, places = in_rows(indptr, tall)
        positions[:] = rows * inputs + cols[places]
    else:
        loops.joined(indptr, cols, inputs, tall, positions)
    return positions


def in_rows(indptr: np.ndarray, tall: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each weight's row, and its place in the list of its block row's columns, counted from ``indptr[0]``."""
    sizes = np.repeat(np.diff(indptr), tall)
    rows, ends = np.repeat(np.arange(len(sizes)), sizes), np.cumsum(sizes)
    return rows, np.arange(len(rows)) + np.repeat(np.repeat(indptr[:-1] - indptr[0], tall) - ends + sizes, sizes)


def sort_by_column(
    indptr: np.ndarray,
    cols: np.ndarray,
    structure: tuple[int, int],
    top: int,
    bottom: int,
    ends: np.ndarray,
    t_rows: np.ndarray,
    t_perm: np.ndarray,
) -> None:
    """Write output and place of the weights of block rows ``top`` to ``bottom``, and where each block column ends.

    Of ``wide`` weights of one output and block column, the first is written.
    """
    tall, wide = structure
    loops = loops_or_none()
    if loops is not None:
        loops.by_column(indptr, cols, tall, wide, top, bottom, ends, t_rows, t_perm)
        return
    first, last = indptr[top], indptr[bottom]
    rows, places = in_rows(indptr[top : bottom + 1], tall)
    columns = cols[first:last][places[::wide]] // wide
    order = _stable_order(columns)
    here = slice(tall * first // wide, tall * last // wide)
    t_rows[here] = rows[::wide][order] + tall * top
    t_perm[here] = order * wide + tall * first
    ends[:] = here.start + np.cumsum(np.bincount(columns, minlength=len(ends)))


def _stable_order(numbers: np.ndarray) -> np.ndarray:
    """Return the permutation that sorts uint16 or uint32 numbers; equal ones keep their order. Linear time.

    numpy sorts numbers of 16 bits digit by digit, so wider ones are sorted by their low half, then by their high half.
    """
    if numbers.dtype == np.uint16:
        return np.argsort(numbers, kind="stable")
    order = np.argsort(numbers.astype(np.uint16), kind="stable")
    return order[np.argsort((numbers >> 16).astype(np.uint16)[order], kind="stable")]
