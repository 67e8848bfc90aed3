"""The forward pass of a convolution, compiled. It goes by output.

The input is stored with its zero padding (``records.py``), so that a weight (o, c, dy, dx) is one fixed offset from the
first pixel of a window. The register tile is two windows of 2×2 output pixels, side by side: the input of two steps of
pooling. Without AVX-512 it is one window.
"""
# Compiled functions have no type hints: numba infers them. Names mean the same everywhere: x, y, g, dx are activations
# and gradients; x_row … the floats from one of their pixels to the next; b the first lane of the batch.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

from typing import cast

from .conv_blocks import add_four_windows
from .conv_shape import TOGETHER, across, fill_zeros, store_best, store_pixel, window_rows, windows, winners_at, y_at
from .convert import by_features, hand_out_result, take_in_images
from .kernel import kernel
from .records import CALL, PLAN, Call, Phase, Plan
from .simd import (
    compiled,
    floats,
    fma,
    ints,
    load,
    longs,
    octets,
    splat,
    zeros,
)


def conv_forward(call: Call, plan: Plan, stage: int, lanes: int) -> list[Phase]:
    """Return the kernels of the forward pass."""
    phases = []
    if call.source:
        pixels = plan.inputs * plan.height * plan.width
        phases.append(Phase(take_in_channels.address, stage, plan.inputs, pixels * lanes))
    parts = lanes // 16
    if (plan.rows, plan.columns) != (plan.height, plan.width):
        phases.append(Phase(clear_padding.address, stage, parts, plan.inputs * plan.plane * lanes // 4))
    rows = window_rows(plan, call.pool)
    loop = add_four_windows if plan.tall > 1 else add_windows
    phases.append(Phase(loop.address, stage, parts * rows, plan.nnz * plan.out_h * plan.out_w * lanes))
    if call.result:
        phases.append(by_features(hand_out_result, cast(int, call.result_sample), stage, lanes))
    return phases


@compiled
def _clear_padding(call, plan, b):
    """Write the zero padding of the images of these lanes."""
    x = floats(call.x + 4 * (b // 16 * call.x_group))
    top, left, bottom, right = plan.pad_y, plan.pad_x, plan.pad_y + plan.height, plan.pad_x + plan.width
    for c in range(plan.inputs):
        fill_zeros(x, plan, b, c, 0, top, 0, plan.columns)
        fill_zeros(x, plan, b, c, bottom, plan.rows, 0, plan.columns)
        fill_zeros(x, plan, b, c, top, bottom, 0, left)
        fill_zeros(x, plan, b, c, top, bottom, right, plan.columns)


@compiled
def _add_window(call, plan, i, j, b):
    """Compute all channels of one window."""
    zero, right, down = zeros(16), plan.stride_x * 16, plan.stride_y * plan.columns * 16
    values, bias, indptr, offsets = floats(call.values), floats(call.bias), longs(plan.indptr), ints(plan.offsets)
    x, start = floats(call.x), i * down + j * right + b // 16 * call.x_group
    y, winners, remember = floats(call.y), octets(call.winners), call.winners != 0
    (at_y, step_y), (winner, step_winner) = y_at(call, i // 2, j // 2, b), winners_at(plan, i, j, b)
    pool, relu, outputs = call.pool != 0, call.relu != 0, plan.outputs
    for o in range(outputs):
        p00 = p01 = p10 = p11 = splat(bias[o], zero)
        for k in range(indptr[o], indptr[o + 1]):
            weight, at = values[k], start + offsets[k]
            p00 = fma(weight, load(x, at, zero), p00)
            p01 = fma(weight, load(x, at + right, zero), p01)
            p10 = fma(weight, load(x, at + down, zero), p10)
            p11 = fma(weight, load(x, at + down + right, zero), p11)
        if pool:
            store_best(y, at_y, winners, winner, remember, relu, p00, p01, p10, p11)
        else:
            store_pixel(call, plan, o, i, j, b, p00)
            store_pixel(call, plan, o, i, j + 1, b, p01)
            store_pixel(call, plan, o, i + 1, j, b, p10)
            store_pixel(call, plan, o, i + 1, j + 1, b, p11)
        at_y, winner = at_y + step_y, winner + step_winner


@compiled
def _add_two_windows(call, plan, i, j, b):
    """Compute all channels of two adjacent windows: eight independent sums hide the latency of the additions."""
    zero, right, down = zeros(16), plan.stride_x * 16, plan.stride_y * plan.columns * 16
    values, bias, indptr, offsets = floats(call.values), floats(call.bias), longs(plan.indptr), ints(plan.offsets)
    x, start = floats(call.x), i * down + j * right + b // 16 * call.x_group
    y, winners, remember = floats(call.y), octets(call.winners), call.winners != 0
    (at_y, step_y), (winner, step_winner) = y_at(call, i // 2, j // 2, b), winners_at(plan, i, j, b)
    pool, relu, outputs, next_y = call.pool != 0, call.relu != 0, plan.outputs, call.y_row
    for o in range(outputs):
        p00 = p01 = p02 = p03 = p10 = p11 = p12 = p13 = splat(bias[o], zero)
        for k in range(indptr[o], indptr[o + 1]):
            weight, at = values[k], start + offsets[k]
            below = at + down
            p00 = fma(weight, load(x, at, zero), p00)
            p01 = fma(weight, load(x, at + right, zero), p01)
            p02 = fma(weight, load(x, at + 2 * right, zero), p02)
            p03 = fma(weight, load(x, at + 3 * right, zero), p03)
            p10 = fma(weight, load(x, below, zero), p10)
            p11 = fma(weight, load(x, below + right, zero), p11)
            p12 = fma(weight, load(x, below + 2 * right, zero), p12)
            p13 = fma(weight, load(x, below + 3 * right, zero), p13)
        if pool:
            store_best(y, at_y, winners, winner, remember, relu, p00, p01, p10, p11)
            store_best(y, at_y + next_y, winners, winner + 16, remember, relu, p02, p03, p12, p13)
        else:
            store_pixel(call, plan, o, i, j, b, p00)
            store_pixel(call, plan, o, i, j + 1, b, p01)
            store_pixel(call, plan, o, i, j + 2, b, p02)
            store_pixel(call, plan, o, i, j + 3, b, p03)
            store_pixel(call, plan, o, i + 1, j, b, p10)
            store_pixel(call, plan, o, i + 1, j + 1, b, p11)
            store_pixel(call, plan, o, i + 1, j + 2, b, p12)
            store_pixel(call, plan, o, i + 1, j + 3, b, p13)
        at_y, winner = at_y + step_y, winner + step_winner


@compiled
def _add_windows(call, plan, window, b):
    """Compute one row of windows."""
    j, end = 0, across(plan, call.pool)
    while TOGETHER == 2 and j + 4 <= end:
        _add_two_windows(call, plan, 2 * window, j, b)
        j += 4
    while j < end:
        _add_window(call, plan, 2 * window, j, b)
        j += 2


@kernel(CALL, PLAN)
def take_in_channels(call, plan, first, last, thread):
    """Copy channels ``first`` to ``last`` of the caller's images into images with padding."""
    start = call.x + 4 * (plan.pad_y * plan.columns + plan.pad_x) * call.x_row
    take_in_images(
        call, start, call.x_row, call.x_group, plan.columns, plan.plane, plan.height, plan.width, first, last
    )


@kernel(CALL, PLAN)
def clear_padding(call, plan, first, last, thread):
    """Write the zero padding of the images, 16 lanes a piece."""
    for part in range(first, last):
        _clear_padding(call, plan, part * 16)


@kernel(CALL, PLAN)
def add_windows(call, plan, first, last, thread):
    """Compute rows of windows, one row for 16 lanes a piece."""
    rows = windows(plan, call.pool)
    for part in range(first, last):
        _add_windows(call, plan, part % rows, part // rows * 16)
