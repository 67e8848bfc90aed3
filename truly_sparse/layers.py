"""Truly sparse layers: they hold the active weights and where these are, and no dense weight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from .arguments import check_memory, is_dense, require, shown
from .cpu.index import MOST, ConvIndex, LinearIndex
from .cpu.stage import Stage
from .errors import InvalidArgumentError, TrainingError
from .interface import Carry, SparsifiableLayer
from .ops import run
from .topology import check_places, check_rewiring, check_sparsity, check_values, sample_distinct

# Numbers in one block of gradient_rows: 16 MiB of float32, the bound on what gradient growth needs beyond a row.
GRADIENT_BLOCK = 2**22


class SparseLayer(SparsifiableLayer, nn.Module):
    """What SparseLinear and SparseConv2d share.

    Attributes:
        values: parameter, the active weights in the order of their flat indices, ``[nnz]``.
        bias: parameter ``[out]`` or None.
        index: which weights these are, in the order in which kernels need them.
        relu: whether ReLU is part of the layer's pass.
        pool: whether a 2×2 max-pooling is (convolutions).
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    index: LinearIndex | ConvIndex
    relu: bool = False
    pool: bool = False

    def __init__(self) -> None:
        super().__init__()
        self._record_gradient = False
        self._recorded: list[tuple[torch.Tensor, torch.Tensor]] = []

    def build_index(self, connections: torch.Tensor) -> LinearIndex | ConvIndex:
        """Return the index of sorted flat ``connections``, checked."""
        raise NotImplementedError

    def _start(self, connections: torch.Tensor | None, sparsity: float, bias: bool, kind: dict[str, Any]) -> None:
        """Draw the topology if none is given, and the values and bias as a dense torch layer would."""
        size, out = math.prod(self.dense_shape), self.dense_shape[0]
        check_sparsity(sparsity)
        nnz = round((1 - sparsity) * size) if connections is None else connections.numel()
        left = f"of the {size:,} weights {self.dense_shape} it leaves {nnz:,}"
        require(nnz < MOST, "sparsity", sparsity, f"{left}; use a higher one, or a smaller layer")
        # While an index is built: positions, their two orders, and pointers to each row and column.
        rows_and_columns = out + size // max(1, out)
        check_memory("the layer's shape", self.dense_shape, 64 * nnz + 32 * rows_and_columns, "cpu")
        if connections is None:
            connections = sample_distinct(size, nnz, torch.default_generator)
        self.index = self.build_index(connections)
        bound = 1 / math.sqrt(max(1, math.prod(self.dense_shape[1:])))
        self.values = nn.Parameter(torch.empty(self.index.nnz, **kind).uniform_(-bound, bound))
        drawn = nn.Parameter(torch.empty(out, **kind).uniform_(-bound, bound)) if bias else None
        self.register_parameter("bias", drawn)

    @property
    def weight_parameter(self) -> nn.Parameter:
        """See :class:`SparsifiableLayer`."""
        return self.values

    @property
    def index_bytes(self) -> int:
        """See :class:`SparsifiableLayer`."""
        return self.index.nbytes

    def active(self) -> torch.Tensor:
        """See :class:`SparsifiableLayer`."""
        return self.index.flat().to(self.values.device)

    def active_values(self) -> torch.Tensor:
        """See :class:`SparsifiableLayer`."""
        return self.values.detach().clone()

    @property
    def record_gradient(self) -> bool:
        """See :class:`SparsifiableLayer`."""
        return self._record_gradient

    @record_gradient.setter
    def record_gradient(self, value: bool) -> None:
        self._record_gradient, self._recorded = value, []

    def record(self, x: torch.Tensor, gradient: torch.Tensor) -> None:
        """Keep a batch's input and the gradient of the result before ReLU and pooling."""
        self._recorded.append((x, gradient))

    def set_active_values(self, values: torch.Tensor) -> None:
        """See :class:`SparsifiableLayer`."""
        check_values(values, self.index.nnz)
        with torch.no_grad():
            self.values.copy_(values)

    def fade_gradient(self, factor: float) -> None:
        """See :class:`SparsifiableLayer`. What is kept are batches, never a dense gradient."""
        require(math.isfinite(factor), "factor", factor, "use a finite number")
        self._recorded = [(x, grad * factor) for x, grad in self._recorded]

    def _batches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        if not self._recorded:
            raise TrainingError("no gradient was recorded; set record_gradient = True before forward and backward")
        return self._recorded

    def rewire(self, kept: torch.Tensor, grown: torch.Tensor, values: torch.Tensor) -> Carry:
        """See :class:`SparsifiableLayer`.

        Raises:
            InvalidArgumentError: the number of connections would change; or see :func:`check_rewiring`.
        """
        check_rewiring(self, kept, grown, values)
        if len(kept) + len(grown) != self.index.nnz:
            raise InvalidArgumentError(
                f"kept={shown(kept)} and grown={shown(grown)} are {len(kept) + len(grown)} connections; "
                f"this layer holds exactly {self.index.nnz}, give as many"
            )
        # Both lists are sorted, so that two boolean masks say where the kept connections stood and will stand.
        was_kept = torch.zeros(self.index.nnz, dtype=torch.bool, device=kept.device)
        was_kept[torch.searchsorted(self.active(), kept)] = True
        places = torch.searchsorted(kept, grown) + torch.arange(len(grown), device=kept.device)
        after = kept.new_empty(len(kept) + len(grown))
        is_kept = torch.ones(len(after), dtype=torch.bool, device=kept.device)
        is_kept[places] = False
        after[is_kept], after[places] = kept, grown
        self.index = self.build_index(after)

        def carry(state: torch.Tensor, fresh: float) -> torch.Tensor:
            moved = torch.full_like(state, fresh)
            moved[is_kept] = state[was_kept]
            return moved

        with torch.no_grad():
            moved = carry(self.values.detach(), 0.0)
            moved[places] = values
            self.values.copy_(moved)
        return carry

    def get_extra_state(self) -> torch.Tensor:
        """Return the topology, so that ``state_dict`` holds it: flat indices, int64 ``[nnz]``."""
        return self.index.flat()

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Take over a saved topology.

        Raises:
            InvalidArgumentError: it is not a valid topology of this layer.
        """
        index = self.build_index(state)
        if index.nnz != len(self.values):
            raise InvalidArgumentError(
                f"state={shown(state)}: the saved topology has {index.nnz} connections, this layer {len(self.values)}; "
                "build the layer with the same number of connections before loading"
            )
        self.index = index


def stages_of(layers: Sequence[SparseLayer]) -> list[Stage]:
    """Return the layers as kernels see them."""
    return [Stage(layer.index, layer.relu, layer.pool) for layer in layers]


def parameters_of(layers: Sequence[SparseLayer]) -> list[nn.Parameter | None]:
    """Return values and bias of each layer, from where torch keeps them: a layer takes eight times as long to say."""
    found = []
    for layer in layers:
        own = layer._parameters
        plain = "values" in own and "bias" in own  # not where one was replaced by something computed
        found += (own["values"], own["bias"]) if plain else (layer.values, layer.bias)
    return found


def hooks_of(module: nn.Module) -> tuple[dict, ...]:
    """Return the dictionaries of those who watch this module being called."""
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks


class SparseLinear(SparseLayer):
    """``nn.Linear`` that holds only its active weights.

    Args:
        in_features: size of each input.
        out_features: size of each output.
        bias: whether to add a learned bias.
        connections: the active weights, as sorted flat indices into the dense ``(out, in)`` weight, int64 ``[nnz]``;
            None draws them at random.
        sparsity: share of weights that do not exist, in [0, 1); looked at if ``connections`` is None.
        relu: apply ReLU to the result in the same pass.
        device: where values and bias live.
        dtype: their type. float32 on a CPU takes the fast path.

    Raises:
        InvalidArgumentError: connections that are not sorted, unique, int64 and in range; a bad sparsity.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        connections: torch.Tensor | None = None,
        sparsity: float = 0.95,
        relu: bool = False,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.relu = in_features, out_features, relu
        self._start(connections, sparsity, bias, {"device": device, "dtype": dtype})

    @property
    def dense_shape(self) -> tuple[int, ...]:
        """See :class:`SparsifiableLayer`."""
        return self.out_features, self.in_features

    def build_index(self, connections: torch.Tensor) -> LinearIndex:
        """See :class:`SparseLayer`."""
        return LinearIndex.build(connections, self.dense_shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[..., in]`` to ``[..., out]``."""
        if not is_dense(x) or x.dim() == 0:
            raise InvalidArgumentError(f"x={shown(x)}; give a dense tensor [..., {self.in_features}]")
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        y = run(rows, stages_of((self,)), (self,), parameters_of((self,)))
        return y if x.dim() == 2 else y.reshape(*x.shape[:-1], self.out_features)

    def gradient_rows(self) -> Iterator[torch.Tensor]:
        """See :class:`SparsifiableLayer`. One block is at most 16 MiB of float32, or one row."""
        batches = self._batches()
        step = max(1, GRADIENT_BLOCK // max(1, self.in_features))
        for first in range(0, self.out_features, step):
            yield sum(grad[:, first : first + step].T @ x for x, grad in batches)

    def gradient_at(self, connections: torch.Tensor) -> torch.Tensor:
        """See :class:`SparsifiableLayer`. Memory beyond the result is at most three times 16 MiB of float32."""
        batches = self._batches()
        check_places("connections", connections, self.dense_shape)
        step = max(1, GRADIENT_BLOCK // max(1, *(len(x) for x, _ in batches)))
        parts = []
        for part in connections.split(step):
            rows, columns = part // self.in_features, part % self.in_features
            parts.append(sum((grad.t()[rows] * x.t()[columns]).sum(1) for x, grad in batches))
        return torch.cat(parts)

    def to_dense(self) -> torch.Tensor:
        """Return the dense weight ``[out, in]``, to look at; no computation uses it."""
        return _scatter(self)

    def to_dense_layer(self) -> nn.Module:
        """See :class:`SparsifiableLayer`; followed by ``nn.ReLU`` if that is part of this layer."""
        dense = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        _give_tensors(dense, self)
        return nn.Sequential(dense, nn.ReLU()) if self.relu else dense

    def extra_repr(self) -> str:
        """Return sizes and the number of active weights."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"relu={self.relu}, active={self.index.nnz}/{math.prod(self.dense_shape)}"
        )


