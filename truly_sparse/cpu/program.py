"""The program of a pass: all records of a chain for inputs of one shape, prepared once per topology.

Python code per layer would cost more than a small layer. Each address in the records is therefore an offset from a
*base*; a pass lists its bases (a handful of tensors), and compiled code adds them. Activations between the layers are
stored in one buffer, the *arena*, and have no tensors of their own. What is computed is a list of *phases*: the address
of a kernel, the layer it works on, and how many pieces its work has.

A batch of more than 32 samples is divided into *spans* of 32. One thread computes a span through the whole chain, so
that activations do not move between cores and threads synchronise once. Small batches, and layers so large that
gradients per span would cost too much, are a single span, and the threads share the work of each layer. The same holds
for a single linear layer with up to 1,024 samples in batch-innermost format.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from .conv_backward import conv_backward
from .conv_forward import conv_forward
from .conv_shape import tile_pixels
from .index import LinearIndex
from .linear import linear_backward, linear_forward
from .linear_few import are_few, calls_of_few, few_bytes, few_samples
from .memory import LANES, empty_in_format, row_floats, row_lanes
from .pass_record import recorded
from .plan import (
    ARENA,
    DX,
    DX_ROW,
    GRAD,
    GRAD_ROW,
    GRADIENTS,
    PARTIAL,
    ROOM,
    SCRATCH,
    X_ROW,
    Y_ROW,
    Address,
    Form,
    Layer,
    Memory,
    Part,
    X,
    Y,
    buffer_form,
    callers_form,
    callers_tensor,
    input_form,
    layer_part,
    parameters,
    scratch_bytes,
)
from .records import LINEAR, Call, Phase, Plan
from .stage import Stage
from .templates import kept, known, prepared

SMALL = 2**18  # chains of at most this many weights are divided into spans
SPAN = 32  # samples of a span
# Per-thread buffers are 256 KiB apart, so that hardware prefetching does not cause false sharing.
APART = 2**18


class Program(NamedTuple):
    """The records of one pass of a chain.

    Attributes:
        layers: the stages' layers, in the order of the chain.
        result: shape of the forward pass's result.
        innermost: whether that result is batch innermost; else it is contiguous.
        span: samples of a span.
        spans: their number.
        address: of the record of the pass (``records.py``).
        frame: numbers in the memory that each run of the pass needs: its bases and calls (``passes.py``).
        steps: bytes from span to span, by base.
        alive: arrays whose addresses the record holds.
        bytes: bytes of a span in the arena (forward) or in the room (backward).
        kept: whether these are kept after the span; otherwise a thread reuses them for its next span.
        remembers: whether the caller gives the arena, because the backward pass needs it.
        room: bytes of a thread for the result of a span, if it is not in the arena.
        idle: workspaces for the next runs (``workspace.py``).
        scratch: bytes of scratch memory per thread.
        gradient_sizes: sizes of the gradients of each stage's values and bias.
    """

    layers: list[Layer]
    result: tuple[int, ...]
    innermost: bool
    span: int
    spans: int
    address: int
    frame: int
    steps: dict[int, int]
    alive: tuple[np.ndarray, ...]
    bytes: int
    kept: bool
    remembers: bool
    idle: list[Any]
    room: int = 0
    scratch: int = 0
    gradient_sizes: tuple[int, ...] = ()

    def empty_result(self) -> torch.Tensor:
        """Return an uninitialised tensor for the forward pass's result."""
        return empty_in_format(self.result, self.innermost)

    def pieces(self, threads: int) -> int:
        """Return how many pieces of ``bytes`` a pass needs."""
        return self.spans if self.kept else threads

    def own_bytes(self, threads: int) -> int:
        """Return the bytes of a pass's buffers that the caller does not give."""
        rooms = threads if self.spans > 1 else 1
        return rooms * self.room if self.remembers else self.pieces(threads) * self.bytes


def forward_program(stages: Sequence[Stage], x: torch.Tensor, innermost: tuple[bool, bool], remember: bool) -> Program:
    """Return the program of a forward pass on inputs like ``x``.

    Args:
        stages: the layers.
        x: the input.
        innermost: whether the input, and the result, is batch innermost; else it is contiguous.
        remember: whether to store what the backward pass needs.

    Raises:
        InvalidArgumentError: a layer does not accept the result of the layer before it.
    """
    key = remember, innermost, x.shape

    def make(parts: list[Part]) -> Program:
        return _forward_program(stages, parts, x.shape, innermost, remember)

    return known(stages, key) or prepared(stages, key, _parts(stages, tuple(x.shape[1:])), make)


