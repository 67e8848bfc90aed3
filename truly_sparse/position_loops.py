"""The compiled loops of ``positions.py``. Importing this file imports numba; a loop is compiled when first called."""
# Compiled functions have no type hints: numba infers them. Lists of positions are int64 arrays, sorted, distinct.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import numpy as np
from numba import config, njit

# The bits of a float32 without its sign, and of infinity; those of NaN are larger.
SIZE, INFINITE = np.int32(0x7FFFFFFF), np.int32(0x7F800000)
DIGIT = 11  # bits at most by which numbers are sorted at a time
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
def are_outside(positions, among, size):
    """Tell whether a list is sorted, distinct and in ``range(size)``, and shares no number with another list."""
    i, j = 0, 0
    while i < len(positions) and j < len(among) and positions[i] != among[j]:  # adding is faster than a branch
        before = positions[i] < among[j]
        i += before
        j += not before
    return (i == len(positions) or j == len(among)) and first_wrong(positions, size) == len(positions)


@_loop
def rewire(active, kept, grown, after, was):
    """Write the list that remains and grows, and of each position its place in ``active``, or behind it in ``grown``.

    Returns the place of the first of ``kept`` that is not active, and of the first of ``grown`` that is; -1 for none.
    ``after`` and ``was`` have room for one more.
    """
    a, i, j, at, end = 0, 0, 0, 0, len(active)
    while a < end and i < len(kept) and j < len(grown):  # writing always, and counting, is faster than a branch
        old, new = active[a], grown[j]
        if old == new:
            return -1, j
        grows = new < old
        stays = kept[i] == old
        after[at], was[at] = (new, end + j) if grows else (old, a)
        at += grows | stays
        i += stays & (not grows)
        j += grows
        a += not grows
    while j < len(grown):  # all that is kept was found, or is not active
        while a < end and active[a] < grown[j]:
            a += 1
        if a < end and active[a] == grown[j]:
            return -1, j
        after[at], was[at] = grown[j], end + j
        at, j = at + 1, j + 1
    while a < end and i < len(kept):
        stays = kept[i] == active[a]
        after[at], was[at] = active[a], a
        at, i, a = at + stays, i + stays, a + 1
    return (i if i < len(kept) else -1), -1


@_loop
def without(active, places, left):
    """Write a list without the numbers at some of its places; ``left`` has room for one more."""
    stays, at = np.ones(len(active), np.uint8), 0
    for place in places:
        stays[place] = 0
    for k in range(len(active)):
        left[at] = active[k]
        at += stays[k]


@_loop
def unranked(active, ranks, places):
    """Write, of the positions that are not in a list, those of the given ranks (sorted)."""
    a, k = 0, 0
    while a < len(active) and k < len(ranks):  # writing always is faster than a branch
        skips = active[a] - a <= ranks[k]
        places[k] = ranks[k] + a
        k += not skips
        a += skips
    for later in range(k, len(ranks)):
        places[later] = ranks[later] + a


@njit(inline="always")
def _number(drawn, i, width, size):
    low, high = int(i * width), size if i + 1 == len(drawn) else int((i + 1) * width)
    return low + int(drawn[i] * (high - low))


@_loop
def one_in_each_part(drawn, size, shift, numbers):
    """Write one number of each part of ``range(size)``, plus ``shift``, modulo ``size``; sorted.

    ``drawn`` says how far into its part each lies, from 0 to 1.
    """
    parts = len(drawn)
    width, first, end = size / max(1, parts), 0, parts  # from the first on, numbers begin at 0 again
    while first < end:
        middle = (first + end) // 2
        if _number(drawn, middle, width, size) + shift < size:
            first = middle + 1
        else:
            end = middle
    for i in range(first, parts):
        numbers[i - first] = _number(drawn, i, width, size) + shift - size
    for i in range(first):
        numbers[parts - first + i] = _number(drawn, i, width, size) + shift


