"""Checks of the exercises of notebooks 07 and 08."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from typing import Any

import numpy as np
import scipy.sparse
import torch

from truly_sparse.layers import SparseLinear
from truly_sparse.rules import GrowChoice
from truly_sparse.topology import sample_distinct, to_mask

from ..compare import interval
from .checking import Answer, close, draws, exercise, expect, result


class _Rows:
    """An input ``[features, batch]`` that counts how often single numbers are read from it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype, self.single = array, array.shape, array.dtype, 0

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, key: Any) -> np.ndarray:
        taken = self.array[key]
        self.single += np.ndim(taken) == 0
        return taken


@exercise
def check_spmm(answer: Answer) -> None:
    """``answer(values, columns, pointers, x)``: CSR matrix times ``x`` ``[in, batch]``, by whole rows of ``x``."""
    matrix = scipy.sparse.csr_matrix(
        np.array([[0, 2, 0, 1], [0, 0, 0, 0], [5, 0, 3, 0], [0, -1, 0, 0]], dtype=np.float32)
    )
    x = _Rows(draws(4, 8).numpy())
    right = matrix @ x.array
    y = np.asarray(result(answer, matrix.data, matrix.indices, matrix.indptr, x))
    expect(y.shape == right.shape, f"output of shape {y.shape}; expected [out, batch] = {right.shape}")
    expect(
        not close(y, matrix.T @ x.array),
        "that is the transposed product: row i of y adds up the rows of x at the columns of matrix row i",
    )
    last = np.stack(
        [
            matrix.data[end - 1] * x.array[matrix.indices[end - 1]] if end > start else 0 * x.array[0]
            for start, end in itertools.pairwise(matrix.indptr)
        ]
    )
    expect(not close(y, last), "each row holds only the product of its last nonzero: add with +=, do not assign")
    expect(not y[1].any(), "row 1 is empty and must stay 0, but it holds the product of another row")
    expect(close(y, right), "the result differs from the dense product")
    expect(x.single == 0, f"x was read one number at a time, {x.single} times: for each nonzero, read a whole row of x")


@exercise
def check_transpose(answer: Answer) -> None:
    """``answer(rows, columns)``: the permutation that sorts the nonzeros by column, then by row."""
    generator = np.random.default_rng(0)
    rows, columns = np.nonzero(generator.random((7, 9)) < 0.4)
    order = np.asarray(result(answer, rows, columns))
    right = np.lexsort((rows, columns))
    expect(
        sorted(order.tolist()) == list(range(len(rows))),
        "that is not a permutation: every nonzero must appear exactly once",
    )
    expect(
        not close(order, right.argsort()),
        "that is the inverse permutation: entry i must be the position of the nonzero that comes i-th",
    )
    expect(not close(order, np.arange(len(rows))), "the order has not changed: the nonzeros are still sorted by row")
    expect((np.diff(columns[order]) >= 0).all(), "the columns are not in increasing order")
    expect(close(order, right), "the rows within a column are not in increasing order: sort by column, then by row")


@exercise
def check_weight_gradient(answer: Answer) -> None:
    """``answer(rows, columns, x, grad_y)``: the gradient of the nonzeros, without the dense gradient."""
    size, batch = 1500, 4
    places = sample_distinct(size * size, 3000, torch.Generator().manual_seed(0)).numpy()
    rows, columns = np.divmod(places, size)
    x, grad_y = draws(size, batch).numpy(), draws(size, batch, seed=1).numpy()
    tracemalloc.start()
    try:
        gradient = np.asarray(result(answer, rows, columns, x, grad_y))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    right = (grad_y[rows] * x[columns]).sum(axis=1)
    expect(gradient.shape == right.shape, f"shape {gradient.shape}; expected one number per nonzero, {right.shape}")
    expect(not close(gradient, right / batch), "that is a mean over the batch; expected the sum over the samples")
    expect(
        not close(gradient, (grad_y[columns] * x[rows]).sum(axis=1)),
        "rows and columns are swapped: rows are indices of outputs",
    )
    expect(close(gradient, right, 1e-4), "the values differ from the dense gradient at the nonzeros")
    dense = 4 * size * size
    expect(
        peak < dense / 4,
        f"{peak / 1e6:.0f} MB of memory at the peak: a dense gradient ({dense / 1e6:.0f} MB) was built",
    )


