"""The backward pass of a convolution, compiled.

It goes by input, with seven or eight input pixels as the register tile (three without AVX-512): one load of a result's
gradient serves the gradient of a weight and that of the input. If the gradient of the input is not needed, it goes by
output.
"""
# Compiled functions have no type hints: numba infers them. Names mean the same everywhere: x, y, g, dx are activations
# and gradients; x_row … the floats from one of their pixels to the next; b the first lane of the batch.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import numpy as np

from .conv_blocks import by_blocks
from .conv_gradient import g_at, gradient_of_best, gradient_of_pixels, lay_out_gradient
from .conv_shape import TILE, TOGETHER, across, dx_at, pixels_of_tile, windows, winners_at
from .convert import hand_out_images, take_in_images
from .kernel import kernel
from .records import CALL, PLAN, Call, Phase, Plan
from .simd import (
    NATIVE,
    add,
    compiled,
    first_lanes,
    floats,
    fma,
    ints,
    load,
    longs,
    octets,
    products,
    store,
    store_apart,
    total,
    zeros,
)

FIRST, SECOND = (64, 32) if NATIVE == 16 else (16, 16)  # lanes of the first two vectors of a tile
REST = 16 * TILE - FIRST - SECOND


def conv_backward(call: Call, plan: Plan, stage: int, lanes: int) -> list[Phase]:
    """Return the kernels of the backward pass."""
    phases, work = [], plan.nnz * plan.out_h * plan.out_w * lanes
    if call.source:
        pixels = plan.outputs * plan.out_h * plan.out_w
        phases.append(Phase(take_in_gradient.address, stage, plan.outputs, pixels * lanes))
    by_outputs = by_blocks if plan.tall > 1 else by_output
    loop, times = (by_input, 2) if call.dx else (by_outputs, 1)
    phases.append(Phase(loop.address, stage, lanes // 16, times * work))
    phases.append(Phase(add_pieces.address, stage, 1, (plan.nnz + plan.outputs) * lanes // 16))
    if call.result:
        pixels = plan.inputs * plan.height * plan.width
        phases.append(Phase(hand_out_channels.address, stage, plan.inputs, pixels * lanes))
    return phases


@compiled
def _result_size(call, plan):
    """Return height and width of the layer's result."""
    return (plan.out_h // 2, plan.out_w // 2) if call.pool else (plan.out_h, plan.out_w)


@compiled
def _add_to_bias(sums, at, gradient):
    store(sums, at * 16, add(gradient, load(sums, at * 16, gradient)))


@compiled
def _spread_window(call, plan, i, j, b, sums):
    """Add one window's part of the gradients of weights and bias, lane by lane."""
    zero, right, down = zeros(16), plan.stride_x * 16, plan.stride_y * plan.columns * 16
    x, indptr, offsets = floats(call.x), longs(plan.indptr), ints(plan.offsets)
    start = i * down + j * right + b // 16 * call.x_group
    (at_g, step_g), (winner, step_winner) = g_at(call, i // 2, j // 2, b), winners_at(plan, i, j, b)
    g, winners, pool, outputs, nnz = floats(call.g), octets(call.winners), call.pool != 0, plan.outputs, plan.nnz
    for o in range(outputs):
        if pool:
            g00, g01, g10, g11, over_window = gradient_of_best(g, at_g, winners, winner)
        else:
            g00, g01, g10, g11, over_window = gradient_of_pixels(call, plan, o, i, j, b)
        at_g, winner = at_g + step_g, winner + step_winner
        _add_to_bias(sums, nnz + o, over_window)
        for k in range(indptr[o], indptr[o + 1]):
            at, so_far = start + offsets[k], load(sums, k * 16, zero)
            below = at + down
            so_far = fma(load(x, at, zero), g00, fma(load(x, at + right, zero), g01, so_far))
            so_far = fma(load(x, below, zero), g10, fma(load(x, below + right, zero), g11, so_far))
            store(sums, k * 16, so_far)


@compiled
def _spread_two_windows(call, plan, i, j, b, sums):
    zero, right, down = zeros(16), plan.stride_x * 16, plan.stride_y * plan.columns * 16
    x, indptr, offsets = floats(call.x), longs(plan.indptr), ints(plan.offsets)
    start = i * down + j * right + b // 16 * call.x_group
    (at_g, step_g), (winner, step_winner) = g_at(call, i // 2, j // 2, b), winners_at(plan, i, j, b)
    g, winners, pool, outputs, nnz = floats(call.g), octets(call.winners), call.pool != 0, plan.outputs, plan.nnz
    next_g = call.g_row
    for o in range(outputs):
        if pool:
            g00, g01, g10, g11, over_first = gradient_of_best(g, at_g, winners, winner)
            g02, g03, g12, g13, over_second = gradient_of_best(g, at_g + next_g, winners, winner + 16)
        else:
            g00, g01, g10, g11, over_first = gradient_of_pixels(call, plan, o, i, j, b)
            g02, g03, g12, g13, over_second = gradient_of_pixels(call, plan, o, i, j + 2, b)
        at_g, winner = at_g + step_g, winner + step_winner
        _add_to_bias(sums, nnz + o, add(over_first, over_second))
        for k in range(indptr[o], indptr[o + 1]):
            at, so_far = start + offsets[k], load(sums, k * 16, zero)
            below = at + down
            so_far = fma(load(x, at, zero), g00, fma(load(x, at + right, zero), g01, so_far))
            so_far = fma(load(x, at + 2 * right, zero), g02, fma(load(x, at + 3 * right, zero), g03, so_far))
            so_far = fma(load(x, below, zero), g10, fma(load(x, below + right, zero), g11, so_far))
            so_far = fma(load(x, below + 2 * right, zero), g12, fma(load(x, below + 3 * right, zero), g13, so_far))
            store(sums, k * 16, so_far)


@compiled
def _spread_windows(call, plan, b, sums):
    """Compute the gradients of weights and bias, by output."""
    end = across(plan, call.pool)
    for window in range(windows(plan, call.pool)):
        j = 0
        while TOGETHER == 2 and j + 4 <= end:
            _spread_two_windows(call, plan, 2 * window, j, b, sums)
            j += 4
        while j < end:
            _spread_window(call, plan, 2 * window, j, b, sums)
            j += 2


@compiled
def _gather_pixels(call, plan, c, p, to, part, sums, images, rest):
    """Compute the gradient of a tile of pixels of an input channel, and add its part of the weights' gradients.

    Adjacent pixels are adjacent in memory. A tile is three vectors, the last one as wide as ``rest``.
    """
    values, indptr, by_input, one = floats(call.values), longs(plan.t_indptr), ints(plan.by_input), zeros(16)
    start, here = p * 16, (c * plan.plane + p) * 16 + part * call.x_group
    x, dx, d0, d1, d2 = floats(call.x), floats(call.dx), zeros(FIRST), zeros(SECOND), rest
    x0, x1, x2 = load(x, here, d0), load(x, here + FIRST, d1), load(x, here + FIRST + SECOND, d2)
    for n in range(indptr[c], indptr[c + 1]):
        k, at = by_input[2 * n], start + by_input[2 * n + 1]
        g0, g1, g2 = load(images, at, d0), load(images, at + FIRST, d1), load(images, at + FIRST + SECOND, d2)
        weight, before = values[k], load(sums, k * 16, one)
        d0, d1, d2 = fma(weight, g0, d0), fma(weight, g1, d1), fma(weight, g2, d2)
        ends = add(products(x1, g1, one), products(x2, g2, one))
        store(sums, k * 16, add(add(before, products(x0, g0, one)), ends))
    store_apart(dx, to, call.dx_row, d0)
    store_apart(dx, to + FIRST // 16 * call.dx_row, call.dx_row, d1)
    store_apart(dx, to + (FIRST + SECOND) // 16 * call.dx_row, call.dx_row, d2)


@compiled
def _gather_rows(call, plan, part, sums, images, pixels, rest):
    """Compute the gradients of weights and input, by input, in tiles of ``pixels`` pixels.

    If the tiles divide a row, rows are taken one by one; otherwise as one long row that includes the padding. The
    padding of dx then holds meaningless numbers.
    """
    whole, across = plan.width % pixels == 0, (plan.height - 1) * plan.columns + plan.width
    for i in range(plan.height if whole else 1):
        first = (plan.pad_y + i) * plan.columns + plan.pad_x
        for j in range(0, plan.width if whole else across, pixels):
            for c in range(plan.inputs):
                _gather_pixels(call, plan, c, first + j, dx_at(call, c, i, j, part), part, sums, images, rest)


@compiled
def _gather_images(call, plan, part, sums, images):
    """Compute the same; the last vector of a tile has what is left of its pixels."""
    pixels = pixels_of_tile(plan)
    if pixels == 7:
        _gather_rows(call, plan, part, sums, images, 7, zeros(16))
    else:
        _gather_rows(call, plan, part, sums, images, TILE, zeros(REST))


@compiled
def _total_sums(call, b, sums, count, gradients):
    """Sum over the lanes of the batch. Numbers beyond the batch, such as NaN, are left out."""
    for k in range(count):
        gradients[k] = total(first_lanes(call.batch - b, load(sums, k * 16, zeros(16))))


@compiled
def _clear(sums, count):
    for k in range(count):
        store(sums, k * 16, zeros(16))


@kernel(CALL, PLAN)
def by_output(call, plan, first, last, thread):
    """Compute the gradients of weights and bias for 16 lanes a piece."""
    sums, count = floats(call.scratch + thread * call.scratch_bytes), plan.nnz + plan.outputs
    for part in range(first, last):
        _clear(sums, count)
        _spread_windows(call, plan, 16 * part, sums)
        _total_sums(call, 16 * part, sums, count, floats(call.pieces + 4 * part * count))


@kernel(CALL, PLAN)
def by_input(call, plan, first, last, thread):
    """Compute the gradients of weights, bias and input for 16 lanes a piece."""
    count = plan.nnz + plan.outputs
    scratch = call.scratch + thread * call.scratch_bytes
    sums, images = floats(scratch), floats(scratch + 4 * 16 * (count + plan.lead))
    for part in range(first, last):
        _clear(sums, count)
        lay_out_gradient(call, plan, 16 * part, images, floats(scratch + 4 * 16 * plan.nnz))
        _gather_images(call, plan, part, sums, images)
        _total_sums(call, 16 * part, sums, count, floats(call.pieces + 4 * part * count))


@kernel(CALL, PLAN)
def add_pieces(call, plan, first, last, thread):
    """Sum the gradients over the pieces of 16 lanes. There is one piece of this work."""
    pieces, size = floats(call.pieces), plan.nnz + plan.outputs
    dvalues, dbias = floats(call.dvalues), floats(call.dbias)
    for k in range(size):
        number = np.float32(0)
        for part in range(call.lanes // 16):
            number += pieces[part * size + k]
        if k < plan.nnz:
            dvalues[k] = number
        else:
            dbias[k - plan.nnz] = number


@kernel(CALL, PLAN)
def hand_out_channels(call, plan, first, last, thread):
    """Copy channels of the input's gradient to the caller's tensor."""
    hand_out_images(
        call, call.dx, call.dx_row, call.dx_group, call.dx_width, call.dx_plane, plan.height, plan.width, first, last
    )


@kernel(CALL, PLAN)
def take_in_gradient(call, plan, first, last, thread):
    """Copy channels of the caller's gradient of the result."""
    height, width = _result_size(call, plan)
    take_in_images(call, call.g, call.g_row, call.g_group, call.g_width, call.g_plane, height, width, first, last)
