"""The compiled loops of a linear layer, and which of them a pass runs.

The forward pass goes by output. The backward pass goes by input, where the gradients of input and weights share their
loads; if the gradient of the input is not needed, it goes by output.
"""
# Compiled functions have no type hints: numba infers them. Names mean the same everywhere: x, y, g, dx are activations
# and gradients; x_row … the floats from one of their rows to the next; b the first lane of the batch tile.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import functools

import numpy as np

from .convert import SIDE_BY_SIDE, by_features, hand_out, hand_out_result, take_in
from .kernel import Kernel, kernel
from .memory import LANES
from .records import CALL, PLAN, Call, Phase, Plan
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
    positions,
    products,
    splat,
    store,
    total,
    totals,
    where_positive,
    words,
    zeros,
)

# Lanes of the batch per register tile; a CPU without AVX-512 has registers for at most 32.
WIDTHS = (64, 32, 16) if NATIVE == 16 else (32, 16)


def linear_forward(call: Call, plan: Plan, stage: int, lanes: int, single: bool) -> list[Phase]:
    """Return the kernels of the forward pass, tile by tile. ``single``: the batch is one sample, for inference.

    The part of the input that a tile reads then stays in the cache for all outputs.
    """
    if single:
        return [Phase(one_sample(plan.col_bytes).address, stage, plan.row_pieces, LANES * plan.nnz)]
    phases = []
    if call.source:
        phases.append(by_features(take_in_features, plan.inputs, stage, lanes))
    for width, tiles in _tiles(lanes):
        loop = outputs_of(width, plan.col_bytes).address
        phases.append(Phase(loop, stage, tiles * plan.row_pieces, tiles * width * plan.nnz))
    if call.result:
        phases.append(by_features(hand_out_result, plan.outputs, stage, lanes))
    return phases


def linear_backward(call: Call, plan: Plan, stage: int, lanes: int, to_mask: bool) -> list[Phase]:
    """Return the kernels of the backward pass. ``to_mask``: whether to compute ``masked`` and ``dbias`` first."""
    phases = []
    if call.source:
        phases.append(by_features(take_in_gradients, plan.outputs, stage, lanes))
    if to_mask:
        phases.append(Phase(mask.address, stage, plan.row_pieces, lanes * plan.outputs))
    for width, tiles in _tiles(lanes):
        work = tiles * width * plan.nnz
        if call.dx:
            phases.append(Phase(inputs_of(width, plan.row_bytes).address, stage, plan.col_pieces, 2 * work))
        else:
            phases.append(Phase(dots_of(width, plan.col_bytes).address, stage, plan.row_pieces, work))
    if call.result:
        phases.append(by_features(hand_out_gradient, plan.inputs, stage, lanes))
    return phases


