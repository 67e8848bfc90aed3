"""What each layer of a chain does with inputs of one size, and how its activations are stored."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..arguments import require
from ..errors import InvalidArgumentError
from .blocks import in_rows
from .conv_shape import TILE
from .index import ConvIndex, LinearIndex
from .memory import LANES
from .records import CONV, LINEAR, Plan

# Bases: the addresses of a pass's tensors and buffers, and (…_ROW) the floats from pixel to pixel in the caller's
# tensors.
# Values and bias of stage i have the bases PARAMETERS + 2i and PARAMETERS + 2i + 1.
NOWHERE, X, X_ROW, Y, Y_ROW, ARENA, GRAD, GRAD_ROW = range(8)
DX, DX_ROW, ROOM, SCRATCH, PARTIAL, GRADIENTS, STEPS = range(8, 15)
PARAMETERS = 15
Address: TypeAlias = tuple[int, int]  # the number of a base, and bytes from it


class Memory:
    """Assigns consecutive pieces of a buffer that is allocated later, each aligned to a cache line."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, size: int) -> int:
        """Return the offset in bytes of a piece of ``size`` bytes."""
        start, self.size = self.size, -(-(self.size + size) // 64) * 64
        return start

    def end(self, gap: int) -> int:
        """Return the size of all pieces followed by ``gap`` unused bytes."""
        return self.size + gap


class Form(NamedTuple):
    """How activations are stored, in floats and pixels (``records.py``).

    Attributes:
        size: shape without batch.
        row, group, width, plane: strides.
        start: floats to the first pixel, after the padding.
        floats: size of a span of the batch; 0 for a caller's tensor.
    """

    size: tuple[int, ...]
    row: int | Address
    group: int = LANES
    width: int = 1
    plane: int = 1
    start: int = 0
    floats: int = 0

    def fields(self, prefix: str, image: tuple[int, ...]) -> dict[str, int | Address]:
        """Return the fields of a call for a layer whose result is ``image``, even if the next layer reads features."""
        width, plane = self.width, self.plane
        if len(image) == 3 and len(self.size) == 1:
            width, plane = image[2], image[1] * image[2]
        strides = {"row": self.row, "group": self.group, "width": width, "plane": plane}
        return {f"{prefix}_{name}": value for name, value in strides.items()}


class Layer(NamedTuple):
    """What one stage of a chain does with inputs of one size, and where its activations are.

    Attributes:
        plan: the layer's work, for compiled code.
        x: form of its input.
        x_at: address of its input.
        y: form of its result.
        y_at: address of its result.
        image: shape of the result before any flattening, without batch.
        winners: address of the winners of its pooling; 0: none.
        alive: arrays whose addresses the plan holds, if the index does not hold them.
        g: form of the gradient of the result (backward).
        g_at: address of that gradient.
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


class Part(NamedTuple):
    """The work of one stage of a chain.

    Attributes:
        plan: for compiled code.
        size: shape of the result, without batch.
        alive: arrays whose addresses the plan holds, if the index does not hold them.
        scratch: numbers of scratch memory of a thread for the gradients of the weights of a piece of the inputs.
    """

    plan: Plan
    size: tuple[int, ...]
    alive: tuple[np.ndarray, ...] = ()
    scratch: int = 0


def callers_form(size: tuple[int, ...], row: int) -> Form:
    """Return the form of a caller's batch-innermost tensor."""
    return Form(size, (row, 0), width=size[-1], plane=math.prod(size[1:])) if len(size) == 3 else Form(size, (row, 0))


def buffer_form(size: tuple[int, ...], row: int) -> Form:
    """Return the same form for a span in a buffer, with ``row`` floats from pixel to pixel."""
    return callers_form(size, NOWHERE)._replace(row=row, floats=row * math.prod(size))


def parameters(i: int) -> dict[str, Address]:
    """Return the fields of a call for values and bias of stage ``i``."""
    return {"values": (PARAMETERS + 2 * i, 0), "bias": (PARAMETERS + 2 * i + 1, 0)}


def callers_tensor(prefix: str, base: int, row: int, size: tuple[int, ...], innermost: bool) -> dict[str, Any]:
    """Return the fields of a call that describe a caller's tensor to copy from (``source``) or to (``result``)."""
    sample, pixel = (0, (row, 0)) if innermost else (math.prod(size), 1)
    return {prefix: (base, 0), f"{prefix}_sample": sample, f"{prefix}_pixel": pixel}


def input_form(plan: Plan, span: int, row: int) -> Form:
    """Return the form in which a layer reads its input."""
    if plan.kind == LINEAR:
        return Form((plan.inputs,), row, floats=row * plan.inputs)
    group = plan.inputs * plan.plane * LANES
    start = (plan.pad_y * plan.columns + plan.pad_x) * LANES
    size = plan.inputs, plan.height, plan.width
    return Form(size, LANES, group, plan.columns, plan.plane, start, span // LANES * group)


def layer_part(index: LinearIndex | ConvIndex, size: tuple[int, ...]) -> Part:
    """Return the work of a layer, without pooling, for inputs of this size.

    Raises:
        InvalidArgumentError: the layer does not accept inputs of this size.
    """
    return _linear_part(index, size) if isinstance(index, LinearIndex) else _conv_part(index, size)


def _linear_part(index: LinearIndex, size: tuple[int, ...]) -> Part:
    if size != (index.shape[1],):
        raise InvalidArgumentError(f"the input has shape [B, {_listed(size)}]; give [B, {index.shape[1]}].")
    plan = Plan(
        LINEAR,
        index.nnz,
        *index.shape,
        address(index.indptr),
        tall=index.structure[0],
        wide=index.structure[1],
        blocks=index.blocks,
        t_indptr=address(index.t_indptr),
        t_perm=address(index.t_perm),
        cols=address(index.cols),
        t_rows=address(index.t_rows),
        col_bytes=index.cols.itemsize,
        row_bytes=index.t_rows.itemsize,
        row_chunks=address(index.row_chunks),
        row_pieces=len(index.row_chunks) - 1,
        col_chunks=address(index.col_chunks),
        col_pieces=len(index.col_chunks) - 1,
    )
    scratch = 1 << max(index.largest_piece, index.nnz // 16).bit_length()  # the same for most topologies
    return Part(plan, (index.shape[0],), (), scratch)


def _conv_part(index: ConvIndex, size: tuple[int, ...]) -> Part:
    outputs, inputs, kernel, dilation = index.shape[0], index.shape[1] * index.groups, index.shape[2:], index.dilation
    if len(size) != 3 or size[0] != inputs:
        raise InvalidArgumentError(f"the input has shape [B, {_listed(size)}]; give [B, {inputs}, H, W].")
    height, width = size[1:]
    out_h, out_w = index.output_size(height, width)
    (stride_y, stride_x), (pad_y, pad_x) = index.stride, index.padding
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    # Windows of 2×2 pixels may extend beyond an odd last row or column and then read more zeros.
    rows = max(height + 2 * pad_y, (out_h + out_h % 2 - 1) * stride_y + reach[0])
    columns = max(width + 2 * pad_x, (out_w + out_w % 2 - 1) * stride_x + reach[1])
    seen = -(-((height - 1) * columns + width) // TILE) * TILE  # the backward pass reads whole tiles of pixels
    rows = max(rows, -(-(pad_y * columns + pad_x + seen) // columns))
    plane = rows * columns | 1  # odd, so that equal pixels of all channels do not share a cache set
    floats = max(outputs, inputs) * plane * LANES
    require(floats < 2**31, "x", list(size), f"16 of these images take {4 * floats:,} bytes; use smaller ones")
    tall, *lists = _conv_lists(index, plane, columns)
    indptr, offsets, t_indptr, by_input = lists
    plan = Plan(
        CONV,
        index.nnz,
        outputs,
        inputs,
        address(indptr),
        tall=tall,
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
        offsets=address(offsets),
        t_indptr=address(t_indptr),
        by_input=address(by_input),
        lead=(reach[0] - 1) * columns + reach[1] - 1,
    )
    return Part(plan, (outputs, out_h, out_w), tuple(lists))


def _conv_lists(index: ConvIndex, plane: int, columns: int) -> tuple[Any, ...]:
    """Return rows of the blocks that kernels use, and for ``Plan``: indptr, offsets, t_indptr, by_input.

    Kernels process four outputs at a time by output, other blocks and the order by input as single weights.
    """
    channel, dy, dx = index.taps()
    taps = dy * index.dilation[0] * columns + dx * index.dilation[1]
    output, place = in_rows(index.indptr, index.structure[0])
    column = channel[place]
    order = np.argsort(column, kind="stable")
    t_indptr = np.searchsorted(column[order], np.arange(index.shape[1] * index.groups + 1))
    by_input = np.stack([order, ((output * plane - taps[place]) * LANES)[order]], 1).astype(np.int32)
    offsets = ((channel * plane + taps) * LANES).astype(np.int32)
    if index.structure[0] % 4 == 0:
        return index.structure[0], index.indptr, offsets, t_indptr, by_input
    return 1, np.searchsorted(output, np.arange(index.shape[0] + 1)), offsets[place], t_indptr, by_input


def scratch_bytes(part: Part, need_dx: bool) -> int:
    """Return the bytes of scratch memory that a thread needs in the backward pass of a layer."""
    plan = part.plan
    if plan.kind == LINEAR:  # gradients of the weights of a piece of the inputs
        return 4 * max(LANES, part.scratch if need_dx else 0)
    images = LANES * (plan.lead + plan.outputs * plan.plane) if need_dx or plan.tall > 1 else 0
    weights = 1 if plan.tall > 1 and not need_dx else plan.nnz
    return 4 * (LANES * (weights + plan.outputs) + images)  # sums over lanes, and images of the gradient


def address(array: np.ndarray) -> int:
    """Return the address of an array's memory."""
    data: int = array.__array_interface__["data"][0]
    return data


def _listed(size: tuple[int, ...]) -> str:
    return ", ".join(map(str, size))
