"""A chain's work on inputs of one shape, prepared once, so that a pass only has to fill in where its tensors are.

Entering Python costs more than a small layer. So all records of a chain are made when a topology is first used, with
each address as an offset from a *base*; a pass lists its bases (a handful of tensors) and compiled code adds them.
Activations between the layers lie in one piece of memory, the *arena*, and have no tensors of their own.

A batch of more than 32 is cut into *spans* of 32. A thread takes a span through the whole chain: nothing that lies
between layers passes from one core to another, and threads meet once. Smaller batches, and layers so large that
gradients for each span would cost too much, are one span, and threads share the work of each layer. So are batches of
medium size in a linear layer by itself, if they lie batch innermost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from ..errors import InvalidArgumentError
from .index import ConvIndex, LinearIndex
from .memory import LANES, row_floats, row_lanes
from .records import CONV, LINEAR, PLAN, Call, Plan
from .stage import Stage, Trace

SMALL = 2**18  # up to so many weights a chain is cut into spans
SPAN = 32  # samples that one thread takes through a whole chain
KEPT = 16  # programs per index: topologies of the layers behind it and shapes of inputs come and go
# Bytes between the activations of two threads, and between their working memory. A CPU reads ahead, several channels of
# an image beyond the last: of what lies there, two cores then hold copies, and each has to be taken back before its
# owner can write again.
APART = 2**18

# Bases: where the parts of a pass begin, and the floats from pixel to pixel in the caller's tensors (…_ROW). Values and
# bias of stage i are number PARAMETERS + 2i and PARAMETERS + 2i + 1.
NOWHERE, X, X_ROW, Y, Y_ROW, ARENA, GRAD, GRAD_ROW = range(8)
DX, DX_ROW, ROOM, SCRATCH, SHARED, PARTIAL, GRADIENTS, STEPS = range(8, 16)
PARAMETERS = 16
Address = tuple[int, int]  # a base and the bytes from it


class Form(NamedTuple):
    """How activations lie in memory, in floats and pixels (``records.py``).

    Attributes:
        size: shape without batch.
        row, group, width, plane: strides.
        start: floats to the first pixel; before it there is padding.
        floats: what a span of the batch takes; 0 for a tensor of the caller's.
    """

    size: tuple[int, ...]
    row: int | Address
    group: int = LANES
    width: int = 1
    plane: int = 1
    start: int = 0
    floats: int = 0

    def fields(self, prefix: str, image: tuple[int, ...]) -> dict[str, int | Address]:
        """Return the fields of a call that say so to a layer which sees ``image`` where the next one sees features."""
        width, plane = self.width, self.plane
        if len(image) == 3 and len(self.size) == 1:
            width, plane = image[2], image[1] * image[2]
        strides = {"row": self.row, "group": self.group, "width": width, "plane": plane}
        return {f"{prefix}_{name}": value for name, value in strides.items()}


class Layer(NamedTuple):
    """What one stage of a chain does with inputs of one size, and where its result lies.

    Attributes:
        plan: what compiled code has to know.
        x: form of its input.
        x_at: where that is.
        y: form of its result.
        y_at: where that is.
        image: shape of the result as the layer itself sees it, without batch.
        winners: where the winners of its pooling are; 0 where there are none.
        alive: arrays that the plan has the addresses of, where the index does not hold them.
        g: form of the gradient of the result (backward).
        g_at: where that is.
    """

    plan: Plan
    x: Form
    x_at: Address
    y: Form
    y_at: Address
    image: tuple[int, ...]
    winners: Address | int
    alive: tuple[np.ndarray, ...]
    g: Form | None = None
    g_at: Address = (NOWHERE, 0)

    @property
    def linear(self) -> bool:
        """Whether this is a linear layer."""
        return self.plan.kind == LINEAR


class Program(NamedTuple):
    """The records of one pass of a chain.

    Attributes:
        layers: the stages' layers, in the order of the chain.
        span: samples of a span.
        spans: their number.
        plans: the plans of the stages in the order of the pass, an array of records.
        bases: for each field of each call, the number of its base; int64 ``[stages * fields]``.
        offsets: what is added to the base; int64 ``[stages * fields]``.
        by_span: bytes that each base moves from span to span; int64 ``[bases]``.
        by_thread: the same from thread to thread.
        bytes: what a span takes of the arena (forward) or of the room (backward).
        kept: whether that outlasts the span; if not, a thread uses it again for its next one.
        scratch: bytes that each thread needs besides.
        shared: bytes that the threads share.
        gradient_sizes: how many numbers the gradients of each stage's values and bias have.
    """

    layers: list[Layer]
    span: int
    spans: int
    plans: np.ndarray
    bases: np.ndarray
    offsets: np.ndarray
    by_span: np.ndarray
    by_thread: np.ndarray
    bytes: int
    kept: bool
    scratch: int = 0
    shared: int = 0
    gradient_sizes: tuple[int, ...] = ()

    @property
    def y_size(self) -> tuple[int, ...]:
        """Shape of the forward pass's result, without batch."""
        return self.layers[-1].y.size

    def pieces(self, threads: int) -> int:
        """Return how many times ``bytes`` a pass takes."""
        return self.spans if self.kept else threads


