"""What bounds a sparse layer's forward pass: for each weight, some row of the input has to be read."""
# Compiled functions have no type hints: numba infers them.
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import time

import numpy as np
import torch

from truly_sparse import SparseLinear
from truly_sparse.cpu.kernel import kernel, run_by_all
from truly_sparse.cpu.memory import to_batch_innermost
from truly_sparse.cpu.plan import address
from truly_sparse.cpu.simd import add, floats, load, longs, positions, total, zeros
from truly_sparse.cpu.threads import use_threads

READ = np.dtype([(name, np.int64) for name in ("x", "row", "cols", "borders", "sums")])


@kernel(None, READ)
def _read_rows(_, read, first, last, thread):
    x, cols, borders = floats(read.x), positions(read.cols, 2), longs(read.borders)
    for piece in range(first, last):
        even, odd = zeros(64), zeros(64)
        for k in range(borders[piece], borders[piece + 1] - 1, 2):
            even = add(even, load(x, cols[k] * read.row, even))
            odd = add(odd, load(x, cols[k + 1] * read.row, odd))
        floats(read.sums)[piece] = total(add(even, odd))  # else it would be dead code


def seconds_to_read(layer: SparseLinear, runs: int) -> float:
    """Return the median seconds that all threads take to read each weight's row of 64 samples, and nothing else.

    Args:
        layer: has fewer than 65,536 inputs.
        runs: timed runs, after two more.
    """
    x = to_batch_innermost(torch.randn(64, layer.in_features))
    index = layer.index
    borders = index.indptr[index.row_chunks]
    sums = np.empty(len(borders) - 1, np.float32)
    at = (address(array) for array in (index.cols, borders, sums))
    read, threads = np.array([(x.data_ptr(), x.stride(-1), *at)], READ), use_threads()
    arguments = _read_rows.address, 0, address(read), len(sums), threads
    seconds = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        run_by_all(*arguments)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[2:]))
