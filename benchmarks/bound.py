"""What bounds a sparse layer: bytes that its loops load and store, and multiply-adds, by structure and pass.

``python benchmarks/bound.py`` measures the rates of this machine (multiply-adds in registers; loads and stores of as
many bytes as a tile of the linear layer's activations has) and the passes of a linear layer and of a convolution. It
prints for each pass the time that the slowest of the three needs, the measured time, and their quotient, and writes
``figures/bound.json``.
"""
# Compiled functions have no type hints: numba infers them.
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from bound_work import Work, conv_work, linear_work

from truly_sparse import SparseConv2d, SparseLinear, warmup
from truly_sparse.cpu import chain
from truly_sparse.cpu.kernel import Kernel, kernel, run_by_all
from truly_sparse.cpu.linear_shape import WIDTHS
from truly_sparse.cpu.memory import row_lanes, to_batch_innermost
from truly_sparse.cpu.plan import address
from truly_sparse.cpu.simd import NATIVE, add, floats, fma, load, longs, positions, splat, store, total, zeros
from truly_sparse.cpu.stage import Stage
from truly_sparse.cpu.threads import use_threads
from tutorial_lib import save_result

READ = np.dtype([(name, np.int64) for name in ("x", "row", "cols", "borders", "sums")])
SIZE, SPARSITY, RUNS, REPEATS = 1000, 0.95, 300, 100
STRUCTURES, BATCHES = ((1, 1), (4, 1), (1, 4), (4, 4), (8, 8)), (64, 256)
CHANNELS, IMAGE = 64, (16, 16)
CONV_STRUCTURES, CONV_BATCHES = ((1, 1), (4, 1), (4, 4), (8, 8)), (64,)
FOUR = 4 * NATIVE  # lanes of so many registers
PIECES = 64  # pieces of the loops that measure rates


@kernel(None, READ)
def _read_rows(_, read, first, last, thread):
    x, cols, borders = floats(read.x), positions(read.cols, 2), longs(read.borders)
    for piece in range(first, last):
        even, odd = zeros(64), zeros(64)
        for k in range(borders[piece], borders[piece + 1] - 1, 2):
            even = add(even, load(x, cols[k] * read.row, even))
            odd = add(odd, load(x, cols[k + 1] * read.row, odd))
        floats(read.sums)[piece] = total(add(even, odd))  # else it would be dead code


@kernel(None, READ)
def _load_all(_, read, first, last, thread):
    """Load ``row`` floats, ``PIECES`` times."""
    x = floats(read.x)
    for piece in range(first, last):
        even, odd = zeros(64), zeros(64)
        for at in range(0, read.row, 128):
            even, odd = add(even, load(x, at, even)), add(odd, load(x, at + 64, odd))
        floats(read.sums)[piece] = total(add(even, odd))


@kernel(None, READ)
def _store_all(_, read, first, last, thread):
    """Store ``row`` floats, each thread its own, ``PIECES`` times."""
    x, numbers = floats(read.x + 4 * thread * read.row), splat(np.float32(1), zeros(64))
    for _ in range(first, last):
        for at in range(0, read.row, 64):
            store(x, at, numbers)


@kernel(None, READ)
def _multiply_all(_, read, first, last, thread):
    """Multiply and add ``row`` times the floats of eight registers, ``PIECES`` times."""
    factor = floats(read.x)[0]
    for piece in range(first, last):
        even, odd = splat(factor, zeros(FOUR)), splat(factor, zeros(FOUR))
        for _ in range(read.row):
            even, odd = fma(factor, even, even), fma(factor, odd, odd)
        floats(read.sums)[piece] = total(add(even, odd))


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
    read = np.array([(x.data_ptr(), x.stride(-1), *at)], READ)
    return float(np.median(_seconds(_read_rows, read, len(sums), runs)))


def _seconds(loop: Kernel, read: np.ndarray, pieces: int, runs: int) -> list[float]:
    """Return the seconds of the runs of a loop by all threads, after two more."""
    arguments = loop.address, 0, address(read), pieces, use_threads()
    return _timed(lambda: run_by_all(*arguments), runs)


def _timed(call: Callable[[], Any], runs: int) -> list[float]:
    seconds = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds[2:]


