"""What a diagonal structure would buy: products whose weights lie on diagonals, beside single weights and blocks.

``python benchmarks/diagonals.py`` prints the times and writes ``figures/diagonals.json``.

Weights on whole diagonals need no position each: output ``o`` of a square layer of ``n`` reads the inputs ``(o + d) mod
n`` for the few ``d`` that are kept (DynaDiag, Tyagi et al., 2025). In a batch a row of the input is loaded for each
weight, as for single weights. For one sample the inputs of neighbouring outputs are neighbours in memory, so that whole
vectors can be loaded. N:M sparsity (N weights in each M inputs of an output) loads a row for each weight as well; where
four outputs share it, it is a 4×1 block with one more rule.
"""
# Compiled functions have no type hints: numba infers them.
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from truly_sparse import SparseLinear, warmup
from truly_sparse.cpu import passes, plan, program, workspace
from truly_sparse.cpu.kernel import kernel, run_by_all
from truly_sparse.cpu.memory import to_batch_innermost
from truly_sparse.cpu.simd import floats, fma, load, longs, store, zeros
from truly_sparse.cpu.stage import Stage
from truly_sparse.cpu.threads import use_threads
from tutorial_lib import benchmark, save_result

WORK = np.dtype([(name, np.int64) for name in ("values", "diagonals", "count", "size", "x", "y", "row", "lanes")])
SPARSITY = 0.95
CASES = ((1000, 1, 2000), (1000, 64, 500), (1000, 256, 200), (4096, 1, 200), (4096, 64, 40))  # size, batch, repeats
STRUCTURES = ((1, 1), (4, 1), (8, 8))


@kernel(None, WORK)
def _of_batch(_, work, first, last, thread):
    """Compute pieces of four outputs in each tile of 64 samples; an input's row serves the outputs one by one."""
    values, diagonals, x, y = floats(work.values), longs(work.diagonals), floats(work.x), floats(work.y)
    size, row = work.size, work.row
    for b in range(0, work.lanes, 64):
        for o in range(4 * first, 4 * last, 4):
            s0 = s1 = s2 = s3 = zeros(64)
            for k in range(work.count):
                at, v = o + diagonals[k], k * size + o
                s0 = fma(values[v], load(x, at % size * row + b, s0), s0)
                s1 = fma(values[v + 1], load(x, (at + 1) % size * row + b, s1), s1)
                s2 = fma(values[v + 2], load(x, (at + 2) % size * row + b, s2), s2)
                s3 = fma(values[v + 3], load(x, (at + 3) % size * row + b, s3), s3)
            store(y, o * row + b, s0)
            store(y, (o + 1) * row + b, s1)
            store(y, (o + 2) * row + b, s2)
            store(y, (o + 3) * row + b, s3)


@kernel(None, WORK)
def _of_one_sample(_, work, first, last, thread):
    """Compute pieces of 64 outputs of one sample; ``x`` holds the inputs twice in a row."""
    values, diagonals, x, y = floats(work.values), longs(work.diagonals), floats(work.x), floats(work.y)
    for piece in range(first, last):
        o = min(64 * piece, work.size - 64)
        sums = zeros(64)
        for k in range(work.count):
            sums = fma(load(values, k * work.size + o, sums), load(x, o + diagonals[k], sums), sums)
        store(y, o, sums)


def diagonal_product(size: int, batch: int) -> tuple[Callable[[], Any], int]:
    """Return a product with weights on random diagonals, checked against dense, and the number of its weights."""
    generator = np.random.default_rng(0)
    diagonals = np.sort(generator.choice(size, round((1 - SPARSITY) * size), replace=False))
    values = generator.standard_normal((len(diagonals), size)).astype(np.float32)
    outputs = np.arange(size)
    dense = np.zeros((size, size), np.float32)
    for d, of_diagonal in zip(diagonals, values, strict=True):
        dense[outputs, (outputs + d) % size] = of_diagonal
    x = torch.randn(batch, size)
    given = torch.cat([x, x], 1) if batch == 1 else to_batch_innermost(x)
    y = torch.empty(1, size) if batch == 1 else to_batch_innermost(torch.zeros(batch, size))
    numbers = plan.address(values), plan.address(diagonals), len(diagonals), size
    work = np.array([(*numbers, given.data_ptr(), y.data_ptr(), given.stride(-1), batch)], WORK)
    loop, pieces = (_of_one_sample, -(-size // 64)) if batch == 1 else (_of_batch, size // 4)
    arguments = loop.address, 0, plan.address(work), pieces, use_threads()

    def product() -> torch.Tensor:
        run_by_all(*arguments)
        return y

    torch.testing.assert_close(product(), x @ torch.from_numpy(dense).T, rtol=1e-3, atol=1e-3)
    product.held = values, diagonals, given, work  # type: ignore[attr-defined]
    return product, values.size


def layer_product(size: int, structure: tuple[int, int], x: torch.Tensor) -> tuple[Callable[[], Any], int]:
    """Return the product of a layer in this structure, prepared as far as that of the diagonals, and its weights."""
    layer = SparseLinear(size, size, sparsity=SPARSITY, bias=False, structure=structure)
    stages, given = [Stage(layer.index)], x if len(x) == 1 else to_batch_innermost(x)
    is_innermost, threads = len(x) > 1, use_threads()
    prepared = program.forward_program(stages, given, (is_innermost, is_innermost), remember=False)
    work, y, zeros_ = workspace.take(prepared, threads), prepared.empty_result(), torch.zeros(size)
    workspace.fill_in(work.frame, {plan.X: given, plan.Y: y}, [layer.values.detach(), zeros_])

    def product() -> torch.Tensor:
        passes.run_pass(prepared.address, work.frame, threads)
        return y

    torch.testing.assert_close(product(), layer(x).detach(), rtol=1e-3, atol=1e-3)
    product.held = layer, given, work, zeros_  # type: ignore[attr-defined]
    return product, layer.index.nnz


def measured(size: int, batch: int, runs: int) -> dict[str, dict[str, float]]:
    """Return the fastest time and the arithmetic rate of each product in one run; each is one compiled call."""
    torch.manual_seed(0)
    calls, weights = {}, {}
    calls["diagonals"], weights["diagonals"] = diagonal_product(size, batch)
    x = torch.randn(batch, size)
    for structure in STRUCTURES:
        name = "{}×{}".format(*structure)
        if size % structure[0]:
            continue
        calls[name], weights[name] = layer_product(size, structure, x)
    timed = benchmark(calls, runs=runs, tolerance=None)
    fastest = {name: min(seconds) for name, seconds in timed.seconds.items()}
    return {name: {"µs": 1e6 * of, "GFLOP/s": 2e-9 * weights[name] * batch / of} for name, of in fastest.items()}


def main() -> None:
    """Print all rows and write the result file."""
    warmup()
    rows = {}
    for size, batch, runs in CASES:
        rows[f"{size}², batch {batch}"] = row = measured(size, batch, runs)
        print(f"{size}², batch {batch}", {name: {k: round(v, 1) for k, v in of.items()} for name, of in row.items()})
    values = {"sparsity": SPARSITY, "threads": torch.get_num_threads(), "rows": rows}
    save_result("diagonals", values, command="python benchmarks/diagonals.py", seed=0)


if __name__ == "__main__":
    main()
