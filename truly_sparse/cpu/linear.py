"""The compiled loops of a linear layer.

The forward pass goes by output. The backward pass goes by input, where the gradients of input and weights share their
loads; if the gradient of the input is not needed, it goes by output.
"""
# Compiled functions have no type hints: numba infers them. Names mean the same everywhere: x, y, g, dx are activations
# and gradients; x_row … the floats from one of their rows to the next; b the first lane of the batch tile.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

from numba import get_thread_id, prange

from .convert import take_in
from .simd import (
    NATIVE,
    add,
    compiled,
    first_lanes,
    floats,
    fma,
    load,
    longs,
    maximum,
    parallel,
    products,
    shorts,
    splat,
    store,
    total,
    totals,
    where_positive,
    words,
    zeros,
)

# Lanes of the batch per register tile; a CPU without AVX-512 has registers for at most 32.
TILES = (64, 32, 16) if NATIVE == 16 else (32, 16)
SIDE_BY_SIDE = 64  # features that a thread copies at a time; blocks of 16 are transposed in registers


@compiled
def _add_rows(call, first, last, b, zero, indptr, cols):
    x, x_row, y, y_row = floats(call.x), call.x_row, floats(call.y), call.y_row
    values, bias, relu = floats(call.values), floats(call.bias), call.relu
    for o in range(first, last):
        even, odd = splat(bias[o], zero), zero  # two independent sums hide the latency of the additions
        k, end = indptr[o], indptr[o + 1]
        while k + 1 < end:
            even = fma(values[k], load(x, cols[k] * x_row + b, zero), even)
            odd = fma(values[k + 1], load(x, cols[k + 1] * x_row + b, zero), odd)
            k += 2
        if k < end:
            even = fma(values[k], load(x, cols[k] * x_row + b, zero), even)
        tile = add(even, odd)
        if relu:
            tile = maximum(zero, tile)
        store(y, o * y_row + b, tile)


@compiled
def _tile_of(call, plan, first, last, b, width, cols):
    if width == 64:
        _add_rows(call, first, last, b, zeros(64), longs(plan.indptr), cols)
    elif width == 32:
        _add_rows(call, first, last, b, zeros(32), longs(plan.indptr), cols)
    else:
        _add_rows(call, first, last, b, zeros(16), longs(plan.indptr), cols)


@compiled
def _tile(call, plan, first, last, b, width):
    if plan.wide_cols:
        _tile_of(call, plan, first, last, b, width, words(plan.cols))
    else:
        _tile_of(call, plan, first, last, b, width, shorts(plan.cols))


@parallel
def _tiles_by_all(calls, plans, i, b, width, tiles):
    for part in prange(tiles * plans[i].row_pieces):
        tile, chunk = part // plans[i].row_pieces, part % plans[i].row_pieces
        borders = longs(plans[i].row_chunks)
        _tile(calls[i], plans[i], borders[chunk], borders[chunk + 1], b + tile * width, width)


@compiled
def _take_in_features(call, first, last):
    take_in(call, first, call.x + 4 * first * call.x_row, call.x_row, call.x_group, last - first)


