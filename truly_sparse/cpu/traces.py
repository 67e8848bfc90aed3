"""The tensors of each layer in a finished pass, copied from the memory that the pass used."""

from __future__ import annotations

import math
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
) -> list[Trace]:
    """Return each stage's input and gradient, copied from the memory of a finished pass, also where it is reused."""
    batch, traces, spans = len(x), [], backward.steps
    for layer, stage in zip(backward.layers, stages, strict=True):
        last = layer is backward.layers[-1]
        shape = (batch, *layer.image)
        kept = layer.y_at[0] == ARENA
        result = _copy(arena, layer.y_at, layer.y, shape, backward, spans[ARENA]) if kept else y
        g = grad if last else _copy(room, layer.g_at, cast(Form, layer.g), shape, backward, spans[ROOM])
        if isinstance(layer.winners, tuple):
            pixels = math.prod(layer.image[1:])
            form = Form(layer.image, LANES, layer.image[0] * pixels * LANES, layer.image[2], pixels)
            g = _unpooled(g, _copy(arena, layer.winners, form, shape, backward, spans[ARENA], torch.uint8), layer)
        elif stage.relu:
            g = g.masked_fill(cast(torch.Tensor, result) <= 0, 0)
        traces.append(Trace(x.reshape(batch, *layer.x.size), g))
        x = cast(torch.Tensor, result)  # None only after the last layer
    return traces


def _unpooled(g: torch.Tensor, winners: torch.Tensor, layer: Layer) -> torch.Tensor:
    """Return the gradient before pooling, from that after it and the winner of each window (4: none of the pixels)."""
    size = layer.plan.out_h, layer.plan.out_w
    odd = size[0] % 2 or size[1] % 2  # pooling drops an odd last row or column
    full = (torch.zeros if odd else torch.empty)((*g.shape[:2], *size), dtype=torch.float32, device=CPU)
    _unpool(g.contiguous().numpy(), winners.contiguous().numpy(), full.numpy())
    return full


@entry
def _unpool(g: np.ndarray, winners: np.ndarray, full: np.ndarray) -> None:
    """Write the gradient of each window to the pixel that won, and zero to the others."""
    images, channels, rows, columns = g.shape
    nothing = np.float32(0)
    for image in range(images):
        for channel in range(channels):
            for r in range(rows):
                numbers, codes = g[image, channel, r], winners[image, channel, r]
                above, below = full[image, channel, 2 * r], full[image, channel, 2 * r + 1]
                for c in range(columns):
                    above[2 * c] = numbers[c] if codes[c] == 0 else nothing
                    above[2 * c + 1] = numbers[c] if codes[c] == 1 else nothing
                    below[2 * c] = numbers[c] if codes[c] == 2 else nothing
                    below[2 * c + 1] = numbers[c] if codes[c] == 3 else nothing


def _copy(
    memory: torch.Tensor,
    at: Address,
    form: Form,
    shape: tuple[int, ...],
    program: Program,
    step: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return the activations at one place of each span, ``step`` bytes apart, as one tensor of the given shape."""
    numbers, strides = memory.view(dtype), cast(dict[str, int], form.fields("of", shape[1:]))
    row, size = strides["of_row"], numbers.element_size()
    image = (strides["of_plane"] * row, strides["of_width"] * row, row) if len(shape) == 4 else (row,)
    lanes_last = numbers.as_strided(
        (program.spans, program.span // LANES, *shape[1:], LANES),
        (step // size, strides["of_group"], *image, 1),
        at[1] // size + form.start,
    )
    return lanes_last.movedim(-1, 2).reshape(program.spans * program.span, *shape[1:])[: shape[0]]
