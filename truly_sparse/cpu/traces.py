"""The tensors of each layer in a finished pass, copied from the memory that the pass used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from .memory import CPU, LANES
from .plan import ARENA, ROOM, Address, Form, Layer
from .program import Program
from .simd import entry
from .stage import Stage, Trace


def traced(
    backward: Program,
    stages: Sequence[Stage],
    x: torch.Tensor,
    arena: torch.Tensor,
    y: torch.Tensor | None,
    room: torch.Tensor,
    grad: torch.Tensor,
    wanted: Sequence[int],
) -> list[Trace]:
    """Return input and gradient of the stages ``wanted``, copied from the memory of a finished pass.

    Images are contiguous. Of features, all samples of one follow each other, as the pass has stored them.
    """
    batch, layers, spans = len(x), backward.layers, backward.steps
    xs = [x, *(_copied(arena, of.x_at, of.x, of.x.size, backward, spans[ARENA], batch) for of in layers[1:])]
    if layers[-1].y_at[0] == ARENA:
        y = _copied(arena, layers[-1].y_at, layers[-1].y, layers[-1].image, backward, spans[ARENA], batch)
    results = [*xs[1:], y]
    traces = []
    for i in wanted:
        layer, at_end = layers[i], i == len(layers) - 1
        if isinstance(layer.winners, tuple):
            g = _unpooled(backward, layer, arena, room, grad if at_end else None)
        else:
            form = cast(Form, layer.g)
            g = grad if at_end else _copied(room, layer.g_at, form, layer.image, backward, spans[ROOM], batch)
            if stages[i].relu:
                of_y = cast(torch.Tensor, results[i])
                of_y = of_y.unflatten(1, layer.image) if g.dim() > of_y.dim() else of_y
                g = torch.ops.aten.threshold_backward(g, of_y, 0)  # one pass; masked_fill takes three
        traces.append(Trace(xs[i].reshape(batch, *layer.x.size), g))
    return traces


def _copied(
    memory: torch.Tensor, at: Address, form: Form, size: tuple[int, ...], program: Program, step: int, batch: int
) -> torch.Tensor:
    """Return the activations at one place of each span, ``step`` bytes apart, as one tensor ``[batch, *size]``."""
    lanes = _lanes(memory, at, form, size, program, step)
    if len(size) == 1:
        return lanes.permute(2, 0, 1, 3).reshape(size[0], program.spans * program.span).t()[:batch]
    images = torch.empty((batch, *size), dtype=torch.float32, device=CPU)
    _copy_images(lanes.numpy(), images.numpy())
    return images


def _unpooled(
    program: Program, layer: Layer, arena: torch.Tensor, room: torch.Tensor, grad: torch.Tensor | None
) -> torch.Tensor:
    """Return the gradient before pooling, from that after it and the winner of each window (4: none of the pixels).

    ``grad`` is the gradient after pooling of the last layer; that of others is in ``room``.
    """
    channels, rows, columns = layer.image
    form = Form(layer.image, LANES, channels * rows * columns * LANES, columns, rows * columns)
    winners = _lanes(arena, cast(Address, layer.winners), form, layer.image, program, program.steps[ARENA], torch.uint8)
    size = layer.plan.out_h, layer.plan.out_w
    odd = size[0] % 2 or size[1] % 2  # pooling drops an odd last row or column
    batch = program.result[0]
    full = (torch.zeros if odd else torch.empty)((batch, channels, *size), dtype=torch.float32, device=CPU)
    if grad is None:
        lanes = _lanes(room, layer.g_at, cast(Form, layer.g), layer.image, program, program.steps[ROOM])
    else:
        whole = torch.nn.functional.pad(grad.flatten(1).t(), (0, program.spans * program.span - batch))
        shape = channels, rows, columns, program.spans, program.span // LANES, LANES
        lanes = whole.reshape(shape).permute(3, 4, 0, 1, 2, 5)
    _unpool(lanes.numpy(), winners.numpy(), full.numpy())
    return full


def _lanes(
    memory: torch.Tensor,
    at: Address,
    form: Form,
    size: tuple[int, ...],
    program: Program,
    step: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return a view of the same, 16 samples innermost: ``[spans, groups of 16, *size, 16]``."""
    numbers, strides = memory.view(dtype), cast(dict[str, int], form.fields("of", size))
    row, bytes_ = strides["of_row"], numbers.element_size()
    image = (strides["of_plane"] * row, strides["of_width"] * row, row) if len(size) == 3 else (row,)
    return numbers.as_strided(
        (program.spans, program.span // LANES, *size, LANES),
        (step // bytes_, strides["of_group"], *image, 1),
        at[1] // bytes_ + form.start,
    )


# A row of 16 samples is in the cache while it is read sample by sample.


@entry
def _copy_images(lanes: np.ndarray, images: np.ndarray) -> None:
    """Write the samples one after the other."""
    spans, groups, channels, rows, columns, width = lanes.shape
    for group in range(spans * groups):
        some, first = lanes[group // groups, group % groups], group * width
        for channel in range(channels):
            for r in range(rows):
                for lane in range(min(width, len(images) - first)):
                    row, numbers = images[first + lane, channel, r], some[channel, r, :, lane]
                    for c in range(columns):
                        row[c] = numbers[c]


@entry
def _unpool(lanes: np.ndarray, winners: np.ndarray, full: np.ndarray) -> None:
    """Write the gradient of each window to the pixel that won, and zero to the others."""
    spans, groups, channels, rows, columns, width = lanes.shape
    nothing = np.float32(0)
    for group in range(spans * groups):
        some, won, first = (
            lanes[group // groups, group % groups],
            winners[group // groups, group % groups],
            group * width,
        )
        for channel in range(channels):
            for r in range(rows):
                for lane in range(min(width, len(full) - first)):
                    numbers, codes = some[channel, r, :, lane], won[channel, r, :, lane]
                    pair = full[first + lane, channel, 2 * r : 2 * r + 2]
                    pair[:] = nothing
                    for c in range(columns):  # one store, whoever won: a branch would be a guess
                        code = codes[c]
                        pair[code >> 1 & 1, 2 * c + (code & 1)] = numbers[c] if code < 4 else nothing
