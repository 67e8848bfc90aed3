"""The compiled loops of a linear layer, in the words of ``simd.py``, on the records of ``program.py``.

Forward goes by output. Backward goes by input, where the gradients of the input and of the weights share their loads.
"""
# Compiled functions have no type hints: numba infers them. Names stand for the same thing everywhere: x, y, g, dx are
# activations and gradients, x_row … the floats from one of their rows to the next, b the first lane of the batch tile.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import numpy as np
from numba import prange

from .simd import (
    compiled,
    dot,
    first_lanes,
    floats,
    fma,
    inlined,
    load,
    longs,
    maximum,
    parallel,
    shorts,
    splat,
    store,
    total,
    where_positive,
    words,
    zeros,
)


@compiled
def _add_rows(call, first, last, b, zero, indptr, cols):
    x, x_row, y, y_row = floats(call.x), call.x_row, floats(call.y), call.y_row
    values, bias, relu = floats(call.values), floats(call.bias), call.relu
    for o in range(first, last):
        tile = splat(bias[o], zero)
        for k in range(indptr[o], indptr[o + 1]):
            tile = fma(values[k], load(x, cols[k] * x_row + b, zero), tile)
        if relu:
            tile = maximum(zero, tile)
        store(y, o * y_row + b, tile)


@compiled
def _rows_of(call, width, first, last, b, indptr, cols):
    if width == 64:
        _add_rows(call, first, last, b, zeros(64), indptr, cols)
    elif width == 32:
        _add_rows(call, first, last, b, zeros(32), indptr, cols)
    else:
        _add_rows(call, first, last, b, zeros(16), indptr, cols)


@parallel
def _tile(calls, plans, i, b, width):
    for chunk in prange(plans[i].row_pieces):
        call, plan = calls[i], plans[i]
        borders, indptr = longs(plan.row_chunks), longs(plan.indptr)
        if plan.wide_cols:
            _rows_of(call, width, borders[chunk], borders[chunk + 1], b, indptr, words(plan.cols))
        else:
            _rows_of(call, width, borders[chunk], borders[chunk + 1], b, indptr, shorts(plan.cols))


@compiled
def linear_forward(calls, plans, i):
    """Do the forward pass of linear layer number ``i`` of a chain, one tile of the batch after the other.

    The part of the input that a tile reads then stays in the cache while all outputs pass.
    """
    b, lanes = 0, calls[i].lanes
    for width in (64, 32, 16):
        while lanes - b >= width:
            _tile(calls, plans, i, b, width)
            b += width


@compiled
def _mask_rows(call, first, last):
    """masked = the gradient of y where ReLU let it pass, zeros in the padding; dbias = its sums over the batch."""
    g, masked, y, dbias = floats(call.g), floats(call.masked), floats(call.y), floats(call.dbias)
    for o in range(first, last):
        over_batch = zeros(16)
        for b in range(0, call.lanes, 16):
            part = first_lanes(call.batch - b, load(g, o * call.g_row + b, over_batch))
            if call.relu:
                part = where_positive(load(y, o * call.y_row + b, over_batch), part)
            store(masked, o * call.masked_row + b, part)
            over_batch = fma(np.float32(1), part, over_batch)
        dbias[o] = total(over_batch)


@inlined
def _dot_rows(call, first, last, b, zero, batch, indptr, cols):
    """By output: each weight's gradient is output gradient · input, a dot product over the batch."""
    x, x_row, g, g_row = floats(call.x), call.x_row, floats(call.masked), call.masked_row
    dvalues = floats(call.dvalues)
    for o in range(first, last):
        for k in range(indptr[o], indptr[o + 1]):
            row = first_lanes(batch, load(x, cols[k] * x_row + b, zero))
            product = dot(load(g, o * g_row + b, zero), row)
            dvalues[k] = product if b == 0 else dvalues[k] + product


@compiled
def _dots_of(call, first, last, indptr, cols):
    b = 0
    while call.batch - b >= 64:
        _dot_rows(call, first, last, b, zeros(64), 64, indptr, cols)
        b += 64
    while call.batch - b > 0:  # the last one of these has padding to leave out
        _dot_rows(call, first, last, b, zeros(16), call.batch - b, indptr, cols)
        b += 16


@inlined
def _add_columns(call, first, last, b, zero, batch, indptr, rows, perm):
    """By input: its gradient is the sum of weight × output gradient; the weights' gradients share the loads.

    The input is read again for each weight, which hits the cache: held, it would drive the tile out of the registers.
    """
    x, x_row, g, g_row = floats(call.x), call.x_row, floats(call.masked), call.masked_row
    dx, dx_row, values, dvalues = floats(call.dx), call.dx_row, floats(call.values), floats(call.dvalues)
    with_weights, before, before_relu = not call.by_row, call.dbias_before, call.relu_before
    for i in range(first, last):
        tile = zero
        for k in range(indptr[i], indptr[i + 1]):
            gradient, at = load(g, rows[k] * g_row + b, zero), perm[k]
            tile = fma(values[at], gradient, tile)
            if with_weights:
                product = dot(first_lanes(batch, load(x, i * x_row + b, zero)), gradient)
                dvalues[at] = product if b == 0 else dvalues[at] + product
        if before:  # what lies before is linear too: all that would be left of its _mask_rows
            tile = first_lanes(batch, tile)
            if before_relu:
                tile = where_positive(load(x, i * x_row + b, zero), tile)
            over_batch = total(tile)
            floats(before)[i] = over_batch if b == 0 else floats(before)[i] + over_batch
        store(dx, i * dx_row + b, tile)


@compiled
def _columns_of(call, first, last, indptr, rows, perm):
    b = 0
    while call.batch - b >= 64:
        _add_columns(call, first, last, b, zeros(64), 64, indptr, rows, perm)
        b += 64
    while call.batch - b > 0:
        _add_columns(call, first, last, b, zeros(16), call.batch - b, indptr, rows, perm)
        b += 16


@parallel
def _mask(calls, plans, i):
    for chunk in prange(plans[i].row_pieces):
        borders = longs(plans[i].row_chunks)
        _mask_rows(calls[i], borders[chunk], borders[chunk + 1])


@parallel
def _by_output(calls, plans, i):
    for chunk in prange(plans[i].row_pieces):
        call, plan = calls[i], plans[i]
        borders, indptr = longs(plan.row_chunks), longs(plan.indptr)
        if plan.wide_cols:
            _dots_of(call, borders[chunk], borders[chunk + 1], indptr, words(plan.cols))
        else:
            _dots_of(call, borders[chunk], borders[chunk + 1], indptr, shorts(plan.cols))


@parallel
def _by_input(calls, plans, i):
    for chunk in prange(plans[i].col_pieces):
        call, plan = calls[i], plans[i]
        borders, indptr, perm = longs(plan.col_chunks), longs(plan.t_indptr), words(plan.t_perm)
        if plan.wide_rows:
            _columns_of(call, borders[chunk], borders[chunk + 1], indptr, words(plan.t_rows), perm)
        else:
            _columns_of(call, borders[chunk], borders[chunk + 1], indptr, shorts(plan.t_rows), perm)


@compiled
def linear_backward(calls, plans, i):
    """Do the backward pass of linear layer number ``i`` of a chain."""
    if calls[i].masked != calls[i].g:
        _mask(calls, plans, i)
    if calls[i].by_row:
        _by_output(calls, plans, i)
    if calls[i].dx:
        _by_input(calls, plans, i)
