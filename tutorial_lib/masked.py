"""Simulated sparsity: a dense weight times a binary mask, in every forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from typing_extensions import override

from truly_sparse.adapters import adapted
from truly_sparse.arguments import check_memory, pair, require, shown
from truly_sparse.computed import with_tensors_of
from truly_sparse.copies import copied
from truly_sparse.errors import InvalidArgumentError, TrainingError
from truly_sparse.interface import Carry, Names, SparsifiableLayer, check_has_numbers, sparse_layers, untied_layers
from truly_sparse.positions import check_places
from truly_sparse.report import sparsity_by_layer, tell_what_stays_dense
from truly_sparse.structure import UNSTRUCTURED, Structure, StructureLike, active_blocks
from truly_sparse.topology import check_rewiring, check_values, initial_topology, structures_of, to_connections, to_mask

ROWS_PER_BLOCK = 1024


class MaskedLayer(SparsifiableLayer):
    """Common base of MaskedLinear and MaskedConv2d. The stored weight is zero where the mask is False."""

    weight: Any
    mask: torch.Tensor
    _recorded: Sequence[torch.Tensor] = ()  # at most one: the sum

    def set_mask(self, mask: torch.Tensor) -> None:
        """Set the mask, and set the weights that it removes to zero.

        Raises:
            InvalidArgumentError: the mask has another shape or is not boolean.
        """
        if mask.dtype != torch.bool or mask.shape != self.weight.shape:
            raise InvalidArgumentError(f"mask={shown(mask)}; give one that is torch.bool {tuple(self.weight.shape)}")
        with torch.no_grad():
            self.mask = mask.to(self.weight.device)
            self.weight.masked_fill_(~self.mask, 0)

    def masked_weight(self) -> torch.Tensor:
        """Return weight × mask. The gradient of the product is dense; that of the weight is zero outside the mask."""
        product = self.weight * self.mask
        if self.record_gradient and product.requires_grad:
            product.register_hook(self._add_gradient)
        return product

    def _add_gradient(self, gradient: torch.Tensor) -> None:
        self._recorded = [sum(self._recorded, gradient)]

    @property
    @override
    def dense_shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)

    @property
    @override
    def weight_parameter(self) -> nn.Parameter:
        weight: nn.Parameter = self.weight
        return weight

    @override
    def active(self) -> torch.Tensor:
        return to_connections(self.mask)

    @override
    def active_values(self) -> torch.Tensor:
        return self.weight.detach()[self.mask]

    @override
    def set_active_values(self, values: torch.Tensor) -> None:
        check_values(values, int(self.mask.sum()))
        with torch.no_grad():
            self.weight[self.mask] = values.to(self.weight)

    @override
    def fade_gradient(self, factor: float) -> None:
        require(math.isfinite(factor), "factor", factor, "use a finite number")
        self._recorded = [gradient * factor for gradient in self._recorded]

    def _rows(self) -> torch.Tensor:
        if not self._recorded:
            raise TrainingError("no gradient was recorded; set record_gradient = True before forward and backward")
        return self._recorded[0].reshape(self.weight.shape[0], -1)

    @override
    def gradient_rows(self) -> Iterator[torch.Tensor]:
        yield from self._rows().split(ROWS_PER_BLOCK)

    @override
    def gradient_at(self, connections: torch.Tensor) -> torch.Tensor:
        check_places("connections", connections, self.dense_shape)
        return self._rows().reshape(-1)[connections]

    @override
    def rewire(self, kept: torch.Tensor, grown: torch.Tensor, values: torch.Tensor) -> Carry:
        check_rewiring(self, kept, grown, values)
        shape = self.dense_shape
        moved = self.mask ^ to_mask(kept, shape) | to_mask(grown, shape)  # pruned or grown
        with torch.no_grad():
            self.mask.copy_(to_mask(torch.cat([kept, grown]), shape))
            self.weight.masked_fill_(moved, 0)
            # unravel_index: a weight in channels_last has no flat view.
            self.weight[torch.unravel_index(grown, shape)] = values
        # clone keeps the strides, which fused optimizers require to be those of the weight.
        return lambda state, fresh: state.clone().masked_fill_(moved, fresh)

    @override
    def to_dense_layer(self) -> nn.Module:
        dense = with_tensors_of(self, next(kind for kind in MASKED if isinstance(self, kind)))
        with torch.no_grad():
            dense.weight.mul_(self.mask)
        return dense

    @override
    def _before_loading(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        mask = state_dict.get(f"{prefix}mask")  # torch refuses what has another shape
        if self.structure != UNSTRUCTURED and torch.is_tensor(mask) and mask.shape == self.mask.shape:
            active_blocks(to_connections(mask.bool()), self.dense_shape, self.structure)  # refuses parts of blocks

    def extra_repr(self) -> str:
        """Return the dense layer's description, the number of active weights, and their structure."""
        blocks = "" if self.structure == UNSTRUCTURED else f", structure={self.structure}"
        return f"{super().extra_repr()}, active={int(self.mask.sum())}/{self.mask.numel()}{blocks}"


