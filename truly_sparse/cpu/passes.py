"""The compiled passes through a chain: fill in the addresses, then run the phases of each span of the batch."""
# Compiled functions have no type hints: numba infers them. A frame is the memory of one pass: the bases (``plan.py``),
# then the calls of each span; here it is an address.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import math

from .adam import adam, count_step
from .kernel import call_at, kernel, pass_at, phase_at, run, run_by_all, step_at, weights_at
from .loss import cross_entropy
from .plan import GRAD, GRAD_ROW, GRADIENTS, PARTIAL, STEPS, Y_ROW, Y
from .records import CALL, PASS, PHASE, PLAN, STEP, WEIGHTS, Call
from .simd import add, address_of, compiled, doubles, entry, floats, load, longs, store, zeros

PIECES = 64  # pieces of a sum or an update; fixed, so that results do not depend on the number of threads
FIELDS = len(Call._fields)
CALL_BYTES, PLAN_BYTES, PHASE_BYTES, WEIGHTS_BYTES = CALL.itemsize, PLAN.itemsize, PHASE.itemsize, WEIGHTS.itemsize
ENOUGH = 300_000  # multiply-adds that take longer than to start another thread


@compiled
def _calls_of(passing, frame, span):
    """Return the address of the calls of a span."""
    return frame + 8 * passing.numbers + span * passing.stages * CALL_BYTES


@compiled
def _link(passing, frame, span, thread):
    """Fill in the calls of one span."""
    calls = _calls_of(passing, frame, span)
    numbers, addresses, bases, offsets = longs(calls), longs(frame), longs(passing.bases), longs(passing.offsets)
    by_span, by_thread = longs(passing.by_span), longs(passing.by_thread)
    for at in range(passing.stages * FIELDS):
        base = bases[at]
        numbers[at] = addresses[base] + span * by_span[base] + thread * by_thread[base] + offsets[at]
    for i in range(passing.stages):
        call = call_at(calls + i * CALL_BYTES)
        call.batch = min(passing.span, passing.batch - span * passing.span)
        call.lanes = (call.batch + 15) // 16 * 16


@compiled
def _run_alone(passing, frame, span, thread):
    """Run the phases of a span in the calling thread."""
    calls, phases, count = _calls_of(passing, frame, span), passing.phases, passing.phase_count
    if span == passing.spans - 1:
        phases, count = passing.last_phases, passing.last_phase_count
    for n in range(count):
        phase = phase_at(phases + n * PHASE_BYTES)
        call, plan = calls + phase.stage * CALL_BYTES, passing.plans + phase.stage * PLAN_BYTES
        run(phase.kernel, call, plan, 0, phase.pieces, thread)


@compiled
def _run_together(passing, frame, threads):
    """Run the phases of the only span with all threads."""
    calls = _calls_of(passing, frame, 0)
    for n in range(passing.last_phase_count):
        phase = phase_at(passing.last_phases + n * PHASE_BYTES)
        call, plan = calls + phase.stage * CALL_BYTES, passing.plans + phase.stage * PLAN_BYTES
        _run_pieces(phase.kernel, call, plan, phase.pieces, threads, phase.work)


@compiled
def _run_pieces(loop, call, plan, pieces, threads, work):
    """Run a kernel with all threads, or with one if it has little to do."""
    if threads == 1 or pieces == 1 or work < ENOUGH:
        run(loop, call, plan, 0, pieces, 0)
    else:
        run_by_all(loop, call, plan, pieces, threads)


@kernel(None, PASS)
def run_spans(frame, passing, first, last, thread):
    """Run spans ``first`` to ``last``, each in this thread."""
    for span in range(first, last):
        _link(passing, frame, span, thread)
        _run_alone(passing, frame, span, thread)


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


@kernel(None, PASS)
def add_up(frame, passing, first, last, thread):
    """Sum pieces of the gradients over all spans."""
    size, bases = passing.gradients, longs(frame)
    begin, end = _border(size, first), _border(size, last)
    _add_up(passing.spans, size, bases[PARTIAL], bases[GRADIENTS], begin, end)


@entry
def run_pass(address, array, threads):
    """Run the pass whose record lies at ``address``; ``array`` holds the bases, and has room for the calls."""
    passing, frame = pass_at(address), address_of(array)
    if passing.spans == 1:
        _link(passing, frame, 0, 0)
        _run_together(passing, frame, threads)
    else:
        _run_pieces(passing.run_spans, frame, address, passing.spans, threads, passing.work)
        if passing.gradients:
            work = passing.gradients * passing.spans
            _run_pieces(passing.add_up, frame, address, PIECES, threads, work)


@compiled
def _loss_of_span(step, passing, span):
    """Compute the loss of a span, and the gradients of its logits."""
    at, outcome = longs(step.forward_frame), doubles(step.outcome + 24 * span)
    first, last = span * passing.span, min(passing.batch, (span + 1) * passing.span)
    classes, batch = step.classes, passing.batch
    cross_entropy(at[Y], at[Y_ROW], at[GRAD], at[GRAD_ROW], step.labels, classes, batch, first, last, outcome)


@kernel(None, STEP)
def run_step_spans(_, step, first, last, thread):
    """Run both passes of spans ``first`` to ``last``, and the loss between them."""
    forward, backward = pass_at(step.forward), pass_at(step.backward)
    for span in range(first, last):
        _link(forward, step.forward_frame, span, thread)
        _run_alone(forward, step.forward_frame, span, thread)
        _loss_of_span(step, forward, span)
        _link(backward, step.backward_frame, span, thread)
        _run_alone(backward, step.backward_frame, span, thread)


@kernel(None, STEP)
def update(_, step, first, last, thread):
    """Sum pieces of all gradients, and update the weights that belong to them."""
    backward, bases = pass_at(step.backward), longs(step.backward_frame)
    begin, end = _border(backward.gradients, first), _border(backward.gradients, last)
    gradients, steps, settings = bases[GRADIENTS], bases[STEPS], doubles(step.settings)
    if backward.spans > 1:
        _add_up(backward.spans, backward.gradients, bases[PARTIAL], gradients, begin, end)
    for i in range(step.tensors):
        weight, factors = weights_at(step.weights + i * WEIGHTS_BYTES), doubles(step.factors + 16 * i)
        here, there = max(begin - weight.start, 0), min(end - weight.start, weight.length)
        adam(weight, gradients + 4 * weight.start, steps + 4 * weight.start, here, there, settings, factors)


@entry
def run_step(address, threads):
    """Run the training step whose record lies at ``address``. Return loss, correct samples and labels that are wrong.

    If the loss is not finite or a label is no class, nothing is updated.
    """
    step = step_at(address)
    forward, backward = pass_at(step.forward), pass_at(step.backward)
    if forward.spans == 1:
        _link(forward, step.forward_frame, 0, 0)
        _run_together(forward, step.forward_frame, threads)
        _loss_of_span(step, forward, 0)
        _link(backward, step.backward_frame, 0, 0)
        _run_together(backward, step.backward_frame, threads)
    else:
        work = forward.work + backward.work
        _run_pieces(step.run_spans, 0, address, forward.spans, threads, work)
    loss, right, outside, outcome = 0.0, 0.0, 0.0, doubles(step.outcome)
    for span in range(forward.spans):
        loss, right, outside = loss + outcome[3 * span], right + outcome[3 * span + 1], outside + outcome[3 * span + 2]
    if math.isfinite(loss) and outside == 0:
        count_step(step)
        _run_pieces(step.update, 0, address, PIECES, threads, 8 * backward.gradients)
    return loss, right, outside
