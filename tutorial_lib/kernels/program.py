"""A chain's work on inputs of one shape, prepared once, so that a pass only has to fill in where its tensors are.

Entering Python costs more than a small layer. So all records of a chain are made when a topology is first used, with
each address as an offset from a *base*; a pass lists its bases (a handful of tensors) and adds them in one sweep.
Activations between the layers lie in one piece of memory, the *arena*, and have no tensors of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from ..errors import InvalidArgumentError
from .index import ConvIndex, LinearIndex
from .memory import LANES, row_floats, row_lanes, strides
from .records import CALL, CONV, LINEAR, PLAN, Call, Plan
from .stage import Stage, Trace

BLOCK = 2**16  # floats of input that one piece of a convolution copies: 256 KiB, to stay in a core's cache
SCATTERED = 2**20  # up to so many weight gradients are written in column order: beyond, that misses every cache
SPAN = 32  # lanes of the batch that one thread takes through a whole chain
KEPT = 16  # programs per index: topologies of the layers behind it and shapes of inputs come and go

# Bases: where the parts of a pass begin. Values and bias of stage i are number PARAMETERS + 2i and PARAMETERS + 2i + 1.
NOWHERE, X, Y, ARENA, ROOM, GRAD, DX, GRADIENTS, PARAMETERS = range(9)
Address = tuple[int, int]  # a base and the bytes from it


class Cut(NamedTuple):
    """How the work of one layer on inputs of one size is cut.

    Attributes:
        plan: what compiled code has to know.
        result: shape of the result without batch, before pooling.
        forward_floats: what a thread needs to work in.
        backward_floats: the same for the backward pass.
        bands: into how many bands of rows a convolution's backward pass is cut.
        alive: arrays that the plan has the addresses of, where the index does not hold them.
    """

    plan: Plan
    result: tuple[int, ...]
    forward_floats: int = 0
    backward_floats: int = 0
    bands: int = 0
    alive: tuple[np.ndarray, ...] = ()


class Layout(NamedTuple):
    """One stage's part of a chain.

    Attributes:
        cut: how its work is cut.
        x_size: shape of the input, without batch.
        y_size: shape of the result, without batch.
        y: bytes from the arena's begin to the result; the last result is a tensor of its own.
        winners: the same of the winners, None without.
        y_grad: bytes to the gradient of the result, in the memory of the backward pass.
    """

    cut: Cut
    x_size: tuple[int, ...]
    y_size: tuple[int, ...]
    y: int
    winners: int | None
    y_grad: int = 0


class Program(NamedTuple):
    """The records of one pass of a chain.

    Attributes:
        layouts: for each span of the batch, its stages.
        plans: the plans of the stages in the order of the pass, an array of records.
        bases: for each field of each call, the number of its base; the calls of one span after the other.
        offsets: what is added to the base.
        bytes: the size of the arena (forward) or of everything in between (backward).
        thread_bytes: what each thread needs to work in.
        gradient_sizes: how many numbers the gradients of each stage's values and bias have.
        partial: bytes to the gradients of each span, where there are several (backward).
    """

    layouts: list[list[Layout]]
    plans: np.ndarray
    bases: np.ndarray
    offsets: np.ndarray
    bytes: int
    thread_bytes: int
    gradient_sizes: list[int]
    partial: int = 0

    @property
    def spans(self) -> int:
        """The number of pieces of the batch that go through the chain by themselves."""
        return len(self.layouts)

    @property
    def y_size(self) -> tuple[int, ...]:
        """Shape of the forward pass's result, without batch."""
        return self.layouts[0][-1].y_size

    def calls(self, addresses: Sequence[int]) -> np.ndarray:
        """Return the calls of a pass whose bases lie at these addresses."""
        return (self.offsets + np.array(addresses)[self.bases]).view(CALL).reshape(-1)


def _spans(stages: Sequence[Stage], batch: int) -> list[tuple[int, int]]:
    """Return first lane and length of the pieces of the batch that threads take through the chain, each by itself.

    Nothing that lies between layers then passes from one core to another, and threads meet once. There is one piece,
    and threads share the work of each layer, where the batch is small or where gradients for each piece would be large.
    """
    if batch <= SPAN or sum(stage.index.nnz for stage in stages) > SCATTERED:
        return [(0, batch)]
    return [(first, min(SPAN, batch - first)) for first in range(0, batch, SPAN)]


