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
    """An input ``[features, batch]`` that notes how it is read."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype, self.reads, self.single = array, array.shape, array.dtype, 0, 0

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, key: Any) -> np.ndarray:
        self.reads += 1
        taken = self.array[key]
        self.single += np.ndim(taken) == 0
        return taken


@exercise
def check_spmm(answer: Answer) -> None:
    """``answer(values, columns, pointers, x)``: sparse matrix times ``[in, batch]``, a whole row per nonzero."""
    matrix = scipy.sparse.csr_matrix(
        np.array([[0, 2, 0, 1], [0, 0, 0, 0], [5, 0, 3, 0], [0, -1, 0, 0]], dtype=np.float32)
    )
    x, right = _Rows(draws(4, 8).numpy()), None
    right = matrix @ x.array
    y = np.asarray(result(answer, matrix.data, matrix.indices, matrix.indptr, x))
    expect(y.shape == right.shape, f"output of shape {y.shape}; expected [out, batch] = {right.shape}")
    expect(not close(y, matrix.T @ x.array), "that is the transposed product: a row adds up what its columns name")
    last = np.stack(
        [
            matrix.data[end - 1] * x.array[matrix.indices[end - 1]] if end > start else 0 * x.array[0]
            for start, end in itertools.pairwise(matrix.indptr)
        ]
    )
    expect(not close(y, last), "each row holds only its last nonzero: add with +=, do not assign")
    expect(not y[1].any(), "row 1 is empty and must stay 0: it holds a neighbour's product")
    expect(close(y, right), "the result differs from the dense product")
    expect(x.single == 0, f"x was read {x.single} times one number at a time: one nonzero, one whole row of the batch")


@exercise
def check_transpose(answer: Answer) -> None:
    """``answer(rows, columns)``: the order in which the nonzeros stand column by column, rows rising."""
    generator = np.random.default_rng(0)
    rows, columns = np.nonzero(generator.random((7, 9)) < 0.4)
    order = np.asarray(result(answer, rows, columns))
    right = np.lexsort((rows, columns))
    expect(sorted(order.tolist()) == list(range(len(rows))), "that is no permutation: every nonzero must appear once")
    expect(
        not close(order, right.argsort()), "that is the inverse: it says where each nonzero goes, not which comes next"
    )
    expect(not close(order, np.arange(len(rows))), "the order has not changed: the nonzeros still stand row by row")
    expect((np.diff(columns[order]) >= 0).all(), "the columns do not rise: they must come in order")
    expect(close(order, right), "within a column the rows do not rise: sort by column, then row")


@exercise
def check_weight_gradient(answer: Answer) -> None:
    """``answer(rows, columns, x, grad_y)``: the gradient at the nonzeros, never the dense one."""
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
    expect(not close(gradient, right / batch), "a mean over the batch; the gradient of a sum over samples is their sum")
    expect(
        not close(gradient, (grad_y[columns] * x[rows]).sum(axis=1)),
        "rows and columns are swapped: rows belong to the output",
    )
    expect(close(gradient, right, 1e-4), "the values differ from the dense gradient at these places")
    dense = 4 * size * size
    expect(
        peak < dense / 4,
        f"{peak / 1e6:.0f} MB held at the peak: a dense gradient ({dense / 1e6:.0f} MB) was built on the way",
    )


@exercise
def check_interval(answer: Answer) -> None:
    """``answer(samples)``: low and high of the mean's 95% interval."""
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
            f"{of}: too narrow. 1.96 is for many samples; with {n} use Student's t",
        )
        expect(
            not math.isclose(wide, right * math.sqrt(n), rel_tol=2e-3),
            f"{of}: the spread of single runs; a mean is surer, by the root of {n}",
        )
        expect(
            not math.isclose(wide, right * math.sqrt((n - 1) / n), rel_tol=2e-3),
            f"{of}: too narrow. Divide by n - 1, not n (ddof=1)",
        )
        expect(math.isclose(wide, right, rel_tol=2e-3), f"{of}; expected ± {right:.2f}")


@exercise
def check_growth_rule(answer: GrowChoice) -> None:
    """``answer(layer, active, count, generator)``: new connections, for inputs with few outputs first."""
    layer, count = SparseLinear(40, 30, connections=_uneven_connections()), 60
    active = layer.active()
    grown = result(answer, layer, active, count, torch.Generator().manual_seed(0))
    expect(len(grown) == count, f"{len(grown)} connections grown, {count} asked for: nnz drifts")
    expect(len(grown.unique()) == count, f"{count - len(grown.unique())} places were chosen twice")
    free = (~to_mask(active, (30 * 40,))).nonzero().squeeze(1)
    every = result(answer, layer, active, len(free), torch.Generator().manual_seed(0))
    taken = int(torch.isin(torch.cat([grown, every]), active).sum())
    expect(taken == 0, f"{taken} grown connections are active already: grown and active must be disjoint")
    expect((grown.diff() > 0).all(), "the indices are not sorted; later steps rely on it")
    same = answer(layer, active, count, torch.Generator().manual_seed(0))
    expect(torch.equal(grown, same), "the same generator gave two different answers: draw from the one that is passed")
    by_output = _mean_degree(active // 40, grown // 40) < 0.6 * _mean_degree(active // 40, free // 40)
    by_input = _mean_degree(active % 40, grown % 40) < 0.6 * _mean_degree(active % 40, free % 40)
    expect(by_input or not by_output, "it feeds outputs with few inputs; asked for were inputs with few outputs")
    expect(by_input, "poorly connected inputs are chosen no more often than others")


def _mean_degree(active: torch.Tensor, units: torch.Tensor) -> float:
    """Return how many of the active connections the given units have on average."""
    return float(torch.bincount(active, minlength=40)[units].double().mean())


def _uneven_connections() -> torch.Tensor:
    """Return 200 places of a 30×40 weight: inputs and outputs of high number have more connections."""
    chance = torch.arange(1.0, 31).unsqueeze(1) * torch.arange(1.0, 41)
    return chance.flatten().multinomial(200, generator=torch.Generator().manual_seed(0)).sort().values


@exercise
def check_equal_width(answer: Answer) -> None:
    """``answer(budget, inputs, outputs)``: the widest dense network of two hidden layers within a budget of weights."""
    for budget, inputs, outputs in ((67_173, 784, 10), (5_000, 100, 10), (1_000_000, 784, 100)):
        width = result(answer, budget, inputs, outputs)
        expect(float(width).is_integer(), f"a width of {width}: a layer has whole neurons")
        of, weights = f"width {width:,}", _mlp_weights(int(width), inputs, outputs)
        forgot = budget // (inputs + outputs)
        expect(width != forgot, f"{of}: the weights between the two hidden layers are not counted")
        expect(
            weights <= budget, f"{of} has {weights:,} weights, more than the budget of {budget:,}: not a fair control"
        )
        wider = _mlp_weights(int(width) + 1, inputs, outputs)
        expect(
            wider > budget,
            f"{of} leaves room: {int(width) + 1:,} has {wider:,} of {budget:,} weights, still within the budget",
        )


def _mlp_weights(width: int, inputs: int, outputs: int) -> int:
    return inputs * width + width * width + width * outputs
