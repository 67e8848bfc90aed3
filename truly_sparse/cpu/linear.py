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
from .linear_blocks import (
    four_inputs_of,
    four_of_one_sample,
    four_outputs_of,
    four_products_of,
    inputs_by_output_of,
    sixteen_products_of,
)
from .linear_few import FEW, few_of
from .linear_shape import (
    RANGES,
    WIDTHS,
    WIDTHS_BY_OUTPUT,
    WIDTHS_OF_FOUR,
    first_lane,
    output,
    store_input_gradient,
    tiles,
)
from .memory import LANES
from .records import CALL, PLAN, Call, Phase, Plan
from .simd import (
    NATIVE,
    add,
    compiled,
    first_lanes,
    floats,
    fma,
    gathered,
    load,
    longs,
    maximum,
    positions,
    products,
    store,
    total,
    totals,
    where_positive,
    within,
    words,
    zeros,
)


def linear_forward(call: Call, plan: Plan, stage: int, lanes: int, single: bool) -> list[Phase]:
    """Return the kernels of the forward pass, tile by tile. ``single``: the batch is one sample, for inference.

    The part of the input that a tile reads then stays in the cache for all outputs.
    """
    fours = plan.tall % 4 == 0
    if single:
        kinds = {"of_one": plan.tall == 1, "next_to": call.x_row == 1}
        loop = four_of_one_sample(plan.col_bytes) if fours else one_sample(plan.col_bytes, **kinds)
        return [Phase(loop.address, stage, plan.row_pieces, LANES * plan.nnz)]
    phases = []
    if call.source:
        phases.append(by_features(take_in_features, plan.inputs, stage, lanes))
    for width, count in tiles(lanes, WIDTHS_OF_FOUR if fours else WIDTHS):
        loop = (four_outputs_of if fours else outputs_of)(width, plan.col_bytes)
        phases.append(Phase(loop.address, stage, count * plan.row_pieces, count * width * plan.nnz))
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
    of_blocks = plan.tall % 4 == 0 or plan.wide % 4 == 0
    phases += (_backward_of_blocks if of_blocks else _backward_of_weights)(call, plan, stage, lanes)
    if call.result:
        phases.append(by_features(hand_out_gradient, plan.inputs, stage, lanes))
    return phases


def _backward_of_weights(call: Call, plan: Plan, stage: int, lanes: int) -> list[Phase]:
    """Return the kernels of the gradients of input and weights, for single weights."""
    phases = []
    for width, count in tiles(lanes):
        work = count * width * plan.nnz
        if call.dx:
            phases.append(Phase(inputs_of(width, plan.row_bytes).address, stage, plan.col_pieces, 2 * work))
        else:
            phases.append(Phase(dots_of(width, plan.col_bytes).address, stage, plan.row_pieces, work))
    return phases


def _backward_of_blocks(call: Call, plan: Plan, stage: int, lanes: int) -> list[Phase]:
    """Return the kernels of the gradients of input and weights, where four outputs or four inputs share positions."""
    phases, by_input = [], plan.tall % 4 > 0
    for width, count in tiles(lanes, WIDTHS_OF_FOUR if by_input else WIDTHS_BY_OUTPUT) if call.dx else []:
        loop = four_inputs_of(width, plan.row_bytes) if by_input else inputs_by_output_of(width, plan.col_bytes)
        pieces = plan.col_pieces if by_input else count * RANGES
        phases.append(Phase(loop.address, stage, pieces, count * width * plan.nnz))
    if not by_input and plan.wide % 4 == 0 and NATIVE == 16:  # sixteen sums need more registers than AVX2 has
        loop = sixteen_products_of(plan.col_bytes)
    else:
        loop = four_products_of(by_input, plan.row_bytes if by_input else plan.col_bytes)
    pieces = plan.col_pieces if by_input else plan.row_pieces
    return [*phases, Phase(loop.address, stage, pieces, lanes * plan.nnz)]


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
        x_row, y, y_row, zero = call.x_row, floats(call.y), call.y_row, zeros(width)
        values, bias, relu = floats(call.values), floats(call.bias), call.relu
        cols, indptr, borders = positions(plan.cols, position_bytes), longs(plan.indptr), longs(plan.row_chunks)
        for piece in range(first, last):
            tile, chunk = piece // plan.row_pieces, piece % plan.row_pieces
            b = first_lane(call.lanes, width, WIDTHS[0]) + tile * width
            x = floats(call.x + 4 * b)
            for block in range(borders[chunk], borders[chunk + 1]):
                start, end = indptr[block], indptr[block + 1]
                to_value = (plan.tall - 1) * start
                for o in range(plan.tall * block, plan.tall * (block + 1)):
                    result = output(x, x_row, cols, values, to_value, start, end, bias[o], zero)
                    store(y, o * y_row + b, maximum(zero, result) if relu else result)
                    to_value += end - start

    return outputs


