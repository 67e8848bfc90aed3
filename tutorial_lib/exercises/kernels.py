"""Checks of the exercises of notebook 07."""

from __future__ import annotations

import itertools
import sys
import tracemalloc
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .checking import Answer, CheckFailedError, diagnose, exercise, expect, fresh, result
from .reading import array, close


class _LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that torch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.layout == torch.strided:
            self.bytes = max(self.bytes, made.untyped_storage().nbytes())
        return made


@exercise
def check_spmm(answer: Answer) -> None:
    """``answer(values, columns, pointers, x)``: CSR matrix times ``x`` ``[in, batch]``, by whole rows of ``x``."""
    for outputs, inputs, dtype in ((6, 6, np.float32), (7, 4, np.float64), (3, 8, np.float32)):
        arguments, matrix = _product(outputs, inputs, int(fresh().integers(3, 7)), dtype)
        given = result(answer, **arguments)
        shape = array(given).shape
        right = (outputs, arguments["x"].shape[1])
        expect(shape == right, f"output of shape {shape}; expected [out, batch] = {right}")
        _compare_products(given, matrix, arguments["x"])
    _compare_steps(answer)
    # A row of x that no nonzero multiplies has no effect, whatever it holds.
    arguments, matrix = _product(5, 8, 3, np.float32)
    right, unused = matrix @ arguments["x"], sorted(set(range(8)) - set(arguments["columns"].tolist()))
    arguments["x"][unused] = np.nan
    expect(
        close(result(answer, **arguments), right),
        f"y depends on rows {unused} of x, which no nonzero multiplies: the product is a dense one",
    )


def _product(
    outputs: int, inputs: int, batch: int, dtype: Any
) -> tuple[dict[str, np.ndarray], scipy.sparse.csr_matrix]:
    """Return arguments of a product, and its matrix."""
    matrix, x = _sparse(outputs, inputs, dtype), fresh().standard_normal((inputs, batch)).astype(dtype)
    return {"values": matrix.data, "columns": matrix.indices, "pointers": matrix.indptr, "x": x}, matrix


def _compare_steps(answer: Answer) -> None:
    """Compare how many steps of Python an answer takes for a small and for a large batch."""
    arguments, _ = _product(6, 6, 5, np.float32)
    few, many = (_steps(answer, **arguments | {"x": np.tile(arguments["x"], times)}) for times in (1, 20))
    expect(
        many < 2 * few,
        f"{many / few:.0f} times as many steps for 20 times the batch: it takes single numbers of x; "
        "for each nonzero, take a whole row of x at once",
    )


def _steps(answer: Answer, **arguments: np.ndarray) -> int:
    """Return how many instructions of Python a call executes."""
    steps, before = 0, sys.gettrace()

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal steps
        steps += 1
        frame.f_trace_opcodes = True
        return trace

    sys.settrace(trace)
    try:
        answer(*arguments.values())
    finally:
        sys.settrace(before)
    return steps


def _sparse(outputs: int, inputs: int, dtype: Any) -> scipy.sparse.csr_matrix:
    """Return a matrix with empty rows and columns; row 0 has nonzeros in all other columns."""
    matrix = fresh().uniform(0.5, 2, (outputs, inputs)) * fresh().choice([-1, 1], (outputs, inputs))
    matrix[(fresh().random(matrix.shape) < 0.5)] = 0
    matrix[0] = fresh().uniform(0.5, 2, inputs)
    empty = fresh().permutation(inputs)
    matrix[:, empty[: 2 if inputs > 4 else 1]] = 0
    matrix[2, empty[-2:]] = -1, -2
    matrix[[1, -1] if outputs > 3 else [1]] = 0
    return scipy.sparse.csr_matrix(matrix.astype(dtype))


def _compare_products(y: Any, matrix: scipy.sparse.csr_matrix, x: np.ndarray) -> None:
    right = matrix @ x
    if close(y, right, 1e-4):
        return
    mistakes = {"the values are not used": (matrix != 0).astype(float) @ x, "the signs are lost": abs(matrix) @ x}
    if matrix.shape[0] == matrix.shape[1]:
        mistakes["that is the transposed product: row i of y adds up the rows of x at the columns of row i"] = (
            matrix.T @ x
        )
        rows = np.repeat(np.arange(len(right)), np.diff(matrix.indptr))
        same = scipy.sparse.csr_matrix((matrix.data, rows, matrix.indptr), matrix.shape)
        mistakes["each nonzero takes the row of x at its own row; take that at its column"] = same @ x
    for symptom, part in (
        ("each row holds only the product of its last nonzero: add with +=, do not assign", slice(-1, None)),
        ("each row holds only the product of its first nonzero", slice(0, 1)),
        ("the last nonzero of each row is missing", slice(0, -1)),
        ("the first nonzero of each row is missing", slice(1, None)),
    ):
        mistakes[symptom] = _of_each_row(matrix, part) @ x
    for symptom, wrong in mistakes.items():
        expect(not close(y, wrong, 1e-4), symptom)
    empty = [int(row) for row in np.flatnonzero(np.diff(matrix.indptr) == 0) if array(y)[row].any()]
    expect(not empty, f"rows {empty} are empty and must stay 0, but hold the product of another row")
    raise CheckFailedError("the result differs from the dense product")


