"""The compiled step of Adam and AdamW, in the words of ``simd.py``, on the records of ``records.py``."""
# Compiled functions have no type hints: numba infers them. settings: lr, beta1, beta2, eps, and what a value is
# multiplied by first (AdamW's decay); factors: of a tensor's step and of the root of its second moment.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import math

import numpy as np

from .simd import compiled, floats, flushed, fma, load, quotient, root, splat, store, zeros


@compiled
def count_step(weights, settings, factors):
    """Count one more step of each tensor, and say what it makes of the bias corrections (algorithm 1)."""
    lr, beta1, beta2, _, _ = settings
    for i in range(len(weights)):
        count = floats(weights[i].step)
        count[0] += np.float32(1)
        factors[i, 0] = lr / (1 - beta1 ** count[0])
        factors[i, 1] = 1 / math.sqrt(1 - beta2 ** count[0])


@compiled
def _step(weight, gradients, k, settings, factor, like):
    values, means, squares = floats(weight.values), floats(weight.means), floats(weight.squares)
    _, beta1, beta2, eps, shrink = settings
    zero, one = splat(np.float32(0), like), splat(np.float32(1), like)
    gradient, mean, square = load(gradients, k, like), load(means, k, like), load(squares, k, like)
    mean = fma(np.float32(1 - beta1), fma(np.float32(-1), mean, gradient), mean)
    square = fma(np.float32(beta2), square, fma(gradient, fma(np.float32(1 - beta2), gradient, zero), zero))
    below = fma(np.float32(factor[1]), root(square), fma(np.float32(eps), one, zero))
    value = fma(np.float32(shrink), load(values, k, like), zero)
    # The mean of a weight whose gradient has become zero shrinks for ever, and would end among the slowest numbers.
    mean, square = flushed(mean), flushed(square)
    store(values, k, fma(np.float32(-factor[0]), quotient(mean, below), value))
    store(means, k, mean)
    store(squares, k, square)


@compiled
def adam(weight, gradients, first, last, settings, factor):
    """Take the step of numbers ``first`` to ``last`` of one tensor, with these gradients (Kingma & Ba, 2015)."""
    k, gradients = first, floats(gradients)
    while k + 16 <= last:
        _step(weight, gradients, k, settings, factor, zeros(16))
        k += 16
    while k < last:
        _step(weight, gradients, k, settings, factor, zeros(1))
        k += 1
