"""The compiled passes through a chain: fill in the addresses, then distribute layers or spans over the threads."""
# Compiled functions have no type hints: numba infers them. calls[span, stage] and plans[stage] are records; numbers is
# the memory of calls as integers; link holds addresses, bases, offsets, by_span and by_thread; cut holds the numbers of
# samples, of samples in a span, and of threads.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import math

from numba import get_thread_id, prange

from .adam import adam, count_step
from .conv_backward import conv_backward, conv_backward_alone
from .conv_forward import conv_forward, conv_forward_alone
from .linear import linear_backward, linear_backward_alone, linear_forward, linear_forward_alone
from .loss import cross_entropy
from .plan import GRAD, GRAD_ROW, GRADIENTS, PARTIAL, STEPS, Y_ROW, Y
from .records import LINEAR
from .simd import add, compiled, floats, load, parallel, store, zeros

PIECES = 64  # pieces of a sum or an update; fixed, so that results do not depend on the number of threads


@compiled
def _link(calls, numbers, link, cut, span, thread):
    (addresses, bases, offsets, by_span, by_thread), (batch, samples, threads) = link, cut
    for at in range(len(bases)):
        base = bases[at]
        numbers[at] = addresses[base] + span * by_span[base] + thread * by_thread[base] + offsets[at]
    for i in range(len(calls)):
        calls[i].batch = min(samples, batch - span * samples)
        calls[i].lanes = (calls[i].batch + 15) // 16 * 16
        calls[i].threads = threads


@compiled
def _forward_layers(calls, plans):
    for i in range(len(calls)):
        if plans[i].kind == LINEAR:
            linear_forward(calls, plans, i)
        else:
            conv_forward(calls, plans, i)


@compiled
def _forward_span(calls, numbers, link, cut, plans, span):
    _link(calls, numbers, link, cut, span, get_thread_id())
    for i in range(len(calls)):
        if plans[i].kind == LINEAR:
            linear_forward_alone(calls[i], plans[i])
        else:
            conv_forward_alone(calls[i], plans[i])


@parallel
def _forward_spans(calls, numbers, link, cut, plans):
    for span in prange(len(calls)):
        _forward_span(calls[span], numbers[span], link, cut, plans, span)


@compiled
def run_forward(calls, numbers, link, cut, plans):
    """Run the forward pass of a chain."""
    if len(calls) == 1:
        _link(calls[0], numbers[0], link, cut, 0, 0)
        _forward_layers(calls[0], plans)
    else:
        _forward_spans(calls, numbers, link, cut, plans)


@compiled
def _backward_layers(calls, plans):
    for i in range(len(calls)):
        if plans[i].kind == LINEAR:
            linear_backward(calls, plans, i)
        else:
            conv_backward(calls, plans, i)


@compiled
def _backward_span(calls, numbers, link, cut, plans, span):
    _link(calls, numbers, link, cut, span, get_thread_id())
    for i in range(len(calls)):
        if plans[i].kind == LINEAR:
            linear_backward_alone(calls[i], plans[i])
        else:
            conv_backward_alone(calls[i], plans[i])


@parallel
def _backward_spans(calls, numbers, link, cut, plans):
    for span in prange(len(calls)):
        _backward_span(calls[span], numbers[span], link, cut, plans, span)


@compiled
def _add_up(spans, size, partial, result, first, last):
    """Sum gradients ``first`` to ``last`` over all spans."""
    parts, sums, k = floats(partial), floats(result), first
    while k + 16 <= last:
        numbers = load(parts, k, zeros(16))
        for span in range(1, spans):
            numbers = add(numbers, load(parts, span * size + k, numbers))
        store(sums, k, numbers)
        k += 16
    while k < last:
        number = parts[k]
        for span in range(1, spans):
            number += parts[span * size + k]
        sums[k] = number
        k += 1


@compiled
def _border(size, piece):
    """Return the first number of piece ``piece`` of ``size`` numbers: the start of a whole vector."""
    return size * piece // PIECES // 16 * 16 if piece < PIECES else size


@parallel
def _add_up_all(spans, size, partial, result):
    for piece in prange(PIECES):
        _add_up(spans, size, partial, result, _border(size, piece), _border(size, piece + 1))


@compiled
def run_backward(calls, numbers, link, cut, plans, size):
    """Run the backward pass of a chain with ``size`` gradients of values and biases."""
    if len(calls) == 1:
        _link(calls[0], numbers[0], link, cut, 0, 0)
        _backward_layers(calls[0], plans)
    else:
        _backward_spans(calls, numbers, link, cut, plans)
        _add_up_all(len(calls), size, link[0][PARTIAL], link[0][GRADIENTS])


@compiled
def _loss_of_span(at, cut, labels, classes, span, outcome):
    batch, samples, _ = cut
    first, last = span * samples, min(batch, (span + 1) * samples)
    cross_entropy(at[Y], at[Y_ROW], at[GRAD], at[GRAD_ROW], labels, classes, batch, first, last, outcome[span])


@compiled
def _step_span(calls, numbers, link, cut, plans, b_calls, b_numbers, b_link, b_plans, labels, classes, outcome, span):
    _forward_span(calls[span], numbers[span], link, cut, plans, span)
    _loss_of_span(link[0], cut, labels, classes, span, outcome)
    _backward_span(b_calls[span], b_numbers[span], b_link, cut, b_plans, span)


@parallel
def _step_spans(calls, numbers, link, cut, plans, b_calls, b_numbers, b_link, b_plans, labels, classes, outcome):
    for span in prange(len(calls)):
        _step_span(
            calls, numbers, link, cut, plans, b_calls, b_numbers, b_link, b_plans, labels, classes, outcome, span
        )


@compiled
def _update(spans, size, addresses, weights, settings, factors, piece):
    """Sum a piece of all gradients, and update the weights that belong to it."""
    first, last = _border(size, piece), _border(size, piece + 1)
    gradients, steps = addresses[GRADIENTS], addresses[STEPS]
    if spans > 1:
        _add_up(spans, size, addresses[PARTIAL], gradients, first, last)
    for i in range(len(weights)):
        start, length = weights[i].start, weights[i].length
        here, end = max(first - start, 0), min(last - start, length)
        adam(weights[i], gradients + 4 * start, steps + 4 * start, here, end, settings, factors[i])


@parallel
def _update_all(spans, size, addresses, weights, settings, factors):
    for piece in prange(PIECES):
        _update(spans, size, addresses, weights, settings, factors, piece)


@compiled
def run_step(
    calls,
    numbers,
    link,
    cut,
    plans,
    b_calls,
    b_numbers,
    b_link,
    b_cut,
    b_plans,
    size,
    weights,
    factors,
    settings,
    labels,
    classes,
    outcome,
):
    """Run a training step. If the loss is not finite or a label is no class, nothing is updated."""
    if len(calls) == 1:
        _link(calls[0], numbers[0], link, cut, 0, 0)
        _forward_layers(calls[0], plans)
        _loss_of_span(link[0], cut, labels, classes, 0, outcome)
        _link(b_calls[0], b_numbers[0], b_link, b_cut, 0, 0)
        _backward_layers(b_calls[0], b_plans)
    else:
        _step_spans(calls, numbers, link, cut, plans, b_calls, b_numbers, b_link, b_plans, labels, classes, outcome)
    if math.isfinite(outcome[:, 0].sum()) and outcome[:, 2].sum() == 0:
        count_step(weights, settings, factors)
        _update_all(len(calls), size, link[0], weights, settings, factors)