@exercise
def check_interval(answer: Answer) -> None:
    """``answer(samples)``: lower and upper end of the 95% confidence interval of the mean."""
    for samples in ([98.1, 98.5, 98.4], [97.0, 98.0, 98.2, 99.0, 97.6]):
        low, high = map(float, result(answer, samples))
        n, mean, spread = len(samples), float(np.mean(samples)), float(np.std(samples, ddof=1))
        wide, right = (high - low) / 2, (interval(samples)[1] - mean)
        of = f"± {wide:.2f} from {n} seeds"
        expect(
            math.isclose((low + high) / 2, mean, rel_tol=1e-6),
            f"({low:.2f}, {high:.2f}) is not centred on the mean {mean:.2f}",
        )
        expect(
            not math.isclose(wide, 1.96 * spread / math.sqrt(n), rel_tol=2e-3),
            f"{of}: too narrow. 1.96 is right for many samples; for {n}, use Student's t",
        )
        expect(
            not math.isclose(wide, right * math.sqrt(n), rel_tol=2e-3),
            f"{of}: that is the spread of single runs; divide by the square root of {n} for that of the mean",
        )
        expect(
            not math.isclose(wide, right * math.sqrt((n - 1) / n), rel_tol=2e-3),
            f"{of}: too narrow. Divide by n - 1, not n (ddof=1)",
        )
        expect(math.isclose(wide, right, rel_tol=2e-3), f"{of}; expected ± {right:.2f}")


@exercise
def check_growth_rule(answer: GrowChoice) -> None:
    """``answer(layer, active, count, generator)``: new connections, preferably of inputs with few connections."""
    layer, count = SparseLinear(40, 30, connections=_uneven_connections()), 60
    active = layer.active()
    grown = result(answer, layer, active, count, torch.Generator().manual_seed(0))
    expect(len(grown) == count, f"{len(grown)} connections grown, not {count}: nnz changes")
    expect(len(grown.unique()) == count, f"{count - len(grown.unique())} connections were chosen twice")
    free = (~to_mask(active, (30 * 40,))).nonzero().squeeze(1)
    every = result(answer, layer, active, len(free), torch.Generator().manual_seed(0))
    taken = int(torch.isin(torch.cat([grown, every]), active).sum())
    expect(taken == 0, f"{taken} grown connections are active already: grown and active must be disjoint")
    expect((grown.diff() > 0).all(), "the indices are not sorted; the layer expects sorted indices")
    same = answer(layer, active, count, torch.Generator().manual_seed(0))
    expect(
        torch.equal(grown, same),
        "the same generator gave two different answers: draw random numbers only from the given generator",
    )
    by_output = _mean_degree(active // 40, grown // 40) < 0.6 * _mean_degree(active // 40, free // 40)
    by_input = _mean_degree(active % 40, grown % 40) < 0.6 * _mean_degree(active % 40, free % 40)
    expect(by_input or not by_output, "it prefers outputs with few connections; expected inputs with few connections")
    expect(by_input, "inputs with few connections are chosen no more often than others")


def _mean_degree(active: torch.Tensor, units: torch.Tensor) -> float:
    """Return the mean number of active connections of the given units."""
    return float(torch.bincount(active, minlength=40)[units].double().mean())


def _uneven_connections() -> torch.Tensor:
    """Return 200 connections of a 30×40 weight; inputs and outputs with a higher index have more of them."""
    chance = torch.arange(1.0, 31).unsqueeze(1) * torch.arange(1.0, 41)
    return chance.flatten().multinomial(200, generator=torch.Generator().manual_seed(0)).sort().values


@exercise
def check_equal_width(answer: Answer) -> None:
    """``answer(budget, inputs, outputs)``: largest width of two equal hidden layers within a budget of weights."""
    for budget, inputs, outputs in ((67_173, 784, 10), (5_000, 100, 10), (1_000_000, 784, 100)):
        width = result(answer, budget, inputs, outputs)
        expect(float(width).is_integer(), f"a width of {width}: the number of neurons must be a whole number")
        of, weights = f"width {width:,}", _mlp_weights(int(width), inputs, outputs)
        forgot = budget // (inputs + outputs)
        expect(width != forgot, f"{of}: the weights between the two hidden layers are not counted")
        expect(weights <= budget, f"{of} has {weights:,} weights, more than the budget of {budget:,}")
        wider = _mlp_weights(int(width) + 1, inputs, outputs)
        expect(
            wider > budget,
            f"{of} is not the largest: {int(width) + 1:,} has {wider:,} weights, still within the budget of {budget:,}",
        )


def _mlp_weights(width: int, inputs: int, outputs: int) -> int:
    return inputs * width + width * width + width * outputs
