"""Checks of the exercises of notebooks 05 and 06."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from .checking import Answer, close, exercise, expect, result


@exercise
def check_csr(answer: Answer) -> None:
    """``answer(matrix)``: pointers, columns, values."""
    matrix = np.array([[0, 7, 0, 1], [0, 0, 0, 0], [5, 0, 3, 0], [0, 2, 0, 0], [0, 0, 0, 0]], dtype=np.float32)
    right = scipy.sparse.csr_matrix(matrix)
    pointers, columns, values = map(np.asarray, result(answer, matrix))
    by_column = scipy.sparse.csc_matrix(matrix)
    expect(not close(values, by_column.data), "the values come column by column: that is CSC")
    expect(not close(pointers, matrix.nonzero()[0]), "these are the rows of COO; a pointer says where a row begins")
    expect(len(values) == right.nnz, f"{len(values)} values stored for {right.nnz} nonzeros")
    expect(
        not close(pointers, right.indptr[1:]),
        "the leading 0 is missing: row 0 begins at 0, n rows need n + 1 pointers",
    )
    expect(not close(pointers, np.diff(right.indptr)), "these are the rows' lengths; pointers add them up")
    expect(len(pointers) == 6, f"{len(pointers)} pointers for 5 rows: an empty row has one too, equal to the next")
    for name, mine, theirs in (
        ("pointers", pointers, right.indptr),
        ("columns", columns, right.indices),
        ("values", values, right.data),
    ):
        expect(close(mine, theirs), f"{name} {mine.tolist()}; expected {theirs.tolist()}")


class _Machine:
    """A call and a clock that can be predicted: cold at first, then 1 ms, with a hiccup at every fifth call."""

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
    """``answer(call, clock, runs)``: median seconds of a warm call."""
    machine = _Machine()
    once = result(answer, machine.call, machine.clock, 1)
    expect(machine.calls > 0, "call was never called")
    expect(once < 13, f"{once:.1f} s for a call of 1 ms: the cold first call is inside the measurement")
    machine = _Machine()
    seconds = result(answer, machine.call, machine.clock, 9)
    expect(machine.calls > 9, f"{machine.calls} calls for 9 timed runs and a warm-up")
    expect(
        machine.readings >= 10, f"the clock was read {machine.readings} times: time every call, or there is no spread"
    )
    again, singles = _Machine(), []
    for _ in range(machine.calls):
        start = again.now
        again.call()
        singles.append(again.now - start)
    timed = singles[-9:]
    expect(
        not math.isclose(seconds, float(np.mean(timed))),
        f"{1e3 * seconds:.1f} ms: a mean, ruled by one hiccup of 200 ms",
    )
    expect(not math.isclose(seconds, min(timed)), "the minimum flatters: it is the luckiest call, not a typical one")
    expect(
        math.isclose(seconds, float(np.median(timed)), rel_tol=1e-6),
        f"{1e3 * seconds:.3f} ms; the median is {1e3 * np.median(timed):.3f} ms",
    )


@exercise
def check_break_even(answer: Answer) -> None:
    """``answer(value_bytes, index_bytes)``: the density below which CSR is smaller than dense."""
    for value, index in ((4, 4), (2, 4), (8, 4), (1, 2)):
        density, right = result(answer, value, index), value / (value + index)
        of = f"{density:.2f} for {value}-byte values and {index}-byte indices"
        expect(density < 1, f"{of}: a density of 1 or more; a nonzero costs its value and its index")
        expect(
            not (math.isclose(density, 1 - right) and value != index),
            f"{of}: that is the sparsity; density is what remains",
        )
        expect(
            not math.isclose(density, value / (value + 2 * index)),
            f"{of}: two indices a nonzero is COO; CSR stores the column only",
        )
        expect(
            not (density == 0.5 and value != index), f"{of}: one half holds only where an index is as wide as a value"
        )
        expect(math.isclose(density, right), f"{of}; expected {right:.2f}")


@exercise
def check_best_gain(answer: Answer) -> None:
    """``answer(sparsity, size, batch, peak, bandwidth)``: the roofline's bound on CSR against dense."""
    machine: dict[str, Any] = {"peak": 100e9, "bandwidth": 20e9}
    for sparsity, size, batch in ((0.95, 1000, 64), (0.95, 4000, 1), (0.99, 1000, 256), (0.5, 2000, 4)):
        gain = result(answer, sparsity, size, batch, machine["peak"], machine["bandwidth"])
        bounds = {
            name: _roofline_gain(sparsity, size, batch, **machine, **how) for name, how in _ROOFLINE_ERRORS.items()
        }
        at = f"{gain:.2f} times at {100 * sparsity:.0f}% sparsity, {size}×{size}, batch {batch}"
        right = bounds.pop("")
        if not math.isclose(gain, right, rel_tol=1e-6):
            for symptom, wrong in bounds.items():
                expect(not math.isclose(gain, wrong, rel_tol=1e-6), f"{at}: {symptom}")
        expect(math.isclose(gain, right, rel_tol=1e-6), f"{at}; expected {right:.2f}")


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
    def seconds(weights: float, weight_bytes: float) -> float:
        return combine([2 * weights * batch / peak, (weight_bytes + activations * size * batch) / bandwidth])

    nonzeros = (1 - sparsity) * size * size
    gain = seconds(size * size, 4 * size * size) / seconds(nonzeros, entry * nonzeros)
    return 1 / gain if invert else gain


_ROOFLINE_ERRORS: dict[str, dict[str, Any]] = {
    "": {},
    "dense time over sparse time, not the other way round": {"invert": True},
    "arithmetic and traffic overlap; the slower one decides, they do not add up": {"combine": sum},
    "a nonzero of CSR brings its index along, 8 bytes, not 4": {"entry": 4},
    "input and output are moved too": {"activations": 0},
    "the bytes are left out: memory has a roof as well": {"combine": lambda times: times[0]},
}
