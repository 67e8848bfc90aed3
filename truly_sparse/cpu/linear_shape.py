"""What the kernels of linear layers share: tiles of the batch, and how the gradient of the input is stored."""
# Compiled functions have no type hints: numba infers them. Names mean the same everywhere: x, y, g, dx are activations
# and gradients; x_row … the floats from one of their rows to the next; b the first lane of the batch tile.
# ruff: noqa: ANN001, ANN201

from __future__ import annotations

from .simd import NATIVE, add, compiled, first_lanes, floats, fma, load, splat, store, total, where_positive, within

# Lanes of the batch per register tile of one output; a CPU without AVX-512 has registers for at most 32.
WIDTHS = (64, 32, 16) if NATIVE == 16 else (32, 16)
# The same for a tile of four outputs.
WIDTHS_OF_FOUR = (64, 32, 16) if NATIVE == 16 else (16,)
# The same where each tile is some pieces of the work, ranges of the inputs: threads share a medium batch by tiles.
WIDTHS_BY_OUTPUT, RANGES = WIDTHS_OF_FOUR[-2:], 8


def tiles(lanes: int, widths: tuple[int, ...] = WIDTHS) -> list[tuple[int, int]]:
    """Return the widths of the batch tiles that cover the lanes, with the number of tiles of each."""
    found = []
    for width in widths:
        found.append((width, lanes // width))
        lanes %= width
    return [(width, count) for width, count in found if count]


@compiled
def first_lane(lanes, width, widest):
    """Return the first lane of the tiles of this width, which follow the wider ones."""
    return 0 if width == widest else lanes // (2 * width) * (2 * width)


@within
def output(x, x_row, cols, values, to_value, start, end, bias, zero):
    """Return a tile of one output: the bias, and weights ``start`` to ``end`` times their inputs."""
    even, odd, k = splat(bias, zero), zero, start  # two independent sums hide the latency of the additions
    while k + 1 < end:
        even = fma(values[k + to_value], load(x, cols[k] * x_row, zero), even)
        odd = fma(values[k + 1 + to_value], load(x, cols[k + 1] * x_row, zero), odd)
        k += 2
    if k < end:
        even = fma(values[k + to_value], load(x, cols[k] * x_row, zero), even)
    return add(even, odd)


@compiled
def store_input_gradient(call, i, b, tile, row):
    """Write the input's gradient. If the layer before is linear, this also does the work of its ``mask``."""
    if call.dbias_before:
        dbias = floats(call.dbias_before)
        tile = first_lanes(call.batch - b, tile)
        if call.relu_before:
            tile = where_positive(row, tile)
        dbias[i] = total(tile) if b == 0 else dbias[i] + total(tile)
    store(floats(call.dx), i * call.dx_row + b, tile)