@within
def _product_of_one(values, to_value, x, x_row, cols, start, end):
    """Return the sum of weights times inputs, in two vectors of four. Up to three numbers after ``end`` are read."""
    k, sums, others = start, zeros(4), zeros(4)
    while k + 8 <= end:
        sums = fma(load(values, k + to_value, sums), gathered(x, cols, k, x_row, sums), sums)
        others = fma(load(values, k + 4 + to_value, sums), gathered(x, cols, k + 4, x_row, sums), others)
        k += 8
    if k + 4 <= end:
        sums = fma(load(values, k + to_value, sums), gathered(x, cols, k, x_row, sums), sums)
        k += 4
    if k < end:
        rest = products(load(values, k + to_value, sums), gathered(x, cols, k, x_row, sums), sums)
        others = add(others, first_lanes(end - k, rest))
    return total(add(sums, others))


@functools.cache
def one_sample(position_bytes: int, *, of_one: bool, next_to: bool) -> Kernel:
    """Return the kernel of the forward pass for one sample.

    Args:
        position_bytes: of a position.
        of_one: whether blocks have one output; without a loop over a block's outputs this kernel is faster.
        next_to: whether the inputs are next to each other; otherwise each position is multiplied.
    """

    @kernel(CALL, PLAN)
    def sample(call, plan, first, last, thread):
        x, y, y_row, x_row, tall = floats(call.x), floats(call.y), call.y_row, call.x_row, plan.tall
        if next_to:
            x_row = 1
        if of_one:
            tall = 1
        values, bias, relu = floats(call.values), floats(call.bias), call.relu
        cols, indptr, borders = positions(plan.cols, position_bytes), longs(plan.indptr), longs(plan.row_chunks)
        readable = plan.nnz // tall - 3
        for block in range(borders[first], borders[last]):
            start, end = indptr[block], indptr[block + 1]
            to_value = (tall - 1) * start
            for o in range(tall * block, tall * (block + 1)):
                if end <= readable:
                    result = bias[o] + _product_of_one(values, to_value, x, x_row, cols, start, end)
                else:
                    result = bias[o]
                    for k in range(start, end):
                        result += values[k + to_value] * x[cols[k] * x_row]
                y[o * y_row] = max(result, np.float32(0)) if relu else result
                to_value += end - start

    return sample


def make_all() -> None:
    """Make the kernels of single weights for all widths and sizes of positions, so that ``warmup`` compiles them."""
    for position_bytes in (2, 4):
        for next_to in (True, False):
            one_sample(position_bytes, of_one=True, next_to=next_to)
        for width in FEW:
            few_of(width, position_bytes)
        for width in WIDTHS:
            outputs_of(width, position_bytes)
            dots_of(width, position_bytes)
            inputs_of(width, position_bytes)


