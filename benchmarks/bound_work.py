"""What a pass of a sparse layer does at least, counted by structure: see ``bound.py``."""

from __future__ import annotations

from typing import NamedTuple

from truly_sparse import SparseConv2d, SparseLinear
from truly_sparse.cpu.conv_blocks import SUMMED
from truly_sparse.cpu.conv_shape import TOGETHER, tile_pixels
from truly_sparse.cpu.linear_shape import WIDTHS, WIDTHS_BY_OUTPUT, WIDTHS_OF_FOUR
from truly_sparse.cpu.plan import layer_part
from truly_sparse.cpu.simd import NATIVE


class Work(NamedTuple):
    """What a pass does at least: bytes that it loads and stores, and multiply-adds times two."""

    loaded: float
    stored: float
    operations: float


def linear_work(layer: SparseLinear, lanes: int) -> dict[str, Work]:
    """Return the work of each pass of a linear layer."""
    return {"forward": _linear_forward(layer, lanes), **_linear_backward(layer, lanes)}


def _linear_forward(layer: SparseLinear, lanes: int) -> Work:
    """Return the work of the forward pass: for four outputs, or one, each input's row is loaded once."""
    weights, shared = layer.index.nnz, 4 if layer.structure[0] % 4 == 0 else 1
    tiles = -(-lanes // (WIDTHS_OF_FOUR if shared == 4 else WIDTHS)[0])  # weights and positions are read in each
    listed = weights * (4 + layer.index.cols.itemsize / shared) * tiles
    return Work(4 * lanes * weights / shared + listed, 4 * lanes * layer.out_features, 2 * lanes * weights)


def _linear_backward(layer: SparseLinear, lanes: int) -> dict[str, Work]:
    """Return the work of the gradients of the weights, and that of the gradients of the input and the weights."""
    (tall, wide), weights = layer.structure, layer.index.nnz
    rows, operations = 4 * lanes, 2 * lanes * weights
    inputs, outputs = layer.in_features, layer.out_features
    by_output, by_input = tall % 4 == 0, tall % 4 > 0 and wide % 4 == 0
    masking = Work(rows * outputs, 0, 0)  # the sums of the bias
    if not by_output and not by_input:  # each product in both directions loads one row of the output's gradient
        alone = Work(rows * (weights + outputs), 4 * weights, operations)
        both = Work(rows * (weights + inputs) + 8 * weights, rows * inputs + 8 * weights, 2 * operations)
    else:
        loads = weights / 2 if by_output and wide % 4 == 0 and NATIVE == 16 else 3 * weights / 4
        alone = Work(rows * loads, 4 * weights, operations)
        tiles = -(-lanes // (WIDTHS_BY_OUTPUT if by_output else WIDTHS_OF_FOUR)[0])
        loaded = rows * (weights / 4 + (outputs if by_output else 0)) + 4 * weights * tiles
        stored = rows * (inputs + (weights / 4 if by_output else 0))
        both = Work(alone.loaded + loaded, alone.stored + stored, 2 * operations)
    return {
        "weights' gradients": Work(*(a + b for a, b in zip(alone, masking, strict=True))),
        "all gradients": Work(*(a + b for a, b in zip(both, masking, strict=True))),
    }


def conv_work(layer: SparseConv2d, image: tuple[int, int], lanes: int) -> dict[str, Work]:
    """Return the work of each pass of a convolution with stride 1.

    The forward pass first copies the input into images with zero padding. So does the backward pass with the output's
    gradient, unless it computes the weights' gradients alone, of single weights. There, and where all gradients are
    computed, each tile of pixels loads and stores the sums of each weight, which have a vector for 16 lanes. They are
    also stored before the first tile, as zeros, and loaded after the last.

    Args:
        layer: the convolution.
        image: rows and columns of an image; rows are even, columns a multiple of eight. Without AVX-512 the backward
            pass also computes padding, unless the columns are a multiple of three as well. That is not counted.
        lanes: of the batch.
    """
    plan = layer_part(layer.index, (layer.in_channels, *image)).plan
    weights, pixels, row, vectors = plan.nnz, plan.out_h * plan.out_w, 4 * lanes, lanes / 16
    x, y, padded_y = plan.inputs * plan.height * plan.width, plan.outputs * pixels, plan.outputs * plan.plane
    products, operations = weights * pixels, 2 * lanes * weights * pixels

    blocks = plan.tall > 1  # four outputs share a load of x and an offset
    tile = 4 * TOGETHER  # pixels
    shared, read_for = (4, TOGETHER) if blocks else (1, tile)  # weights and offsets are read for so many pixels
    listed = (4 + 4 / shared) * weights * pixels / read_for * vectors
    padded_x = plan.inputs * plan.rows * plan.columns
    forward = Work(row * (x + products / shared) + listed, row * (padded_x + y), operations)

    if blocks:  # for eight multiply-adds two vectors of x and four gradients; sums over lanes are added up one by one
        added = 8 * weights * -(-pixels // SUMMED) * vectors
        alone = Work(row * (y + products * 6 / 8), row * padded_y + added, operations)
    else:
        sums = (weights + plan.outputs) * (pixels / tile + 1)  # the bias has sums too
        alone = Work(row * (y + products + sums), row * sums, operations)

    tiles = plan.height * plan.width / tile_pixels(plan)
    sums, listed = weights * (tiles + 1), (4 + 8) * weights * tiles * vectors  # a weight, its number and its place
    both = Work(row * (y + x + products + sums) + listed, row * (padded_y + x + sums), 2 * operations)
    return {"forward": forward, "weights' gradients": alone, "all gradients": both}