def rates(size: int) -> Work:
    """Return bytes loaded and stored, and operations, a second, of all threads; activations have ``size`` bytes."""
    count, threads = -(-size // 512) * 128, use_threads()
    x, sums = torch.ones(threads * count), np.empty(PIECES, np.float32)
    read = np.array([(x.data_ptr(), count, 0, 0, address(sums))], READ)
    loads, stores = (PIECES * 4 * count / min(_seconds(loop, read, PIECES, 20)) for loop in (_load_all, _store_all))
    read["row"] = 10_000
    return Work(loads, stores, PIECES * 10_000 * 2 * 8 * NATIVE / min(_seconds(_multiply_all, read, PIECES, 20)))


def layers() -> Iterator[tuple[str, SparseLinear | SparseConv2d, tuple[int, ...], dict[str, Work]]]:
    """Yield for each row its name, the layer, the shape of its input and of its result, and the work of each pass."""
    settings: dict[str, Any] = {"sparsity": SPARSITY, "bias": False}
    for batch, structure in itertools.product(BATCHES, STRUCTURES):
        torch.manual_seed(0)
        linear, lanes = SparseLinear(SIZE, SIZE, structure=structure, **settings), row_lanes(batch)
        yield _name("linear", structure, batch), linear, (batch, SIZE), linear_work(linear, lanes)
    for batch, structure in itertools.product(CONV_BATCHES, CONV_STRUCTURES):
        torch.manual_seed(0)
        conv, lanes = SparseConv2d(CHANNELS, CHANNELS, 3, padding=1, structure=structure, **settings), row_lanes(batch)
        yield _name("convolution", structure, batch), conv, (batch, CHANNELS, *IMAGE), conv_work(conv, IMAGE, lanes)


def _name(kind: str, structure: tuple[int, int], batch: int) -> str:
    return "{} {}×{}, batch {}".format(kind, *structure, batch)


def passes(
    layer: SparseLinear | SparseConv2d, x: torch.Tensor, g: torch.Tensor, work: dict[str, Work], rate: Work
) -> dict[str, dict[str, Any]]:
    """Return for each pass of a layer its work, its bound, its time, and the share of the bound reached.

    Args:
        layer: without bias.
        x: the input, batch innermost.
        g: the gradient of the result, batch innermost.
        work: of each pass.
        rate: bytes and operations a second (:func:`rates`).
    """
    stages, parameters = [Stage(layer.index)], [layer.values.detach(), None]
    _, passed = chain.forward(x, stages, parameters, remember=True)
    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: chain.forward(x, stages, parameters),
        "weights' gradients": lambda: chain.backward(g, passed, stages, parameters, need_input=False),
        "all gradients": lambda: chain.backward(g, passed, stages, parameters),
    }
    found = {}
    for name, call in calls.items():
        bounds = [amount / speed for amount, speed in zip(work[name], rate, strict=True)]
        seconds = min(_timed(call, RUNS))
        found[name] = {
            "kB loaded": work[name].loaded / 1e3,
            "kB stored": work[name].stored / 1e3,
            "Mflop": work[name].operations / 1e6,
            "bound µs": 1e6 * max(bounds),
            "bound by": ("loads", "stores", "arithmetic")[int(np.argmax(bounds))],
            "µs": 1e6 * seconds,
            "share": max(bounds) / seconds,
        }
    return found


def main() -> None:
    """Print all rows and write the result file."""
    warmup()
    rate, rows = rates(4 * SIZE * WIDTHS[0]), {}
    speeds = {"GB/s loaded": rate.loaded / 1e9, "GB/s stored": rate.stored / 1e9, "GFLOP/s": rate.operations / 1e9}
    print(*(f"{value:.0f} {name}" for name, value in speeds.items()))
    for name, layer, shape, work in layers():
        x, g = (to_batch_innermost(torch.randn(shape)) for _ in range(2))
        rows[name] = passes(layer, x, g, work, rate)
        for of, row in rows[name].items():
            numbers = (f"{value:9.2f} {what}" if isinstance(value, float) else value for what, value in row.items())
            print(f"  {name:28} {of:20}", *numbers, flush=True)
    values = {"size": SIZE, "channels": CHANNELS, "image": IMAGE, "sparsity": SPARSITY, "rates": speeds, "rows": rows}
    values["threads"] = torch.get_num_threads()
    save_result("bound", values, command="python benchmarks/bound.py", seed=0)


if __name__ == "__main__":
    main()