def _of_each_row(matrix: scipy.sparse.csr_matrix, part: slice) -> scipy.sparse.csr_matrix:
    """Return a matrix that keeps only some of the nonzeros of each row, by their place in the row."""
    kept = matrix.copy()
    kept.data = np.zeros_like(matrix.data)
    for start, end in itertools.pairwise(matrix.indptr):
        kept.data[start:end][part] = matrix.data[start:end][part]
    return kept


@exercise
def check_transpose(answer: Answer) -> None:
    """``answer(rows, columns)``: the permutation that sorts the nonzeros by column, then by row."""
    for shape, dtype in (((7, 9), np.int64), ((120, 11), np.int32), ((5, 40), np.int64)):
        rows, columns = (part.astype(dtype) for part in _nonzeros(*shape))
        given = result(answer, rows=rows, columns=columns)
        order, right = array(given), np.lexsort((rows, columns))
        expect(
            order.ndim == 1 and sorted(order.tolist()) == list(range(len(rows))),
            "that is not a permutation: every nonzero must appear exactly once",
        )
        if close(order, right):
            continue
        for symptom, wrong in {
            "the order has not changed: the nonzeros are still sorted by row": np.arange(len(rows)),
            "that is the inverse permutation: entry i must be the position of the nonzero that comes i-th": (
                right.argsort()
            ),
            "the columns fall; they must rise": np.argsort(-columns, kind="stable"),
            "the whole order is reversed": right[::-1],
        }.items():
            expect(not close(order, wrong), symptom)
        expect((np.diff(columns[order]) >= 0).all(), "the columns are not in increasing order")
        raise CheckFailedError("the rows within a column are not in increasing order: sort by column, then by row")


def _nonzeros(outputs: int, inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of nonzeros, row by row; one row and one column have none."""
    chosen = fresh().random((outputs, inputs)) < 0.5
    chosen[0], chosen[-1] = True, [True, *[False] * (inputs - 1)]
    chosen[1], chosen[:, 2] = False, False
    rows, columns = chosen.nonzero()
    return rows, columns


@exercise
def check_weight_gradient(answer: Answer) -> None:
    """``answer(rows, columns, x, grad_y)``: the gradient of the nonzeros, without the dense gradient."""
    for outputs, inputs, dtype in ((12, 12, np.float32), (5, 9, np.float64), (1500, 1200, np.float32)):
        places = fresh().permutation(outputs * inputs)[: min(2000, outputs * inputs // 2)]
        rows, columns = np.divmod(places, inputs)
        batch = int(fresh().integers(3, 6))
        x, grad_y = (fresh().standard_normal((n, batch)).astype(dtype) for n in (inputs, outputs))
        arguments = {"rows": rows, "columns": columns, "x": x, "grad_y": grad_y}
        given = result(answer, **arguments)
        expect(
            array(given).shape == rows.shape,
            f"shape {array(given).shape}; expected one number per nonzero, {rows.shape}",
        )
        _compare_weight_gradients(given, **arguments)
    # The last case is a large one.
    dense, peak = 4 * outputs * inputs, _peak_bytes(answer, **arguments)
    expect(
        peak < dense / 10,
        f"{peak / 1e6:.0f} MB of memory at the peak: a dense gradient ({dense / 1e6:.0f} MB) was built",
    )


def _compare_weight_gradients(
    given: Any, rows: np.ndarray, columns: np.ndarray, x: np.ndarray, grad_y: np.ndarray
) -> None:
    product = grad_y[rows] * x[columns]
    right = product.sum(axis=1)
    if close(given, right, 1e-4):
        return
    mistakes = {
        "that is a mean over the batch; expected the sum over the samples": product.mean(axis=1),
        "only the first sample is used; sum over the batch": product[:, 0],
        "only the last sample is used; sum over the batch": product[:, -1],
        "these are the largest products; sum over the batch": product.max(axis=1),
        "x and grad_y are added; multiply them": (grad_y[rows] + x[columns]).sum(axis=1),
        "grad_y is not used": x[columns].sum(axis=1),
        "x is not used": grad_y[rows].sum(axis=1),
        "the sign is wrong": -right,
    }
    if len(x) == len(grad_y):
        swapped = (grad_y[columns] * x[rows]).sum(axis=1)
        mistakes["rows and columns are swapped: rows are indices of outputs"] = swapped
    diagnose(given, right, mistakes)


def _peak_bytes(answer: Answer, **arguments: np.ndarray) -> int:
    """Return how many bytes numpy holds at the peak of a call, or those of torch's largest tensor if they are more."""
    with _LargestTensor():
        torch.ones(1)  # the first operation imports modules, which take memory too
    traced = tracemalloc.is_tracing()
    tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        with _LargestTensor() as largest:
            answer(*arguments.values())
        return max(tracemalloc.get_traced_memory()[1] - before, largest.bytes)
    finally:
        if not traced:
            tracemalloc.stop()