class SparseConv2d(SparseLayer):
    """``nn.Conv2d`` that holds only its active weights.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: height and width, or one number for both.
        stride: as in ``nn.Conv2d``.
        padding: a number or a pair; zeros are padded.
        dilation: as in ``nn.Conv2d``.
        groups: as in ``nn.Conv2d``.
        bias: whether to add a learned bias.
        connections: the active weights, as sorted flat indices into the dense
            ``(out, in // groups, kernel_h, kernel_w)`` weight, int64 ``[nnz]``; None draws them at random.
        sparsity: share of weights that do not exist, in [0, 1); looked at if ``connections`` is None.
        relu: apply ReLU to the result in the same pass.
        pool: reduce each 2×2 window of the result to its largest in the same pass (odd last rows are dropped).
        device: where values and bias live.
        dtype: their type. float32 on a CPU takes the fast path.

    Raises:
        InvalidArgumentError: connections that are not sorted, unique, int64 and in range; a bad sparsity or geometry.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        connections: torch.Tensor | None = None,
        sparsity: float = 0.95,
        relu: bool = False,
        pool: bool = False,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        if groups < 1 or in_channels % groups:
            raise InvalidArgumentError(f"groups={groups!r}; use a divisor of the {in_channels} input channels")
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.padding, self.dilation = _pair(padding), _pair(dilation)
        self.relu, self.pool = relu, pool
        self._start(connections, sparsity, bias, {"device": device, "dtype": dtype})

    @property
    def dense_shape(self) -> tuple[int, ...]:
        """See :class:`SparsifiableLayer`."""
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    def build_index(self, connections: torch.Tensor) -> ConvIndex:
        """See :class:`SparseLayer`."""
        return ConvIndex.build(connections, self.dense_shape, self.stride, self.padding, self.dilation, self.groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, C_in, H, W]`` to ``[B, C_out, H', W']``; without batch dimension, likewise."""
        if not is_dense(x) or x.dim() not in (3, 4):
            raise InvalidArgumentError(f"x={shown(x)}; give a dense tensor [B, {self.in_channels}, H, W]")
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        return run(x, stages_of((self,)), (self,), parameters_of((self,)))

    def gradient_rows(self) -> Iterator[torch.Tensor]:
        """See :class:`SparsifiableLayer`. One block is at most 16 MiB of float32, or one output channel."""
        batches = self._batches()
        out_per_group, (_, channels, *kernel) = self.out_channels // self.groups, self.dense_shape
        step = max(1, GRADIENT_BLOCK // max(1, math.prod(self.dense_shape[1:])))
        for group in range(self.groups):
            inputs = slice(group * channels, (group + 1) * channels)
            for first in range(group * out_per_group, (group + 1) * out_per_group, step):
                outputs = slice(first, min(first + step, (group + 1) * out_per_group))
                shape = (outputs.stop - outputs.start, channels, *kernel)
                geometry = (self.stride, self.padding, self.dilation)
                yield sum(
                    torch.nn.grad.conv2d_weight(x[:, inputs], shape, grad[:, outputs], *geometry).flatten(1)
                    for x, grad in batches
                )

    def gradient_at(self, connections: torch.Tensor) -> torch.Tensor:
        """See :class:`SparsifiableLayer`."""
        check_places("connections", connections, self.dense_shape)
        wanted = torch.zeros(len(connections), dtype=self.values.dtype, device=self.values.device)
        start = 0
        for block in self.gradient_rows():
            here = (connections >= start) & (connections < start + block.numel())
            wanted[here] = block.reshape(-1)[connections[here] - start]
            start += block.numel()
        return wanted

    def to_dense(self) -> torch.Tensor:
        """Return the dense weight ``[out, in // groups, kernel_h, kernel_w]``, to look at; no computation uses it."""
        return _scatter(self)

    def to_dense_layer(self) -> nn.Module:
        """See :class:`SparsifiableLayer`; followed by ReLU and max-pool modules if these are part of this layer."""
        dense = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias=self.bias is not None,
            device="meta",
        )
        _give_tensors(dense, self)
        parts = [dense, *([nn.ReLU()] if self.relu else []), *([nn.MaxPool2d(2)] if self.pool else [])]
        return dense if len(parts) == 1 else nn.Sequential(*parts)

    def extra_repr(self) -> str:
        """Return sizes, geometry and the number of active weights."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}, "
            f"relu={self.relu}, pool={self.pool}, active={self.index.nnz}/{math.prod(self.dense_shape)}"
        )


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _scatter(layer: SparseLayer) -> torch.Tensor:
    dense = layer.values.detach().new_zeros(math.prod(layer.dense_shape))
    dense[layer.active()] = layer.values.detach()
    return dense.view(layer.dense_shape)


def _give_tensors(dense: nn.Linear | nn.Conv2d, layer: SparseLayer) -> None:
    dense.weight = nn.Parameter(_scatter(layer), layer.values.requires_grad)
    dense.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone(), layer.bias.requires_grad)
