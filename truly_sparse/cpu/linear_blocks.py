"""The compiled loops of a linear layer whose weights come in blocks of four outputs, or four inputs, or multiples.

Four outputs of a block row have the same inputs: each row of the input is loaded once and used four times. Four inputs
of a block column have the same outputs: so is each row of the gradient. The weights' gradients are products of four
rows with four, or with two, summed over many samples before the lanes are.
"""
# Compiled functions have no type hints: numba infers them. Names mean the same everywhere: x, y, g, dx are activations
# and gradients; x_row … the floats from one of their rows to the next; b the first lane of the batch tile.
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import functools

import numpy as np

from .kernel import Kernel, kernel
from .linear_shape import RANGES, WIDTHS_BY_OUTPUT, WIDTHS_OF_FOUR, first_lane, store_input_gradient
from .records import CALL, PLAN
from .simd import (
    NATIVE,
    compiled,
    first_lanes,
    floats,
    fma,
    load,
    longs,
    maximum,
    positions,
    splat,
    store,
    totals,
    words,
    zeros,
)

WIDEST = WIDTHS_OF_FOUR[0]
SUMMED = 256  # samples whose products are summed before the sum over the lanes


@functools.cache
def four_outputs_of(width: int, position_bytes: int) -> Kernel:
    """Return the kernel of the forward pass for tiles of ``width`` lanes; a piece is one tile of some block rows."""

    @kernel(CALL, PLAN)
    def four_outputs(call, plan, first, last, thread):
        x, x_row, y, y_row = floats(call.x), call.x_row, floats(call.y), call.y_row
        values, bias, relu = floats(call.values), floats(call.bias), call.relu
        cols, indptr, borders = positions(plan.cols, position_bytes), longs(plan.indptr), longs(plan.row_chunks)
        zero = zeros(width)
        for piece in range(first, last):
            tile, chunk = piece // plan.row_pieces, piece % plan.row_pieces
            b = first_lane(call.lanes, width, WIDEST) + tile * width
            for block in range(borders[chunk], borders[chunk + 1]):
                start, end = indptr[block], indptr[block + 1]
                size, to_value = end - start, (plan.tall - 1) * start
                for o in range(plan.tall * block, plan.tall * (block + 1), 4):
                    s0, s1 = splat(bias[o], zero), splat(bias[o + 1], zero)
                    s2, s3 = splat(bias[o + 2], zero), splat(bias[o + 3], zero)
                    for k in range(start, end):
                        row, at = load(x, cols[k] * x_row + b, zero), k + to_value
                        s0 = fma(values[at], row, s0)
                        s1 = fma(values[at + size], row, s1)
                        s2 = fma(values[at + 2 * size], row, s2)
                        s3 = fma(values[at + 3 * size], row, s3)
                    if relu:
                        s0, s1, s2, s3 = maximum(zero, s0), maximum(zero, s1), maximum(zero, s2), maximum(zero, s3)
                    store(y, o * y_row + b, s0)
                    store(y, (o + 1) * y_row + b, s1)
                    store(y, (o + 2) * y_row + b, s2)
                    store(y, (o + 3) * y_row + b, s3)
                    to_value += 4 * size

    return four_outputs


@functools.cache
def four_of_one_sample(position_bytes: int) -> Kernel:
    """Return the kernel of the forward pass for one sample."""

    @kernel(CALL, PLAN)
    def four_of_sample(call, plan, first, last, thread):
        x, x_row, y, y_row, nothing = floats(call.x), call.x_row, floats(call.y), call.y_row, np.float32(0)
        values, bias, relu = floats(call.values), floats(call.bias), call.relu
        cols, indptr, borders = positions(plan.cols, position_bytes), longs(plan.indptr), longs(plan.row_chunks)
        for block in range(borders[first], borders[last]):
            start, end = indptr[block], indptr[block + 1]
            size, to_value = end - start, (plan.tall - 1) * start
            for o in range(plan.tall * block, plan.tall * (block + 1), 4):
                s0, s1, s2, s3 = bias[o], bias[o + 1], bias[o + 2], bias[o + 3]
                for k in range(start, end):
                    number, at = x[cols[k] * x_row], k + to_value
                    s0 += values[at] * number
                    s1 += values[at + size] * number
                    s2 += values[at + 2 * size] * number
                    s3 += values[at + 3 * size] * number
                y[o * y_row] = max(s0, nothing) if relu else s0
                y[(o + 1) * y_row] = max(s1, nothing) if relu else s1
                y[(o + 2) * y_row] = max(s2, nothing) if relu else s2
                y[(o + 3) * y_row] = max(s3, nothing) if relu else s3
                to_value += 4 * size

    return four_of_sample


