"""Checks of the exercises of notebooks 05 and 06."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse

from .checking import Answer, CheckFailedError, diagnose, exercise, expect, fresh, result
from .reading import array, close, in_short, number, precision


@exercise
def check_csr(answer: Answer) -> None:
    """``answer(matrix)``: pointers, columns, values."""
    for matrix in _matrices():
        given = result(answer, matrix=matrix)
        expect(isinstance(given, Sequence) and len(given) == 3, "expected three arrays: pointers, columns, values")
        pointers, columns, values = map(array, given)
        expect({pointers.ndim, columns.ndim, values.ndim} == {1}, "each of the three arrays has one dimension")
        _compare_values(values, matrix)
        _compare_pointers(pointers, matrix)
        right = scipy.sparse.csr_matrix(matrix)
        expect(
            len(columns) == right.nnz,
            f"{len(columns)} column indices for {right.nnz} nonzeros; the columns are not compressed",
        )
        # Within a row the order is free.
        rows = np.repeat(np.arange(len(matrix)), np.diff(right.indptr))
        order = np.lexsort((columns, rows))
        diagnose(
            columns[order],
            right.indices,
            {
                "columns are numbered from 0": right.indices + 1,
                "these are row indices; return the columns": rows,
                "these are flat indices; return the columns": rows * matrix.shape[1] + right.indices,
            },
            f"columns {in_short(columns)}",
        )
        diagnose(values[order], right.data, {"the signs are lost": abs(right.data)}, f"values {in_short(values)}")


def _matrices() -> Iterator[np.ndarray]:
    """Yield matrices with empty rows and columns, negative and equal values; row 0 has positive ones only."""
    for rows, columns, dtype in ((5, 4, np.float32), (4, 9, np.float64), (7, 3, np.int64), (4, 4, np.float32)):
        matrix = fresh().choice([-3, -2, -1, 1, 2, 7], (rows, columns)).astype(dtype)
        keep = fresh().random((rows, columns)) < 0.7
        keep[[1, rows - 1]] = False  # empty rows, the last one too
        keep[0, :2], keep[2] = [False, True], [True, *[False] * (columns - 2), True]
        matrix[~keep] = 0
        matrix[0], matrix[2, 0], matrix[2, -1] = abs(matrix[0]), -1, 2  # the first of column 0 is not in row 0
        yield matrix
    yield np.zeros((3, 2), dtype=np.float32)


def _compare_values(values: np.ndarray, matrix: np.ndarray) -> None:
    rows, right, by_column = np.nonzero(matrix)[0], matrix[matrix != 0], matrix.T[matrix.T != 0]
    if close(np.sort(values), np.sort(right)):
        by_row = close(values[np.lexsort((values, rows))], right[np.lexsort((right, rows))])
        expect(by_row or not close(values, by_column), "the values are ordered by column: that is CSC")
        return
    of = f"{len(values)} values stored for {right.size} nonzeros"
    expect(len(values) != matrix.size, f"{of}: zeros are stored too")
    expect(not close(values, matrix[matrix > 0]), f"{of}: the negative ones are missing")
    expect(len(values) == right.size, of)
    expect(not close(values, abs(right)), f"values {in_short(values)}: the signs are lost")
    raise CheckFailedError(f"values {in_short(values)}; expected {in_short(right)}")


def _compare_pointers(pointers: np.ndarray, matrix: np.ndarray) -> None:
    rows, lengths = matrix.nonzero()[0], np.count_nonzero(matrix, axis=1)
    right = np.concatenate([[0], lengths.cumsum()])
    filled = np.concatenate([[0], lengths[lengths > 0].cumsum()])
    diagnose(
        pointers,
        right,
        {
            "these are the row indices of COO; a pointer is the position where a row begins": rows,
            "the leading 0 is missing: row 0 begins at position 0, and n rows need n + 1 pointers": right[1:],
            "the last one is missing: n rows need n + 1 pointers, and the last is the number of nonzeros": right[:-1],
            "these are the lengths of the rows; pointers are their cumulative sum": lengths,
            "these are the lengths of the rows, with a 0 before; pointers are their sums": np.append(0, lengths),
            "an empty row has a pointer too, equal to the next one": filled,
            "empty rows at the end have pointers too": right[: rows.max(initial=-1) + 2],
            "positions are counted from 0": right + 1,
            "these are the pointers of the columns: that is CSC": scipy.sparse.csc_matrix(matrix).indptr,
        },
        f"pointers {in_short(pointers)} for {len(matrix)} rows",
    )


class _Machine:
    """A simulated call and its clock, both in seconds. The first call is cold, and some of the others are slow."""

    def __init__(self) -> None:
        self.start = self.now = float(fresh().uniform(1e4, 1e5))
        self.cold, self.took, self.readings = float(fresh().uniform(20, 30)), list[float](), 0

    def call(self) -> None:
        place, slow = len(self.took), 5 if len(self.took) % 4 == 2 else 0
        self.took.append(self.cold if place == 0 else slow + float(fresh().uniform(0.1, 0.9)))
        self.now += self.took[-1]

    def clock(self) -> float:
        self.readings += 1
        return self.now


@exercise
def check_fair_time(answer: Answer) -> None:
    """``answer(call, clock, runs)``: the median time of a warm call, in seconds."""
    for runs in (1, 9, 15, 5, 11):
        machine = _Machine()
        given = answer(machine.call, machine.clock, runs)
        expect(given is not None, "it returns None; is a `return` missing?")
        seconds, calls = number(given), len(machine.took)
        expect(calls > 0, "call() was never called")
        expect(machine.readings > 0, "clock() was never read: use the clock that is given")
        of = f"{in_short(seconds)} s from {calls} calls for {runs} timed runs"
        timed = np.array(machine.took[-runs:])
        if calls > runs and machine.readings > runs and close(given, np.median(timed)):
            continue
        whole = np.array(machine.took)
        expect(
            calls > runs
            and not any(close(seconds, wrong) for wrong in (machine.cold, whole.mean(), whole.sum() / runs)),
            f"{of}: the cold first call is part of the measurement; call once before anything is timed",
        )
        expect(
            machine.readings > runs,
            f"the clock was read {machine.readings} times: time every call separately, otherwise there is no spread",
        )
        expect(seconds < machine.start, f"{of}: that is a reading of the clock; take the difference of two")
        mistakes = {
            "that is the mean, which one slow call dominates": timed.mean(),
            "that is the minimum: the fastest call, not a typical one": timed.min(),
            "that is the maximum: the slowest call, not a typical one": timed.max(),
            "that is the sum of all runs": timed.sum(),
            "that is the median, but of all calls; the cold first call is one of them": np.median(whole),
            "these are milliseconds; return seconds": 1e3 * np.median(timed),
            "that is the time that passed since the first run, not that of each": np.median(timed.cumsum()),
            "the sign is wrong: subtract the start from the end": -np.median(timed),
        }
        diagnose(given, np.median(timed), mistakes, of)


@exercise
def check_break_even(answer: Answer) -> None:
    """``answer(value_bytes, index_bytes)``: the density below which CSR needs less memory than dense."""
    drawn = [tuple(map(int, fresh().choice([1, 2, 3, 6, 8, 16], 2, replace=False))) for _ in range(4)]
    cases = [{"value_bytes": v, "index_bytes": i} for v, i in (*drawn, (4, 4), (2, 4))]
    compare_all(
        answer, cases, _break_even, _BREAK_EVEN_MISTAKES, "{value_bytes}-byte values, {index_bytes}-byte indices"
    )


def _break_even(value_bytes: int, index_bytes: int) -> float:
    return value_bytes / (value_bytes + index_bytes)


# Symptom → the answer with this mistake.
_BREAK_EVEN_MISTAKES: dict[str, Callable[..., float]] = {
    "that is the sparsity; density is 1 minus sparsity": lambda value_bytes, index_bytes: (
        index_bytes / (value_bytes + index_bytes)
    ),
    "a nonzero takes the bytes of its value and of its index": lambda value_bytes, index_bytes: (
        value_bytes / index_bytes
    ),
    "two indices per nonzero is COO; CSR stores only the column": lambda value_bytes, index_bytes: (
        value_bytes / (value_bytes + 2 * index_bytes)
    ),
    "one half is right only if an index takes as many bytes as a value": lambda value_bytes, index_bytes: 0.5,
    "these are percent; a density is from 0 to 1": lambda value_bytes, index_bytes: (
        100 * _break_even(value_bytes, index_bytes)
    ),
    "it is always 0: is it a division of whole numbers?": lambda value_bytes, index_bytes: 0.0,
}


def compare_all(
    answer: Answer,
    cases: Sequence[dict[str, Any]],
    right: Callable[..., float],
    mistakes: Mapping[str, Callable[..., float]],
    said: str,
) -> None:
    """Compare an answer in all cases; a mistake is named if it explains every one of them.

    Args:
        answer: the function to call.
        cases: its arguments by name, in order.
        right: what it should be.
        mistakes: symptom → what it is with this mistake.
        said: how a message describes a case, with the names of arguments in braces.
    """
    given = [result(answer, **case) for case in cases]
    wrong = [
        i for i, case in enumerate(cases) if not close(number(given[i]), right(**case), max(1e-5, precision(given[i])))
    ]
    if not wrong:
        return
    first = cases[wrong[0]]
    of = f"{number(given[wrong[0]]):.4g} for {said.format(**first)}"
    for symptom, mistake in mistakes.items():
        expect(not close(given, [mistake(**case) for case in cases]), f"{of}: {symptom}")
    raise CheckFailedError(f"{of}; expected {right(**first):.4g}")


@exercise
def check_best_gain(answer: Answer) -> None:
    """``answer(sparsity, size, batch, peak, bandwidth)``: largest speed-up of CSR over dense by the roofline model."""
    mistakes = {symptom: partial(_roofline_gain, **wrong) for symptom, wrong in _ROOFLINE_MISTAKES.items()}
    rules: list[Callable[..., float]] = [_roofline_gain, *mistakes.values()]
    while True:
        cases = list(_rooflines())
        # Until each mistake shows, and differs from the others.
        gains = [tuple(f"{gain(**case):.3g}" for case in cases) for gain in rules]
        if len(set(gains)) == len(gains):
            break
    said = "sparsity {sparsity:.3f}, {size}×{size}, batch {batch}, peak {peak:.1e}, bandwidth {bandwidth:.1e}"
    compare_all(answer, cases, _roofline_gain, mistakes, said)


def _rooflines() -> Iterator[dict[str, Any]]:
    """Yield arguments, for each choice of what limits the dense product and what the sparse one."""
    for limits in (["peak", "memory"], ["memory", "memory"], ["peak", "peak"], ["peak", "memory"]):
        while True:
            draw = fresh().uniform
            case: dict[str, Any] = {
                "sparsity": float(draw(0.6, 0.98)),
                "size": int(draw(500, 4000)),
                "batch": int(draw(8, 256)),
                "peak": float(10 ** draw(10, 13)),
                "bandwidth": float(10 ** draw(10, 12)),
            }
            if limits == [_limit(share, entry, case) for share, entry in ((1, 4), (1 - case["sparsity"], 8))]:
                yield case
                break


def _limit(share: float, entry: int, case: dict[str, Any]) -> str:
    """Return what limits a product clearly: ``memory``, ``peak``, or neither."""
    weights, batch = share * case["size"] ** 2, case["batch"]
    moved = (entry * weights + 8 * case["size"] * batch) / case["bandwidth"]
    computed = 2 * weights * batch / case["peak"]
    return "memory" if moved > 1.1 * computed else "peak" if computed > 1.1 * moved else ""


def _roofline_gain(
    sparsity: float,
    size: int,
    batch: int,
    peak: float,
    bandwidth: float,
    combine: Callable[[Sequence[float]], float] = max,
    entry: int = 8,
    activations: int = 8,
    operations: int = 2,
    invert: bool = False,
    swap: bool = False,
) -> float:
    """Return dense time divided by sparse time; the last six arguments are changed to reproduce mistakes."""

    def seconds(weights: float, weight_bytes: float) -> float:
        moved = (weight_bytes + activations * size * batch) / bandwidth
        return combine([operations * weights * batch / peak, moved])

    nonzeros = (sparsity if swap else 1 - sparsity) * size * size
    gain = seconds(size * size, 4 * size * size) / seconds(nonzeros, entry * nonzeros)
    return 1 / gain if invert else gain


# Symptom → the arguments of _roofline_gain that reproduce the mistake.
_ROOFLINE_MISTAKES: dict[str, dict[str, Any]] = {
    "divide the dense time by the sparse time, not the other way round": {"invert": True},
    "arithmetic and memory traffic overlap; take the slower one, not their sum": {"combine": sum},
    "take the slower of arithmetic and memory traffic, not the faster": {"combine": min},
    "a nonzero of CSR includes its index: 8 bytes, not 4": {"entry": 4},
    "a nonzero of CSR has one index, not two: 8 bytes, not 12": {"entry": 12},
    "input and output are moved through memory too": {"activations": 0},
    "the input is moved and the output too: twice size × batch numbers": {"activations": 4},
    "sparsity and density are swapped": {"swap": True},
    "a weight takes two operations, a product and a sum": {"operations": 1},
    "the memory traffic is left out: bandwidth is a limit as well": {"combine": lambda times: times[0]},
    "the arithmetic is left out: the peak is a limit as well": {"combine": lambda times: times[1]},
}
