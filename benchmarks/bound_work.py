"""What a pass of a sparse linear layer does at least, counted by structure: see ``bound.py``."""

from __future__ import annotations

from typing import NamedTuple

from truly_sparse import SparseLinear
from truly_sparse.cpu.linear_shape import WIDTHS, WIDTHS_BY_OUTPUT, WIDTHS_OF_FOUR
from truly_sparse.cpu.simd import NATIVE


class Work(NamedTuple):
    """What a pass does at least: bytes that it loads and stores, and multiply-adds times two."""

    loaded: float
    stored: float
    operations: float


def forward_work(layer: SparseLinear, lanes: int) -> Work:
    """Return the work of the forward pass: for four outputs, or one, each input's row is loaded once."""
    weights, shared = layer.index.nnz, 4 if layer.structure[0] % 4 == 0 else 1
    tiles = -(-lanes // (WIDTHS_OF_FOUR if shared == 4 else WIDTHS)[0])  # weights and positions are read in each
    listed = weights * (4 + layer.index.cols.itemsize / shared) * tiles
    return Work(4 * lanes * weights / shared + listed, 4 * lanes * layer.out_features, 2 * lanes * weights)


def backward_work(layer: SparseLinear, lanes: int) -> dict[str, Work]:
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