@kernel(CALL, PLAN)
def mask(call, plan, first, last, thread):
    """Write ``masked``, the gradient before ReLU with zeros in the padding, and ``dbias``, its sums over the batch.

    Where ``masked`` is the given gradient, and would not change, it is only read.
    """
    g, masked, y, dbias = floats(call.g), floats(call.masked), floats(call.y), floats(call.dbias)
    borders, changes = longs(plan.row_chunks), call.relu or call.batch < call.lanes or call.masked != call.g
    for o in range(plan.tall * borders[first], plan.tall * borders[last]):
        over_batch = zeros(16)
        for b in range(0, call.lanes, 16):
            part = first_lanes(call.batch - b, load(g, o * call.g_row + b, over_batch))
            if call.relu:
                part = where_positive(load(y, o * call.y_row + b, over_batch), part)
            if changes:
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
        b = first_lane(call.lanes, width, WIDTHS[0])
        while call.lanes - b >= width:
            for block in range(borders[first], borders[last]):
                start, end = indptr[block], indptr[block + 1]
                to_value = (plan.tall - 1) * start
                for o in range(plan.tall * block, plan.tall * (block + 1)):
                    gradient = load(g, o * g_row + b, zero)
                    for k in range(start, end):
                        row, at = load(x, cols[k] * x_row + b, zero), k + to_value
                        product = total(products(gradient, first_lanes(call.batch - b, row), zeros(NATIVE)))
                        dvalues[at] = product if b == 0 else dvalues[at] + product
                    to_value += end - start
            b += width

    return dots


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
            indptr = longs(plan.t_indptr + 8 * block * (plan.inputs // plan.wide))
            b = first_lane(call.lanes, width, WIDTHS[0])
            while call.lanes - b >= width:
                x, g, dx = floats(call.x + 4 * b), floats(call.masked + 4 * b), floats(call.dx + 4 * b)
                for piece in range(first, last):
                    start, behind = indptr[borders[piece]], indptr[borders[piece + 1]]
                    for column in range(borders[piece], borders[piece + 1]):
                        for c in range(plan.wide):
                            i, k, end = plan.wide * column + c, indptr[column], indptr[column + 1]
                            to_sum = c * (behind - start) - start
                            row = first_lanes(call.batch - b, load(x, i * x_row, zero))
                            even = load(dx, i * dx_row, zero) if block > 0 else zero
                            odd = zero  # two independent sums hide the latency of the additions
                            while k + 8 <= end:
                                even, p = _product(g, rows[k] * g_row, values[perm[k] + c], even, row, like)
                                odd, q = _product(g, rows[k + 1] * g_row, values[perm[k + 1] + c], odd, row, like)
                                even, r = _product(g, rows[k + 2] * g_row, values[perm[k + 2] + c], even, row, like)
                                odd, s = _product(g, rows[k + 3] * g_row, values[perm[k + 3] + c], odd, row, like)
                                even, t = _product(g, rows[k + 4] * g_row, values[perm[k + 4] + c], even, row, like)
                                odd, u = _product(g, rows[k + 5] * g_row, values[perm[k + 5] + c], odd, row, like)
                                even, v = _product(g, rows[k + 6] * g_row, values[perm[k + 6] + c], even, row, like)
                                odd, w = _product(g, rows[k + 7] * g_row, values[perm[k + 7] + c], odd, row, like)
                                store(waiting, k + to_sum, totals(p, q, r, s, t, u, v, w))
                                k += 8
                            while k < end:
                                even, p = _product(g, rows[k] * g_row, values[perm[k] + c], even, row, like)
                                waiting[k + to_sum] = total(p)
                                k += 1
                            if block + 1 == plan.blocks:
                                store_input_gradient(call, i, b, add(even, odd), row)
                            else:
                                store(dx, i * dx_row, add(even, odd))
                    for c in range(plan.wide):
                        to_sum = c * (behind - start) - start
                        for k in range(start, behind):
                            at, number = perm[k] + c, waiting[k + to_sum]
                            dvalues[at] = number if b == 0 else dvalues[at] + number
                b += width

    return inputs
