"""Checks of the exercises of notebooks 05 and 06."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from .checking import Answer, CheckFailedError, close, exercise, expect, result


@exercise
def check_csr(answer: Answer) -> None:
    """``answer(matrix)``: pointers, columns, values."""
    matrix = np.array([[0, 7, 0, 1], [0, 0, 0, 0], [5, 0, 3, 0], [0, 2, 0, 0], [0, 0, 0, 0]], dtype=np.float32)
    right = scipy.sparse.csr_matrix(matrix)
    pointers, columns, values = map(np.asarray, result(answer, matrix))
    by_column = scipy.sparse.csc_matrix(matrix)
    expect(not close(values, by_column.data), "the values are ordered by column: that is CSC")
    expect(
        not close(pointers, matrix.nonzero()[0]),
        "these are the row indices of COO; a pointer is the position where a row begins",
    )
    expect(len(values) == right.nnz, f"{len(values)} values stored for {right.nnz} nonzeros")
    expect(
        not close(pointers, right.indptr[1:]),
        "the leading 0 is missing: row 0 begins at position 0, and n rows need n + 1 pointers",
    )
    expect(
        not close(pointers, np.diff(right.indptr)),
        "these are the lengths of the rows; pointers are their cumulative sum",
    )
    expect(
        len(pointers) == 6,
        f"{len(pointers)} pointers for 5 rows: an empty row has a pointer too, equal to the next one",
    )
    for name, mine, theirs in (
        ("pointers", pointers, right.indptr),
        ("columns", columns, right.indices),
        ("values", values, right.data),
    ):
        expect(close(mine, theirs), f"{name} {mine.tolist()}; expected {theirs.tolist()}")


class _Machine:
    """A simulated call and its clock: 13.5 s for the first call, then 1 ms, but 200 ms for every fifth call."""

    def __init__(self) -> None:
        self.now, self.calls, self.readings = 0.0, 0, 0

    def call(self) -> None:
        self.calls += 1
        self.now += 13.5 if self.calls == 1 else 0.2 if self.calls % 5 == 0 else 0.001 + 1e-5 * self.calls

    def clock(self) -> float:
        self.readings += 1
        return self.now


@exercise
def check_fair_time(answer: Answer) -> None:
    """``answer(call, clock, runs)``: the median time of a warm call, in seconds."""
    machine = _Machine()
    once = result(answer, machine.call, machine.clock, 1)
    expect(machine.calls > 0, "call() was never called")
    expect(once < 13, f"{once:.1f} s for a call of 1 ms: the cold first call is part of the measurement")
    machine = _Machine()
    seconds = result(answer, machine.call, machine.clock, 9)
    expect(machine.calls > 9, f"{machine.calls} calls for 9 timed runs and a warm-up")
    expect(
        machine.readings >= 10,
        f"the clock was read {machine.readings} times: time every call separately, otherwise there is no spread",
    )
    again, singles = _Machine(), []
    for _ in range(machine.calls):
        start = again.now
        again.call()
        singles.append(again.now - start)
    timed = singles[-9:]
    expect(
        not math.isclose(seconds, float(np.mean(timed))),
        f"{1e3 * seconds:.1f} ms: that is the mean, which one slow call of 200 ms dominates",
    )
    expect(not math.isclose(seconds, min(timed)), "that is the minimum: the fastest call, not a typical one")
    expect(
        math.isclose(seconds, float(np.median(timed)), rel_tol=1e-6),
        f"{1e3 * seconds:.3f} ms; the median is {1e3 * np.median(timed):.3f} ms",
    )


@exercise
def check_break_even(answer: Answer) -> None:
    """``answer(value_bytes, index_bytes)``: the density below which CSR needs less memory than dense."""
    for value, index in ((4, 4), (2, 4), (8, 4), (1, 2)):
        density, right = result(answer, value, index), value / (value + index)
        of = f"{density:.2f} for {value}-byte values and {index}-byte indices"
        expect(density < 1, f"{of}: a density of 1 or more; a nonzero takes the bytes of its value and of its index")
        expect(
            not (math.isclose(density, 1 - right) and value != index),
            f"{of}: that is the sparsity; density is 1 minus sparsity",
        )
        expect(
            not math.isclose(density, value / (value + 2 * index)),
            f"{of}: two indices per nonzero is COO; CSR stores only the column",
        )
        expect(
            not (density == 0.5 and value != index),
            f"{of}: one half is right only if an index takes as many bytes as a value",
        )
        expect(math.isclose(density, right), f"{of}; expected {right:.2f}")


@exercise
def check_best_gain(answer: Answer) -> None:
    """``answer(sparsity, size, batch, peak, bandwidth)``: largest speed-up of CSR over dense by the roofline model."""
    peak, bandwidth = 100e9, 20e9
    for sparsity, size, batch in ((0.95, 1000, 64), (0.95, 4000, 1), (0.99, 1000, 256), (0.5, 2000, 4)):
        gain = result(answer, sparsity, size, batch, peak, bandwidth)
        right = _roofline_gain(sparsity, size, batch, peak, bandwidth)
        if math.isclose(gain, right, rel_tol=1e-6):
            continue
        at = f"{gain:.2f} times at {100 * sparsity:.0f}% sparsity, {size}×{size}, batch {batch}"
        for symptom, mistake in _ROOFLINE_MISTAKES.items():
            wrong = _roofline_gain(sparsity, size, batch, peak, bandwidth, **mistake)
            expect(not math.isclose(gain, wrong, rel_tol=1e-6), f"{at}: {symptom}")
        raise CheckFailedError(f"{at}; expected {right:.2f}")


def _roofline_gain(
    sparsity: float,
    size: int,
    batch: int,
    peak: float,
    bandwidth: float,
    combine: Callable[[Sequence[float]], float] = max,
    entry: int = 8,
    activations: int = 8,
    invert: bool = False,
) -> float:
    """Return dense time divided by sparse time; the last four arguments are changed to reproduce mistakes."""

    def seconds(weights: float, weight_bytes: float) -> float:
        return combine([2 * weights * batch / peak, (weight_bytes + activations * size * batch) / bandwidth])

    nonzeros = (1 - sparsity) * size * size
    gain = seconds(size * size, 4 * size * size) / seconds(nonzeros, entry * nonzeros)
    return 1 / gain if invert else gain


# Symptom → the arguments of _roofline_gain that reproduce the mistake.
_ROOFLINE_MISTAKES: dict[str, dict[str, Any]] = {
    "divide the dense time by the sparse time, not the other way round": {"invert": True},
    "arithmetic and memory traffic overlap; take the slower one, not their sum": {"combine": sum},
    "a nonzero of CSR includes its index: 8 bytes, not 4": {"entry": 4},
    "input and output are moved through memory too": {"activations": 0},
    "the memory traffic is left out: bandwidth is a limit as well": {"combine": lambda times: times[0]},
}
