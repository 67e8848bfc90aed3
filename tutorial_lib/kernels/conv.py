"""The compiled loops of a convolution, in the words of ``simd.py``, on the records of ``program.py``.

A piece of work is 16 lanes of the batch × a band of rows. It first copies what it reads into a compact block
[channel, row, column, 16] with the zero padding written out, so that a weight (o, c, dy, dx) is a fixed offset into
the block. The register tile is a window of 2×2 output pixels × 16 lanes: what one step of pooling needs.
"""
# Compiled functions have no type hints: numba infers them. Names stand for the same thing everywhere: x, y, g, dx are
# activations and gradients, x_row … the floats from one of their rows to the next, b the first lane of the batch tile.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import numpy as np
from numba import get_thread_id, prange

from .simd import (
    compiled,
    first_lanes,
    floats,
    fma,
    load,
    longs,
    maximum,
    octets,
    parallel,
    splat,
    store,
    store_winner,
    total,
    where_any_winner,
    where_positive,
    where_winner,
    words,
    zeros,
)


@compiled
def _fill_zeros(block, start, stop):
    for at in range(start, stop, 16):
        store(block, at, zeros(16))


@compiled
def _copy_input(call, plan, b, top, block):
    x, x_row = floats(call.x), call.x_row
    height, width, rows, cols, left = plan.height, plan.width, plan.rows_in_block, plan.cols_in_block, -plan.pad_x
    first, last = min(max(-left, 0), cols), min(max(width - left, 0), cols)  # the block's columns that are inside
    for c in range(plan.inputs):
        for r in range(rows):
            at, i = (c * rows + r) * cols * 16, top + r
            if 0 <= i < height:
                source = ((c * height + i) * width + left) * x_row + b
                _fill_zeros(block, at, at + first * 16)
                for j in range(first, last):
                    store(block, at + j * 16, load(x, source + j * x_row, zeros(16)))
                _fill_zeros(block, at + last * 16, at + cols * 16)
            else:
                _fill_zeros(block, at, at + cols * 16)