@_loop
def sort_distinct(numbers, other, population):
    """Sort numbers of ``range(population)`` digit by digit, and return how many are distinct; they come first.

    ``other`` has the same length. Returns as well whether they are there instead of in ``numbers``.
    """
    bits = 1
    while population >> bits:
        bits += 1
    digits = (bits + DIGIT - 1) // DIGIT
    width = (bits + digits - 1) // digits
    starts = np.empty(1 << width, np.int64)
    mask = (1 << width) - 1
    for shift in range(0, digits * width, width):
        starts[:] = 0
        for number in numbers:
            starts[number >> shift & mask] += 1
        before = 0
        for digit in range(len(starts)):
            starts[digit], before = before, before + starts[digit]
        for number in numbers:
            digit = number >> shift & mask
            other[starts[digit]] = number
            starts[digit] += 1
        numbers, other = other, numbers
    found, before = 0, -1
    for number in numbers:  # writing always, and counting what is new, is faster than a branch
        numbers[found] = number
        found += number != before
        before = number
    return found, digits % 2 == 1


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
    if tall == 1 and wide == 1:  # compiled for these numbers, without divisions
        _by_column(indptr, cols, 1, 1, top, bottom, ends, rows, places)
    else:
        _by_column(indptr, cols, tall, wide, top, bottom, ends, rows, places)


@njit(inline="always")
def _by_column(indptr, cols, tall, wide, top, bottom, ends, rows, places):
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
    found, k = 0, 0
    while k < len(keys) and left < len(same):  # not all of the equal ones are chosen
        places[found] = k
        equal = (keys[k] == same[0]) & (left > 0)
        left -= equal
        found += (keys[k] > same[0]) | equal
        k += 1
    for later in range(k, len(keys)):
        places[found] = later
        found += keys[later] >= same[0]


@_loop
def sample(numbers, outside, step, room):
    """Write every ``step``-th magnitude of those that are not in ``outside``, and return how many there are."""
    count, skip = 0, 0
    for k in range(0, len(numbers), step):
        while skip < len(outside) and outside[skip] < k:
            skip += 1
        room[count] = abs(numbers[k])
        count += skip == len(outside) or outside[skip] != k
    return count


@_loop
def at_least(bits, outside, bound, room):
    """Write to ``room`` the positions of numbers, not in ``outside``, that reach a bound or are not finite.

    ``bits`` and ``bound`` are float32 numbers read as int32: without their sign they have the same order. Returns how
    many positions there are. ``room`` has room for one more than all.
    """
    count, skip = 0, 0
    reach = np.zeros(TOGETHER, np.uint8)  # compared many at once, then looked through eight at a time
    eights = reach.view(np.uint64)
    for start in range(0, len(bits), TOGETHER):
        numbers = bits[start : start + TOGETHER]
        reach[len(numbers) :] = 0
        for k in range(len(numbers)):
            reach[k] = (numbers[k] & SIZE) >= bound
        while skip < len(outside) and outside[skip] < start + len(numbers):
            k = outside[skip] - start
            reach[k] = (numbers[k] & SIZE) >= INFINITE
            skip += 1
        for eight in range(TOGETHER // 8):
            if eights[eight]:
                for k in range(8 * eight, 8 * eight + 8):  # writing always, and counting, is faster than a branch
                    room[count] = start + k
                    count += reach[k]
    return count


@_loop
def link_scores(output, rows, inputs_of, columns, outputs_of, score):
    """Add to ``score``, zeros, the CH3-L3 score of an output and each input; see ``recipes/links.py``.

    ``inputs_of[rows[u] : rows[u + 1]]`` are linked to the output ``u``, and ``outputs_of`` likewise to an input.
    """
    linked = np.zeros(len(columns) - 1, np.bool_)
    common = np.zeros(len(rows) - 1, np.int64)  # inputs that each output shares with this one
    shared = np.zeros(len(columns) - 1, np.int64)  # outputs that each input shares with the first node of the path
    for i in range(rows[output], rows[output + 1]):
        first = inputs_of[i]
        linked[first] = True
        for j in range(columns[first], columns[first + 1]):
            common[outputs_of[j]] += 1
    for i in range(rows[output], rows[output + 1]):
        first = inputs_of[i]
        seconds = outputs_of[columns[first] : columns[first + 1]]
        shared[:] = 0
        for second in seconds:
            if second != output:
                for end in inputs_of[rows[second] : rows[second + 1]]:
                    shared[end] += 1
        for second in seconds:
            if second != output:
                others = rows[second + 1] - rows[second] - common[second]
                for end in inputs_of[rows[second] : rows[second + 1]]:
                    if not linked[end]:
                        score[end] += 1 / np.sqrt(float((len(seconds) - shared[end]) * others))
