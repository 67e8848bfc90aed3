"""The operator of sparse layers as ``torch.library`` knows it, and when it is used.

``truly_sparse::chain`` computes layers in a row from tensors and plain numbers, so it can stand in a graph:
``torch.compile``, ``torch.export``, FakeTensor and dispatch modes see it. Plain tensors in eager mode take the shorter
way of ``eager.py`` to the same kernels. Under the transforms of ``torch.func`` and in forward mode the layers are
computed by torch's own operations (``reference.py``), for which every transform is defined.

Under ``torch.autocast`` a layer computes in float32 and rounds its result to autocast's type.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.autograd import forward_ad

from . import reference
from .arguments import require
from .backend import kernels_for
from .cpu.index import LinearIndex
from .cpu.stage import Stage
from .eager import Recorder, run_eagerly
from .places import Places, Sizes, sizes_of, stages_of
from .seal import Seal

Parameters = Sequence[torch.Tensor | None]
# Devices whose operations torch.autocast changes; asked once, because some torch.compile cannot trace the question.
AUTOCAST = frozenset(kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind))


class Layer(Recorder, Protocol):
    """What these functions read of a layer.

    Attributes:
        index, relu, pool: as in :class:`Stage`.
        values, bias: its parameters.
        number: by which the operator finds a layer that records its gradient.
        seal: tells whether its values belong to its topology.
    """

    index: Any
    relu: bool
    pool: bool
    values: Any
    bias: Any
    number: int
    seal: Seal
    _parameters: Any

    @property
    def places(self) -> Places:
        """The positions of its weights."""

    @property
    def sizes(self) -> Sizes:
        """Its plain numbers."""


def stages_in(layers: Sequence[Layer]) -> list[Stage]:
    """Return what each layer computes, in the form that kernels take.

    Raises:
        TrainingError: a layer holds values of another topology.
    """
    for layer in layers:
        layer.seal.check(layer)
    return [Stage(layer.index, layer.relu, layer.pool) for layer in layers]


def parameters_of(layers: Sequence[Layer]) -> list[torch.nn.Parameter | None]:
    """Return values and bias of each layer in turn. Reads torch's dictionary, 8 times faster than attribute access."""
    found: list[torch.nn.Parameter | None] = []
    for layer in layers:
        own = layer._parameters
        plain = "values" in own and "bias" in own  # False where a parametrization replaces one of them
        found += (own["values"], own["bias"]) if plain else (layer.values, layer.bias)
    return found


