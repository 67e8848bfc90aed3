"""The compiled loops of ``positions.py``. Importing this file imports numba; a loop is compiled when first called."""
# Compiled functions have no type hints: numba infers them. Lists of positions are int64 arrays, sorted, distinct.
# ruff: noqa: ANN001, ANN201

from __future__ import annotations

import numpy as np
from numba import njit

# The bits of a float32 without its sign, and of infinity; those of NaN are larger.
SIZE, INFINITE = np.int32(0x7FFFFFFF), np.int32(0x7F800000)
TOGETHER = 4096  # numbers that are compared before the next step

_loop = njit(cache=True, nogil=True)


@_loop
def contained(numbers, among, inside):
    """Write for each of ``numbers`` whether it is in ``among``."""
    j, end = 0, len(among)
    for i in range(len(numbers)):
        while j < end and among[j] < numbers[i]:
            j += 1
        inside[i] = j < end and among[j] == numbers[i]


@_loop
def merge(one, other, both, order):
    """Write the positions of both lists, and the place of each behind one another."""
    i, j, n, m = 0, 0, len(one), len(other)
    for k in range(n + m):
        if j == m or (i < n and one[i] < other[j]):
            both[k], order[k], i = one[i], i, i + 1
        else:
            both[k], order[k], j = other[j], n + j, j + 1


@_loop
def at_least(bits, outside, bound, room):
    """Write to ``room`` the positions of numbers, not in ``outside``, that reach a bound or are not finite.

    ``bits`` and ``bound`` are float32 numbers read as int32: without their sign they have the same order. Returns how
    many positions there are.
    """
    count, skip, skips = 0, 0, len(outside)
    reach = np.zeros(TOGETHER, np.uint8)  # compared many at once, then looked through eight at a time
    eights = reach.view(np.uint64)
    for start in range(0, len(bits), TOGETHER):
        numbers = bits[start : start + TOGETHER]
        reach[len(numbers) :] = 0
        for k in range(len(numbers)):
            reach[k] = (numbers[k] & SIZE) >= bound
        for eight in range(TOGETHER // 8):
            if eights[eight]:
                for k in range(8 * eight, 8 * eight + 8):
                    if reach[k]:
                        while skip < skips and outside[skip] < start + k:
                            skip += 1
                        if skip == skips or outside[skip] != start + k or (numbers[k] & SIZE) >= INFINITE:
                            room[count] = start + k
                            count += 1
    return count
