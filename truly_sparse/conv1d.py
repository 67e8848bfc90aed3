"""The truly sparse one-dimensional convolution: a two-dimensional one over images of height 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from typing_extensions import override

from .arguments import check_count, is_dense, shown
from .errors import InvalidArgumentError
from .layers import SparseConv2d


class SparseConv1d(SparseConv2d):
    """``nn.Conv1d`` that holds only its active weights.

    ``kernel_size``, ``stride``, ``padding`` and ``dilation`` become pairs, as in a convolution over images of height 1.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: as in ``nn.Conv1d``.
        stride: as in ``nn.Conv1d``.
        padding: number of zeros on either side.
        dilation: as in ``nn.Conv1d``.
        groups: as in ``nn.Conv1d``.
        bias: whether to add a learned bias.
        connections: the active weights, as sorted flat indices into the dense ``(out, in // groups, kernel)`` weight,
            int64 ``[nnz]``; None draws them at random.
        sparsity: share of the weights that do not exist, in [0, 1); used if ``connections`` is None.
        structure: as in :class:`SparseConv2d`.
        relu: whether to apply ReLU to the result in the same pass.
        device: device of values and bias.
        dtype: their dtype. float32 on a CPU uses the compiled kernels.

    Raises:
        InvalidArgumentError: see :class:`SparseConv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        connections: torch.Tensor | None = None,
        sparsity: float = 0.95,
        structure: tuple[int, int] = (1, 1),
        relu: bool = False,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            (1, check_count("kernel_size", kernel_size, least=1)),
            (1, check_count("stride", stride, least=1)),
            (0, check_count("padding", padding, least=0)),
            (1, check_count("dilation", dilation, least=1)),
            groups,
            bias,
            connections=connections,
            sparsity=sparsity,
            structure=structure,
            relu=relu,
            device=device,
            dtype=dtype,
        )

    @property
    @override
    def dense_shape(self) -> tuple[int, ...]:
        return self.out_channels, self.in_channels // self.groups, self.kernel_size[1]

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, C_in, L]`` to ``[B, C_out, L']``, or the same without the batch dimension."""
        if not is_dense(x) or x.dim() not in (2, 3):
            raise InvalidArgumentError(f"x={shown(x)}; give a dense tensor [B, {self.in_channels}, L]")
        images = (x if x.dim() == 3 else x.unsqueeze(0)).unsqueeze(2)
        y = super().forward(images).squeeze(2)
        return y if x.dim() == 3 else y.squeeze(0)

    @override
    def to_dense_layer(self) -> nn.Module:
        geometry: Any = [size[1] for size in (self.kernel_size, self.stride, self.padding, self.dilation)]
        more: Any = (self.groups, self.bias is not None, "zeros", "meta")
        return self._with_activation(nn.Conv1d(self.in_channels, self.out_channels, *geometry, *more))