def forward_program(stages: Sequence[Stage], x: torch.Tensor, innermost: bool, remember: bool) -> Program:
    """Return the program of a forward pass on inputs like ``x``, which is batch innermost or else contiguous.

    Raises:
        InvalidArgumentError: a layer does not take what the one before returns.
    """
    key = (remember, innermost, x.shape, *((stage.index.number, stage.relu, stage.pool) for stage in stages))
    return _kept(stages[0], key, lambda: _forward_program(stages, len(x), tuple(x.shape[1:]), innermost, remember))


def backward_program(
    stages: Sequence[Stage], x: torch.Tensor, innermost: tuple[bool, bool], need_input: bool, trace: bool
) -> Program:
    """Return the program of the backward pass to inputs like ``x``; ``innermost`` tells of ``x`` and the gradient."""
    key = (need_input, innermost, trace, x.shape, *((stage.index.number, stage.relu, stage.pool) for stage in stages))

    def make() -> Program:
        forward = forward_program(stages, x, innermost[0], remember=True)
        return _backward_program(stages, forward, len(x), innermost[1], need_input, trace)

    return _kept(stages[0], key, make)


def _kept(first: Stage, key: tuple, make: Callable[[], Program]) -> Program:
    programs = first.index.programs
    program = programs.get(key)
    if program is None:
        program = make()
        if len(programs) >= KEPT:
            programs.clear()
        programs[key] = program
    return program