@functools.cache
def four_inputs_of(width: int, position_bytes: int) -> Kernel:
    """Return the kernel of the input's gradient for tiles of ``width`` lanes; a piece is some block columns."""

    @kernel(CALL, PLAN)
    def four_inputs(call, plan, first, last, thread):
        borders, perm, zero = longs(plan.col_chunks), words(plan.t_perm), zeros(width)
        rows, columns = positions(plan.t_rows, position_bytes), plan.inputs // plan.wide
        x, x_row, g, g_row = floats(call.x), call.x_row, floats(call.masked), call.masked_row
        dx, dx_row, values = floats(call.dx), call.dx_row, floats(call.values)
        for part in range(plan.blocks):
            indptr = longs(plan.t_indptr + 8 * part * columns)
            b = first_lane(call.lanes, width, WIDEST)
            while call.lanes - b >= width:
                for column in range(borders[first], borders[last]):
                    start, end = indptr[column], indptr[column + 1]
                    for c in range(0, plan.wide, 4):
                        i = plan.wide * column + c
                        at, s0, s1, s2, s3 = i * dx_row + b, zero, zero, zero, zero
                        if part > 0:
                            s0, s1 = load(dx, at, zero), load(dx, at + dx_row, zero)
                            s2, s3 = load(dx, at + 2 * dx_row, zero), load(dx, at + 3 * dx_row, zero)
                        for k in range(start, end):
                            gradient, place = load(g, rows[k] * g_row + b, zero), perm[k] + c
                            s0 = fma(values[place], gradient, s0)
                            s1 = fma(values[place + 1], gradient, s1)
                            s2 = fma(values[place + 2], gradient, s2)
                            s3 = fma(values[place + 3], gradient, s3)
                        if part + 1 == plan.blocks:
                            from_x = i * x_row + b
                            store_input_gradient(call, i, b, s0, load(x, from_x, zero))
                            store_input_gradient(call, i + 1, b, s1, load(x, from_x + x_row, zero))
                            store_input_gradient(call, i + 2, b, s2, load(x, from_x + 2 * x_row, zero))
                            store_input_gradient(call, i + 3, b, s3, load(x, from_x + 3 * x_row, zero))
                        else:
                            store(dx, at, s0)
                            store(dx, at + dx_row, s1)
                            store(dx, at + 2 * dx_row, s2)
                            store(dx, at + 3 * dx_row, s3)
                b += width

    return four_inputs


@compiled
def _first_from(cols, start, end, column):
    """Return the place of the first of some ascending columns that is not below ``column``."""
    while start < end:
        middle = (start + end) // 2
        if cols[middle] < column:
            start = middle + 1
        else:
            end = middle
    return start


