"""The record of a pass: what compiled code reads, gathered from the calls, plans and phases of its layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .memory import row_lanes
from .passes import add_up, run_spans
from .plan import NOWHERE, PARAMETERS, address
from .records import Call, Pass, Phase, Plan


def recorded(
    cut: tuple[int, int, int],
    calls: list[Call],
    plans: list[Plan],
    phases: Callable[[int, int], list[Phase]],
    by_span: dict[int, int],
    by_thread: dict[int, int],
    gradients: int = 0,
) -> dict[str, Any]:
    """Return the record of a pass and what belongs to it, by field of :class:`Program`.

    Args:
        cut: numbers of samples, of samples in a span, and of spans.
        calls: one per stage, in the order of the pass.
        plans: likewise.
        phases: function of a stage and a number of lanes that returns the kernels to run.
        by_span: bytes from span to span, by base.
        by_thread: bytes from thread to thread, by base.
        gradients: number of gradients of values and biases; 0 for a forward pass.
    """
    batch, span, spans = cut
    pairs = [field if isinstance(field, tuple) else (NOWHERE, int(field)) for call in calls for field in call]
    bases, offsets = (np.ascontiguousarray(column) for column in np.array(pairs, np.int64).T)
    moves = np.zeros((2, PARAMETERS + 2 * len(calls)), np.int64)
    for move, steps in zip(moves, (by_span, by_thread), strict=True):
        move[list(steps)] = list(steps.values())
    whole, last = (
        [phase for stage in range(len(calls)) for phase in phases(stage, row_lanes(samples))]
        for samples in (min(span, batch), batch - (spans - 1) * span)
    )
    listed = (np.array(records, np.int64) for records in (plans, whole, last))
    alive = *listed, bases, offsets, *moves
    at_plans, at_whole, at_last, at_bases, at_offsets, at_span, at_thread = map(address, alive)
    record = Pass(
        *cut,
        len(calls),
        moves.shape[1],
        at_whole,
        len(whole),
        at_last,
        len(last),
        sum(phase.work for phase in whole) * spans,
        at_plans,
        at_bases,
        at_offsets,
        at_span,
        at_thread,
        run_spans.address if spans > 1 else 0,
        gradients,
        add_up.address if gradients and spans > 1 else 0,
    )
    kept = np.array(record, np.int64)
    return {
        "address": address(kept),
        "frame": moves.shape[1] + spans * len(calls) * len(Call._fields),
        "steps": by_span,
        "alive": (kept, *alive),
    }