def forward_program(stages: Sequence[Stage], x: torch.Tensor, remember: bool) -> Program:
    """Return the program of a forward pass on inputs like ``x``, which is batch innermost.

    Raises:
        InvalidArgumentError: a layer does not take what the one before returns.
    """
    key = (remember, x.shape, x.stride(-1), *((stage.index.number, stage.relu, stage.pool) for stage in stages))
    return _kept(stages[0], key, lambda: _forward_program(stages, x.shape, x.stride(-1), remember))


def backward_program(stages: Sequence[Stage], x: torch.Tensor, grad: torch.Tensor, need_input: bool) -> Program:
    """Return the program of the backward pass from ``grad``, batch innermost, to inputs like ``x``."""
    rows = x.stride(-1), grad.stride(-1)
    key = (need_input, x.shape, *rows, *((stage.index.number, stage.relu, stage.pool) for stage in stages))
    return _kept(
        stages[0], key, lambda: _backward_program(stages, forward_program(stages, x, True), len(x), *rows, need_input)
    )


def _kept(first: Stage, key: tuple, make: Callable[[], Program]) -> Program:
    programs = first.index.programs
    program = programs.get(key)
    if program is None:
        program = make()
        if len(programs) >= KEPT:
            programs.clear()
        programs[key] = program
    return program


def _forward_program(stages: Sequence[Stage], shape: torch.Size, x_row: int, remember: bool) -> Program:
    cuts, size = [], tuple(shape[1:])
    for i, stage in enumerate(stages):
        if i > 0 and isinstance(stage.index, LinearIndex):
            size = (math.prod(size),)
        cut = _linear_cut(stage.index, size) if isinstance(stage.index, LinearIndex) else _conv_cut(stage.index, size)
        y_size = _pooled(cut.result) if stage.pool else cut.result
        cuts.append((cut, size, y_size))
        size = y_size
    memory, layouts, calls = _Memory(), [], []
    for first, batch in _spans(stages, shape[0]):
        x, row_of_x, row, span = (X, 4 * first), x_row, row_floats(batch), []
        for i, (stage, (cut, x_size, y_size)) in enumerate(zip(stages, cuts, strict=True)):
            last = i == len(stages) - 1
            y = (Y, 4 * first) if last else (ARENA, memory.take(4 * row * math.prod(y_size)))
            remembers = stage.pool and remember
            winners = memory.take(row_lanes(batch) * math.prod(y_size)) if remembers else None
            span.append(Layout(cut, x_size, y_size, y[1], winners))
            calls.append(
                Call(
                    x=x,
                    x_row=row_of_x,
                    values=(PARAMETERS + 2 * i, 0),
                    bias=(PARAMETERS + 2 * i + 1, 0),
                    y=y,
                    y_row=row_floats(shape[0]) if last else row,
                    winners=0 if winners is None else (ARENA, winners),
                    batch=batch,
                    lanes=row_lanes(batch),
                    relu=stage.relu,
                    pool=stage.pool,
                    scratch=(ROOM, 0),
                )
            )
            x, row_of_x = y, row
        layouts.append(span)
    cuts = [cut for cut, _, _ in cuts]
    return _linked(layouts, cuts, calls, memory.size, 4 * max(cut.forward_floats for cut in cuts), [])


