"""The compiled loops of a convolution whose weights come in blocks of four output channels, or a multiple.

Four output channels have the same taps: each pixel of the input is loaded once and used four times. If the gradient of
the input is needed, the backward pass is that of single weights (``conv_backward.py``), which is faster: each load of
the output's gradient serves two multiply-adds there as well, and a tile of the input's gradient stays in registers.
"""
# Compiled functions have no type hints: numba infers them. Names mean the same everywhere: x, y, g, dx are activations
# and gradients; x_row … the floats from one of their pixels to the next; b the first lane of the batch.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

from .conv_gradient import lay_out_gradient
from .conv_shape import TOGETHER, across, store_best, store_pixel, windows, winners_at, y_at
from .kernel import kernel
from .records import CALL, PLAN
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
    splat,
    store,
    total,
    totals,
    within,
    zeros,
)

SUMMED = 64  # pixels whose products are summed before the sum over the lanes, or one row


@within
def _pixel(x, at, offsets, start, end, values, place, size, s0, s1, s2, s3):
    """Return the sums of four outputs at one pixel; weight ``k`` of the first is ``values[place + k]``."""
    for k in range(start, end):
        here, v = load(x, at + offsets[k], s0), place + k
        s0, s1 = fma(values[v], here, s0), fma(values[v + size], here, s1)
        s2, s3 = fma(values[v + 2 * size], here, s2), fma(values[v + 3 * size], here, s3)
    return s0, s1, s2, s3


@within
def _two_pixels(x, at, right, offsets, start, end, values, place, size, s0, s1, s2, s3):
    """Return the same at two adjacent pixels: together, where the registers hold so many sums."""
    t0, t1, t2, t3 = s0, s1, s2, s3
    if TOGETHER == 1:
        s0, s1, s2, s3 = _pixel(x, at, offsets, start, end, values, place, size, s0, s1, s2, s3)
        t0, t1, t2, t3 = _pixel(x, at + right, offsets, start, end, values, place, size, t0, t1, t2, t3)
        return s0, s1, s2, s3, t0, t1, t2, t3
    for k in range(start, end):
        here, v = at + offsets[k], place + k
        left, other = load(x, here, s0), load(x, here + right, s0)
        s0, t0 = fma(values[v], left, s0), fma(values[v], other, t0)
        s1, t1 = fma(values[v + size], left, s1), fma(values[v + size], other, t1)
        s2, t2 = fma(values[v + 2 * size], left, s2), fma(values[v + 2 * size], other, t2)
        s3, t3 = fma(values[v + 3 * size], left, s3), fma(values[v + 3 * size], other, t3)
    return s0, s1, s2, s3, t0, t1, t2, t3


@within
def _store_window(call, plan, o, i, j, b, at_y, winner, p00, p01, p10, p11):
    """Write one output channel of a window: pooled, to ``at_y`` with the winner at ``winner``, or pixel by pixel."""
    if call.pool:
        remember = call.winners != 0
        store_best(floats(call.y), at_y, octets(call.winners), winner, remember, call.relu != 0, p00, p01, p10, p11)
    else:
        store_pixel(call, plan, o, i, j, b, p00)
        store_pixel(call, plan, o, i, j + 1, b, p01)
        store_pixel(call, plan, o, i + 1, j, b, p10)
        store_pixel(call, plan, o, i + 1, j + 1, b, p11)