def backward_program(
    stages: Sequence[Stage], x: torch.Tensor, innermost: tuple[bool, bool, bool], need_input: bool, trace: bool
) -> Program:
    """Return the program of the backward pass to inputs like ``x``.

    ``innermost`` describes ``x`` and its gradient, the result, and the gradient of the result.
    """
    key = need_input, innermost, trace, x.shape

    def make(parts: list[Part]) -> Program:
        forward = forward_program(stages, x, innermost[:2], remember=True)
        return _backward_program(stages, parts, forward, (innermost[0], innermost[2]), need_input, trace)

    return known(stages, key) or prepared(stages, key, _parts(stages, tuple(x.shape[1:])), make)


def _forward_program(
    stages: Sequence[Stage], parts: list[Part], shape: torch.Size, of: tuple[bool, bool], remember: bool
) -> Program:
    batch, size, (innermost, result_innermost) = shape[0], tuple(shape[1:]), of
    small = sum(stage.index.nnz for stage in stages) <= SMALL
    several = batch > SPAN and small and not (innermost and _is_shared(stages, batch))
    span, row = (SPAN, SPAN) if several else (max(row_lanes(batch), LANES), row_floats(batch))
    single = batch == 1 and not remember
    memory = Memory()
    if not (remember or innermost) and are_few(plans := [part.plan for part in parts], batch):
        return _program_of_few(stages, plans, batch)
    forms = _forms(parts, span, row, single)
    places = [(ARENA, memory.take(4 * form.floats)) for form in forms[:-1]] + [(Y, 0)]
    room, one_sample = Memory(), single and parts[-1][0].kind == LINEAR
    if not result_innermost and not one_sample:
        forms[-1] = buffer_form(parts[-1][1], row)
        in_arena = not remember or (stages[-1].relu and not stages[-1].pool)  # the backward pass of ReLU reads it
        base, buffer = (ARENA, memory) if in_arena else (ROOM, room)
        places[-1] = base, buffer.take(4 * forms[-1].floats)
    in_place = parts[0][0].kind == LINEAR and (innermost or single) and not several  # for a single span no copy pays
    if in_place:
        forms[0], places[0] = callers_form(size, X_ROW) if innermost else forms[0], (X, 0)
    layers = []
    for i, (stage, (plan, image, alive, _)) in enumerate(zip(stages, parts, strict=True)):
        winners = (ARENA, memory.take(span * math.prod(image))) if stage.pool and remember else 0
        layers.append(Layer(plan, forms[i], places[i], forms[i + 1], places[i + 1], image, winners, alive))
    calls = [Call(**_common(i, *of)) for i, of in enumerate(zip(stages, layers, strict=True))]
    if not in_place:
        calls[0] = calls[0]._replace(**callers_tensor("source", X, X_ROW, size, innermost))
    direct = places[-1] == (Y, 0)
    if not direct:
        calls[-1] = calls[-1]._replace(**callers_tensor("result", Y, Y_ROW, forms[-1].size, innermost=False))
    arena, rooms = memory.end(APART if several else 0), room.end(APART if several else 0) if room.size else 0
    by_span = {X: _step(span, size, innermost), Y: _step(span, forms[-1].size, direct), ARENA: arena if remember else 0}
    by_thread = {ARENA: 0 if remember else arena, ROOM: rooms if remember else 0}
    spans, plans = -(-batch // span) if several else 1, [layer.plan for layer in layers]
    phases = _forward_phases(calls, plans, single)
    return Program(
        layers,
        (batch, *forms[-1].size),
        direct and not one_sample,
        span,
        spans,
        **recorded((batch, span, spans), calls, plans, phases, by_span, by_thread),
        bytes=arena,
        kept=remember or not several,
        remembers=remember,
        idle=[],
        room=rooms,
    )


def _program_of_few(stages: Sequence[Stage], plans: list[Plan], batch: int) -> Program:
    """Return the program of a forward pass on a few samples (``linear_few.py``)."""
    memory, own = Memory(), Memory()
    own.take(few_bytes(plans, batch))
    scratch = own.end(APART)
    calls = calls_of_few(stages, plans, batch, memory, scratch)

    def phases(stage: int, lanes: int) -> list[Phase]:
        return [few_samples(plans[stage], stage, batch)]

    return Program(
        [],
        (batch, plans[-1].outputs),
        False,
        batch,
        1,
        **recorded((batch, batch, 1), calls, plans, phases, {}, {}),
        bytes=memory.size,
        kept=True,
        remembers=False,
        idle=[],
        scratch=scratch,
    )


def _forward_phases(calls: list[Call], plans: list[Plan], single: bool) -> Callable[[int, int], list[Phase]]:
    """Return a function of a stage and a number of lanes that returns the kernels to run."""

    def phases(stage: int, lanes: int) -> list[Phase]:
        if plans[stage].kind == LINEAR:
            return linear_forward(calls[stage], plans[stage], stage, lanes, single)
        return conv_forward(calls[stage], plans[stage], stage, lanes)

    return phases


def _parts(stages: Sequence[Stage], size: tuple[int, ...]) -> list[Part]:
    """Return the work of each stage, for inputs of this size."""
    parts: list[Part] = []
    for i, (index, _, pool) in enumerate(stages):
        size = (math.prod(size),) if i > 0 and isinstance(index, LinearIndex) else size
        part = kept(index.parts, size, functools.partial(layer_part, index, size))
        size = (part.size[0], part.size[1] // 2, part.size[2] // 2) if pool else part.size
        parts.append(part._replace(size=size))
    return parts


def _forms(parts: list[Part], span: int, row: int, single: bool) -> list[Form]:
    """Return the form of each layer's input, and of the result."""
    forms = [input_form(plan, span, row) for plan, *_ in parts]
    if single:  # linear layers read and write one number per feature; convolutions write 16
        for i, (plan, *_) in enumerate(parts):
            if plan.kind == LINEAR and (i == 0 or parts[i - 1][0].kind == LINEAR):
                forms[i] = Form((plan.inputs,), 1, floats=plan.inputs)
    return [*forms, callers_form(parts[-1][1], Y_ROW)]


def _backward_program(
    stages: Sequence[Stage], parts: list[Part], forward: Program, of: tuple[bool, bool], need_input: bool, trace: bool
) -> Program:
    (x_innermost, innermost), batch = of, forward.result[0]
    several, span, result = forward.spans > 1, forward.span, forward.layers[-1]
    row = SPAN if several else row_floats(batch)
    sizes = [size for stage in stages for size in (stage.index.nnz, stage.index.shape[0])]
    starts = [4 * start for start in np.cumsum([0, *sizes]).tolist()]
    memory, scratch = Memory(), 0
    calls: list[Call] = []
    layers: list[Layer] = []
    in_place = innermost and not (several and result.linear)  # convolutions lay out the gradient anew anyway
    form, at = callers_form(result.y.size, GRAD_ROW), (GRAD, 0)
    if not in_place:
        form = buffer_form(form.size, row)
        at = ROOM, memory.take(4 * form.floats)
    for i in reversed(range(len(stages))):
        layer = forward.layers[i]._replace(g=form, g_at=at)
        plan, first, last, need_dx = layer.plan, i == 0, i == len(stages) - 1, need_input or i > 0
        call = Call(
            **_common(i, stages[i], layer),
            **_gradient_of_result(layer, form, at),
            **_gradient_of_input(layer, first, need_dx, x_innermost, memory),
            **_gradients_of_parameters(stages, forward, i, starts, PARTIAL if several else GRADIENTS),
        )
        if last and not in_place:
            call = call._replace(**callers_tensor("source", GRAD, GRAD_ROW, form.size, innermost))
        elif last and (stages[i].relu or batch % LANES):
            call = call._replace(masked=(ROOM, memory.take(4 * row * plan.outputs)))
        elif last:
            call = call._replace(masked_row=(GRAD_ROW, 0))  # read where it is
        if not layer.linear:
            call = call._replace(pieces=(ROOM, memory.take(4 * span // LANES * (plan.nnz + plan.outputs))))
        calls.append(call._replace(masked_row=call.masked_row or row, scratch=(SCRATCH, 0)))
        layers, scratch = [layer, *layers], max(scratch, scratch_bytes(parts[i], need_dx))
        if not first:
            form, at = layer.x, (ROOM, cast(Address, call.dx)[1] - 4 * layer.x.start)
    own = Memory()
    own.take(scratch)
    scratch, room = own.end(APART if several else 0), memory.end(APART if several else 0)
    calls = [call._replace(scratch_bytes=scratch) for call in calls]
    by_span = {Y: 4 * span, ARENA: forward.bytes, PARTIAL: starts[-1], ROOM: room if trace else 0}
    by_span |= {GRAD: _step(span, result.y.size, innermost), DX: _step(span, layers[0].x.size, x_innermost)}
    plans = [layer.plan for layer in reversed(layers)]
    phases = _backward_phases(calls, plans)
    cut, by_thread = (batch, span, forward.spans), {ROOM: 0 if trace else room}
    return Program(
        layers,
        forward.result,
        forward.innermost,
        span,
        forward.spans,
        **recorded(cut, calls, plans, phases, by_span, by_thread, sum(sizes)),
        bytes=room,
        kept=trace or not several,
        remembers=False,
        idle=[],
        scratch=scratch,
        gradient_sizes=tuple(sizes),
    )


def _backward_phases(calls: list[Call], plans: list[Plan]) -> Callable[[int, int], list[Phase]]:
    """Return a function of a stage and a number of lanes that returns the kernels to run."""

    def phases(stage: int, lanes: int) -> list[Phase]:
        if plans[stage].kind == LINEAR:
            to_mask = stage == 0 or calls[stage - 1].dbias_before == 0
            return linear_backward(calls[stage], plans[stage], stage, lanes, to_mask)
        return conv_backward(calls[stage], plans[stage], stage, lanes)

    return phases


def _gradient_of_result(layer: Layer, form: Form, at: Address) -> dict[str, Any]:
    """Return the fields of a call that describe the gradient of the layer's result."""
    return {"g": (at[0], at[1] + 4 * form.start), **form.fields("g", layer.image), "masked": at}


def _gradient_of_input(layer: Layer, first: bool, need_dx: bool, innermost: bool, memory: Memory) -> dict[str, Any]:
    """Return the fields of a call that say where the gradient of the layer's input goes."""
    if not need_dx:
        return {"dx": 0}
    whole = layer.plan.width % tile_pixels(layer.plan) == 0  # tiles, without any padding
    if first and innermost and (layer.linear or whole):  # written directly into the caller's tensor
        return {"dx": (DX, 0), **callers_form(layer.x.size, DX_ROW).fields("dx", layer.x.size)}
    at = memory.take(4 * layer.x.floats) + 4 * layer.x.start
    dx = {"dx": (ROOM, at), **layer.x.fields("dx", layer.x.size)}
    return dx | (callers_tensor("result", DX, DX_ROW, layer.x.size, innermost) if first else {})


def _gradients_of_parameters(
    stages: Sequence[Stage], forward: Program, i: int, starts: list[int], base: int
) -> dict[str, Any]:
    """Return the fields of a call that say where the gradients of values and biases go."""
    layer, before = forward.layers[i], forward.layers[i - 1]
    masks = i > 0 and layer.linear and before.linear and layer.plan.tall % 4 > 0
    return {
        "dvalues": (base, starts[2 * i]),
        "dbias": (base, starts[2 * i + 1]),
        "dbias_before": (base, starts[2 * i - 1]) if masks else 0,
        "relu_before": masks and stages[i - 1].relu,
    }


def _common(i: int, stage: Stage, layer: Layer) -> dict[str, Any]:
    """Return the fields of a call that both passes use."""
    y = layer.y_at[0], layer.y_at[1] + 4 * layer.y.start
    of_x = {"x": layer.x_at, "x_row": layer.x.row, "x_group": layer.x.group}
    of_y = {"y": y, **layer.y.fields("y", layer.image), "winners": layer.winners}
    return parameters(i) | of_x | of_y | {"relu": stage.relu, "pool": stage.pool}


def _is_shared(stages: Sequence[Stage], batch: int) -> bool:
    """Tell whether threads share a single linear layer instead of dividing the batch into spans.

    Batch innermost this is faster up to some thousand samples: a row of the input is then read for more of them at a
    time, and gradients need not be summed over spans.
    """
    return len(stages) == 1 and isinstance(stages[0].index, LinearIndex) and batch <= 1024


def _step(span: int, size: tuple[int, ...], innermost: bool) -> int:
    """Return the bytes from span to span in a caller's tensor."""
    return 4 * span * (1 if innermost else math.prod(size))
