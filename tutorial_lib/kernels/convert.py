"""Into and out of the form in which a chain's layers read and write (``records.py``), in the words of ``simd.py``."""
# Compiled functions have no type hints: numba infers them.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

from numba import prange

from .simd import compiled, first_lanes, floats, load, parallel, store, zeros

BLOCK = 64  # features that a piece of work turns at a time: what a batch has of them fits the fastest cache


@compiled
def _turn(first, last, batch, features, x, y, row):
    for feature in range(first, last):
        for b in range(batch):
            y[feature * row + b] = x[b * features + feature]


@parallel
def transpose(x_at, batch, features, y_at, row):
    """Write ``x[batch, features]`` to ``y[features, row]``."""
    for block in prange((features + BLOCK - 1) // BLOCK):
        first = block * BLOCK
        _turn(first, min(first + BLOCK, features), batch, features, floats(x_at), floats(y_at), row)


@compiled
def take_in(call, to, row, group, width, plane, height, across, first, last):
    """Bring channels ``first`` to ``last`` of ``call.source``, images of height × across, into a form of ours."""
    source, sample, pixel, target, zero = (
        floats(call.source),
        call.source_sample,
        call.source_pixel,
        floats(to),
        zeros(16),
    )
    for c in range(first, last):
        for i in range(height):
            at, end = (c * height + i) * across * pixel, (c * plane + i * width) * row
            for b in range(0, call.lanes, 16):
                here, keep = end + b // 16 * group, call.batch - b
                for j in range(across):
                    if sample == 1:
                        values = first_lanes(keep, load(source, at + j * pixel + b, zero))
                        store(target, here + j * row, values)
                    else:
                        if keep < 16:
                            store(target, here + j * row, zero)
                        for n in range(min(keep, 16)):
                            target[here + j * row + n] = source[(b + n) * sample + at + j * pixel]


@compiled
def hand_out(call, plan, first, last):
    """Bring channels ``first`` to ``last`` of the gradient of the input, which lies padded, to where it is wanted."""
    dx, result, zero = floats(call.dx), floats(call.result), zeros(16)
    for c in range(first, last):
        for i in range(plan.height):
            for j in range(plan.width):
                at = (c * plan.plane + (plan.pad_y + i) * plan.columns + plan.pad_x + j) * call.dx_row
                pixel = ((c * plan.height + i) * plan.width + j) * call.result_row
                for b in range(0, call.lanes, 16):
                    store(result, pixel + b, load(dx, at + b // 16 * call.x_group, zero))
