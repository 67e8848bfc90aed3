"""Inference in the textbook format: the CSR products of torch and scipy."""

from __future__ import annotations

import math
from typing import Any

import scipy.sparse
import torch
import torch.nn.functional as F
from torch import nn

from truly_sparse.arguments import is_dense, require, shown
from truly_sparse.copies import copied
from truly_sparse.errors import InvalidArgumentError
from truly_sparse.interface import SparsifiableLayer, check_has_numbers, sparse_layers
from truly_sparse.topology import to_mask

BACKENDS = ("torch", "scipy")


def torch_csr(matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix ``[out, in]`` as torch's CSR tensor with 4-byte indices, which its products read fastest.

    Its best layout for the other factor is feature-major, ``[in, B]``.
    """
    csr = matrix.detach().to_sparse_csr()
    indices = csr.crow_indices().to(torch.int32), csr.col_indices().to(torch.int32)
    return torch.sparse_csr_tensor(*indices, csr.values(), csr.shape, check_invariants=False)


class CSRProduct(nn.Module):
    """A matrix in compressed sparse row (CSR) form: row pointers, column indices and values; no dense weight.

    Args:
        matrix: the dense matrix, float32 or float64 ``[out, in]``.
        mask: boolean ``[out, in]``: the entries to keep.
        backend: ``"torch"`` (any device) or ``"scipy"`` (CPU, one thread).

    Raises:
        InvalidArgumentError: unknown backend.
    """

    indptr: torch.Tensor
    indices: torch.Tensor
    values: torch.Tensor

    def __init__(self, matrix: torch.Tensor, mask: torch.Tensor, backend: str) -> None:
        super().__init__()
        if backend not in BACKENDS:
            raise InvalidArgumentError(f"unknown backend {backend!r}; use one of {', '.join(BACKENDS)}")
        # scipy would silently convert shorter types.
        here, usable = matrix.device, matrix.dtype in (torch.float32, torch.float64) and not matrix.is_meta
        require(usable and matrix.dim() == 2, "matrix", matrix, "give torch.float32 or torch.float64 [out, in]")
        fits = mask.dtype == torch.bool and mask.shape == matrix.shape and mask.device == here
        require(fits, "mask", mask, f"give torch.bool {tuple(matrix.shape)} on {here}")
        if backend == "scipy" and not matrix.is_cpu:
            raise InvalidArgumentError(f"backend='scipy' computes on a CPU, not on {matrix.device}; use 'torch'")
        self.backend, self.shape = backend, tuple(matrix.shape)
        row_sizes = mask.sum(1)
        self.register_buffer("indptr", F.pad(row_sizes.cumsum(0), (1, 0)).to(torch.int32))
        self.register_buffer("indices", mask.nonzero()[:, 1].to(torch.int32))
        self.register_buffer("values", matrix.detach()[mask])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply with feature-major columns: ``[in, N]`` to ``[out, N]``.

        Raises:
            InvalidArgumentError: other rows, type or device than the matrix has columns, type and device.
        """
        kind = self.values.dtype, self.values.device
        if not is_dense(x) or x.dim() != 2 or len(x) != self.shape[1] or (x.dtype, x.device) != kind:
            raise InvalidArgumentError(f"x={shown(x)}; give {kind[0]} [{self.shape[1]}, N] on {kind[1]}, dense")
        if self.backend == "torch":
            matrix = torch.sparse_csr_tensor(self.indptr, self.indices, self.values, self.shape, check_invariants=False)
            return matrix @ x
        arrays = (self.values.numpy(), self.indices.numpy(), self.indptr.numpy())
        return torch.from_numpy(scipy.sparse.csr_matrix(arrays, shape=self.shape) @ x.detach().resolve_neg().numpy())


class CSRLinear(nn.Module):
    """A linear layer, inference only, over a :class:`CSRProduct`."""

    bias: torch.Tensor | None

    def __init__(self, product: CSRProduct, bias: torch.Tensor | None) -> None:
        super().__init__()
        _check_bias(bias, product)
        self.product = product
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[..., in]`` to ``[..., out]``."""
        columns = x.reshape(-1, x.shape[-1]).T.contiguous()  # feature-major: the fastest layout for CSR
        y = self.product(columns).T.reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class CSRConv2d(nn.Module):
    """A convolution, inference only: each patch becomes a column (im2col), then one CSR product."""

    bias: torch.Tensor | None

    def __init__(self, product: CSRProduct, bias: torch.Tensor | None, layer: Any) -> None:
        super().__init__()
        if layer.groups != 1 or isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            raise InvalidArgumentError(
                f"{layer} has groups, named padding or a padding mode; use groups=1 and zero padding in numbers"
            )
        _check_bias(bias, product)
        shape = layer.out_channels, math.prod(layer.weight.shape[1:])
        require(
            product.shape == shape,
            "product.shape",
            product.shape,
            f"{type(layer).__name__}'s weight is {shape}; use its own",
        )
        self.product = product
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.kernel_size, self.stride = layer.kernel_size, layer.stride
        self.padding, self.dilation = layer.padding, layer.dilation

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, C_in, H, W]`` to ``[B, C_out, H', W']``."""
        B = x.shape[0]
        patches = F.unfold(x, self.kernel_size, self.dilation, self.padding, self.stride)  # [B, C·k·k, H'·W']
        columns = patches.permute(1, 2, 0).reshape(patches.shape[1], -1)  # [C·k·k, H'·W'·B]
        y = self.product(columns)
        if self.bias is not None:
            y = y + self.bias[:, None]
        height = (x.shape[2] + 2 * self.padding[0] - self.dilation[0] * (self.kernel_size[0] - 1) - 1) // self.stride[0]
        return y.view(y.shape[0], height + 1, -1, B).permute(3, 0, 1, 2)


def _check_bias(bias: torch.Tensor | None, product: CSRProduct) -> None:
    rows = product.shape[0]
    if bias is not None and (bias.shape != (rows,) or bias.dtype != product.values.dtype):
        raise InvalidArgumentError(f"bias={shown(bias)}; give {rows} numbers of type {product.values.dtype}, or None")


def to_csr(model: nn.Module, backend: str = "torch") -> nn.Module:
    """Return a copy of ``model`` for inference in which every sparse layer multiplies in CSR form.

    Args:
        model: holds sparse layers (``mask_model``).
        backend: ``"torch"`` or ``"scipy"``.

    Raises:
        InvalidArgumentError: no sparse layers, unknown backend, or a convolution with groups or odd padding.
    """
    layers = sparse_layers(model)
    if not layers:
        raise InvalidArgumentError(f"{type(model).__name__} has no sparse layers; call mask_model(model) first")
    check_has_numbers(model)
    return copied(model, {name: _csr_layer(layer, backend) for name, layer in layers.items()}).eval()


def _csr_layer(layer: SparsifiableLayer, backend: str) -> CSRLinear | CSRConv2d:
    dense: Any = layer.to_dense_layer()
    rows = layer.dense_shape[0]
    mask = to_mask(layer.active(), (rows, math.prod(layer.dense_shape[1:])))
    product = CSRProduct(dense.weight.reshape(rows, -1), mask, backend)
    return CSRLinear(product, dense.bias) if isinstance(dense, nn.Linear) else CSRConv2d(product, dense.bias, dense)