def _forward_program(
    stages: Sequence[Stage], batch: int, size: tuple[int, ...], innermost: bool, remember: bool
) -> Program:
    small = sum(stage.index.nnz for stage in stages) <= SMALL
    several = batch > SPAN and small and not (innermost and _is_shared(stages, batch, remember))
    span, row = (SPAN, SPAN) if several else (max(row_lanes(batch), LANES), row_floats(batch))
    given, memory, parts = size, _Memory(), []
    for i, stage in enumerate(stages):
        if i > 0 and isinstance(stage.index, LinearIndex):
            size = (math.prod(size),)
        plan, size, alive = (_linear_plan if isinstance(stage.index, LinearIndex) else _conv_plan)(stage.index, size)
        image = size = (size[0], size[1] // 2, size[2] // 2) if stage.pool else size
        parts.append((plan, image, alive))
    forms = [_form(plan, span, row) for plan, _, _ in parts] + [_theirs(size, Y_ROW)]
    places = [(ARENA, memory.take(4 * form.floats)) for form in forms[:-1]] + [(Y, 0)]
    as_it_is = _used_as_it_is(parts[0][0], innermost, several)
    if as_it_is:
        forms[0], places[0] = _theirs(given, X_ROW), (X, 0)
    layers, calls = [], []
    for i, (stage, (plan, image, alive)) in enumerate(zip(stages, parts, strict=True)):
        winners = (ARENA, memory.take(span * math.prod(image))) if stage.pool and remember else 0
        layer = Layer(plan, forms[i], places[i], forms[i + 1], places[i + 1], image, winners, alive)
        source = {} if i > 0 or as_it_is else _source(X, X_ROW, given, innermost)
        layers.append(layer)
        calls.append(Call(**_common(i, stage, layer), **source))
    arena = memory.end(APART if several else 0)
    by_span = {X: _step(span, given, innermost), Y: 4 * span, ARENA: arena if remember else 0}
    by_thread = {ARENA: 0 if remember else arena}
    return Program(
        layers,
        span,
        -(-batch // span) if several else 1,
        **_linked(calls, [layer.plan for layer in layers], by_span, by_thread),
        bytes=arena,
        kept=remember or not several,
    )


def _backward_program(
    stages: Sequence[Stage], forward: Program, batch: int, innermost: bool, need_input: bool, trace: bool
) -> Program:
    several, span, result = forward.spans > 1, forward.span, forward.layers[-1]
    row = SPAN if several else row_floats(batch)
    sizes = [size for stage in stages for size in (stage.index.nnz, stage.index.shape[0])]
    starts = [4 * start for start in np.cumsum([0, *sizes]).tolist()]
    gathered = PARTIAL if several else GRADIENTS  # the gradients of a span among several are added up afterwards
    memory, shared, calls, layers, scratch = _Memory(), _Memory(), [], [], 0
    as_it_is = _used_as_it_is(result.plan, innermost, several)
    form, at = _theirs(result.y.size, GRAD_ROW), (GRAD, 0)
    if not as_it_is:
        form, at = form._replace(row=row), (ROOM, memory.take(4 * row * math.prod(result.y.size)))
    for i in reversed(range(len(stages))):
        stage, layer = stages[i], forward.layers[i]._replace(g=form, g_at=at)
        plan, first, last = layer.plan, i == 0, i == len(stages) - 1
        want = need_input or not first
        masks = layer.linear and not first and forward.layers[i - 1].linear
        for_caller = want and first and layer.linear  # the gradient is written where the caller finds it
        dx = (DX, 0) if for_caller else (ROOM, memory.take(4 * layer.x.floats)) if want else 0
        dvalues, dbias, before = starts[2 * i], starts[2 * i + 1], starts[2 * i - 1]
        calls.append(
            Call(
                **_common(i, stage, layer),
                **(_source(GRAD, GRAD_ROW, form.size, innermost) if last and not as_it_is else {}),
                scratch=(SCRATCH, 0),
                g=(at[0], at[1] + 4 * form.start),
                **form.fields("g", layer.image),
                masked=(ROOM, memory.take(4 * row * plan.outputs)) if last and as_it_is else at,
                masked_row=row,
                to_mask=layer.linear and last,
                dx=dx,
                dx_row=(DX_ROW, 0) if for_caller else layer.x.row if want else 0,
                result=(DX, 0) if want and first and not layer.linear else 0,
                result_row=(DX_ROW, 0),
                dvalues=(gathered, dvalues),
                dbias=(gathered, dbias),
                dbias_before=(gathered, before) if masks else 0,
                relu_before=masks and stages[i - 1].relu,
                pieces=0
                if layer.linear or several
                else (SHARED, shared.take(4 * span // LANES * (plan.nnz + plan.outputs))),
            )
        )
        if layer.linear and want:  # gradients of the weights of a piece of the inputs, before each is put in its place
            scratch = max(scratch, 4 * stage.index.largest_piece)
        if not layer.linear:  # sums over lanes, and images of the gradient
            images = LANES * (plan.lead + plan.outputs * plan.plane) if want else 0
            scratch = max(scratch, 4 * (LANES * (plan.nnz + plan.outputs) + images))
        layers.insert(0, layer)
        form, at = layer.x, dx
    own = _Memory()
    own.take(scratch)
    scratch, room = own.end(APART if several else 0), memory.end(APART if several else 0)
    calls = [call._replace(scratch_bytes=scratch) for call in calls]
    by_span = {Y: 4 * span, ARENA: forward.bytes, DX: 4 * span, GRAD: _step(span, result.y.size, innermost)}
    by_span |= {PARTIAL: starts[-1], ROOM: room if trace else 0}
    by_thread = {ROOM: 0 if trace else room, SCRATCH: scratch if several else 0}
    return Program(
        layers,
        span,
        forward.spans,
        **_linked(calls, [layer.plan for layer in reversed(layers)], by_span, by_thread),
        bytes=room,
        kept=trace or not several,
        scratch=scratch,
        shared=shared.size,
        gradient_sizes=tuple(sizes),
    )


def _common(i: int, stage: Stage, layer: Layer) -> dict[str, int | Address]:
    """Return the fields that the calls of both passes have."""
    y = layer.y_at[0], layer.y_at[1] + 4 * layer.y.start
    parameters = {"values": (PARAMETERS + 2 * i, 0), "bias": (PARAMETERS + 2 * i + 1, 0)}
    of_x = {"x": layer.x_at, "x_row": layer.x.row, "x_group": layer.x.group}
    of_y = {"y": y, **layer.y.fields("y", layer.image), "winners": layer.winners}
    return parameters | of_x | of_y | {"relu": stage.relu, "pool": stage.pool}


def _is_shared(stages: Sequence[Stage], batch: int, remember: bool) -> bool:
    """Whether threads share a chain that could be cut into spans: one linear layer, where nothing has to be copied.

    In larger batches, and without a backward pass already beyond one tile, spans are faster: what a thread reads again
    and again then lies close together.
    """
    return len(stages) == 1 and isinstance(stages[0].index, LinearIndex) and batch <= (256 if remember else 64)


def _used_as_it_is(plan: Plan, innermost: bool, several: bool) -> bool:
    """Whether layers read a caller's tensor where it lies: one span, however large, is not worth a copy."""
    return innermost and not several and plan.kind == LINEAR


def _source(base: int, row: int, size: tuple[int, ...], innermost: bool) -> dict[str, int | Address]:
    """Return the fields that say how a caller's tensor lies."""
    sample, pixel = (0, (row, 0)) if innermost else (math.prod(size), 1)
    return {"source": (base, 0), "source_sample": sample, "source_pixel": pixel}


def _step(span: int, size: tuple[int, ...], innermost: bool) -> int:
    """Return the bytes from span to span in a caller's tensor."""
    return 4 * span * (1 if innermost else math.prod(size))


def _theirs(size: tuple[int, ...], row: int) -> Form:
    """Return the form of a caller's batch-innermost tensor."""
    width, plane = (size[2], size[1] * size[2]) if len(size) == 3 else (1, 1)
    return Form(size, (row, 0), width=width, plane=plane)


def _form(plan: Plan, span: int, row: int) -> Form:
    """Return the form in which a layer reads its input."""
    if plan.kind == LINEAR:
        return Form((plan.inputs,), row, floats=row * plan.inputs)
    group = plan.inputs * plan.plane * LANES
    start = (plan.pad_y * plan.columns + plan.pad_x) * LANES
    size = plan.inputs, plan.height, plan.width
    return Form(size, LANES, group, plan.columns, plan.plane, start, span // LANES * group)


class _Memory:
    """Hands out consecutive pieces of a memory that is yet to be allocated, each on a cache line of its own."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, size: int) -> int:
        """Return the offset in bytes of a piece of ``size`` bytes."""
        start, self.size = self.size, -(-(self.size + size) // 64) * 64
        return start

    def end(self, gap: int) -> int:
        """Return the size of all pieces with ``gap`` unused bytes behind them."""
        return self.size + gap


def _linked(
    calls: list[Call], plans: list[Plan], by_span: dict[int, int], by_thread: dict[int, int]
) -> dict[str, np.ndarray]:
    """Return the records of a pass as arrays, by their names in :class:`Program`."""
    pairs = [field if isinstance(field, tuple) else (NOWHERE, int(field)) for call in calls for field in call]
    bases, offsets = (np.ascontiguousarray(column) for column in np.array(pairs, np.int64).T)
    moves = np.zeros((2, PARAMETERS + 2 * len(calls)), np.int64)
    for move, steps in zip(moves, (by_span, by_thread), strict=True):
        move[list(steps)] = list(steps.values())
    plans = np.array(plans, PLAN)
    return {"plans": plans, "bases": bases, "offsets": offsets, "by_span": moves[0], "by_thread": moves[1]}


def traced(
    backward: Program,
    x: torch.Tensor,
    arena: torch.Tensor,
    y: torch.Tensor | None,
    room: torch.Tensor,
    grad: torch.Tensor,
) -> list[Trace]:
    """Return each stage's tensors in a pass that is over, copied from the memory that it worked in."""
    batch, traces, spans = len(x), [], backward.by_span
    for layer in backward.layers:
        last = layer is backward.layers[-1]
        shape = (batch, *layer.image)
        result, g, winners = y, grad, None
        if not last:
            result = _copy(arena, layer.y_at, layer.y, shape, backward, spans[ARENA])
            g = _copy(room, layer.g_at, layer.g, shape, backward, spans[ROOM])
        if layer.winners:
            pixels = math.prod(layer.image[1:])
            form = Form(layer.image, LANES, layer.image[0] * pixels * LANES, layer.image[2], pixels)
            winners = _copy(arena, layer.winners, form, shape, backward, spans[ARENA], torch.uint8)
        traces.append(Trace(x.reshape(batch, *layer.x.size), result, winners, g))
        x = result
    return traces


def _copy(
    memory: torch.Tensor,
    at: Address,
    form: Form,
    shape: tuple[int, ...],
    program: Program,
    step: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return what lies there in each span, ``step`` bytes from one to the next, as one tensor of this shape."""
    numbers, said = memory.view(dtype), form.fields("of", shape[1:])
    row, size = said["of_row"], numbers.element_size()
    image = (said["of_plane"] * row, said["of_width"] * row, row) if len(shape) == 4 else (row,)
    lanes_last = numbers.as_strided(
        (program.spans, program.span // LANES, *shape[1:], LANES),
        (step // size, said["of_group"], *image, 1),
        at[1] // size + form.start,
    )
    return lanes_last.movedim(-1, 2).reshape(program.spans * program.span, *shape[1:])[: shape[0]]


def _linear_plan(index: LinearIndex, size: tuple[int, ...]) -> tuple[Plan, tuple[int, ...], tuple[()]]:
    """Return the plan of a layer for inputs of this size, the size of the result, and what has to be kept alive."""
    if size != (index.shape[1],):
        raise InvalidArgumentError(f"the input has shape [B, {_listed(size)}]; give [B, {index.shape[1]}].")
    plan = Plan(
        LINEAR,
        index.nnz,
        *index.shape,
        _address(index.indptr),
        blocks=index.blocks,
        t_indptr=_address(index.t_indptr),
        t_perm=_address(index.t_perm),
        cols=_address(index.cols),
        t_rows=_address(index.t_rows),
        wide_cols=index.cols.itemsize == 4,
        wide_rows=index.t_rows.itemsize == 4,
        row_chunks=_address(index.row_chunks),
        row_pieces=len(index.row_chunks) - 1,
        col_chunks=_address(index.col_chunks),
        col_pieces=len(index.col_chunks) - 1,
    )
    return plan, (index.shape[0],), ()


def _conv_plan(index: ConvIndex, size: tuple[int, ...]) -> tuple[Plan, tuple[int, ...], tuple[np.ndarray, ...]]:
    """Return the same of a convolution."""
    outputs, inputs, kernel, dilation = index.shape[0], index.shape[1] * index.groups, index.shape[2:], index.dilation
    if len(size) != 3 or size[0] != inputs:
        raise InvalidArgumentError(f"the input has shape [B, {_listed(size)}]; give [B, {inputs}, H, W].")
    height, width = size[1:]
    out_h, out_w = index.output_size(height, width)
    (stride_y, stride_x), (pad_y, pad_x) = index.stride, index.padding
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    # Windows of two pixels may stand out over an odd last row or column, and see what is not there: more zeros.
    rows = max(height + 2 * pad_y, (out_h + out_h % 2 - 1) * stride_y + reach[0])
    columns = max(width + 2 * pad_x, (out_w + out_w % 2 - 1) * stride_x + reach[1])
    seen = -(-((height - 1) * columns + width) // 8) * 8  # in tiles of four or eight pixels, backward
    rows = max(rows, -(-(pad_y * columns + pad_x + seen) // columns))
    plane = rows * columns | 1  # odd: else the same pixels of all channels would share a cache set
    channel, dy, dx = index.taps.astype(np.int64).T
    taps = dy * dilation[0] * columns + dx * dilation[1]
    offsets = (channel * plane + taps) * LANES
    order = np.argsort(channel, kind="stable")
    output = np.repeat(np.arange(outputs), np.diff(index.indptr))
    by_input = np.stack([order, ((output * plane - taps) * LANES)[order]], 1)
    t_indptr = np.searchsorted(channel[order], np.arange(inputs + 1))
    plan = Plan(
        CONV,
        index.nnz,
        outputs,
        inputs,
        _address(index.indptr),
        height=height,
        width=width,
        out_h=out_h,
        out_w=out_w,
        stride_y=stride_y,
        stride_x=stride_x,
        pad_y=pad_y,
        pad_x=pad_x,
        rows=rows,
        columns=columns,
        plane=plane,
        offsets=_address(offsets),
        t_indptr=_address(t_indptr),
        by_input=_address(by_input),
        lead=(reach[0] - 1) * columns + reach[1] - 1,
    )
    return plan, (outputs, out_h, out_w), (offsets, t_indptr, by_input)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _listed(size: tuple[int, ...]) -> str:
    return ", ".join(map(str, size))
