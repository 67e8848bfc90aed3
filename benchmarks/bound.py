"""What bounds a sparse layer's forward pass: for each weight, some row of the input has to be read."""
# Compiled functions have no type hints: numba infers them.
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import time

import numpy as np
import torch
from numba import prange

from truly_sparse import SparseLinear
from truly_sparse.cpu.entry import use_threads
from truly_sparse.cpu.memory import to_batch_innermost
from truly_sparse.cpu.simd import add, compiled, floats, load, parallel, shorts, total, zeros


@compiled
def _read_rows(x, row, cols, first, last, sums, piece):
    numbers, rows, even, odd = floats(x), shorts(cols), zeros(64), zeros(64)
    for k in range(first, last - 1, 2):
        even = add(even, load(numbers, rows[k] * row, even))
        odd = add(odd, load(numbers, rows[k + 1] * row, odd))
    floats(sums)[piece] = total(add(even, odd))  # else it would be dead code


@parallel
def _read_all(x, row, cols, borders, sums):
    for piece in prange(len(borders) - 1):
        _read_rows(x, row, cols, borders[piece], borders[piece + 1], sums, piece)


def seconds_to_read(layer: SparseLinear, runs: int) -> float:
    """Return the median seconds that all threads take to read each weight's row of 64 samples, and nothing else.

    Args:
        layer: has fewer than 65,536 inputs.
        runs: timed runs, after two more.
    """
    x = to_batch_innermost(torch.randn(64, layer.in_features))
    index = layer.index
    borders = index.indptr[index.row_chunks]
    sums = np.empty(len(borders), np.float32)
    arguments = x.data_ptr(), x.stride(-1), index.cols.ctypes.data, borders, sums.ctypes.data
    use_threads()
    seconds = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        _read_all(*arguments)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[2:]))
