"""Compiled copies between the caller's tensors and the form in which layers store activations (``records.py``).

If the caller's tensor is contiguous, blocks of 8 pixels of 8 samples are transposed in registers.
"""
# Compiled functions have no type hints: numba infers them. A run of pixels is adjacent in the caller's tensor. In the
# layers' form, ``gap`` floats of padding follow after every ``across`` pixels of it, a row of the image.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

from .kernel import Kernel, kernel
from .records import CALL, PLAN, Phase
from .simd import block, compiled, first_lanes, floats, load, store, transpose, zeros

SIDE_BY_SIDE = 64  # features that a thread copies at a time


def by_features(loop: Kernel, features: int, stage: int, lanes: int) -> Phase:
    """Return the phase of a kernel that copies ``SIDE_BY_SIDE`` features a piece."""
    return Phase(loop.address, stage, -(-features // SIDE_BY_SIDE), features * lanes)


@compiled
def take_in(call, at, to, row, group, pixels, across, gap):
    """Copy a run of pixels of ``call.source``, from pixel ``at`` on, to address ``to``."""
    source, pixel, target = floats(call.source), call.source_pixel, floats(to)
    for b in range(0, call.lanes, 16):
        place, column = b // 16 * group, 0
        if call.source_sample > 0:
            turn_in(call, at, b, target, place, row, pixels, across, gap)
            turn_in(call, at, b + 8, target, place + 8, row, pixels, across, gap)
        else:
            for j in range(pixels):
                values = load(source, (at + j) * pixel + b, zeros(16))
                store(target, place, first_lanes(call.batch - b, values))
                place, column = place + row, column + 1
                if column == across:
                    place, column = place + gap, 0


@compiled
def turn_in(call, at, b, target, place, row, pixels, across, gap):
    """Copy a run of pixels of eight samples of a contiguous tensor, from sample ``b`` on."""
    source, sample, keep, column = floats(call.source), call.source_sample, call.batch - b, 0
    rows, turned = block(), block()
    for j in range(0, pixels, 8):
        start, count = b * sample + at + j, min(8, pixels - j)
        if count == 8 and keep >= 8 and gap == 0:
            transpose(source, start, sample, target, place, row)
            place += 8 * row
            continue
        if count == 8 and keep >= 8:
            transpose(source, start, sample, turned, 0, 8)
        elif count == 8:
            for n in range(keep):
                store(rows, 8 * n, load(source, start + n * sample, zeros(8)))
            transpose(rows, 0, 8, turned, 0, 8)
        else:
            for n in range(min(keep, 8)):
                for m in range(count):
                    turned[8 * m + n] = source[start + n * sample + m]
        for m in range(count):
            store(target, place, first_lanes(keep, load(turned, 8 * m, zeros(8))))
            place, column = place + row, column + 1
            if column == across:
                place, column = place + gap, 0


@compiled
def take_in_images(call, to, row, group, width, plane, height, across, first, last):
    """Copy channels ``first`` to ``last``, images of height × across pixels."""
    pixels, gap = height * across, (width - across) * row
    for c in range(first, last):
        take_in(call, c * pixels, to + 4 * c * plane * row, row, group, pixels, across, gap)


@compiled
def hand_out(call, at, start, row, group, pixels, across, gap):
    """Copy a run of pixels from address ``start`` to ``call.result``, from pixel ``at`` on."""
    source, pixel, result = floats(start), call.result_pixel, floats(call.result)
    for b in range(0, call.lanes, 16):
        place, column = b // 16 * group, 0
        if call.result_sample > 0:
            _turn_out(call, at, b, source, place, row, pixels, across, gap)
            _turn_out(call, at, b + 8, source, place + 8, row, pixels, across, gap)
        else:
            for j in range(pixels):
                store(result, (at + j) * pixel + b, load(source, place, zeros(16)))
                place, column = place + row, column + 1
                if column == across:
                    place, column = place + gap, 0


@compiled
def _turn_out(call, at, b, source, place, row, pixels, across, gap):
    """Copy a run of pixels of eight samples to a contiguous tensor, from sample ``b`` on."""
    sample, column, gathered = call.result_sample, 0, block()
    for j in range(0, pixels, 8):
        to, count = b * sample + at + j, min(8, pixels - j)
        if gap == 0:
            turn_block(call, b, source, place, row, to, count)
            place += 8 * row
        else:
            for m in range(count):
                store(gathered, 8 * m, load(source, place, zeros(8)))
                place, column = place + row, column + 1
                if column == across:
                    place, column = place + gap, 0
            turn_block(call, b, gathered, 0, 8, to, count)


@compiled
def turn_block(call, b, source, place, row, to, count):
    """Write ``count`` pixels of up to eight samples to ``call.result``."""
    result, sample, keep, turned = floats(call.result), call.result_sample, call.batch - b, block()
    if count == 8 and keep >= 8:
        transpose(source, place, row, result, to, sample)
    elif count == 8:
        transpose(source, place, row, turned, 0, 8)
        for n in range(keep):
            store(result, to + n * sample, load(turned, 8 * n, zeros(8)))
    else:
        for n in range(min(keep, 8)):
            for m in range(count):
                result[to + n * sample + m] = source[place + m * row + n]


@compiled
def hand_out_images(call, start, row, group, width, plane, height, across, first, last):
    """Copy channels ``first`` to ``last``, images of height × across pixels."""
    pixels, gap = height * across, (width - across) * row
    for c in range(first, last):
        hand_out(call, c * pixels, start + 4 * c * plane * row, row, group, pixels, across, gap)


@kernel(CALL, PLAN)
def hand_out_result(call, plan, first, last, thread):
    """Copy the result, of a linear layer or of a convolution, to the caller's tensor; it has no padding."""
    start, end = first * SIDE_BY_SIDE, min(last * SIDE_BY_SIDE, call.result_sample)
    hand_out(call, start, call.y + 4 * start * call.y_row, call.y_row, call.y_group, end - start, end - start, 0)
