"""From the usual layout of a batch to the batch-innermost one: a transposition, in the words of ``simd.py``."""
# Compiled functions have no type hints: numba infers them.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

from numba import prange

from .simd import compiled, floats, parallel

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