@compiled
def _add_window(call, plan, i, j, b):
    """Compute all channels of one window of 2×2 pixels."""
    zero, right, down = zeros(16), plan.stride_x * 16, plan.stride_y * plan.columns * 16
    values, bias, indptr, offsets = floats(call.values), floats(call.bias), longs(plan.indptr), ints(plan.offsets)
    x, at = floats(call.x), i * down + j * right + b // 16 * call.x_group
    (at_y, step_y), (winner, step_winner) = y_at(call, i // 2, j // 2, b), winners_at(plan, i, j, b)
    for block in range(plan.outputs // plan.tall):
        start, end = indptr[block], indptr[block + 1]
        size, place = end - start, (plan.tall - 1) * start
        for o in range(plan.tall * block, plan.tall * (block + 1), 4):
            b0, b1 = splat(bias[o], zero), splat(bias[o + 1], zero)
            b2, b3 = splat(bias[o + 2], zero), splat(bias[o + 3], zero)
            p0, p1, p2, p3, q0, q1, q2, q3 = _two_pixels(
                x, at, right, offsets, start, end, values, place, size, b0, b1, b2, b3
            )
            r0, r1, r2, r3, s0, s1, s2, s3 = _two_pixels(
                x, at + down, right, offsets, start, end, values, place, size, b0, b1, b2, b3
            )
            _store_window(call, plan, o, i, j, b, at_y, winner, p0, q0, r0, s0)
            at_y, winner = at_y + step_y, winner + step_winner
            _store_window(call, plan, o + 1, i, j, b, at_y, winner, p1, q1, r1, s1)
            at_y, winner = at_y + step_y, winner + step_winner
            _store_window(call, plan, o + 2, i, j, b, at_y, winner, p2, q2, r2, s2)
            at_y, winner = at_y + step_y, winner + step_winner
            _store_window(call, plan, o + 3, i, j, b, at_y, winner, p3, q3, r3, s3)
            at_y, winner = at_y + step_y, winner + step_winner
            place += 4 * size


@kernel(CALL, PLAN)
def add_four_windows(call, plan, first, last, thread):
    """Compute rows of windows, one row for 16 lanes a piece."""
    rows = windows(plan, call.pool)
    for part in range(first, last):
        for j in range(0, across(plan, call.pool), 2):
            _add_window(call, plan, 2 * (part % rows), j, part // rows * 16)


@compiled
def _products(plan, g, x, one, other, top, bottom, keep):
    """Return the products of four channels of g with x at two offsets, summed over rows ``top`` to ``bottom``.

    Of the lanes, ``keep`` count.
    """
    zero, right, down, plane = zeros(NATIVE), plan.stride_x * 16, plan.stride_y * plan.columns * 16, plan.plane * 16
    p0 = p1 = p2 = p3 = q0 = q1 = q2 = q3 = zero
    width = plan.out_w
    for i in range(top, bottom):
        at = i * down
        for _ in range(width):
            left, beside = load(x, at + one, zero), load(x, at + other, zero)
            g0, g1 = load(g, at, zero), load(g, at + plane, zero)
            g2, g3 = load(g, at + 2 * plane, zero), load(g, at + 3 * plane, zero)
            p0, p1, p2, p3 = fma(g0, left, p0), fma(g1, left, p1), fma(g2, left, p2), fma(g3, left, p3)
            q0, q1, q2, q3 = fma(g0, beside, q0), fma(g1, beside, q1), fma(g2, beside, q2), fma(g3, beside, q3)
            at += right
    p0, p1, p2, p3 = first_lanes(keep, p0), first_lanes(keep, p1), first_lanes(keep, p2), first_lanes(keep, p3)
    q0, q1, q2, q3 = first_lanes(keep, q0), first_lanes(keep, q1), first_lanes(keep, q2), first_lanes(keep, q3)
    return totals(p0, p1, p2, p3, q0, q1, q2, q3)


@compiled
def _add_products(plan, x, images, top, bottom, keep, sums, dvalues):
    """Add the gradients of all weights over some rows of pixels of 16 lanes, of which ``keep`` count."""
    indptr, offsets, plane = longs(plan.indptr), ints(plan.offsets), plan.plane * 16
    for block in range(plan.outputs // plan.tall):
        start, end = indptr[block], indptr[block + 1]
        size, place = end - start, (plan.tall - 1) * start
        for o in range(plan.tall * block, plan.tall * (block + 1), 4):
            for k in range(start, end, 2):
                both, one, other, so_far = k + 1 < end, offsets[k], offsets[min(k + 1, end - 1)], zeros(8)
                for lane in range(0, 16, NATIVE):  # both halves of a cache line, one after the other
                    g, here = floats(images + 4 * (o * plane + lane)), floats(x + 4 * lane)
                    so_far = add(so_far, _products(plan, g, here, one, other, top, bottom, keep - lane))
                store(sums, 0, so_far)
                for r in range(4):
                    dvalues[place + k + r * size] += sums[r]
                if both:
                    for r in range(4):
                        dvalues[place + k + 1 + r * size] += sums[4 + r]
            place += 4 * size


@kernel(CALL, PLAN)
def by_blocks(call, plan, first, last, thread):
    """Compute the gradients of weights and bias for 16 lanes a piece, strip by strip of rows."""
    scratch, count = call.scratch + thread * call.scratch_bytes, plan.nnz + plan.outputs
    sums, dbias, images = floats(scratch), scratch + 64, scratch + 64 * (1 + plan.outputs + plan.lead)
    rows = max(1, SUMMED // max(1, plan.out_w))
    for part in range(first, last):
        gradients, keep = floats(call.pieces + 4 * part * count), call.batch - 16 * part
        for o in range(plan.outputs):
            store(floats(dbias), 16 * o, zeros(16))
        lay_out_gradient(call, plan, 16 * part, floats(images), floats(dbias))
        for o in range(plan.outputs):
            gradients[plan.nnz + o] = total(first_lanes(keep, load(floats(dbias), 16 * o, zeros(16))))
        for k in range(plan.nnz):
            gradients[k] = 0.0
        for top in range(0, plan.out_h, rows):
            bottom, x = min(top + rows, plan.out_h), call.x + 4 * part * call.x_group
            _add_products(plan, x, images, top, bottom, keep, sums, gradients)