@functools.cache
def inputs_by_output_of(width: int, position_bytes: int) -> Kernel:
    """Return the kernel of the input's gradient, by output, for tiles of ``width`` lanes.

    A piece is one of ``RANGES`` ranges of the inputs in one tile; adjacent ones in a tile are computed together.
    The gradients of four outputs are held in registers, and each row of the input's gradient is added to in memory, so
    that the weights are read in their own order.
    """

    @kernel(CALL, PLAN)
    def inputs_by_output(call, plan, first, last, thread):
        g, g_row, dx, dx_row = floats(call.masked), call.masked_row, floats(call.dx), call.dx_row
        values, zero = floats(call.values), zeros(width)
        cols, indptr = positions(plan.cols, position_bytes), longs(plan.indptr)
        for tile in range(first // RANGES, (last + RANGES - 1) // RANGES):
            b = first_lane(call.lanes, width, WIDTHS_BY_OUTPUT[0]) + tile * width
            low = plan.inputs * max(first - tile * RANGES, 0) // RANGES
            high = plan.inputs * min(last - tile * RANGES, RANGES) // RANGES
            for i in range(low, high):
                store(dx, i * dx_row + b, zero)
            for block in range(plan.outputs // plan.tall):
                start, end = indptr[block], indptr[block + 1]
                size, to_value = end - start, (plan.tall - 1) * start
                if low > 0:
                    start = _first_from(cols, start, end, low)
                if high < plan.inputs:
                    end = _first_from(cols, start, end, high)
                for o in range(plan.tall * block, plan.tall * (block + 1), 4):
                    g0, g1 = load(g, o * g_row + b, zero), load(g, (o + 1) * g_row + b, zero)
                    g2, g3 = load(g, (o + 2) * g_row + b, zero), load(g, (o + 3) * g_row + b, zero)
                    for k in range(start, end):
                        here, at = cols[k] * dx_row + b, k + to_value
                        s = fma(values[at], g0, load(dx, here, zero))
                        s = fma(values[at + size], g1, s)
                        s = fma(values[at + 2 * size], g2, s)
                        store(dx, here, fma(values[at + 3 * size], g3, s))
                    to_value += 4 * size

    return inputs_by_output


@compiled
def _products(four, row, one, other, b, last):
    """Return the products of four rows with two others, summed over lanes ``b`` to ``last``, as a vector of eight.

    The rows are addresses; the four follow each other after ``row`` floats. Lanes from ``last`` on are not counted.
    """
    f0, f1, f2, f3 = floats(four), floats(four + 4 * row), floats(four + 8 * row), floats(four + 12 * row)
    p, q, zero = floats(one), floats(other), zeros(NATIVE)
    p0 = p1 = p2 = p3 = q0 = q1 = q2 = q3 = zero
    while b + NATIVE <= last:
        x, z = load(p, b, zero), load(q, b, zero)
        g0, g1, g2, g3 = load(f0, b, zero), load(f1, b, zero), load(f2, b, zero), load(f3, b, zero)
        p0, p1, p2, p3 = fma(g0, x, p0), fma(g1, x, p1), fma(g2, x, p2), fma(g3, x, p3)
        q0, q1, q2, q3 = fma(g0, z, q0), fma(g1, z, q1), fma(g2, z, q2), fma(g3, z, q3)
        b += NATIVE
    if b < last:
        keep = last - b
        x, z = first_lanes(keep, load(p, b, zero)), first_lanes(keep, load(q, b, zero))
        g0, g1 = first_lanes(keep, load(f0, b, zero)), first_lanes(keep, load(f1, b, zero))
        g2, g3 = first_lanes(keep, load(f2, b, zero)), first_lanes(keep, load(f3, b, zero))
        p0, p1, p2, p3 = fma(g0, x, p0), fma(g1, x, p1), fma(g2, x, p2), fma(g3, x, p3)
        q0, q1, q2, q3 = fma(g0, z, q0), fma(g1, z, q1), fma(g2, z, q2), fma(g3, z, q3)
    return totals(p0, p1, p2, p3, q0, q1, q2, q3)


@compiled
def _add_four(dvalues, at, step, sums, n, before):
    """Add four of eight sums to the gradients of four weights, or write them if nothing was summed ``before``."""
    for r in range(4):
        dvalues[at + r * step] = dvalues[at + r * step] + sums[n + r] if before else sums[n + r]


@compiled
def _sixteen_products(four, row, others, other_row, b, last, sums):
    """Write the products of four rows with four others, summed over lanes ``b`` to ``last``: those of a row together.

    The rows are addresses; each four follow each other after ``row`` and ``other_row`` floats.
    """
    f0, f1, f2, f3 = floats(four), floats(four + 4 * row), floats(four + 8 * row), floats(four + 12 * row)
    o0, o1 = floats(others), floats(others + 4 * other_row)
    o2, o3, zero = floats(others + 8 * other_row), floats(others + 12 * other_row), zeros(NATIVE)
    p0 = p1 = p2 = p3 = q0 = q1 = q2 = q3 = r0 = r1 = r2 = r3 = s0 = s1 = s2 = s3 = zero
    while b + NATIVE <= last:
        x0, x1, x2, x3 = load(o0, b, zero), load(o1, b, zero), load(o2, b, zero), load(o3, b, zero)
        g0, g1, g2, g3 = load(f0, b, zero), load(f1, b, zero), load(f2, b, zero), load(f3, b, zero)
        p0, p1, p2, p3 = fma(g0, x0, p0), fma(g0, x1, p1), fma(g0, x2, p2), fma(g0, x3, p3)
        q0, q1, q2, q3 = fma(g1, x0, q0), fma(g1, x1, q1), fma(g1, x2, q2), fma(g1, x3, q3)
        r0, r1, r2, r3 = fma(g2, x0, r0), fma(g2, x1, r1), fma(g2, x2, r2), fma(g2, x3, r3)
        s0, s1, s2, s3 = fma(g3, x0, s0), fma(g3, x1, s1), fma(g3, x2, s2), fma(g3, x3, s3)
        b += NATIVE
    if b < last:
        keep = last - b
        x0, x1 = first_lanes(keep, load(o0, b, zero)), first_lanes(keep, load(o1, b, zero))
        x2, x3 = first_lanes(keep, load(o2, b, zero)), first_lanes(keep, load(o3, b, zero))
        g0, g1 = first_lanes(keep, load(f0, b, zero)), first_lanes(keep, load(f1, b, zero))
        g2, g3 = first_lanes(keep, load(f2, b, zero)), first_lanes(keep, load(f3, b, zero))
        p0, p1, p2, p3 = fma(g0, x0, p0), fma(g0, x1, p1), fma(g0, x2, p2), fma(g0, x3, p3)
        q0, q1, q2, q3 = fma(g1, x0, q0), fma(g1, x1, q1), fma(g1, x2, q2), fma(g1, x3, q3)
        r0, r1, r2, r3 = fma(g2, x0, r0), fma(g2, x1, r1), fma(g2, x2, r2), fma(g2, x3, r3)
        s0, s1, s2, s3 = fma(g3, x0, s0), fma(g3, x1, s1), fma(g3, x2, s2), fma(g3, x3, s3)
    store(sums, 0, totals(p0, p1, p2, p3, q0, q1, q2, q3))
    store(sums, 8, totals(r0, r1, r2, r3, s0, s1, s2, s3))


@functools.cache
def sixteen_products_of(position_bytes: int) -> Kernel:
    """Return the kernel of the weights' gradients for blocks of four outputs and inputs; a piece is some block rows."""

    @kernel(CALL, PLAN)
    def sixteen_products(call, plan, first, last, thread):
        x_row, g_row, sums = call.x_row, call.masked_row, floats(call.scratch + thread * call.scratch_bytes)
        dvalues, indptr, borders = floats(call.dvalues), longs(plan.indptr), longs(plan.row_chunks)
        cols = positions(plan.cols, position_bytes)
        for b in range(0, call.batch, SUMMED):
            behind = min(b + SUMMED, call.batch)
            for group in range(borders[first], borders[last]):
                start, end = indptr[group], indptr[group + 1]
                size, to_value = end - start, (plan.tall - 1) * start
                for o in range(plan.tall * group, plan.tall * (group + 1), 4):
                    rows = call.masked + 4 * o * g_row
                    for k in range(start, end, 4):
                        _sixteen_products(rows, g_row, call.x + 4 * cols[k] * x_row, x_row, b, behind, sums)
                        for r in range(4):
                            at = k + to_value + r * size
                            for c in range(4):
                                before = dvalues[at + c] if b > 0 else np.float32(0)
                                dvalues[at + c] = before + sums[4 * r + c]
                    to_value += 4 * size

    return sixteen_products


@functools.cache
def four_products_of(by_input: bool, position_bytes: int) -> Kernel:
    """Return the kernel of the weights' gradients; a piece is some block rows, or (``by_input``) block columns."""

    @kernel(CALL, PLAN)
    def four_products(call, plan, first, last, thread):
        dvalues, perm, sums = (
            floats(call.dvalues),
            words(plan.t_perm),
            floats(call.scratch + thread * call.scratch_bytes),
        )
        x, x_row, g, g_row = call.x, 4 * call.x_row, call.masked, 4 * call.masked_row
        if by_input:
            size, four, four_row, two, two_row, parts = plan.wide, x, x_row, g, g_row, plan.blocks
            borders, pointers, others = longs(plan.col_chunks), plan.t_indptr, positions(plan.t_rows, position_bytes)
        else:
            size, four, four_row, two, two_row, parts = plan.tall, g, g_row, x, x_row, 1
            borders, pointers, others = longs(plan.row_chunks), plan.indptr, positions(plan.cols, position_bytes)
        for part in range(parts):
            indptr = longs(pointers + 8 * part * (plan.inputs // plan.wide))
            for b in range(0, call.batch, SUMMED):
                behind = min(b + SUMMED, call.batch)
                for group in range(borders[first], borders[last]):
                    start, end = indptr[group], indptr[group + 1]
                    for n in range(0, size, 4):
                        rows = four + (group * size + n) * four_row
                        to_value = (size - 1) * start + n * (end - start)
                        for k in range(start, end, 2):
                            both, beside = k + 1 < end, min(k + 1, end - 1)
                            one, other = two + others[k] * two_row, two + others[beside] * two_row
                            store(sums, 0, _products(rows, four_row // 4, one, other, b, behind))
                            if by_input:
                                at, next_at, step = perm[k] + n, perm[beside] + n, 1
                            else:
                                at, next_at, step = k + to_value, beside + to_value, end - start
                            _add_four(dvalues, at, step, sums, 0, b > 0)
                            if both:
                                _add_four(dvalues, next_at, step, sums, 4, b > 0)

    return four_products
