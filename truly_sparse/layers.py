"""Truly sparse layers: they hold the active weights and their positions, and no dense weight."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce
from typing import Any

import torch
from torch import nn
from torch.nn.grad import conv2d_weight
from typing_extensions import override

from .arguments import check_count, is_dense, pair, require, shown
from .backend import kernels_for
from .cpu.index import ConvIndex, LinearIndex
from .cpu.stage import Stage
from .eager import values_gradient
from .errors import InvalidArgumentError
from .ops import run
from .places import Sizes
from .positions import check_connections, check_places
from .sparse_layer import SparseLayer
from .structure import check_structure

GRADIENT_BLOCK = 2**19  # numbers in one block of gradient_rows: 2 MiB of float32


class SparseLinear(SparseLayer):
    """``nn.Linear`` that holds only its active weights.

    Args:
        in_features: size of each input.
        out_features: size of each output.
        bias: whether to add a learned bias.
        connections: the active weights, as sorted flat indices into the dense ``(out, in)`` weight, int64 ``[nnz]``;
            None draws them at random.
        sparsity: share of the weights that do not exist, in [0, 1); used if ``connections`` is None.
        structure: the weights exist in whole blocks of so many outputs × inputs, which must divide the layer.
        relu: whether to apply ReLU to the result in the same pass.
        device: device of values and bias.
        dtype: their dtype. float32 on a CPU uses the compiled kernels.

    Raises:
        InvalidArgumentError: connections that are not sorted, unique, int64 and in range; a sparsity outside [0, 1).
    """

    index: LinearIndex

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        connections: torch.Tensor | None = None,
        sparsity: float = 0.95,
        structure: tuple[int, int] = (1, 1),
        relu: bool = False,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = check_count("in_features", in_features, least=0)
        self.out_features = check_count("out_features", out_features, least=0)
        self.relu, self.structure = bool(relu), check_structure(structure, self.dense_shape)
        self._start(connections, sparsity, bias, device, dtype)

    @property
    @override
    def dense_shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    @property
    @override
    def sizes(self) -> Sizes:
        own = {"bias": int(self.bias is not None), "relu": int(self.relu)}
        return Sizes(*self.dense_shape, tall=self.structure[0], wide=self.structure[1], **own)

    @override
    def build_index(self, connections: torch.Tensor) -> LinearIndex:
        return LinearIndex.build(connections, self.dense_shape, self.structure)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[..., in]`` to ``[..., out]``.

        The result is contiguous; only for ``[B, in]`` in the engine's batch-innermost format it has that format too.
        """
        if not is_dense(x) or x.dim() == 0:
            raise InvalidArgumentError(f"x={shown(x)}; give a dense tensor [..., {self.in_features}]")
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1]).contiguous()
        y = run(rows, (self,))
        return y if x.dim() == 2 else y.reshape(*x.shape[:-1], self.out_features)

    @override
    def gradient_rows(self) -> Iterator[torch.Tensor]:
        batches = self._batches()
        step = max(1, GRADIENT_BLOCK // max(1, self.in_features))
        for first in range(0, self.out_features, step):
            yield reduce(torch.add, [grad[:, first : first + step].T @ x for x, grad in batches])

    @override
    def gradient_at(self, connections: torch.Tensor) -> torch.Tensor:
        batches = self._batches()
        check_places("connections", connections, self.dense_shape)
        # The gradient of a layer that has these connections, whatever its weights are.
        places, inverse = connections, None
        if (connections[1:] <= connections[:-1]).any():
            places, inverse = connections.unique(return_inverse=True)
        found, step = self.values.detach().new_empty(len(places)), GRADIENT_BLOCK
        for part, result in zip(places.split(step), found.split(step), strict=True):
            stages = [Stage(LinearIndex.build(part, self.dense_shape, by_input=False))]
            result.copy_(reduce(torch.add, [values_gradient(x, grad, stages) for x, grad in batches]))
        return found if inverse is None else found[inverse]

    @override
    def gradient_above(self, bound: float, active: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        require(0 < bound < math.inf, "bound", bound, "use a finite number above 0")
        outside = check_connections("active", active, self.dense_shape)
        most = min(check_count("most", most, least=0), math.prod(self.dense_shape))
        return kernels_for(self.values).gradient_above(self._batches(), bound, outside, most)

    @override
    def to_dense_layer(self) -> nn.Module:
        dense = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        return self._with_activation(dense)

    def extra_repr(self) -> str:
        """Return sizes and the number of active weights."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"relu={self.relu}, {self._description()}"
        )


class SparseConv2d(SparseLayer):
    """``nn.Conv2d`` that holds only its active weights.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: height and width, or one number for both.
        stride: as in ``nn.Conv2d``.
        padding: a number or a pair of numbers; the padding is zeros.
        dilation: as in ``nn.Conv2d``.
        groups: as in ``nn.Conv2d``.
        bias: whether to add a learned bias.
        connections: the active weights, as sorted flat indices into the dense
            ``(out, in // groups, kernel_h, kernel_w)`` weight, int64 ``[nnz]``; None draws them at random.
        sparsity: share of the weights that do not exist, in [0, 1); used if ``connections`` is None.
        structure: the weights exist in whole blocks of so many output × input channels, per position in the kernel.
        relu: whether to apply ReLU to the result in the same pass.
        pool: whether to apply 2×2 max-pooling in the same pass (an odd last row or column is dropped).
        device: device of values and bias.
        dtype: their dtype. float32 on a CPU uses the compiled kernels.

    Raises:
        InvalidArgumentError: connections that are not sorted, unique, int64 and in range; a sparsity or a geometry
            outside its range.
    """

    index: ConvIndex

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
        structure: tuple[int, int] = (1, 1),
        relu: bool = False,
        pool: bool = False,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.groups = check_count("groups", groups, least=1)
        self.in_channels = check_count("in_channels", in_channels, least=0)
        self.out_channels = check_count("out_channels", out_channels, least=0)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            require(channels % groups == 0, "groups", groups, f"use a divisor of {name}={channels}")
        self.kernel_size, self.stride = pair("kernel_size", kernel_size, 1), pair("stride", stride, 1)
        self.padding, self.dilation = pair("padding", padding, 0), pair("dilation", dilation, 1)
        self.relu, self.pool = bool(relu), bool(pool)
        self.structure = check_structure(structure, self.dense_shape, groups)
        self._start(connections, sparsity, bias, device, dtype)

    @property
    @override
    def dense_shape(self) -> tuple[int, ...]:
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    @property
    @override
    def sizes(self) -> Sizes:
        geometry = (*self.stride, *self.padding, *self.dilation, self.groups, *self.structure)
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        return Sizes(*shape, *geometry, int(self.bias is not None), int(self.relu), int(self.pool))

    @override
    def build_index(self, connections: torch.Tensor) -> ConvIndex:
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        geometry = self.stride, self.padding, self.dilation, self.groups
        return ConvIndex.build(connections, shape, *geometry, self.structure)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, C_in, H, W]`` to ``[B, C_out, H', W']``, or the same without the batch dimension.

        The result is contiguous, also for ``channels_last``; only for the engine's batch-innermost format it has that.
        """
        if not is_dense(x) or x.dim() not in (3, 4):
            raise InvalidArgumentError(f"x={shown(x)}; give a dense tensor [B, {self.in_channels}, H, W]")
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        return run(x, (self,))

    @override
    def gradient_rows(self) -> Iterator[torch.Tensor]:
        batches = self._batches()
        out_per_group, channels = self.out_channels // self.groups, self.in_channels // self.groups
        step = max(1, GRADIENT_BLOCK // max(1, math.prod(self.dense_shape[1:])))
        at_once = max(1, step // max(1, out_per_group))  # groups in one block
        for group in range(0, self.groups, at_once):
            end = min(group + at_once, self.groups)
            inputs = slice(group * channels, end * channels)
            geometry: Any = (self.stride, self.padding, self.dilation, end - group)
            for first in range(group * out_per_group, end * out_per_group, step):
                outputs = slice(first, min(first + step, end * out_per_group))
                shape = (outputs.stop - outputs.start, channels, *self.kernel_size)
                of_batches = [
                    conv2d_weight(x[:, inputs], shape, grad[:, outputs], *geometry).flatten(1) for x, grad in batches
                ]
                yield reduce(torch.add, of_batches)

    @override
    def gradient_at(self, connections: torch.Tensor) -> torch.Tensor:
        check_places("connections", connections, self.dense_shape)
        found, start = torch.zeros(len(connections), dtype=self.values.dtype, device=self.values.device), 0
        for block in self.gradient_rows():
            here = (connections >= start) & (connections < start + block.numel())
            found[here] = block.reshape(-1)[connections[here] - start]
            start += block.numel()
        return found

    @override
    def to_dense_layer(self) -> nn.Module:
        sizes, geometry = (self.in_channels, self.out_channels), (self.kernel_size, self.stride, self.padding)
        more: Any = (self.dilation, self.groups, self.bias is not None, "zeros", "meta")
        return self._with_activation(nn.Conv2d(*sizes, *geometry, *more))

    def extra_repr(self) -> str:
        """Return sizes, geometry and the number of active weights."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}, "
            f"relu={self.relu}, pool={self.pool}, {self._description()}"
        )
