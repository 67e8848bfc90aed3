"""The compiled cross-entropy of a classifier, and its gradient."""
# Compiled functions have no type hints: numba infers them. y and g are addresses of logits and their gradients, batch
# innermost; y_row and g_row the floats from class to class; labels the address of int64 class numbers.
# ruff: noqa: ANN001, ANN201

from __future__ import annotations

import math

import numpy as np

from .simd import compiled, floats, longs


@compiled
def cross_entropy(y, y_row, g, g_row, labels, classes, batch, first, last, outcome):
    """Compute the gradients of the mean loss for samples ``first`` to ``last`` of ``batch``.

    Writes to ``outcome`` the sum of their losses, the number of correct samples (of equal logits the first counts), and
    the number of labels outside the classes, whose gradients are meaningless.
    """
    logits, gradients, wanted = floats(y), floats(g), longs(labels)
    loss, right, outside, share = 0.0, 0, 0, np.float32(1 / batch)
    for b in range(first, last):
        best, label = 0, wanted[b]
        for c in range(1, classes):
            if logits[c * y_row + b] > logits[best * y_row + b]:
                best = c
        highest, total = logits[best * y_row + b], np.float32(0)
        for c in range(classes):
            power = math.exp(logits[c * y_row + b] - highest)
            gradients[c * g_row + b] = power
            total += power
        for c in range(classes):
            gradients[c * g_row + b] *= share / total
        if 0 <= label < classes:
            loss += highest - logits[label * y_row + b] + math.log(total)
            gradients[label * g_row + b] -= share
            right += best == label
        else:
            outside += 1
    outcome[0], outcome[1], outcome[2] = loss, right, outside