class MaskedLinear(MaskedLayer, nn.Linear):
    """``nn.Linear`` whose weight is multiplied by the boolean buffer ``mask`` in every forward pass."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_memory("out_features × in_features", (out_features, in_features), 5 * in_features * out_features, device)
        super().__init__(in_features, out_features, bool(bias), device, dtype)
        self.register_buffer("mask", torch.ones_like(self.weight, dtype=torch.bool))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[..., in]`` to ``[..., out]``."""
        return F.linear(x, self.masked_weight(), self.bias)


class MaskedConv2d(MaskedLayer, nn.Conv2d):
    """``nn.Conv2d`` whose weight is multiplied by the boolean buffer ``mask`` in every forward pass."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Any = "zeros",
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kernel_size, stride = pair("kernel_size", kernel_size, 1), pair("stride", stride, 1)
        padding = padding if isinstance(padding, str) else pair("padding", padding, 0)
        dilation = pair("dilation", dilation, 1)
        size = out_channels * in_channels // groups * math.prod(kernel_size)
        check_memory("out_channels × in_channels", (out_channels, in_channels), 5 * size, device)
        geometry = (kernel_size, stride, padding, dilation, groups)
        super().__init__(in_channels, out_channels, *geometry, bool(bias), padding_mode, device, dtype)
        self.register_buffer("mask", torch.ones_like(self.weight, dtype=torch.bool))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, C_in, H, W]`` to ``[B, C_out, H', W']``."""
        return self._conv_forward(x, self.masked_weight(), self.bias)


class MaskedConv1d(MaskedLayer, nn.Conv1d):
    """``nn.Conv1d`` whose weight is multiplied by the boolean buffer ``mask`` in every forward pass."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.register_buffer("mask", torch.ones_like(self.weight, dtype=torch.bool))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, C_in, L]`` to ``[B, C_out, L']``."""
        return self._conv_forward(x, self.masked_weight(), self.bias)


MASKED: dict[Any, type[MaskedLayer]] = {nn.Linear: MaskedLinear, nn.Conv1d: MaskedConv1d, nn.Conv2d: MaskedConv2d}


def _masked_layer(layer: Any, connections: torch.Tensor, structure: Structure) -> MaskedLayer:
    masked = with_tensors_of(layer, next(MASKED[kind] for kind in MASKED if isinstance(layer, kind)))
    masked.structure = structure
    masked.set_mask(to_mask(connections, masked.dense_shape))
    return masked.train(layer.training)


def mask_model(
    model: nn.Module,
    sparsity: float | None = 0.95,
    scheme: str = "uniform",
    seed: int = 0,
    include: Names = ("*",),
    exclude: Names = (),
    topology: str = "random",
    structure: StructureLike = UNSTRUCTURED,
) -> nn.Module:
    """Return a copy of ``model`` with masks on its Linear, Conv1d and Conv2d weights. Biases and norms stay dense.

    One line names what else stays dense. All kinds of module are taken over as :func:`sparsify` takes them.

    Args:
        model: any module with such layers, nested or not. It is not changed.
        sparsity: share of the weights to remove, in [0, 1); None: the weights that are zero now, and no others.
        scheme: how the layers share the remaining weights, see :func:`layer_nnz`.
        seed: seed of the random masks.
        include: name patterns or classes of the layers to mask, or of modules that contain them.
        exclude: the same of layers that stay dense.
        topology: ``"random"``, or ``"magnitude"``: the largest weights of each layer.
        structure: outputs × inputs of the blocks in which weights exist, see :func:`sparsify`.

    Raises:
        InvalidArgumentError: see :func:`layer_nnz`; or the model is masked already, or on the meta device.
    """
    check_has_numbers(model)
    require(not sparse_layers(model), "model", model, "it holds sparse layers already; call densify(model) first")
    model = adapted(model, include, exclude)
    chosen = initial_topology(model, sparsity, scheme, seed, include, exclude, topology, structure)
    layers = untied_layers(model, include, exclude)
    of = structures_of(layers, structure)
    masked = copied(model, {name: _masked_layer(layers[name], chosen[name], of[name]) for name in chosen})
    tell_what_stays_dense(masked, include, exclude)
    return masked


def sparsity_report(model: nn.Module) -> pd.DataFrame:
    """Return a table of weights and active weights per sparse layer, per dense weight, and in total.

    Columns: ``shape``, ``weights``, ``active``, ``sparsity`` (share of weights that are not active) and, where weights
    exist in blocks, ``structure``. Biases and norms are not counted, see ``truly_sparse.report.sparsity_by_layer``.
    """
    rows = {
        name: row._asdict()
        | {"shape": "×".join(map(str, row.shape)), "structure": str(row.structure if row.shape else "")}
        for name, row in sparsity_by_layer(model).items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.drop(columns="structure") if table["structure"].isin(["", "1×1"]).all() else table