@compiled
def _store_window(call, plan, o, i, j, b, p00, p01, p10, p11):
    """Write four results of channel ``o``, at (i, j) and right of and below it, or the largest of them; with ReLU."""
    y, y_row, relu, out_h, out_w = floats(call.y), call.y_row, call.relu != 0, plan.out_h, plan.out_w
    zero = zeros(16)
    if call.pool:
        best = maximum(maximum(p00, p01), maximum(p10, p11))
        pixels = (out_h // 2) * (out_w // 2)
        pixel = o * pixels + i // 2 * (out_w // 2) + j // 2
        if call.winners:
            winners = octets(call.winners + b * plan.outputs * pixels)
            store_winner(winners, pixel * 16, p00, p01, p10, p11, best, relu)
        if relu:
            best = maximum(zero, best)
        store(y, pixel * y_row + b, best)
    else:
        if relu:
            p00, p01 = maximum(zero, p00), maximum(zero, p01)
            p10, p11 = maximum(zero, p10), maximum(zero, p11)
        pixel = (o * out_h + i) * out_w + j
        store(y, pixel * y_row + b, p00)
        if j + 1 < out_w:
            store(y, (pixel + 1) * y_row + b, p01)
        if i + 1 < out_h:
            store(y, (pixel + out_w) * y_row + b, p10)
            if j + 1 < out_w:
                store(y, (pixel + out_w + 1) * y_row + b, p11)


@compiled
def _add_window(call, plan, i, j, b, block, start):
    """All channels of one window of 2×2 pixels."""
    zero, right, down = zeros(16), plan.stride_x * 16, plan.stride_y * plan.cols_in_block * 16
    values, bias, indptr, offsets = floats(call.values), floats(call.bias), longs(plan.indptr), longs(plan.offsets)
    for o in range(plan.outputs):
        p00 = p01 = p10 = p11 = splat(bias[o], zero)
        for k in range(indptr[o], indptr[o + 1]):
            weight, at = values[k], start + offsets[k]
            p00 = fma(weight, load(block, at, zero), p00)
            p01 = fma(weight, load(block, at + right, zero), p01)
            p10 = fma(weight, load(block, at + down, zero), p10)
            p11 = fma(weight, load(block, at + down + right, zero), p11)
        if indptr[o] < indptr[o + 1]:
            _store_window(call, plan, o, i, j, b, p00, p01, p10, p11)


@compiled
def _add_windows(call, plan, first, last, b, block):
    out_w = plan.out_w // 2 * 2 if call.pool else plan.out_w  # pooling drops an odd last column
    right, down = plan.stride_x * 16, plan.stride_y * plan.cols_in_block * 16
    for i in range(2 * first, 2 * last, 2):
        for j in range(0, out_w, 2):
            _add_window(call, plan, i, j, b, block, (i - 2 * first) * down + j * right)


@compiled
def _fill_channels_without_weights(call, plan, first, last, b):
    """Their results are the bias everywhere: no need to come by with every window."""
    bias, indptr, zero = floats(call.bias), longs(plan.indptr), zeros(16)
    for o in range(plan.outputs):
        if indptr[o] == indptr[o + 1]:
            only = splat(bias[o], zero)
            for i in range(2 * first, 2 * last, 2):
                for j in range(0, plan.out_w // 2 * 2 if call.pool else plan.out_w, 2):
                    _store_window(call, plan, o, i, j, b, only, only, only, only)


@compiled
def _windows(plan, pool):
    return plan.out_h // 2 if pool else (plan.out_h + 1) // 2


@compiled
def _bands(call, plan):
    return -(-_windows(plan, call.pool) // plan.band)


@compiled
def _forward_piece(call, plan, piece, scratch):
    windows, bands = _windows(plan, call.pool), _bands(call, plan)
    b, first = piece // bands * 16, piece % bands * plan.band
    _copy_input(call, plan, b, 2 * first * plan.stride_y - plan.pad_y, floats(scratch))
    last = min(first + plan.band, windows)
    _fill_channels_without_weights(call, plan, first, last, b)
    _add_windows(call, plan, first, last, b, floats(scratch))


@parallel
def conv_forward(calls, plans, i):
    """Do the forward pass of convolution number ``i`` of a chain with all threads."""
    for piece in prange(calls[i].lanes // 16 * _bands(calls[i], plans[i])):
        call = calls[i]
        _forward_piece(call, plans[i], piece, call.scratch + get_thread_id() * call.scratch_bytes)


@compiled
def conv_forward_alone(call, plan, thread):
    """Do the forward pass of a convolution with the thread that calls, number ``thread``."""
    for piece in range(call.lanes // 16 * _bands(call, plan)):
        _forward_piece(call, plan, piece, call.scratch + thread * call.scratch_bytes)


@compiled
def _store_inside(block, rows, cols, o, r, c, pixel):
    if 0 <= r < rows and 0 <= c < cols:
        store(block, ((o * rows + r) * cols + c) * 16, pixel)


@compiled
def _clear(block, rows, cols, first_row, last_row, first_col, last_col):
    """Write zeros all around the rows and columns that are about to be filled."""
    for r in range(rows):
        at = r * cols * 16
        if first_row <= r < last_row:
            _fill_zeros(block, at, at + min(max(first_col, 0), cols) * 16)
            _fill_zeros(block, at + min(max(last_col, 0), cols) * 16, at + cols * 16)
        else:
            _fill_zeros(block, at, at + cols * 16)


@compiled
def _copy_gradient(call, plan, b, top, block_at):
    """Undo pooling and ReLU into a block with a place per input pixel: strides leave zeros between, edges around."""
    g, g_row, y, y_row = floats(call.g), call.g_row, floats(call.y), call.y_row
    indptr, winners = (
        longs(plan.indptr),
        octets(call.winners + b * plan.outputs * (plan.out_h // 2) * (plan.out_w // 2)),
    )
    out_h, out_w, stride_y, stride_x, left = plan.out_h, plan.out_w, plan.stride_y, plan.stride_x, plan.t_pad_x
    rows, cols, keep, block = plan.t_rows_in_block, plan.t_cols_in_block, call.batch - b, floats(block_at)
    filled_h, filled_w = (out_h // 2 * 2, out_w // 2 * 2) if call.pool else (out_h, out_w)
    for o in range(plan.outputs):
        if indptr[o] == indptr[o + 1]:
            continue  # no weight looks at this channel
        if stride_y == 1 and stride_x == 1:
            plane = floats(block_at + o * rows * cols * 64)
            _clear(plane, rows, cols, -top, filled_h - top, -left, filled_w - left)
        else:
            _fill_zeros(block, o * rows * cols * 16, (o + 1) * rows * cols * 16)
        if call.pool:
            for i in range(out_h // 2):
                r = 2 * i * stride_y - top
                if -stride_y <= r < rows:
                    for j in range(out_w // 2):
                        c = 2 * j * stride_x - left
                        pixel = (o * (out_h // 2) + i) * (out_w // 2) + j
                        gradient = first_lanes(keep, load(g, pixel * g_row + b, zeros(16)))
                        at, down, right = pixel * 16, r + stride_y, c + stride_x
                        _store_inside(block, rows, cols, o, r, c, where_winner(winners, at, 0, gradient))
                        _store_inside(block, rows, cols, o, r, right, where_winner(winners, at, 1, gradient))
                        _store_inside(block, rows, cols, o, down, c, where_winner(winners, at, 2, gradient))
                        _store_inside(block, rows, cols, o, down, right, where_winner(winners, at, 3, gradient))
        else:
            for i in range(out_h):
                r = i * stride_y - top
                if 0 <= r < rows:
                    for j in range(out_w):
                        pixel = (o * out_h + i) * out_w + j
                        gradient = first_lanes(keep, load(g, pixel * g_row + b, zeros(16)))
                        if call.relu:
                            gradient = where_positive(load(y, pixel * y_row + b, gradient), gradient)
                        _store_inside(block, rows, cols, o, r, j * stride_x - left, gradient)


@compiled
def _load_pixel(x, x_row, c, i, j, height, width, b, keep):
    if i < height and j < width:
        return first_lanes(keep, load(x, ((c * height + i) * width + j) * x_row + b, zeros(16)))
    return zeros(16)


@compiled
def _store_pixel(dx, dx_row, c, i, j, height, width, b, pixel):
    if i < height and j < width:
        store(dx, ((c * height + i) * width + j) * dx_row + b, pixel)


@compiled
def _add_inputs(call, plan, first, last, b, block, sums):
    """By input pixel: its gradient, and each weight's products of input and output gradient, added up lane by lane."""
    zero = zeros(16)
    x, x_row, dx, dx_row, values = floats(call.x), call.x_row, floats(call.dx), call.dx_row, floats(call.values)
    indptr, offsets, perm = longs(plan.t_indptr), longs(plan.t_offsets), words(plan.t_perm)
    height, width, inputs, want, keep = plan.height, plan.width, plan.inputs, call.dx, call.batch - b
    right, down = 16, plan.t_cols_in_block * 16
    for i in range(2 * first, 2 * last, 2):
        for j in range(0, width, 2):
            start = (i - 2 * first) * down + j * right
            for c in range(inputs):
                x00 = _load_pixel(x, x_row, c, i, j, height, width, b, keep)
                x01 = _load_pixel(x, x_row, c, i, j + 1, height, width, b, keep)
                x10 = _load_pixel(x, x_row, c, i + 1, j, height, width, b, keep)
                x11 = _load_pixel(x, x_row, c, i + 1, j + 1, height, width, b, keep)
                d00 = d01 = d10 = d11 = zero
                for k in range(indptr[c], indptr[c + 1]):
                    at = start + offsets[k]
                    g00, g01 = load(block, at, zero), load(block, at + right, zero)
                    g10, g11 = load(block, at + down, zero), load(block, at + down + right, zero)
                    products = fma(x00, g00, fma(x01, g01, fma(x10, g10, fma(x11, g11, load(sums, k * 16, zero)))))
                    store(sums, k * 16, products)
                    if want:
                        weight = values[perm[k]]
                        d00, d01 = fma(weight, g00, d00), fma(weight, g01, d01)
                        d10, d11 = fma(weight, g10, d10), fma(weight, g11, d11)
                if want:
                    _store_pixel(dx, dx_row, c, i, j, height, width, b, d00)
                    _store_pixel(dx, dx_row, c, i, j + 1, height, width, b, d01)
                    _store_pixel(dx, dx_row, c, i + 1, j, height, width, b, d10)
                    _store_pixel(dx, dx_row, c, i + 1, j + 1, height, width, b, d11)


@compiled
def _total_sums(call, plan, piece, sums):
    partial, perm = floats(call.partial), words(plan.t_perm)
    for k in range(plan.nnz):
        partial[piece * plan.nnz + perm[k]] = total(load(sums, k * 16, zeros(16)))


@compiled
def _t_bands(plan):
    return -(-((plan.height + 1) // 2) // plan.t_band)


@compiled
def _backward_piece(call, plan, piece, block):
    bands = _t_bands(plan)
    b, first = piece // bands * 16, piece % bands * plan.t_band
    sums = floats(block + plan.outputs * plan.t_rows_in_block * plan.t_cols_in_block * 64)
    _fill_zeros(sums, 0, plan.nnz * 16)
    _copy_gradient(call, plan, b, 2 * first + plan.t_pad_y, block)
    last = min(first + plan.t_band, (plan.height + 1) // 2)
    _add_inputs(call, plan, first, last, b, floats(block), sums)
    _total_sums(call, plan, piece, sums)


@compiled
def _bias_gradient(call, plan, o):
    """The sum over the pixels of channel o and the batch of the gradient that pooling and ReLU let pass."""
    g, y, winners, dbias = floats(call.g), floats(call.y), octets(call.winners), floats(call.dbias)
    pixels = plan.outputs * (plan.out_h // 2) * (plan.out_w // 2)
    area = (plan.out_h // 2) * (plan.out_w // 2) if call.pool else plan.out_h * plan.out_w
    over_pixels = zeros(16)
    for pixel in range(o * area, (o + 1) * area):
        for b in range(0, call.batch, 16):
            gradient = first_lanes(call.batch - b, load(g, pixel * call.g_row + b, over_pixels))
            if call.pool:
                gradient = where_any_winner(winners, b * pixels + pixel * 16, gradient)
            elif call.relu:
                gradient = where_positive(load(y, pixel * call.y_row + b, gradient), gradient)
            over_pixels = fma(np.float32(1), gradient, over_pixels)
    dbias[o] = total(over_pixels)


@compiled
def _add_pieces(call, plan, first, last, pieces):
    partial, dvalues = floats(call.partial), floats(call.dvalues)
    for k in range(first, last):
        over_pieces = np.float32(0)
        for piece in range(pieces):
            over_pieces += partial[piece * plan.nnz + k]
        dvalues[k] = over_pieces


@compiled
def _sum_channel(call, plan, o):
    _bias_gradient(call, plan, o)
    first, last = o * plan.nnz // plan.outputs, (o + 1) * plan.nnz // plan.outputs
    _add_pieces(call, plan, first, last, call.lanes // 16 * _t_bands(plan))


@parallel
def _pieces_by_all(calls, plans, i):
    for piece in prange(calls[i].lanes // 16 * _t_bands(plans[i])):
        call = calls[i]
        _backward_piece(call, plans[i], piece, call.scratch + get_thread_id() * call.scratch_bytes)


@parallel
def _sums_by_all(calls, plans, i):
    for o in prange(plans[i].outputs):
        _sum_channel(calls[i], plans[i], o)


@compiled
def conv_backward(calls, plans, i):
    """Do the backward pass of convolution number ``i`` of a chain with all threads."""
    _pieces_by_all(calls, plans, i)
    _sums_by_all(calls, plans, i)


@compiled
def conv_backward_alone(call, plan, thread):
    """Do the backward pass of a convolution with the thread that calls, number ``thread``."""
    for piece in range(call.lanes // 16 * _t_bands(plan)):
        _backward_piece(call, plan, piece, call.scratch + thread * call.scratch_bytes)
    for o in range(plan.outputs):
        _sum_channel(call, plan, o)
