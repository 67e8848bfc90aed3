"""The compiled update of Adam and AdamW."""
# Compiled functions have no type hints: numba infers them. settings: lr, beta1, beta2, eps, and AdamW's factor on the
# weights. factors: the bias corrections of a tensor's step and of the root of its second moment.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import math

import numpy as np

from .kernel import weights_at
from .records import WEIGHTS
from .simd import compiled, doubles, floats, flushed, fma, load, quotient, root, splat, store, zeros

WEIGHTS_BYTES = WEIGHTS.itemsize


@compiled
def count_step(step):
    """Count one step of each tensor, and compute its bias corrections (Kingma & Ba, 2015, algorithm 1)."""
    settings, factors = doubles(step.settings), doubles(step.factors)
    lr, beta1, beta2 = settings[0], settings[1], settings[2]
    for i in range(step.tensors):
        count = floats(weights_at(step.weights + i * WEIGHTS_BYTES).step)
        count[0] += np.float32(1)
        factors[2 * i] = lr / (1 - beta1 ** count[0])
        factors[2 * i + 1] = 1 / math.sqrt(1 - beta2 ** count[0])


@compiled
def _find_step(weight, gradients, steps, k, settings, factor, like):
    means, squares = floats(weight.means), floats(weight.squares)
    beta1, beta2, eps = settings[1], settings[2], settings[3]
    zero, one = splat(np.float32(0), like), splat(np.float32(1), like)
    gradient, mean, square = load(gradients, k, like), load(means, k, like), load(squares, k, like)
    mean = fma(np.float32(1 - beta1), fma(np.float32(-1), mean, gradient), mean)
    square = fma(np.float32(beta2), square, fma(gradient, fma(np.float32(1 - beta2), gradient, zero), zero))
    store(steps, k, quotient(mean, fma(np.float32(factor[1]), root(square), fma(np.float32(eps), one, zero))))
    # The moments of a weight whose gradient stays zero become denormal numbers, which are slow; flush them to zero.
    store(means, k, flushed(mean))
    store(squares, k, flushed(square))


@compiled
def _take_step(weight, steps, k, settings, factor, like):
    values, shrink = floats(weight.values), np.float32(settings[4])
    shrunk = fma(shrink, load(values, k, like), splat(np.float32(0), like))
    store(values, k, fma(np.float32(-factor[0]), load(steps, k, like), shrunk))


@compiled
def adam(weight, gradients, steps, first, last, settings, factor):
    """Update numbers ``first`` to ``last`` of one tensor (Kingma & Ba, 2015).

    ``steps`` is scratch memory of the size of ``gradients``. The values are written in a second loop. Other cores hold
    copies of their cache lines, and a core requests many lines at a time only if no other stores are in between.
    """
    gradients, steps, k = floats(gradients), floats(steps), first
    while k + 16 <= last:
        _find_step(weight, gradients, steps, k, settings, factor, zeros(16))
        k += 16
    while k < last:
        _find_step(weight, gradients, steps, k, settings, factor, zeros(1))
        k += 1
    k = first
    while k + 16 <= last:
        _take_step(weight, steps, k, settings, factor, zeros(16))
        k += 16
    while k < last:
        _take_step(weight, steps, k, settings, factor, zeros(1))
        k += 1
