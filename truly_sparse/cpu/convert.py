"""Compiled copies between the caller's tensors and the form in which layers store activations (``records.py``)."""
# Compiled functions have no type hints: numba infers them.
# ruff: noqa: ANN001, ANN201

from __future__ import annotations

from .simd import compiled, first_lanes, floats, load, store, transpose, zeros


@compiled
def take_in(call, at, to, row, group, pixels):
    """Copy adjacent pixels of ``call.source``, from pixel ``at`` on, to address ``to``, in the layers' form."""
    source, sample, pixel, target = floats(call.source), call.source_sample, call.source_pixel, floats(to)
    for b in range(0, call.lanes, 16):
        here, keep = b // 16 * group, call.batch - b
        if sample == 0:
            for j in range(pixels):
                values = load(source, (at + j) * pixel + b, zeros(16))
                store(target, here + j * row, first_lanes(keep, values))
        elif keep >= 16 and pixels >= 16:
            for j in range(0, pixels, 16):
                first = min(j, pixels - 16)  # the last block may overlap the previous one
                transpose(source, b * sample + at + first, sample, target, here + first * row, row)
        else:
            for j in range(pixels):
                store(target, here + j * row, zeros(16))
                for n in range(min(keep, 16)):
                    target[here + j * row + n] = source[(b + n) * sample + at + j]


@compiled
def take_in_images(call, to, row, group, width, plane, height, across, first, last):
    """Copy channels ``first`` to ``last``, images of height × across pixels."""
    for c in range(first, last):
        for i in range(height):
            place = to + 4 * (c * plane + i * width) * row
            take_in(call, (c * height + i) * across, place, row, group, across)


@compiled
def hand_out(call, plan, first, last):
    """Copy channels ``first`` to ``last`` of the padded gradient of the input to the caller's tensor."""
    dx, result, zero = floats(call.dx), floats(call.result), zeros(16)
    for c in range(first, last):
        for i in range(plan.height):
            for j in range(plan.width):
                at = (c * plan.plane + (plan.pad_y + i) * plan.columns + plan.pad_x + j) * call.dx_row
                pixel = ((c * plan.height + i) * plan.width + j) * call.result_row
                for b in range(0, call.lanes, 16):
                    store(result, pixel + b, load(dx, at + b // 16 * call.x_group, zero))
