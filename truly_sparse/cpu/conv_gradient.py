"""The gradient of a convolution's result before ReLU and pooling, window by window, and as images like the input's."""
# Compiled functions have no type hints: numba infers them. Names mean the same everywhere: x, y, g, dx are activations
# and gradients; x_row … the floats from one of their pixels to the next; b the first lane of the batch.
# ruff: noqa: ANN001, ANN201

from __future__ import annotations

from .conv_shape import across, fill_zeros, windows, winners_at, y_at
from .simd import (
    add,
    compiled,
    floats,
    load,
    octets,
    store,
    where_any_winner,
    where_positive,
    where_winner,
    zeros,
)


@compiled
def g_at(call, i, j, b):
    """Return the position of the gradient of pixel (i, j) of the first channel, and the floats to the next channel."""
    return (i * call.g_width + j) * call.g_row + b // 16 * call.g_group, call.g_plane * call.g_row


@compiled
def gradient_of_best(g, at, winners, winner):
    """Return the gradients of a window's four results before pooling and ReLU, and their sum."""
    gradient = load(g, at, zeros(16))
    return (
        where_winner(winners, winner, 0, gradient),
        where_winner(winners, winner, 1, gradient),
        where_winner(winners, winner, 2, gradient),
        where_winner(winners, winner, 3, gradient),
        where_any_winner(winners, winner, gradient),
    )


@compiled
def gradient_of_pixel(call, plan, o, i, j, b):
    """Return the gradient of one result before ReLU; zero beyond the edge."""
    if i < plan.out_h and j < plan.out_w:
        (at_g, step_g), (at_y, step_y) = g_at(call, i, j, b), y_at(call, i, j, b)
        gradient = load(floats(call.g), at_g + o * step_g, zeros(16))
        if call.relu:
            gradient = where_positive(load(floats(call.y), at_y + o * step_y, gradient), gradient)
        return gradient
    return zeros(16)


@compiled
def gradient_of_pixels(call, plan, o, i, j, b):
    """Return the gradients of a window's four results before ReLU, without pooling, and their sum."""
    g00, g01 = gradient_of_pixel(call, plan, o, i, j, b), gradient_of_pixel(call, plan, o, i, j + 1, b)
    g10, g11 = gradient_of_pixel(call, plan, o, i + 1, j, b), gradient_of_pixel(call, plan, o, i + 1, j + 1, b)
    return g00, g01, g10, g11, add(add(g00, g01), add(g10, g11))


@compiled
def gradient_of_window(call, plan, o, i, j, b):
    """Return the gradients of a window's four results and their sum, with or without pooling."""
    if call.pool:
        (at_g, step_g), (winner, step_winner) = g_at(call, i // 2, j // 2, b), winners_at(plan, i, j, b)
        return gradient_of_best(floats(call.g), at_g + o * step_g, octets(call.winners), winner + o * step_winner)
    return gradient_of_pixels(call, plan, o, i, j, b)


@compiled
def lay_out_gradient(call, plan, b, images, dbias):
    """Write the gradient before pooling and ReLU as images with zero padding like x, and the bias's, lane by lane."""
    right, down = plan.stride_x, plan.stride_y * plan.columns
    rows, columns = 2 * windows(plan, call.pool), across(plan, call.pool)
    filled = columns if right == 1 and down == plan.columns else 0  # a stride leaves gaps between the pixels
    for n in range(plan.lead):
        store(images, -(n + 1) * 16, zeros(16))
    for o in range(plan.outputs):
        fill_zeros(images, plan, b, o, 0, plan.rows, filled, plan.columns)
        fill_zeros(images, plan, b, o, rows, plan.rows, 0, filled)
        store(images, ((o + 1) * plan.plane - 1) * 16, zeros(16))
        over_image = zeros(16)
        for i in range(0, rows, 2):
            for j in range(0, columns, 2):
                g00, g01, g10, g11, over_window = gradient_of_window(call, plan, o, i, j, b)
                at = o * plan.plane + i * down + j * right
                store(images, at * 16, g00)
                store(images, (at + right) * 16, g01)
                store(images, (at + down) * 16, g10)
                store(images, (at + down + right) * 16, g11)
                over_image = add(over_image, over_window)
        store(dbias, o * 16, over_image)
