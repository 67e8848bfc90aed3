"""The tensors of each layer in a finished pass, copied from the memory that the pass used."""

from __future__ import annotations

import math
from typing import cast

import torch

from .memory import LANES
from .plan import ARENA, ROOM, Address, Form
from .program import Program
from .stage import Trace


def traced(
    backward: Program,
    x: torch.Tensor,
    arena: torch.Tensor,
    y: torch.Tensor | None,
    room: torch.Tensor,
    grad: torch.Tensor,
) -> list[Trace]:
    """Return each stage's tensors of a finished pass, copied from the memory that the pass used."""
    batch, traces, spans = len(x), [], backward.steps
    for layer in backward.layers:
        last = layer is backward.layers[-1]
        shape = (batch, *layer.image)
        result, g, winners = y, grad, None
        if not last:
            result = _copy(arena, layer.y_at, layer.y, shape, backward, spans[ARENA])
            g = _copy(room, layer.g_at, cast(Form, layer.g), shape, backward, spans[ROOM])
        if isinstance(layer.winners, tuple):
            pixels = math.prod(layer.image[1:])
            form = Form(layer.image, LANES, layer.image[0] * pixels * LANES, layer.image[2], pixels)
            winners = _copy(arena, layer.winners, form, shape, backward, spans[ARENA], torch.uint8)
        traces.append(Trace(x.reshape(batch, *layer.x.size), result, winners, g))
        x = cast(torch.Tensor, result)  # None only after the last layer
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
