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

TILES = (32, 16)  # lanes of the batch that are added up at a time: 32 still fit the registers of a CPU without AVX-512


@compiled
def _add_rows(call, first, last, b, zero, indptr, cols):
    x, x_row, y, y_row = floats(call.x), call.x_row, floats(call.y), call.y_row
    values, bias, relu = floats(call.values), floats(call.bias), call.relu
    for o in range(first, last):
        even, odd = splat(bias[o], zero), zero  # two sums, so that none waits for the one before
        k, end = indptr[o], indptr[o + 1]
        while k + 1 < end:
            even = fma(values[k], load(x, cols[k] * x_row + b, zero), even)
            odd = fma(values[k + 1], load(x, cols[k + 1] * x_row + b, zero), odd)
            k += 2
        if k < end:
            even = fma(values[k], load(x, cols[k] * x_row + b, zero), even)
        tile = fma(np.float32(1), odd, even)
        if relu:
            tile = maximum(zero, tile)
        store(y, o * y_row + b, tile)


@compiled
def _tile_of(call, plan, width, first, last, b, cols):
    if width == 32:
        _add_rows(call, first, last, b, zeros(32), longs(plan.indptr), cols)
    else:
        _add_rows(call, first, last, b, zeros(16), longs(plan.indptr), cols)


@compiled
def _tile(call, plan, first, last, b, width):
    if plan.wide_cols:
        _tile_of(call, plan, width, first, last, b, words(plan.cols))
    else:
        _tile_of(call, plan, width, first, last, b, shorts(plan.cols))


@parallel
def _tile_by_all(calls, plans, i, b, width):
    for chunk in prange(plans[i].row_pieces):
        borders = longs(plans[i].row_chunks)
        _tile(calls[i], plans[i], borders[chunk], borders[chunk + 1], b, width)


@compiled
def linear_forward(calls, plans, i):
    """Do the forward pass of linear layer number ``i`` of a chain with all threads, one tile of the batch at a time.

    The part of the input that a tile reads then stays in the cache while all outputs pass.
    """
    b, lanes = 0, calls[i].lanes
    for width in TILES:
        while lanes - b >= width:
            _tile_by_all(calls, plans, i, b, width)
            b += width


@compiled
def linear_forward_alone(call, plan):
    """Do the forward pass of a linear layer with the thread that calls."""
    b = 0
    for width in TILES:
        while call.lanes - b >= width:
            _tile(call, plan, 0, plan.outputs, b, width)
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


@compiled
def _dot_rows(call, first, last, b, zero, indptr, cols):
    """By output: each weight's gradient is output gradient · input, a dot product over the batch."""
    x, x_row, g, g_row = floats(call.x), call.x_row, floats(call.masked), call.masked_row
    dvalues, batch = floats(call.dvalues), call.batch - b
    for o in range(first, last):
        gradient = load(g, o * g_row + b, zero)
        for k in range(indptr[o], indptr[o + 1]):
            product = dot(gradient, first_lanes(batch, load(x, cols[k] * x_row + b, zero)))
            dvalues[k] = product if b == 0 else dvalues[k] + product


@compiled
def _dots_of(call, first, last, indptr, cols):
    b = 0
    while call.lanes - b >= 32:
        _dot_rows(call, first, last, b, zeros(32), indptr, cols)
        b += 32
    if call.lanes - b >= 16:
        _dot_rows(call, first, last, b, zeros(16), indptr, cols)


@compiled
def _dots(call, plan, first, last):
    if plan.wide_cols:
        _dots_of(call, first, last, longs(plan.indptr), words(plan.cols))
    else:
        _dots_of(call, first, last, longs(plan.indptr), shorts(plan.cols))


@compiled
def _add_columns(call, first, last, b, zero, indptr, rows, perm):
    """By input: its gradient is the sum of weight × output gradient; the weights' gradients share the loads."""
    x, x_row, g, g_row = floats(call.x), call.x_row, floats(call.masked), call.masked_row
    dx, dx_row, values, dvalues = floats(call.dx), call.dx_row, floats(call.values), floats(call.dvalues)
    with_weights, before, before_relu, batch = not call.by_row, call.dbias_before, call.relu_before, call.batch - b
    for i in range(first, last):
        tile, row = zero, first_lanes(batch, load(x, i * x_row + b, zero))
        for k in range(indptr[i], indptr[i + 1]):
            gradient, at = load(g, rows[k] * g_row + b, zero), perm[k]
            tile = fma(values[at], gradient, tile)
            if with_weights:
                product = dot(row, gradient)
                dvalues[at] = product if b == 0 else dvalues[at] + product
        if before:  # what lies before is linear too: all that would be left of its _mask_rows
            tile = first_lanes(batch, tile)
            if before_relu:
                tile = where_positive(row, tile)
            over_batch = total(tile)
            floats(before)[i] = over_batch if b == 0 else floats(before)[i] + over_batch
        store(dx, i * dx_row + b, tile)


@compiled
def _columns_of(call, first, last, indptr, rows, perm):
    b = 0
    while call.lanes - b >= 32:
        _add_columns(call, first, last, b, zeros(32), indptr, rows, perm)
        b += 32
    if call.lanes - b >= 16:
        _add_columns(call, first, last, b, zeros(16), indptr, rows, perm)


@compiled
def _columns(call, plan, first, last):
    if plan.wide_rows:
        _columns_of(call, first, last, longs(plan.t_indptr), words(plan.t_rows), words(plan.t_perm))
    else:
        _columns_of(call, first, last, longs(plan.t_indptr), shorts(plan.t_rows), words(plan.t_perm))


@parallel
def _mask_by_all(calls, plans, i):
    for chunk in prange(plans[i].row_pieces):
        borders = longs(plans[i].row_chunks)
        _mask_rows(calls[i], borders[chunk], borders[chunk + 1])


@parallel
def _dots_by_all(calls, plans, i):
    for chunk in prange(plans[i].row_pieces):
        borders = longs(plans[i].row_chunks)
        _dots(calls[i], plans[i], borders[chunk], borders[chunk + 1])


@parallel
def _columns_by_all(calls, plans, i):
    for chunk in prange(plans[i].col_pieces):
        borders = longs(plans[i].col_chunks)
        _columns(calls[i], plans[i], borders[chunk], borders[chunk + 1])


@compiled
def linear_backward(calls, plans, i):
    """Do the backward pass of linear layer number ``i`` of a chain with all threads."""
    if calls[i].masked != calls[i].g:
        _mask_by_all(calls, plans, i)
    if calls[i].by_row:
        _dots_by_all(calls, plans, i)
    if calls[i].dx:
        _columns_by_all(calls, plans, i)


@compiled
def linear_backward_alone(call, plan):
    """Do the backward pass of a linear layer with the thread that calls."""
    if call.masked != call.g:
        _mask_rows(call, 0, plan.outputs)
    if call.by_row:
        _dots(call, plan, 0, plan.outputs)
    if call.dx:
        _columns(call, plan, 0, plan.inputs)