def _tiles(lanes: int) -> list[tuple[int, int]]:
    """Return the widths of the batch tiles that cover the lanes, with the number of tiles of each."""
    tiles = []
    for width in WIDTHS:
        tiles.append((width, lanes // width))
        lanes %= width
    return [(width, count) for width, count in tiles if count]


@compiled
def _first_lane(lanes, width):
    """Return the first lane of the tiles of this width, which follow the wider ones."""
    return 0 if width == WIDTHS[0] else lanes // (2 * width) * (2 * width)


@kernel(CALL, PLAN)
def take_in_features(call, plan, first, last, thread):
    """Copy the caller's input, ``SIDE_BY_SIDE`` features a piece."""
    start, end = first * SIDE_BY_SIDE, min(last * SIDE_BY_SIDE, plan.inputs)
    take_in(call, start, call.x + 4 * start * call.x_row, call.x_row, call.x_group, end - start, end - start, 0)


@kernel(CALL, PLAN)
def take_in_gradients(call, plan, first, last, thread):
    """Copy the caller's gradient of the result, ``SIDE_BY_SIDE`` features a piece."""
    start, end = first * SIDE_BY_SIDE, min(last * SIDE_BY_SIDE, plan.outputs)
    take_in(call, start, call.g + 4 * start * call.g_row, call.g_row, call.g_group, end - start, end - start, 0)


@kernel(CALL, PLAN)
def hand_out_gradient(call, plan, first, last, thread):
    """Copy the input's gradient to the caller's tensor."""
    start, end = first * SIDE_BY_SIDE, min(last * SIDE_BY_SIDE, plan.inputs)
    hand_out(call, start, call.dx + 4 * start * call.dx_row, call.dx_row, call.x_group, end - start, end - start, 0)


@functools.cache
def outputs_of(width: int, position_bytes: int) -> Kernel:
    """Return the kernel of the forward pass for tiles of ``width`` lanes; a piece is one tile of some outputs."""

    @kernel(CALL, PLAN)
    def outputs(call, plan, first, last, thread):
        x, x_row, y, y_row = floats(call.x), call.x_row, floats(call.y), call.y_row
        values, bias, relu = floats(call.values), floats(call.bias), call.relu
        cols, indptr, borders = positions(plan.cols, position_bytes), longs(plan.indptr), longs(plan.row_chunks)
        zero = zeros(width)
        for piece in range(first, last):
            tile, chunk = piece // plan.row_pieces, piece % plan.row_pieces
            b = _first_lane(call.lanes, width) + tile * width
            for o in range(borders[chunk], borders[chunk + 1]):
                even, odd = splat(bias[o], zero), zero  # two independent sums hide the latency of the additions
                k, end = indptr[o], indptr[o + 1]
                while k + 1 < end:
                    even = fma(values[k], load(x, cols[k] * x_row + b, zero), even)
                    odd = fma(values[k + 1], load(x, cols[k + 1] * x_row + b, zero), odd)
                    k += 2
                if k < end:
                    even = fma(values[k], load(x, cols[k] * x_row + b, zero), even)
                result = add(even, odd)
                if relu:
                    result = maximum(zero, result)
                store(y, o * y_row + b, result)

    return outputs


@functools.cache
def one_sample(position_bytes: int) -> Kernel:
    """Return the kernel of the forward pass for one sample. Compilers gather its inputs where CPUs can."""

    @kernel(CALL, PLAN)
    def sample(call, plan, first, last, thread):
        x, x_row, y, y_row = floats(call.x), call.x_row, floats(call.y), call.y_row
        values, bias, relu = floats(call.values), floats(call.bias), call.relu
        cols, indptr, borders = positions(plan.cols, position_bytes), longs(plan.indptr), longs(plan.row_chunks)
        for o in range(borders[first], borders[last]):
            result = bias[o]
            if x_row == 1:  # without a multiplication of each position
                for k in range(indptr[o], indptr[o + 1]):
                    result += values[k] * x[cols[k]]
            else:
                for k in range(indptr[o], indptr[o + 1]):
                    result += values[k] * x[cols[k] * x_row]
            y[o * y_row] = max(result, np.float32(0)) if relu else result

    return sample


def make_all() -> None:
    """Make the kernels of all widths and sizes of positions, so that ``warmup`` compiles them."""
    for position_bytes in (2, 4):
        one_sample(position_bytes)
        for width in WIDTHS:
            outputs_of(width, position_bytes)
            dots_of(width, position_bytes)
            inputs_of(width, position_bytes)


@kernel(CALL, PLAN)
def mask(call, plan, first, last, thread):
    """Write ``masked``, the gradient before ReLU with zeros in the padding, and ``dbias``, its sums over the batch."""
    g, masked, y, dbias = floats(call.g), floats(call.masked), floats(call.y), floats(call.dbias)
    borders = longs(plan.row_chunks)
    for o in range(borders[first], borders[last]):
        over_batch = zeros(16)
        for b in range(0, call.lanes, 16):
            part = first_lanes(call.batch - b, load(g, o * call.g_row + b, over_batch))
            if call.relu:
                part = where_positive(load(y, o * call.y_row + b, over_batch), part)
            store(masked, o * call.masked_row + b, part)
            over_batch = add(part, over_batch)
        dbias[o] = total(over_batch)


@functools.cache
def dots_of(width: int, position_bytes: int) -> Kernel:
    """Return the kernel of the weights' gradients by output: dot products over the batch, for tiles of ``width``."""

    @kernel(CALL, PLAN)
    def dots(call, plan, first, last, thread):
        x, x_row, g, g_row = floats(call.x), call.x_row, floats(call.masked), call.masked_row
        cols = positions(plan.cols, position_bytes)
        dvalues, indptr, borders, zero = floats(call.dvalues), longs(plan.indptr), longs(plan.row_chunks), zeros(width)
        b = _first_lane(call.lanes, width)
        while call.lanes - b >= width:
            for o in range(borders[first], borders[last]):
                gradient = load(g, o * g_row + b, zero)
                for k in range(indptr[o], indptr[o + 1]):
                    row = load(x, cols[k] * x_row + b, zero)
                    product = total(products(gradient, first_lanes(call.batch - b, row), zeros(NATIVE)))
                    dvalues[k] = product if b == 0 else dvalues[k] + product
            b += width

    return dots


@compiled
def _store_input_gradient(call, i, b, tile, row):
    """Write the input's gradient. If the layer before is linear, this also does the work of its ``mask``."""
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


@functools.cache
def inputs_of(width: int, position_bytes: int) -> Kernel:
    """Return the kernel of the gradients of input and weights, by input, for tiles of ``width`` lanes.

    Pieces are independent, so threads do not wait for each other between blocks of outputs and tiles of the batch. The
    weights' gradients are stored in ``scratch`` first: a store to a just computed address would delay the loads after
    it.
    """

    @kernel(CALL, PLAN)
    def inputs(call, plan, first, last, thread):
        borders, perm, zero, like = longs(plan.col_chunks), words(plan.t_perm), zeros(width), zeros(NATIVE)
        rows = positions(plan.t_rows, position_bytes)
        x_row, g_row, dx_row, values = call.x_row, call.masked_row, call.dx_row, floats(call.values)
        dvalues, waiting = floats(call.dvalues), floats(call.scratch + thread * call.scratch_bytes)
        for block in range(plan.blocks):
            indptr = longs(plan.t_indptr + 8 * block * plan.inputs)
            b = _first_lane(call.lanes, width)
            while call.lanes - b >= width:
                x, g, dx = floats(call.x + 4 * b), floats(call.masked + 4 * b), floats(call.dx + 4 * b)
                for piece in range(first, last):
                    start = indptr[borders[piece]]
                    for i in range(borders[piece], borders[piece + 1]):
                        row = first_lanes(call.batch - b, load(x, i * x_row, zero))
                        even = load(dx, i * dx_row, zero) if block > 0 else zero
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
                        if block + 1 == plan.blocks:
                            _store_input_gradient(call, i, b, add(even, odd), row)
                        else:
                            store(dx, i * dx_row, add(even, odd))
                    for k in range(start, indptr[borders[piece + 1]]):
                        dvalues[perm[k]] = waiting[k - start] if b == 0 else dvalues[perm[k]] + waiting[k - start]
                b += width

    return inputs
