"""The compiled loops of ``positions.py``. Importing this file imports numba; a loop is compiled when first called."""
# Compiled functions have no type hints: numba infers them. Lists of positions are int64 arrays, sorted, distinct.
# ruff: noqa: ANN001, ANN201

from __future__ import annotations

import numpy as np
from numba import config, njit

# The bits of a float32 without its sign, and of infinity; those of NaN are larger.
SIZE, INFINITE = np.int32(0x7FFFFFFF), np.int32(0x7F800000)
TOGETHER = 4096  # numbers that are compared before the next step

if config.DISABLE_JIT:  # type: ignore[attr-defined]
    raise RuntimeError("NUMBA_DISABLE_JIT is set; numpy is faster than these loops uncompiled")
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
def first_wrong(positions, size):
    """Return where a list is not sorted, distinct and in ``range(size)``; its length if it is."""
    before = -1
    for k in range(len(positions)):
        if not before < positions[k] < size:
            return k
        before = positions[k]
    return len(positions)


@_loop
def rewire(active, kept, grown, after, was):
    """Write the list that remains and grows, and of each position its place in ``active``, or behind it in ``grown``.

    Returns the place of the first of ``kept`` that is not active, and of the first of ``grown`` that is; -1 for none.
    """
    a, j, n, m, end = 0, 0, len(kept), len(grown), len(active)
    i = 0
    while i < n or j < m:
        grows = i == n or (j < m and grown[j] < kept[i])
        place = grown[j] if grows else kept[i]
        while a < end and active[a] < place:
            a += 1
        found = a < end and active[a] == place
        if grows:
            if found:
                return -1, j
            after[i + j], was[i + j], j = place, end + j, j + 1
        else:
            if not found:
                return i, -1
            after[i + j], was[i + j], i = place, a, i + 1
    return -1, -1


@_loop
def unranked(active, ranks, places):
    """Write, of the positions that are not in a list, those of the given ranks (sorted)."""
    a, end = 0, len(active)
    for k in range(len(ranks)):
        while a < end and active[a] - a <= ranks[k]:
            a += 1
        places[k] = ranks[k] + a


@_loop
def split(positions, inputs, indptr, cols):
    """Write the columns of positions in a matrix with ``inputs`` columns, and where each row begins."""
    o = 0
    for k in range(len(positions)):
        while positions[k] >= (o + 1) * inputs:
            o += 1
            indptr[o] = k
        cols[k] = positions[k] - o * inputs
    indptr[o + 1 :] = len(positions)


@_loop
def joined(indptr, cols, inputs, tall, positions):
    """Write the positions of the weights of block rows of ``tall`` rows, whose columns are listed once."""
    for o in range(len(indptr) - 1):
        size = indptr[o + 1] - indptr[o]
        for r in range(tall):
            start, row = tall * indptr[o] + r * size, (tall * o + r) * inputs
            for k in range(size):
                positions[start + k] = row + cols[indptr[o] + k]


@_loop
def by_column(indptr, cols, tall, wide, top, bottom, ends, rows, places):
    """Sort the weights of block rows ``top`` to ``bottom`` by block column; those of one column stay in order.

    Writes the row and the place of the first of ``wide`` weights, and where each block column ends. ``ends`` holds
    zeros before.
    """
    begin = tall * indptr[top] // wide
    for k in range(indptr[top], indptr[bottom], wide):
        ends[cols[k] // wide] += tall
    for i in range(len(ends)):
        count, ends[i] = ends[i], begin
        begin += count
    for o in range(top, bottom):
        size = indptr[o + 1] - indptr[o]
        for r in range(tall):
            start = tall * indptr[o] + r * size
            for k in range(0, size, wide):
                column = cols[indptr[o] + k] // wide
                at = ends[column]
                rows[at], places[at] = tall * o + r, start + k
                ends[column] = at + 1


@_loop
def largest(bits, count, places):
    """Write the places of the ``count`` largest numbers; of equal ones the first. ``count`` is at least 1.

    ``bits`` are float32 numbers, without NaN and −0, read as int32. The smallest of the chosen is found digit by digit,
    11 bits at a time. ``places`` has room for one more.
    """
    keys = np.empty(len(bits), np.uint32)  # in the order of the numbers
    for k in range(len(bits)):
        keys[k] = np.uint32(bits[k]) ^ (np.uint32(bits[k] >> 31) | np.uint32(0x80000000))
    same, left = keys, count
    for shift in (21, 10, 0):
        bins = np.zeros(2048, np.int64)
        for key in same:
            bins[(key >> shift) & 2047] += 1
        digit = 2047
        while bins[digit] < left:
            left -= bins[digit]
            digit -= 1
        some, found = np.empty(bins[digit] + 1, np.uint32), 0
        for key in same:  # writing always, and counting what fits, is faster than a branch
            some[found] = key
            found += ((key >> shift) & 2047) == digit
        same = some[:found]
    found = 0
    for k in range(len(keys)):
        places[found] = k
        equal = (keys[k] == same[0]) & (left > 0)
        left -= equal
        found += (keys[k] > same[0]) | equal


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