def _backward_program(
    stages: Sequence[Stage], forward: Program, whole: int, x_row: int, grad_row: int, need_input: bool
) -> Program:
    sizes = [size for stage in stages for size in (stage.index.nnz, stage.index.shape[0])]
    ends = np.cumsum([0, *sizes]).tolist()
    memory, calls, layouts, spans = _Memory(), [], [], _spans(stages, whole)
    partial = memory.take(4 * len(spans) * ends[-1]) if len(spans) > 1 else 0
    for n, (first, batch) in enumerate(spans):
        # The gradients of a span among several are added up afterwards.
        base, start = (GRADIENTS, 0) if len(spans) == 1 else (ROOM, partial + 4 * n * ends[-1])
        gradients = [(base, start + 4 * end) for end in ends]
        row, g, g_row, masked, span = row_floats(batch), (GRAD, 4 * first), grad_row, False, []
        for i in reversed(range(len(stages))):
            starts, ends_chain = i == 0, i == len(stages) - 1
            stage, layout = stages[i], forward.layouts[n][i]._replace(y_grad=g[1])
            span.append(layout)
            want, nnz = need_input or not starts, stage.index.nnz
            if want and not starts:
                dx = ROOM, memory.take(4 * row * math.prod(layout.x_size))
            else:
                dx = (DX, 4 * first) if want else 0
            linear = isinstance(stage.index, LinearIndex)
            masks = linear and not starts and isinstance(stages[i - 1].index, LinearIndex)  # the one before's gradient
            own = linear and not masked
            calls.append(
                Call(
                    x=(X, 4 * first) if starts else (ARENA, forward.layouts[n][i - 1].y),
                    x_row=x_row if starts else row,
                    values=(PARAMETERS + 2 * i, 0),
                    y=(Y, 4 * first) if ends_chain else (ARENA, layout.y),
                    y_row=row_floats(whole) if ends_chain else row,
                    winners=0 if layout.winners is None else (ARENA, layout.winners),
                    batch=batch,
                    lanes=row_lanes(batch),
                    relu=stage.relu,
                    pool=stage.pool,
                    g=g,
                    g_row=g_row,
                    masked=(ROOM, memory.take(4 * row * math.prod(layout.y_size))) if own else g if linear else 0,
                    masked_row=row,
                    dx=dx,
                    dx_row=row_floats(whole) if starts else row,
                    dvalues=gradients[2 * i],
                    dbias=gradients[2 * i + 1],
                    dbias_before=gradients[2 * i - 1] if masks else 0,
                    relu_before=masks and stages[i - 1].relu,
                    partial=(ROOM, memory.take(4 * row_lanes(batch) // LANES * layout.cut.bands * nnz)),
                    by_row=not want or nnz > SCATTERED,
                )
            )
            g, g_row, masked = dx, row, masks
        layouts.append(span[::-1])
    calls = [call._replace(scratch=(ROOM, memory.size)) for call in calls]
    cuts = [layout.cut for layout in reversed(layouts[0])]
    floats = max(cut.backward_floats for cut in cuts)
    program = _linked(layouts, cuts, calls, memory.size, 4 * floats, sizes)
    return program._replace(partial=partial)


class _Memory:
    """Hands out consecutive pieces of a memory that is yet to be allocated, each on a cache line of its own."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, size: int) -> int:
        """Return the offset in bytes of a piece of ``size`` bytes."""
        start, self.size = self.size, -(-(self.size + size) // 64) * 64
        return start


def _linked(
    layouts: list[list[Layout]], cuts: list[Cut], calls: list[Call], size: int, thread_bytes: int, sizes: list[int]
) -> Program:
    calls = [call._replace(scratch_bytes=thread_bytes) for call in calls]
    pairs = [[field if isinstance(field, tuple) else (NOWHERE, int(field)) for field in call] for call in calls]
    plans = np.array([cut.plan for cut in cuts], PLAN)
    bases, offsets = (np.ascontiguousarray(part) for part in np.array(pairs, np.int64).transpose(2, 0, 1))
    return Program(layouts, plans, bases, offsets, size, thread_bytes, sizes)


def traced(
    backward: Program,
    x: torch.Tensor,
    arena: torch.Tensor,
    y: torch.Tensor | None,
    room: torch.Tensor,
    grad: torch.Tensor,
) -> list[Trace]:
    """Return each stage's tensors in a pass that is over: views of the memory it worked in, or, of spans, copies."""
    whole, traces = len(x), []
    batches = [len(part) for part in x.split(SPAN)] if backward.spans > 1 else [whole]
    for stage, (layout, *_) in enumerate(zip(*backward.layouts, strict=True)):
        last = stage == len(backward.layouts[0]) - 1
        spans = [span[stage] for span in backward.layouts]
        shapes = [(batch, *layout.y_size) for batch in batches]
        placed = list(zip(spans, shapes, strict=True))
        result = y if last else _joined([_view(arena, span.y, shape) for span, shape in placed])
        g = grad if last else _joined([_view(room, span.y_grad, shape) for span, shape in placed])
        winners = None
        if layout.winners is not None:
            winners = _joined([_winners(arena, span.winners, shape) for span, shape in placed])
        traces.append(Trace(x.reshape(whole, *layout.x_size), result, winners, g))
        x = result
    return traces


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _view(base: torch.Tensor, start: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the batch-innermost activations that lie ``start`` bytes into ``base``."""
    flat = base[start:].view(torch.float32)
    return flat.as_strided(shape, strides(shape, row_floats(shape[0])), flat.storage_offset())


def _winners(base: torch.Tensor, start: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the winners that lie ``start`` bytes into ``base``, 16 lanes of the batch after the other."""
    pixels, groups = math.prod(shape[1:]), row_lanes(shape[0]) // LANES
    lanes_last = base[start : start + groups * pixels * LANES].view(groups, pixels, LANES)
    return lanes_last.transpose(1, 2).reshape(groups * LANES, *shape[1:])[: shape[0]]


def _pooled(size: tuple[int, ...]) -> tuple[int, ...]:
    return size[0], size[1] // 2, size[2] // 2


# ------------------------------------------------------------------------------------------------- one layer's cut
def _linear_cut(index: LinearIndex, size: tuple[int, ...]) -> Cut:
    if size != (index.shape[1],):
        raise InvalidArgumentError(f"the input has shape [B, {_listed(size)}]; the layer takes [B, {index.shape[1]}].")
    plan = Plan(
        LINEAR,
        index.nnz,
        *index.shape,
        *map(_address, (index.indptr, index.t_indptr, index.t_perm, index.cols, index.t_rows)),
        wide_cols=index.cols.itemsize == 4,
        wide_rows=index.t_rows.itemsize == 4,
        row_chunks=_address(index.row_chunks),
        row_pieces=len(index.row_chunks) - 1,
        col_chunks=_address(index.col_chunks),
        col_pieces=len(index.col_chunks) - 1,
    )
    return Cut(plan, (index.shape[0],))


def _conv_cut(index: ConvIndex, size: tuple[int, ...]) -> Cut:
    outputs, inputs, kernel, dilation = index.shape[0], index.shape[1] * index.groups, index.shape[2:], index.dilation
    if len(size) != 3 or size[0] != inputs:
        raise InvalidArgumentError(f"the input has shape [B, {_listed(size)}]; the layer takes [B, {inputs}, H, W].")
    height, width = size[1:]
    out_h, out_w = index.output_size(height, width)
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    cols = ((out_w + 1) // 2 * 2 - 1) * index.stride[1] + reach[1] + 1
    band = max(1, min((out_h + 1) // 2, BLOCK // max(1, inputs * 2 * index.stride[0] * cols * LANES)))
    rows = (2 * band - 1) * index.stride[0] + reach[0] + 1
    t_cols = (width + 1) // 2 * 2 + reach[1]
    t_band = max(1, min((height + 1) // 2, BLOCK // max(1, outputs * 2 * t_cols * LANES)))
    t_rows = 2 * t_band + reach[0]
    offsets = _offsets(index.taps, dilation, rows, cols)
    t_offsets = _offsets(index.t_taps, dilation, t_rows, t_cols)
    plan = Plan(
        CONV,
        index.nnz,
        outputs,
        inputs,
        *map(_address, (index.indptr, index.t_indptr, index.t_perm)),
        height=height,
        width=width,
        out_h=out_h,
        out_w=out_w,
        stride_y=index.stride[0],
        stride_x=index.stride[1],
        pad_y=index.padding[0],
        pad_x=index.padding[1],
        band=band,
        rows_in_block=rows,
        cols_in_block=cols,
        offsets=_address(offsets),
        t_pad_y=index.padding[0] - reach[0],
        t_pad_x=index.padding[1] - reach[1],
        t_band=t_band,
        t_rows_in_block=t_rows,
        t_cols_in_block=t_cols,
        t_offsets=_address(t_offsets),
    )
    return Cut(
        plan,
        (outputs, out_h, out_w),
        forward_floats=inputs * rows * cols * LANES,
        backward_floats=(outputs * t_rows * t_cols + index.nnz) * LANES,
        bands=-(-((height + 1) // 2) // t_band),
        alive=(offsets, t_offsets),
    )


def _offsets(taps: np.ndarray, dilation: tuple[int, int], rows: int, cols: int) -> np.ndarray:
    """Return where the pixel that each weight sees stands in the block, from where its window starts: int64 [nnz]."""
    channel, dy, dx = taps.astype(np.int64).T
    return ((channel * rows + dy * dilation[0]) * cols + dx * dilation[1]) * LANES


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _listed(size: tuple[int, ...]) -> str:
    return ", ".join(map(str, size))
