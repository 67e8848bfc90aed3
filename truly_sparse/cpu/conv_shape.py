"""What several kernels of a convolution use: sizes, addresses, and how results are stored."""
# Compiled functions have no type hints: numba infers them. Names mean the same everywhere: x, y, g, dx are activations
# and gradients; x_row … the floats from one of their pixels to the next; b the first lane of the batch.
# ruff: noqa: ANN001, ANN201

from __future__ import annotations

from .simd import NATIVE, compiled, floats, largest, maximum, store, store_winner, zeros

# A sum has 16 lanes: a whole cache line. The registers hold the sums of so many adjacent windows,
TOGETHER = 2 if NATIVE == 16 else 1
# and so many adjacent pixels of the input, with their gradients.
TILE = 8 if NATIVE == 16 else 3


def window_rows(plan, pool):
    """Return the number of rows of windows. Pooling drops an odd last row of pixels."""
    return plan.out_h // 2 if pool else (plan.out_h + 1) // 2


windows = compiled(window_rows)  # the same, for compiled code


def tile_pixels(plan):
    """Return how many adjacent pixels of the input the backward pass by input computes at a time.

    The tile fills the registers and, if possible, divides the rows (images are often 7, 14, 28 … wide).
    """
    return 7 if NATIVE == 16 and plan.width % 7 == 0 and plan.width % 8 != 0 else TILE


pixels_of_tile = compiled(tile_pixels)


@compiled
def across(plan, pool):
    """Return the number of columns of pixels in whole windows."""
    return plan.out_w // 2 * 2 if pool else (plan.out_w + 1) // 2 * 2


@compiled
def fill_zeros(image, plan, b, c, first_row, last_row, first_column, last_column):
    """Write zeros into a rectangle of pixels of channel ``c``."""
    for i in range(first_row, last_row):
        for j in range(first_column, last_column):
            store(image, (c * plan.plane + i * plan.columns + j) * 16, zeros(16))


@compiled
def winners_at(plan, i, j, b):
    """Return the position of the winner of window (i, j) of the first channel, and the bytes to the next channel."""
    height, width = plan.out_h // 2, plan.out_w // 2
    return (b // 16 * plan.outputs * height * width + i // 2 * width + j // 2) * 16, height * width * 16


@compiled
def dx_at(call, c, i, j, part):
    """Return the position of the gradient of pixel (i, j) of input channel ``c``, for 16 lanes."""
    return (c * call.dx_plane + i * call.dx_width + j) * call.dx_row + part * call.dx_group


@compiled
def y_at(call, i, j, b):
    """Return the position of pixel (i, j) of the first channel of the result, and the floats to the next channel."""
    return (i * call.y_width + j) * call.y_row + b // 16 * call.y_group, call.y_plane * call.y_row


@compiled
def store_best(y, at, winners, winner, remember, relu, p00, p01, p10, p11):
    """Write the largest of a window's four results, with ReLU."""
    best = largest(p00, p01, p10, p11)
    if remember:
        store_winner(winners, winner, p00, p01, p10, p11, best, relu)
    store(y, at, maximum(zeros(16), best) if relu else best)


@compiled
def store_pixel(call, plan, o, i, j, b, pixel):
    """Write one result, with ReLU, unless it lies beyond the edge."""
    if i < plan.out_h and j < plan.out_w:
        at, step = y_at(call, i, j, b)
        store(floats(call.y), at + o * step, maximum(zeros(16), pixel) if call.relu else pixel)
