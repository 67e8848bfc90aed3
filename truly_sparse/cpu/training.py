"""Steps of training a chain, one compiled call each: forward, cross-entropy, backward, Adam."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from ..arguments import shown
from ..errors import InvalidArgumentError
from .entry import has_memory, our_kind, readable
from .memory import CPU, borrow, empty_batch_innermost
from .passes import run_step, run_step_spans, update
from .plan import ARENA, GRAD, GRADIENTS, PARTIAL, STEPS, X_ROW, X, Y, address
from .program import Program, backward_program, forward_program
from .records import Step, Weights
from .stage import Stage, Trace, Trained
from .templates import are_alike
from .threads import in_turn, use_threads
from .traces import traced
from .workspace import fill_in, take

FORWARD, BACKWARD, LABELS = map(Step._fields.index, ("forward", "backward", "labels"))
_run_step = in_turn(run_step)


class _Ready(NamedTuple):
    """All that a step needs in addition to its batch.

    Attributes:
        stages: the layers.
        inputs: shape of the batch, and whether it is batch innermost.
        programs: the programs of the two passes.
        weights: the tensors that are updated.
        tensors: the same in one list.
        places: the number of threads; address, size and kind of each tensor.
        frames: the frames of the two passes.
        passed: what traces are copied from: activations, logits, the backward pass's room, the gradient of the logits.
        gradients: of each parameter.
        settings: learning rate, β₁, β₂, ε, and AdamW's factor; float64.
        step: the record of the step.
        memory: tensors and arrays whose addresses the records hold.
    """

    stages: Sequence[Stage]
    inputs: tuple[torch.Size, bool]
    programs: tuple[Program, Program]
    weights: Sequence[Trained | None]
    tensors: list[torch.Tensor]
    places: list[Any]
    frames: tuple[np.ndarray, np.ndarray]
    passed: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    gradients: Sequence[torch.Tensor]
    settings: np.ndarray
    step: np.ndarray
    memory: tuple[Any, ...]


class Trainer:
    """Trains a chain whose last stage is linear.

    Checking fifty tensors and listing their addresses would take a tenth of a small network's step. Tensors whose
    address, size and kind are the same as in the previous step are not checked again.

    Args:
        trace: whether a step keeps what :meth:`traces` needs.
    """

    def __init__(self, trace: bool = False) -> None:
        self._trace = trace
        self._ready: _Ready | None = None
        self._one_at_a_time = threading.Lock()  # the addresses of a step's batch are written into its records

    @property
    def gradients(self) -> Sequence[torch.Tensor]:
        """The gradients of the last step, one per parameter."""
        return self._ready.gradients if self._ready else []

    def traces(self, x: torch.Tensor, wanted: Sequence[int]) -> list[Trace]:
        """Return inputs of stages and the gradients of their results, copied from the memory of the last step.

        Args:
            x: the batch of that step.
            wanted: numbers of the stages.
        """
        ready = cast(_Ready, self._ready)
        arena, logits, room, gradient = ready.passed
        back, stages = ready.programs[1], ready.stages
        return traced(back, stages, readable(x)[0], arena, logits, room, gradient.clone(), wanted)

    def step(
        self,
        x: torch.Tensor,
        labels: torch.Tensor,
        stages: Sequence[Stage],
        weights: Sequence[Trained | None],
        settings: tuple[float, float, float, float, float],
    ) -> tuple[float, int] | None:
        """Take one step, in place.

        Args:
            x: float32 on the CPU, ``[B, in]`` or ``[B, C, H, W]``, at least one sample.
            labels: the classes, int64 ``[B]`` on the CPU.
            stages: the layers, in order. Pass the same list object as long as they are the same layers.
            weights: values ``[nnz]`` and bias ``[out]`` of each stage in turn, each with Adam's moments of that shape
                and its step count; None for a missing bias. Pass the same list object as long as they are the same
                tensors.
            settings: learning rate, β₁, β₂, ε, and AdamW's factor on the weights (1 for Adam).

        Returns:
            The mean cross-entropy before the step, and the number of correct samples. None, without any update, if the
            loss is not finite, a label is no class, or a tensor in ``weights`` is not contiguous float32 on the CPU.

        Raises:
            InvalidArgumentError: ``x`` is not float32 on the CPU, or shapes do not fit.
        """
        with self._one_at_a_time:
            return self._step(x, labels, stages, weights, settings)

    def _step(
        self,
        x: torch.Tensor,
        labels: torch.Tensor,
        stages: Sequence[Stage],
        weights: Sequence[Trained | None],
        settings: tuple[float, float, float, float, float],
    ) -> tuple[float, int] | None:
        x, innermost = readable(x)
        batch, ready, inputs = x.shape[0], self._ready, (x.shape, innermost)
        if ready is not None and ready.stages is stages and ready.inputs == inputs:
            programs = ready.programs
        else:
            # The logits stay in this function, so that they are batch innermost for any x.
            there = forward_program(stages, x, (innermost, True), remember=True)
            programs = there, backward_program(stages, x, (innermost, True, True), need_input=False, trace=self._trace)
        result = programs[0].result
        if len(result) != 2 or batch == 0 or labels.shape != (batch,) or labels.dtype is not torch.int64:
            raise InvalidArgumentError(
                f"labels={shown(labels)} for a result of shape {result}; "
                "give int64 [B] of at least one sample, and layers that return [B, classes]."
            )
        if ready is not None and ready.programs is not programs and all(map(are_alike, ready.programs, programs)):
            ready.step[[FORWARD, BACKWARD]] = [program.address for program in programs]
            self._ready = ready = ready._replace(stages=stages, inputs=inputs, programs=programs)
        same = ready is not None and ready.programs is programs and ready.weights is weights
        if ready is None or not same or ready.places != _places(ready.tensors):
            self._ready = ready = _prepared(stages, inputs, programs, weights)
        if ready is None:
            return None
        labels = our_kind("labels", labels, torch.int64).contiguous()
        for frame in ready.frames:
            frame[X], frame[X_ROW] = x.data_ptr(), x.stride(-1)
        ready.settings[:] = settings
        ready.step[LABELS] = labels.data_ptr()
        loss, right, outside = _run_step(address(ready.step), ready.places[0])
        return (loss / batch, int(right)) if math.isfinite(loss) and not outside else None


def _places(tensors: list[torch.Tensor]) -> list[Any]:
    return [use_threads()] + [(t.data_ptr(), t.numel(), t.dtype, t.is_contiguous(), t.is_neg()) for t in tensors]


def _prepared(
    stages: Sequence[Stage],
    inputs: tuple[torch.Size, bool],
    programs: tuple[Program, Program],
    weights: Sequence[Trained | None],
) -> _Ready | None:
    """Return all that a step needs; None if a tensor cannot be updated in place."""
    there, back = programs
    sizes, threads = back.gradient_sizes, use_threads()
    records = _records(weights, sizes)
    if records is None:
        return None
    zeros = torch.zeros(max(sizes), dtype=torch.float32, device=CPU)  # for missing biases
    y, grad = (empty_batch_innermost(there.result) for _ in range(2))
    numbers = sum(sizes)
    gradients, steps = (torch.empty(spans * numbers, dtype=torch.float32, device=CPU) for spans in (there.spans, 1))
    arena = borrow(there.pieces(threads) * there.bytes)
    works = take(there, threads), take(back, threads)  # for this step alone
    frames = works[0].frame, works[1].frame
    parameters = [(zeros if each is None else each[0]).data_ptr() for each in weights]
    for frame in frames:
        frame[ARENA], frame[STEPS] = arena.data_ptr(), steps.data_ptr()
        # The gradients of all spans are summed in place of the first.
        frame[PARTIAL] = frame[GRADIENTS] = gradients.data_ptr()
        fill_in(frame, ((Y, y), (GRAD, grad)), parameters)
    settings, outcome, factors = np.empty(5), np.empty((there.spans, 3)), np.empty((len(records), 2))
    passes = there.address, address(frames[0]), back.address, address(frames[1])
    updated = address(settings), address(records), len(records), address(factors)
    loops = run_step_spans.address if there.spans > 1 else 0, update.address
    step = Step(*passes, 0, there.result[1], address(outcome), *updated, *loops)
    tensors = [tensor for each in weights if each is not None for tensor in each]
    of_others = [tensor.untyped_storage() for tensor in tensors]  # another thread may replace it while a step runs
    return _Ready(
        stages=stages,
        inputs=inputs,
        programs=programs,
        weights=weights,
        tensors=tensors,
        places=_places(tensors),
        frames=frames,
        passed=(arena, y, works[1].memory, grad),
        gradients=[g for g, each in zip(gradients[:numbers].split(sizes), weights, strict=True) if each is not None],
        settings=settings,
        step=np.array(step, np.int64),
        memory=(zeros, y, grad, arena, works, gradients, steps, records, outcome, factors, of_others),
    )


def _records(weights: Sequence[Trained | None], sizes: Sequence[int]) -> np.ndarray | None:
    """Return the addresses of each parameter and its moments; None if one has another kind or size."""
    records, start = [], 0
    for each, size in zip(weights, sizes, strict=True):
        if each is not None:
            for tensor, count in zip(each, (size, size, size, 1), strict=True):
                ours = tensor.dtype is torch.float32 and tensor.is_cpu and tensor.layout is torch.strided
                ours = ours and has_memory(tensor)
                if not ours or tensor.numel() != count or not tensor.is_contiguous() or tensor.is_neg():
                    return None
                records.append(tensor.data_ptr())
            records += start, size
        start += size
    return np.array(records, np.int64).reshape(-1, len(Weights._fields))