@parallel
def _take_in_by_all(calls, plans, i):
    for part in prange((plans[i].inputs + SIDE_BY_SIDE - 1) // SIDE_BY_SIDE):
        first = part * SIDE_BY_SIDE
        _take_in_features(calls[i], first, min(first + SIDE_BY_SIDE, plans[i].inputs))


@compiled
def linear_forward(calls, plans, i):
    """Run the forward pass of linear layer ``i`` of a chain with all threads, tile by tile.

    The part of the input that a tile reads then stays in the cache for all outputs.
    """
    if calls[i].source:
        _take_in_by_all(calls, plans, i)
    b, lanes = 0, calls[i].lanes
    for width in TILES:
        tiles = (lanes - b) // width
        if tiles > 0:
            _tiles_by_all(calls, plans, i, b, width, tiles)
        b += tiles * width


@compiled
def linear_forward_alone(call, plan):
    """Run the forward pass of a linear layer in the calling thread."""
    if call.source:
        _take_in_features(call, 0, plan.inputs)
    b = 0
    for width in TILES:
        while call.lanes - b >= width:
            _tile(call, plan, 0, plan.outputs, b, width)
            b += width


@compiled
def _mask_rows(call, first, last):
    """Write ``masked``, the gradient before ReLU with zeros in the padding, and ``dbias``, its sums over the batch."""
    g, masked, y, dbias = floats(call.g), floats(call.masked), floats(call.y), floats(call.dbias)
    for o in range(first, last):
        over_batch = zeros(16)
        for b in range(0, call.lanes, 16):
            part = first_lanes(call.batch - b, load(g, o * call.g_row + b, over_batch))
            if call.relu:
                part = where_positive(load(y, o * call.y_row + b, over_batch), part)
            store(masked, o * call.masked_row + b, part)
            over_batch = add(part, over_batch)
        dbias[o] = total(over_batch)


@compiled
def _dot_rows(call, first, last, b, zero, indptr, cols):
    """Compute the weights' gradients by output: dot products of output gradient and input over the batch."""
    x, x_row, g, g_row = floats(call.x), call.x_row, floats(call.masked), call.masked_row
    dvalues, batch = floats(call.dvalues), call.batch - b
    for o in range(first, last):
        gradient = load(g, o * g_row + b, zero)
        for k in range(indptr[o], indptr[o + 1]):
            product = total(products(gradient, first_lanes(batch, load(x, cols[k] * x_row + b, zero)), zeros(NATIVE)))
            dvalues[k] = product if b == 0 else dvalues[k] + product


@compiled
def _dots_of(call, first, last, indptr, cols):
    b = 0
    while call.lanes - b >= 64:
        _dot_rows(call, first, last, b, zeros(64), indptr, cols)
        b += 64
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
def _store_input_gradient(call, i, b, tile, row):
    """Write the input's gradient. If the layer before is linear, this also does the work of its ``_mask_rows``."""
    if call.dbias_before:
        dbias = floats(call.dbias_before)
        tile = first_lanes(call.batch - b, tile)
        if call.relu_before:
            tile = where_positive(row, tile)
        dbias[i] = total(tile) if b == 0 else dbias[i] + total(tile)
    store(floats(call.dx), i * call.dx_row + b, tile)


@compiled
def _product(g, at, value, tile, row, like):
    """Return the input's gradient with one weight added, and that weight's gradient before the sum over lanes."""
    gradient = load(g, at, tile)
    return fma(value, gradient, tile), products(row, gradient, like)


@compiled
def _add_columns(call, first, last, b, zero, begun, done, indptr, rows, perm, scratch):
    """Compute the gradients of input and weights, by input; they share the loads of the output's gradient.

    ``begun``: sums over earlier blocks of outputs are in ``dx`` already. ``done``: no more blocks follow. The weights'
    gradients are stored in ``scratch`` first: a store to a just computed address would delay the loads after it.
    """
    x, x_row, g, g_row = floats(call.x + 4 * b), call.x_row, floats(call.masked + 4 * b), call.masked_row
    dx, dx_row, values, dvalues = floats(call.dx + 4 * b), call.dx_row, floats(call.values), floats(call.dvalues)
    waiting, start, like = floats(scratch), indptr[first], zeros(NATIVE)
    for i in range(first, last):
        row = first_lanes(call.batch - b, load(x, i * x_row, zero))
        even = load(dx, i * dx_row, zero) if begun else zero
        odd = zero  # two independent sums hide the latency of the additions
        k, end = indptr[i], indptr[i + 1]
        while k + 8 <= end:
            even, p = _product(g, rows[k] * g_row, values[perm[k]], even, row, like)
            odd, q = _product(g, rows[k + 1] * g_row, values[perm[k + 1]], odd, row, like)
            even, r = _product(g, rows[k + 2] * g_row, values[perm[k + 2]], even, row, like)
            odd, s = _product(g, rows[k + 3] * g_row, values[perm[k + 3]], odd, row, like)
            even, t = _product(g, rows[k + 4] * g_row, values[perm[k + 4]], even, row, like)
            odd, u = _product(g, rows[k + 5] * g_row, values[perm[k + 5]], odd, row, like)
            even, v = _product(g, rows[k + 6] * g_row, values[perm[k + 6]], even, row, like)
            odd, w = _product(g, rows[k + 7] * g_row, values[perm[k + 7]], odd, row, like)
            store(waiting, k - start, totals(p, q, r, s, t, u, v, w))
            k += 8
        while k < end:
            even, p = _product(g, rows[k] * g_row, values[perm[k]], even, row, like)
            waiting[k - start] = total(p)
            k += 1
        if done:
            _store_input_gradient(call, i, b, add(even, odd), row)
        else:
            store(dx, i * dx_row, add(even, odd))
    if b == 0:
        for k in range(start, indptr[last]):
            dvalues[perm[k]] = waiting[k - start]
    else:
        for k in range(start, indptr[last]):
            dvalues[perm[k]] += waiting[k - start]


@compiled
def _columns_of(call, plan, first, last, block, b, width, rows, scratch):
    indptr, perm = longs(plan.t_indptr + 8 * block * plan.inputs), words(plan.t_perm)
    begun, done = block > 0, block + 1 == plan.blocks
    if width == 64:
        _add_columns(call, first, last, b, zeros(64), begun, done, indptr, rows, perm, scratch)
    elif width == 32:
        _add_columns(call, first, last, b, zeros(32), begun, done, indptr, rows, perm, scratch)
    else:
        _add_columns(call, first, last, b, zeros(16), begun, done, indptr, rows, perm, scratch)


@compiled
def _columns(call, plan, first_piece, last_piece, scratch):
    """Process some pieces of the inputs, for all blocks of outputs and all tiles of the batch."""
    borders = longs(plan.col_chunks)
    for block in range(plan.blocks):
        b = 0
        for width in TILES:
            while call.lanes - b >= width:
                for piece in range(first_piece, last_piece):
                    first, last = borders[piece], borders[piece + 1]
                    if plan.wide_rows:
                        _columns_of(call, plan, first, last, block, b, width, words(plan.t_rows), scratch)
                    else:
                        _columns_of(call, plan, first, last, block, b, width, shorts(plan.t_rows), scratch)
                b += width


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
    """Pieces are independent, so threads do not wait for each other between blocks and tiles."""
    for thread in prange(calls[i].threads):
        pieces, threads = plans[i].col_pieces, calls[i].threads
        scratch = calls[i].scratch + get_thread_id() * calls[i].scratch_bytes
        _columns(calls[i], plans[i], pieces * thread // threads, pieces * (thread + 1) // threads, scratch)


@compiled
def _take_in_gradients(call, first, last):
    take_in(call, first, call.g + 4 * first * call.g_row, call.g_row, call.g_group, last - first)


@parallel
def _take_in_gradients_by_all(calls, plans, i):
    for part in prange((plans[i].outputs + SIDE_BY_SIDE - 1) // SIDE_BY_SIDE):
        first = part * SIDE_BY_SIDE
        _take_in_gradients(calls[i], first, min(first + SIDE_BY_SIDE, plans[i].outputs))


@compiled
def linear_backward(calls, plans, i):
    """Run the backward pass of linear layer ``i`` of a chain with all threads."""
    if calls[i].source:
        _take_in_gradients_by_all(calls, plans, i)
    if calls[i].to_mask:
        _mask_by_all(calls, plans, i)
    if calls[i].dx:
        _columns_by_all(calls, plans, i)
    else:
        _dots_by_all(calls, plans, i)


@compiled
def linear_backward_alone(call, plan):
    """Run the backward pass of a linear layer in the calling thread."""
    if call.source:
        _take_in_gradients(call, 0, plan.outputs)
    if call.to_mask:
        _mask_rows(call, 0, plan.outputs)
    if call.dx:
        _columns(call, plan, 0, plan.col_pieces, call.scratch)
    else:
        _dots(call, plan, 0, plan.outputs)
