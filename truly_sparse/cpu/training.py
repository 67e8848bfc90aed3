"""Steps of training a chain, one compiled call each: forward, cross-entropy, backward, Adam."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..arguments import shown
from ..errors import InvalidArgumentError
from .door import borrow_room, list_bases, readable, records_of, use_threads
from .memory import borrow, empty_batch_innermost
from .passes import run_step
from .program import GRAD, GRADIENTS, PARTIAL, STEPS, X_ROW, Program, X, Y, backward_program, forward_program
from .records import WEIGHTS
from .stage import Stage, Trained


class _Ready(NamedTuple):
    """All that a step needs beside its batch.

    Attributes:
        stages: the layers.
        inputs: shape of the batch, and whether it is batch innermost.
        programs: of the two passes.
        weights: what is updated.
        tensors: the same in one list.
        places: the number of threads, and of each tensor the address, size and kind.
        bases: where the parts of a pass begin (``program.py``).
        gradients: of each parameter that is there.
        outcome: what compiled code says of each span's loss (``loss.py``).
        arguments: what else it takes.
        memory: where it works, kept alive.
    """

    stages: Sequence[Stage]
    inputs: tuple[torch.Size, bool]
    programs: tuple[Program, Program]
    weights: Sequence[Trained | None]
    tensors: list[torch.Tensor]
    places: list[Any]
    bases: np.ndarray
    gradients: Sequence[torch.Tensor]
    outcome: np.ndarray
    arguments: tuple
    memory: tuple[torch.Tensor, ...]


class Trainer:
    """Trains a chain whose last stage is linear.

    Checking fifty tensors and listing where they are would take a tenth of a small network's step: what lies where it
    lay at the step before is taken as it is.
    """

    def __init__(self) -> None:
        self._ready: _Ready | None = None

    @property
    def gradients(self) -> Sequence[torch.Tensor]:
        """Those of the last step, of each of its weights that are there."""
        return self._ready.gradients if self._ready else []

    def step(
        self,
        x: torch.Tensor,
        labels: torch.Tensor,
        stages: Sequence[Stage],
        weights: Sequence[Trained | None],
        settings: tuple[float, float, float, float, float],
    ) -> tuple[float, int] | None:
        """Do one step, in place.

        Args:
            x: float32 on the CPU, ``[B, in]`` or ``[B, C, H, W]``, at least one sample.
            labels: the classes, int64 ``[B]`` on the CPU.
            stages: the layers, in order. Another list where it holds others.
            weights: values ``[nnz]`` and bias ``[out]`` of each stage in turn, with Adam's moments of that shape and
                the count of its steps; None for a bias that is not there. Likewise.
            settings: learning rate, β₁, β₂, ε, and by what weights are multiplied first (1 but for AdamW).

        Returns:
            The mean cross-entropy before the step, and how many samples were right. None, and nothing was updated,
            where the loss is not finite, a label is no class, or something in ``weights`` is not contiguous float32
            on the CPU.

        Raises:
            InvalidArgumentError: the same of ``x``, or shapes do not fit.
        """
        x, innermost = readable(x)
        batch, ready, inputs = x.shape[0], self._ready, (x.shape, innermost)
        if ready is not None and ready.stages is stages and ready.inputs == inputs:
            programs = ready.programs
        else:
            there = forward_program(stages, x, innermost, remember=True)
            programs = there, backward_program(stages, x, (innermost, True), need_input=False, trace=False)
        y_size = programs[0].y_size
        if len(y_size) != 1 or batch == 0 or labels.shape != (batch,) or labels.dtype is not torch.int64:
            raise InvalidArgumentError(
                f"labels={shown(labels)} for a result of shape {(batch, *y_size)}; "
                "give int64 [B] of at least one sample, and layers that return [B, classes]."
            )
        same = ready is not None and ready.programs is programs and ready.weights is weights
        if not same or ready.places != _places(ready.tensors):
            self._ready = ready = _prepared(x, stages, inputs, programs, weights)
        if ready is None:
            return None
        labels = labels.contiguous()
        ready.bases[X], ready.bases[X_ROW] = x.data_ptr(), x.stride(-1)
        run_step(*ready.arguments, settings, labels.data_ptr(), *y_size, ready.outcome)
        loss, right, outside = ready.outcome.sum(0).tolist()
        return (loss / batch, int(right)) if math.isfinite(loss) and not outside else None


def _places(tensors: list[torch.Tensor]) -> list[Any]:
    return [use_threads()] + [(t.data_ptr(), t.numel(), t.dtype, t.is_contiguous(), t.is_neg()) for t in tensors]


def _prepared(
    x: torch.Tensor,
    stages: Sequence[Stage],
    inputs: tuple[torch.Size, bool],
    programs: tuple[Program, Program],
    weights: Sequence[Trained | None],
) -> _Ready | None:
    """Return what a step needs; None if something cannot be updated where it is."""
    there, back = programs
    sizes, batch, threads = back.gradient_sizes, x.shape[0], use_threads()
    records = _records(weights, sizes)
    if records is None:
        return None
    zeros = torch.zeros(max(sizes), dtype=torch.float32, device="cpu")  # for a bias that is not there
    y, grad = (empty_batch_innermost((batch, *there.y_size)) for _ in range(2))
    numbers = sum(sizes)
    gradients, steps = (torch.empty(spans * numbers, dtype=torch.float32, device="cpu") for spans in (there.spans, 1))
    arena = borrow(there.pieces(threads) * there.bytes)
    bases = list_bases([zeros if each is None else each[0] for each in weights], arena, {X: x, Y: y, GRAD: grad})
    room = borrow_room(back, bases, threads)
    bases[PARTIAL] = bases[GRADIENTS] = gradients.data_ptr()  # those of all spans are added up in the first one's place
    bases[STEPS] = steps.data_ptr()
    bases = np.array(bases)
    passes = *records_of(there, bases, batch, threads), *records_of(back, bases, batch, threads)
    arguments = *passes, numbers, records, np.empty((len(records), 2))
    tensors = [tensor for each in weights if each is not None for tensor in each]
    return _Ready(
        stages=stages,
        inputs=inputs,
        programs=programs,
        weights=weights,
        tensors=tensors,
        places=_places(tensors),
        bases=bases,
        gradients=[g for g, each in zip(gradients[:numbers].split(sizes), weights, strict=True) if each is not None],
        outcome=np.empty((there.spans, 3)),
        arguments=arguments,
        memory=(zeros, y, grad, arena, room, steps),
    )


def _records(weights: Sequence[Trained | None], sizes: Sequence[int]) -> np.ndarray | None:
    """Return where each parameter and its moments are; None if one of them is of another kind or size."""
    records, start = [], 0
    for each, size in zip(weights, sizes, strict=True):
        if each is not None:
            for tensor, count in zip(each, (size, size, size, 1), strict=True):
                ours = tensor.dtype is torch.float32 and tensor.is_cpu and tensor.layout is torch.strided
                if not ours or tensor.numel() != count or not tensor.is_contiguous() or tensor.is_neg():
                    return None
                records.append(tensor.data_ptr())
            records += start, size
        start += size
    return np.array(records, np.int64).view(WEIGHTS)