def run(x: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
    """Return the result of sparse layers in a row, differentiable in ``x`` and their parameters.

    Args:
        x: ``[B, in]`` for a linear first layer, ``[B, C, H, W]`` for a convolution.
        layers: in order; they may record gradients for growth.

    Raises:
        InvalidArgumentError: a tensor that the kernels cannot read, or shapes that do not fit.
    """
    parameters = parameters_of(layers)
    if torch._C._is_any_autocast_enabled() and _is_autocast(x):
        return _autocast(x, layers, parameters)
    return _run(x, layers, parameters)


def _run(x: torch.Tensor, layers: Sequence[Layer], parameters: Parameters) -> torch.Tensor:
    if torch.compiler.is_compiling():
        return _operator(x, layers, parameters)
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return _by_torch(x, layers, parameters)
    if _is_watched() or not _has_memory(x):
        return _operator(x, layers, parameters)
    return run_eagerly(x, stages_in(layers), layers, parameters)


def _is_watched() -> bool:
    """Tell whether a dispatch mode or ``torch.jit.trace`` follows the calls of operators."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._get_tracing_state() is not None


def _has_memory(x: torch.Tensor) -> bool:
    """Tell whether a tensor is no subclass that computes in its own way, such as a FakeTensor."""
    return type(x) is torch.Tensor or type(x).__torch_dispatch__ is torch.Tensor.__torch_dispatch__


def _is_autocast(x: torch.Tensor) -> bool:
    kind = x.device.type
    usable = x.is_floating_point() and x.dtype is not torch.float64 and kind in AUTOCAST
    return usable and torch.is_autocast_enabled(kind)


class _Cast(torch.autograd.Function):
    """Casts a parameter to float32, and keeps it, so that the backward pass refuses one that was changed since."""

    generate_vmap_rule = True

    @staticmethod
    def forward(parameter: torch.Tensor) -> torch.Tensor:
        return parameter.float()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.to(ctx.saved_tensors[0].dtype)


def _as_float32(parameter: torch.Tensor) -> torch.Tensor:
    plain = parameter.dtype is torch.float32 or torch.compiler.is_compiling()
    return parameter.float() if plain else _Cast.apply(parameter)


def _autocast(x: torch.Tensor, layers: Sequence[Layer], parameters: Parameters) -> torch.Tensor:
    kind = x.device.type
    with torch.autocast(kind, enabled=False):
        y = _run(x.float(), layers, [None if tensor is None else _as_float32(tensor) for tensor in parameters])
    return y.to(torch.get_autocast_dtype(kind))


def _by_torch(x: torch.Tensor, layers: Sequence[Layer], parameters: Parameters) -> torch.Tensor:
    stages = stages_in(layers)
    with torch._C._DisableFuncTorch():  # these tensors are kept after the transform
        for index in [stage.index for stage in stages]:
            (index.coordinates if isinstance(index, LinearIndex) else index.places)(x.device)
    return reference.forward(x, stages, parameters)[0]


def _operator(x: torch.Tensor, layers: Sequence[Layer], parameters: Parameters) -> torch.Tensor:
    there = [tensor for tensor in parameters if tensor is not None]
    places = [tensor for layer in layers for tensor in layer.places]
    sizes = [number for layer in layers for number in layer.sizes]
    recorders = [layer.number if layer.record_gradient else 0 for layer in layers]
    return torch.ops.truly_sparse.chain(x.contiguous(), there, places, sizes, recorders)


_numbers = itertools.count(1)
_recorders: weakref.WeakValueDictionary[int, Recorder] = weakref.WeakValueDictionary()


def numbered(layer: Recorder) -> int:
    """Return a number by which operators find the layer, to hand it the gradients that it records."""
    number = next(_numbers)
    _recorders[number] = layer
    return number


library = torch.library.Library("truly_sparse", "DEF")
library.define("chain(Tensor x, Tensor[] parameters, Tensor[] places, int[] sizes, int[] recorders) -> Tensor")
library.define(
    "chain_backward(Tensor grad, Tensor x, Tensor[] parameters, Tensor[] places, int[] sizes, int[] recorders,"
    " bool need_x) -> (Tensor, Tensor)"
)


def _aligned(parameters: Sequence[torch.Tensor], layers: Sequence[Sizes]) -> list[torch.Tensor | None]:
    """Return values and bias of each layer in turn, with None for a missing bias."""
    count = sum(1 + layer.bias for layer in layers)
    require(len(parameters) == count, "parameters", list(parameters), f"give {count} tensors, values and biases")
    rest = iter(parameters)
    return [next(rest) if there else None for layer in layers for there in (True, layer.bias)]


def _chain(
    x: torch.Tensor,
    parameters: Sequence[torch.Tensor],
    places: Sequence[torch.Tensor],
    sizes: Sequence[int],
    recorders: Sequence[int],
) -> torch.Tensor:
    """Compute layers in a row. The result is contiguous, whatever ``x`` is, because a graph must know its strides.

    Args:
        x: ``[B, in]`` or ``[B, C, H, W]``.
        parameters: values and bias of each layer in turn, without missing biases.
        places: the positions of each layer, see :func:`places_of`.
        sizes: the fields of :class:`Sizes` of each layer.
        recorders: for each layer its number if it records its gradient, else 0.
    """
    layers = sizes_of(sizes)
    stages, weights = stages_of(places, layers), _aligned(parameters, layers)
    return kernels_for(x).forward(x.contiguous(), stages, weights)[0].contiguous()


def _chain_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    parameters: Sequence[torch.Tensor],
    places: Sequence[torch.Tensor],
    sizes: Sequence[int],
    recorders: Sequence[int],
    need_x: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the gradients of :func:`_chain`, and hand its batch to each layer that records.

    The forward pass runs again: what it stores for this one has a size that the graph would have to know.

    Returns:
        The gradient of ``x`` (empty if not needed), and those of values and bias of each layer in one row; also of
        missing biases.
    """
    layers, kernels, x = sizes_of(sizes), kernels_for(x), x.contiguous()
    stages, weights = stages_of(places, layers), _aligned(parameters, layers)
    _, passed = kernels.forward(x, stages, weights, remember=True)
    of = kernels.backward(grad.contiguous(), passed, stages, weights, need_x, any(recorders))
    for number, (at, gradient) in zip(recorders, of.traces, strict=any(recorders)):
        if (recorder := _recorders.get(number)) is not None:
            recorder.record(at.clone(), gradient.clone())  # the graph uses their memory again
    return of.x.contiguous() if need_x else x.new_empty(0), torch.cat([*of.parameters])


def _fake_chain(
    x: torch.Tensor,
    parameters: Sequence[torch.Tensor],
    places: Sequence[torch.Tensor],
    sizes: Sequence[int],
    recorders: Sequence[int],
) -> torch.Tensor:
    shape: Sequence[int] = x.shape
    for layer in sizes_of(sizes):
        shape = layer.result(shape)
    return x.new_empty(shape)


def _fake_chain_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    parameters: Sequence[torch.Tensor],
    places: Sequence[torch.Tensor],
    sizes: Sequence[int],
    recorders: Sequence[int],
    need_x: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape if need_x else 0), x.new_empty(sum(_lengths(parameters, sizes)))


def _lengths(parameters: Sequence[torch.Tensor], sizes: Sequence[int]) -> list[int]:
    """Return the sizes of the gradients of values and bias of each layer in turn."""
    layers = sizes_of(sizes)
    values: list[Any] = _aligned(parameters, layers)[::2]
    return [length for of, layer in zip(values, layers, strict=True) for length in (of.shape[0], layer.outputs)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, parameters, places, ctx.sizes, ctx.recorders = inputs
    ctx.count = len(parameters)
    ctx.save_for_backward(x, *parameters, *places)


def _gradients(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    x, *rest = ctx.saved_tensors
    parameters, places, layers = rest[: ctx.count], rest[ctx.count :], sizes_of(ctx.sizes)
    need_x, needed = ctx.needs_input_grad[:2]
    given = grad.contiguous(), x, parameters, places, ctx.sizes, ctx.recorders, need_x
    of_x, row = torch.ops.truly_sparse.chain_backward(*given)
    every = row.split(_lengths(parameters, ctx.sizes))
    there = [every[2 * i + j] for i, layer in enumerate(layers) for j in range(1 + layer.bias)]
    of_parameters = [gradient if need else None for gradient, need in zip(there, needed, strict=True)]
    return of_x if need_x else None, of_parameters, [None] * len(places), None, None


library.impl("chain", _chain, "CompositeExplicitAutograd")
library.impl("chain_backward", _chain_backward, "CompositeExplicitAutograd")
torch.library.register_fake("truly_sparse::chain", _fake_chain, lib=library)
torch.library.register_fake("truly_sparse::chain_backward", _fake_chain_backward, lib=library)
torch.library.register_autograd("truly_sparse::chain", _gradients, setup_context=_save, lib=library)
for kind in ("cpu", "cuda"):
    torch.library.register_autocast("truly_sparse::chain", kind, torch.float32, lib=library)
